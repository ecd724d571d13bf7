"""The command for the pages in the browser."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import tyro

from semiseg.commands.arguments import Quiet
from semiseg.errors import ConfigError

_NEEDED = ("starlette", "uvicorn", "python_multipart")


@dataclass(frozen=True, kw_only=True)
class View:
    """Look at a run or a folder in the browser; accept, set aside or correct its labels."""

    folder: tyro.conf.Positional[Path]
    """A run, also one that is being trained; a dataset folder; an archive of DICOM; or a folder of label maps."""
    port: int = 0
    """Of this machine (127.0.0.1); by default a free one."""
    no_browser: Quiet = False
    """Print the address, and do not open it."""
    labels: Path | None = None
    """Folder of label maps to judge in the place of the run's or the folder's own."""
    decisions: Path | None = None
    """File that decisions are added to; by default decisions.jsonl in the folder."""
    reviewer: str = ""
    """Who decides: by default the user's name on this machine."""

    def execute(self) -> int:
        refuse_missing("the pages need")
        from semiseg.view.command import serve
        from semiseg.view.server import STATIC, are_built

        if not are_built():
            raise ConfigError(
                f"{STATIC}: the pages are not built. Build them with `make pages` (needs Node 20) and install again, "
                "or install a wheel."
            )
        serve(
            self.folder,
            port=self.port,
            browser=not self.no_browser,
            labels=self.labels,
            decisions=self.decisions,
            reviewer=self.reviewer,
        )
        return 0


def refuse_missing(what: str) -> None:
    """Raise `ConfigError` where the packages of a server are not installed."""
    if missing := [name for name in _NEEDED if find_spec(name) is None]:
        raise ConfigError(f"{what} {missing[0]}, which is not installed: pip install '.[view]'")
