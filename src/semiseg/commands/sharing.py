"""Commands that send a model to a model hub, and fetch one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from semiseg.commands.arguments import Quiet, say


@dataclass(frozen=True, kw_only=True)
class Push:
    """Send a trained model to a model hub: weights, plan, card and README, into a private repository."""

    model: tyro.conf.Positional[Path]
    """Model folder, a run that was trained, or what `semiseg export --to model` wrote."""
    repository: tyro.conf.Positional[str]
    """OWNER/NAME; made where it is not there."""
    public: Quiet = False
    """For everybody to read."""
    license: str = ""
    """Of the model, by the hub's name, such as apache-2.0; by default none is stated."""
    quiet: Quiet = False
    """Print the command that fetches it, and errors only."""

    def execute(self) -> int:
        from semiseg.prediction.model import load_model
        from semiseg.sharing.hub import push

        pushed = push(load_model(self.model), self.repository, public=self.public, license=self.license)
        seen = "only you and whom you let in see it" if pushed.private else "everybody sees it"
        say(f"{pushed.url} ({seen})", self.quiet)
        if pushed.kept_readme:
            say("The README there was changed by hand, and is left as it is.", self.quiet)
        print(f"semiseg pull {self.repository} --revision {pushed.revision}")
        return 0


@dataclass(frozen=True, kw_only=True)
class Pull:
    """Fetch a model from a model hub into a folder, and check it against the hashes of its card."""

    repository: tyro.conf.Positional[str]
    """OWNER/NAME."""
    output: Path | None = None
    """Folder for it; by default NAME."""
    revision: str = ""
    """Branch, tag or commit; by default the newest."""
    quiet: Quiet = False
    """Print the revision and errors only."""

    def execute(self) -> int:
        from semiseg.sharing.hub import pull

        pulled = pull(self.repository, self.output, revision=self.revision)
        print(f"{pulled.folder}: {self.repository} --revision {pulled.revision}")
        say(f"Next: semiseg predict {pulled.folder} SCANS --output LABELS", self.quiet)
        return 0
