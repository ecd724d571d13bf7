"""`semiseg demo`: the whole way on generated scans, without and with the unlabelled ones, in a few minutes."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.console import Console

from semiseg import workflows
from semiseg.augment.settings import AugmentSettings
from semiseg.data.planner import PlanSettings
from semiseg.data.roles import DataSettings
from semiseg.data.sampling import SamplingSettings
from semiseg.demo.dataset import RECIPE, write_phantom_dataset
from semiseg.errors import ConfigError, DataError
from semiseg.methods.settings import MplSettings, SupervisedSettings, TeacherPhases
from semiseg.prediction.settings import PredictSettings
from semiseg.scoring.evaluator import EvaluateSettings
from semiseg.settings import RunSettings
from semiseg.training.settings import TrainSettings
from semiseg.types import Shape
from semiseg.words import counted

BASELINE, MPL = "baseline", "baseline-mpl"
STEPS = 1900
"""Of labels alone: by steps, so that the demo shows the same on every machine."""
MPL_PHASES = TeacherPhases(warmup=0.8, restart_rate=0.2)
"""So short a run needs most of its steps for a teacher that finds the small organs."""
MPL_SHARE = 0.82
"""So many steps have Meta Pseudo Labels in the same compute: in the last fifth of the run, in which teacher and student
learn, one costs 2.1 times as much (measured on a CPU)."""


def demo_settings(data: Path, *, seed: int, steps: int) -> RunSettings:
    """Settings of the demo's runs on labels alone: sizes for a CPU core. One thread, since another number rounds
    otherwise, which moves the scores of so short a run by more than 0.02; it takes hardly longer."""
    return RunSettings(
        data=DataSettings(root=str(data.resolve())),
        plan=PlanSettings(base_features=8, patch=(16, 32, 32), batch=2, max_levels=4),
        sampling=SamplingSettings(foreground_fraction=0.67),
        augment=AugmentSettings(mirror_axes=(), turn_degrees=(15.0, 15.0, 15.0), zoom=(0.85, 1.2)),
        method=SupervisedSettings(),
        train=TrainSettings(seed=seed, steps=steps, threads=1, validation_every=0),
        predict=PredictSettings(tile_step=0.5),
        evaluate=EvaluateSettings(tolerance_mm=6.0),
    )


@dataclass(frozen=True, kw_only=True)
class DemoSize:
    """How many phantoms the demo makes. shape_zyx: of every scan; None draws sizes as `write_phantom_dataset` does."""

    labelled: int = 4
    unlabelled: int = 24
    test: int = 8
    shape_zyx: Shape | None = None


def run_demo(
    folder: Path, *, seed: int = 0, steps: int = STEPS, size: DemoSize | None = None, quiet: bool = False
) -> Path:
    """Generate, check, train twice with the same compute, predict, score, compare and report; goes on where it was cut
    off. steps: of labels alone.

    Returns the page `folder/report.html`, which shows both runs side by side; each has a page of its own beside it.
    """
    size = size or DemoSize()
    began = time.monotonic()
    console = Console(quiet=quiet)
    counts = f"{counted(size.labelled, 'scan')} with labels, {size.unlabelled} without, {size.test} to test on"
    console.rule(f"1. An abdominal CT phantom set: {counts}")
    page = folder / "report.html"
    if page.exists() and not ((folder / "data" / RECIPE).exists() or (folder / BASELINE / "run.toml").exists()):
        raise ConfigError(f"{page}: no demo made it, and it would be written over. Name a new folder, or an empty one.")
    data = write_phantom_dataset(folder / "data", seed=seed, **asdict(size))
    if not workflows.check(data, quiet=quiet).ok:
        raise DataError(f"{data}: the generated set is damaged. Delete {folder} and run the demo again.")
    baseline = demo_settings(data, seed=seed, steps=steps)
    with_mpl = replace(
        baseline,
        method=MplSettings(phases=MPL_PHASES),
        train=replace(baseline.train, steps=round(MPL_SHARE * steps)),
    )
    runs = {BASELINE: baseline, MPL: with_mpl}
    for number, (name, settings) in enumerate(runs.items(), start=2):
        what = "labels alone" if name == BASELINE else "all scans (Meta Pseudo Labels), same compute"
        console.rule(f"{number}. Training on {what}")
        workflows.run_all(folder / name, settings, quiet=quiet)
    console.rule("4. Both side by side")
    folders = [folder / name for name in runs]
    workflows.compare(folders, names=["Baseline", "Baseline + MPL"], page=page, quiet=quiet)
    minutes = (time.monotonic() - began) / 60
    console.print(f"\nDone in {minutes:.1f} minutes. Open these in a browser:")
    for path in (page, *(run / "report.html" for run in folders)):
        console.print(f"  {path}", highlight=False)
    return page
