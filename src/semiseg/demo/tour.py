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
BASELINE_MINUTES, MPL_MINUTES = 1.25, 3.25
"""Training time of the two runs. The second one's is longer by what its teacher teaches: the demo shows what MPL
adds to a baseline. Methods in equal time are compared in docs/lab/accuracy.md."""


def demo_settings(data: Path, *, seed: int, steps: int | None) -> RunSettings:
    """Settings of the demo's MPL run: sizes for two CPU cores. steps: instead of the minutes."""
    train = TrainSettings(seed=seed, validation_every=0)
    train = replace(train, minutes=MPL_MINUTES) if steps is None else replace(train, steps=steps)
    return RunSettings(
        data=DataSettings(root=str(data.resolve())),
        plan=PlanSettings(base_features=8, patch=(24, 40, 48), batch=2, max_levels=4),
        sampling=SamplingSettings(foreground_fraction=0.67),
        augment=AugmentSettings(mirror_axes=(), turn_degrees=(15.0, 15.0, 15.0), zoom=(0.85, 1.2)),
        method=MplSettings(phases=TeacherPhases(warmup=0.7)),
        train=train,
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
    folder: Path, *, seed: int = 0, steps: int | None = None, size: DemoSize | None = None, quiet: bool = False
) -> Path:
    """Generate, check, train twice, predict, score, compare and report; goes on where it was cut off.

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
    with_mpl = demo_settings(data, seed=seed, steps=steps)
    baseline = replace(
        with_mpl,
        method=SupervisedSettings(),
        train=with_mpl.train if steps else replace(with_mpl.train, minutes=BASELINE_MINUTES),
    )
    runs = {BASELINE: baseline, MPL: with_mpl}
    for number, (name, settings) in enumerate(runs.items(), start=2):
        what = "labelled scans only"
        if name == MPL:
            what = "labelled and unlabelled scans (Meta Pseudo Labels, dense), for longer"
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
