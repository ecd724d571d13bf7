"""How many training steps a run's minutes allow, as a program: `python -m semiseg.study.calibration RUN RECIPE`."""

from __future__ import annotations

import sys
from pathlib import Path

from semiseg import workflows
from semiseg.errors import SemisegError
from semiseg.settings import read_settings


def main() -> int:
    """Print the number of steps; the exit code is 2 for an error that the user can mend."""
    run, recipe = map(Path, sys.argv[1:])
    try:
        print(workflows.calibrate(run, read_settings(recipe), quiet=True))
    except SemisegError as error:
        print(f"semiseg: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
