"""The command for prepared scans that runs share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from semiseg.commands.arguments import Quiet, say
from semiseg.words import counted


@dataclass(frozen=True, kw_only=True)
class Store:
    """List the prepared scans that runs share, and remove those that no run uses any more."""

    folder: tyro.conf.Positional[Path] = Path("runs/prepared-scans")
    """The store, beside the runs."""
    prune: Quiet = False
    """Remove what no run uses."""
    quiet: Quiet = False
    """Print results and errors only."""

    def execute(self) -> int:
        from semiseg.console import bar
        from semiseg.data.shared_store import entries, prune

        found = entries(self.folder)
        if self.prune:
            with bar("pruning", self.quiet) as advance:
                freed = prune(self.folder, advance)
            print(f"Removed {freed / 1e9:.2f} GB that no run uses.")
            return 0
        shared: dict[Path, list[int]] = {}
        for one in found:
            for run in one.runs:
                shared.setdefault(run, []).append(one.bytes)
        for run, sizes in sorted(shared.items()):
            print(f"{run}: {counted(len(sizes), 'scan')}, {sum(sizes) / 1e9:.2f} GB")
        elsewhere = [one for one in found if one.is_used and not one.runs]
        if elsewhere:
            size = sum(one.bytes for one in elsewhere)
            print(f"runs that lie elsewhere: {counted(len(elsewhere), 'scan')}, {size / 1e9:.2f} GB")
        unused = [one for one in found if not one.is_used]
        total = sum(one.bytes for one in found)
        say(f"{self.folder}: {counted(len(found), 'prepared scan')}, {total / 1e9:.2f} GB in all.", self.quiet)
        if unused:
            size = sum(one.bytes for one in unused)
            print(
                f"No run has {counted(len(unused), 'scan')} by a link ({size / 1e9:.2f} GB): "
                f"semiseg store {self.folder} --prune"
            )
        return 0
