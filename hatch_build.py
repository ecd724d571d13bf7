"""Bundles the pages of `semiseg view` when a wheel or an sdist is built, which needs Node 20.

An sdist brings the bundle along, so that a wheel that is built of it needs no Node. A wheel that is built of a clone
without Node goes without the pages, and says so: `pip install .` is how predicting is installed, too.
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
        if missing := build(root):
            if self.target_name == "sdist":
                raise SystemExit(missing)
            if not (root / BUNDLE / "index.html").is_file():
                self.app.display_warning(f"Built without the pages of `semiseg view`. {missing}")


def build(root: Path) -> str:
    """Install what package-lock.json names, check the types, bundle. Returns why it cannot be done here, or nothing."""
    npm = shutil.which("npm")
    if npm is None:
        return "They are bundled by Node 20 or newer, whose npm was not found."
    if subprocess.run([npm, "ci", "--ignore-scripts"], cwd=root / "pages", check=False).returncode:
        return "npm could not fetch the packages that bundle them."
    for step in ("check", "build"):
        subprocess.run([npm, "run", "--silent", step], cwd=root / "pages", check=True)
    return ""
