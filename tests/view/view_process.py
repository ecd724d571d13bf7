"""Serves the pages of a folder, as `semiseg view` does, whether or not the pages are built.

python view_process.py FOLDER CACHE
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    os.environ["XDG_CACHE_HOME"] = sys.argv[2]
    from semiseg.view.command import serve

    serve(Path(sys.argv[1]), browser=False, reviewer="ann")
