"""A user who may not read everything, whoever runs the tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def nobody_in(folder: Path) -> Iterator[None]:
    """As a user who may not read everything; root is one for as long, who needs the folder as the working one."""
    before = Path.cwd()
    folder.chmod(0o755)
    os.chdir(folder)
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)
        os.chdir(before)
