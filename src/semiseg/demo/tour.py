"""`semiseg demo`: the whole way on generated scans, without and with the unlabelled ones, in a few minutes."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.console import Console

from semiseg import prepare_run, workflows
from semiseg.augment.settings import AugmentSettings
from semiseg.data.planner import PlanSettings
from semiseg.data.roles import DataSettings
from semiseg.data.sampling import SamplingSettings
from semiseg.demo.dataset import RECIPE, write_phantom_dataset
from semiseg.errors import ConfigError, DataError
from semiseg.methods.settings import OptimiserSettings, PseudoRoundsSettings, RoundPhases, SupervisedSettings
from semiseg.prediction.settings import PredictSettings
from semiseg.scoring.evaluator import EvaluateSettings
from semiseg.settings import RunSettings
from semiseg.train_run import train
from semiseg.training.settings import TrainSettings
from semiseg.types import Shape
from semiseg.words import counted, in_minutes

START, ALONE, BOTH = "start", "labels-alone", "all-scans"
STEPS = 4000
"""Of labels alone: by steps, so that the demo shows the same on every machine."""
START_SHARE = 0.75
"""Of the steps, on labels alone, after which both runs go on from one network: so it is trained once, and the two
differ by what they learnt from afterwards, not by their first weights."""
RATE = 0.02
"""Learning rate with which both go on, a fifth of the first."""
ALONE_STEPS = 1.1
"""Steps of labels alone for one of the default: what labelling scans costs it at most (docs/protocol.md)."""


def demo_settings(data: Path, *, seed: int, steps: int) -> RunSettings:
    """Settings of a run on labels alone: sizes for a CPU core, and one thread whatever the machine has,
    so that it shows the same."""
    return RunSettings(
        data=DataSettings(root=str(data.resolve())),
        plan=PlanSettings(base_features=8, patch=(16, 24, 24), batch=2, max_levels=4),
        sampling=SamplingSettings(foreground_fraction=1.0),
        augment=AugmentSettings(mirror_axes=(), turn_degrees=(15.0, 15.0, 15.0), zoom=(0.85, 1.2)),
        method=SupervisedSettings(),
        train=TrainSettings(seed=seed, steps=steps, threads=1, validation_every=0),
        predict=PredictSettings(tile_step=0.5),
        evaluate=EvaluateSettings(tolerance_mm=8.0),
    )


@dataclass(frozen=True, kw_only=True)
class DemoSize:
    """How many phantoms the demo makes. shape_zyx: of every scan; None draws sizes as `write_phantom_dataset` does."""

    labelled: int = 4
    unlabelled: int = 24
    test: int = 24
    shape_zyx: Shape | None = None


def going_on(start: RunSettings, run: Path, *, steps: int) -> dict[str, RunSettings]:
    """Settings of both runs from the trained `run`: so many steps on labels alone, and the default as long."""
    optimiser = OptimiserSettings(learning_rate=RATE)
    alone = replace(
        start,
        plan=PlanSettings(),  # the trained run's
        method=SupervisedSettings(optimiser=optimiser),
        train=replace(start.train, weights=str(run.resolve()), steps=steps),
    )
    both = replace(
        alone,
        method=PseudoRoundsSettings(optimiser=optimiser, phases=RoundPhases(warmup=0.0)),
        train=replace(alone.train, steps=max(1, round(steps / ALONE_STEPS))),
    )
    return {ALONE: alone, BOTH: both}


def run_demo(
    folder: Path, *, seed: int = 0, steps: int = STEPS, size: DemoSize | None = None, quiet: bool = False
) -> Path:
    """Generate, check, train on labels alone, go on with and without the unlabelled scans for the same compute,
    predict, score, compare and report; goes on where it was cut off. steps: of labels alone, from the beginning.

    Returns the page `folder/report.html`, which shows both runs side by side; each has a page of its own beside it.
    """
    size = size or DemoSize()
    began = time.monotonic()
    console = Console(quiet=quiet)
    counts = f"{counted(size.labelled, 'scan')} with labels, {size.unlabelled} without, {size.test} to test on"
    console.rule(f"1. An abdominal CT phantom set: {counts}")
    page = folder / "report.html"
    if page.exists() and not ((folder / "data" / RECIPE).exists() or (folder / ALONE / "run.toml").exists()):
        raise ConfigError(f"{page}: no demo made it, and it would be written over. Name a new folder, or an empty one.")
    data = write_phantom_dataset(folder / "data", seed=seed, **asdict(size))
    if not workflows.check(data, quiet=quiet).ok:
        raise DataError(f"{data}: the generated set is damaged. Delete {folder} and run the demo again.")
    console.rule("2. Training on labels alone")
    first = round(START_SHARE * steps)
    start = demo_settings(data, seed=seed, steps=first)
    prepare_run.prepare(folder / START, start, quiet=quiet)
    train(folder / START, quiet=quiet)
    runs = going_on(start, folder / START, steps=max(1, steps - first))
    for number, (name, settings) in enumerate(runs.items(), start=3):
        what = "labels alone" if name == ALONE else "all scans, by the default method, for the same compute"
        console.rule(f"{number}. From there, on {what}")
        workflows.run_all(folder / name, settings, quiet=quiet)
    console.rule("5. Both side by side")
    folders = [folder / name for name in runs]
    workflows.compare(folders, names=["Labels alone", "All scans"], page=page, quiet=quiet)
    minutes = (time.monotonic() - began) / 60
    console.print(f"\nDone in {in_minutes(round(minutes, 1))}. Open these in a browser:")
    for path in (page, *(run / "report.html" for run in folders)):
        console.print(f"  {path}", highlight=False, soft_wrap=True)
    console.print(f"\nLook at every case:\n  semiseg view {folder / BOTH}", highlight=False, soft_wrap=True)
    return page
