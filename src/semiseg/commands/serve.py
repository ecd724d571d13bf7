"""The command for the server of 3D Slicer and OHIF."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from semiseg.commands.arguments import Computes, Quiet
from semiseg.commands.view import refuse_missing
from semiseg.errors import ConfigError
from semiseg.prediction.settings import PredictSettings
from semiseg.words import printable


@dataclass(frozen=True, kw_only=True)
class Serve(Computes):
    """Label and correct scans in 3D Slicer or OHIF, by their modules of MONAI Label."""

    model: tyro.conf.Positional[Path | None] = None
    """Model folder, or a run that was trained: its labels and doubts are used then, and what is saved goes there."""
    data: Path | None = None
    """Dataset folder, or a folder of scans; by default the run's own scans."""
    output: Path | None = None
    """Folder for what is saved, by default semiseg-review; of a run it is the run."""
    review_only: Quiet = False
    """Without a model: labels that are there are looked at and mended."""
    host: str = "127.0.0.1"
    """This machine alone; another address lets other machines in."""
    port: int = 0
    """By default a free one."""
    ohif: str = ""
    """Where OHIF's pages come from, such as http://localhost:3000; no page of another site may ask otherwise."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    max_memory: str = ""
    """What predicting a scan may take, such as 4GB."""

    def execute(self) -> int:
        refuse_missing("the server needs")
        from semiseg.serve.command import checked_origin, serve
        from semiseg.serve.work import open_work

        if self.model is None and not self.review_only:
            raise ConfigError("name a model or a run; or give --review-only to serve without one.")
        origin = checked_origin(self.ohif)
        work = open_work(self.model, self.data, self.output, say=lambda text: print(printable(text), file=sys.stderr))
        infers = None
        if not self.review_only:
            from semiseg.predict_run import OnRequest
            from semiseg.run_folder import prepared_settings

            assert self.model is not None
            is_run = (self.model / "run.toml").is_file()
            settings = prepared_settings(self.model).predict if is_run else PredictSettings()
            settings = replace(
                settings,
                device=settings.device if self.device == "auto" else self.device,
                max_memory=self.max_memory or settings.max_memory,
            )
            infers = OnRequest(self.model, work.scans(), work.folder, settings=settings, say=print)
        serve(work, infers, host=self.host, port=self.port, origin=origin)
        return 0
