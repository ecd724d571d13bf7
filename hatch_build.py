"""Bundles the pages of `semiseg view` when a wheel or an sdist is built, where Node 20 is at hand.

Without it the package is built without them, and `semiseg view` says how to get them: all else works. An sdist brings
the bundle along, so that a wheel that is built of it needs no Node.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

BUNDLE = "src/semiseg/view/static"


class Pages(BuildHookInterface):  # type: ignore[type-arg]
    """hatchling finds it by its base class."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            return  # `make pages`
        build_data["artifacts"].append(f"{BUNDLE}/*")
        root = Path(self.root)
        if not (root / "pages").is_dir() or (root / "PKG-INFO").is_file():
            return  # an image that predicts alone, or an sdist
        try:
            build(root)
        except (OSError, subprocess.CalledProcessError) as error:
            self.app.display_warning(f"Built without the pages of `semiseg view`, which need Node 20: {error}")


def build(root: Path) -> None:
    """Install what package-lock.json names, check the types, bundle. Raises `OSError` where there is no Node."""
    npm = shutil.which("npm")
    if npm is None:
        raise FileNotFoundError("npm was not found")
    for command in (["ci", "--ignore-scripts"], ["run", "--silent", "check"], ["run", "--silent", "build"]):
        subprocess.run([npm, *command], cwd=root / "pages", check=True)
