"""A training session: a prepared run folder opened, its open questions settled, trained and shipped as a model."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from semiseg.augment.settings import AugmentSettings
from semiseg.data.batches import BatchSource
from semiseg.data.plan import Plan, indivisible
from semiseg.data.prepare import check_recipe
from semiseg.data.roles import Role, RunCase, of_role
from semiseg.data.sampling import SamplingSettings
from semiseg.errors import ConfigError, DataError
from semiseg.files import atomic_file
from semiseg.geometry import Box
from semiseg.io.store import OpenCase, open_case
from semiseg.methods.base import Batch, Method
from semiseg.methods.build import build_method
from semiseg.methods.mpl import MetaPseudoLabels
from semiseg.methods.phases import Phases
from semiseg.methods.settings import MethodSettings
from semiseg.predict.engines.torch_engine import TorchEngine, torch_engine
from semiseg.predict.model import load_model, save_model
from semiseg.randomness import Draw
from semiseg.train.calibrate import LARGEST_TURN, MOST_LABELLING, calibrated_steps, scratch_teacher_every
from semiseg.train.checkpoint import load_latest
from semiseg.train.inputs import Place, TrainingData, step_inputs
from semiseg.train.loop import train_method
from semiseg.train.origin import Origin, origin_of
from semiseg.train.out_of_memory import named_out_of_memory
from semiseg.train.precision import autocast_dtype
from semiseg.train.refresh import predicted_locations
from semiseg.train.scan_labels import label_scans
from semiseg.train.settings import TrainSettings

TIMED_SCANS = 4
"""Unlabelled scans that are labelled to know how long all take."""
USUAL_LABELLING = 0.25
"""Share of the budget in which unlabelled scans are labelled, if nothing is said of their number."""
LEAST_SCANS = 16
"""Fewer scans are too few for a student to learn from."""
PLAINLY_MORE = 4
"""So many budgets for the fewest scans that suffice, by the first one, and no other is timed."""
FEEDBACK_CASES = 3
"""Unlabelled scans for which the feedback is mapped for the report."""


@dataclass(frozen=True)
class Session:
    """A prepared run, ready to be trained. cases: with their roles. train.precision must be settled.

    Raises `ConfigError` where the warm-up's patch does not suit the plan.
    """

    run: Path
    cases: list[RunCase]
    plan: Plan
    sampling: SamplingSettings
    augment: AugmentSettings
    method: MethodSettings
    train: TrainSettings
    device: torch.device

    def __post_init__(self) -> None:
        patch = self.sampling.warmup_patch
        if patch is None:
            return
        if problem := indivisible(patch, self.plan.teacher):
            raise ConfigError(f"sampling.warmup_patch{problem}")
        if any(own > edge for own, edge in zip(patch, self.plan.patch, strict=True)):
            raise ConfigError(
                f"sampling.warmup_patch = {patch} is larger than the plan's patch of {self.plan.patch}, for which "
                "memory is planned. Give a smaller one, or a larger plan.patch."
            )

    @property
    def place(self) -> Place:
        augment = replace(self.augment, coarse_axis=self.plan.anisotropic_axis)
        return Place(
            self.plan,
            augment,
            self.device,
            autocast_dtype(self.train.precision),
            self.sampling.warmup_patch,
            self.method.label_mirror,
        )

    def open_data(self) -> TrainingData:
        """Raises `DataError` where the store was made for another plan, or where a method needs unlabelled cases and
        there are none."""
        check_recipe(self.run / "store", self.plan)
        labelled, unlabelled, validation = (
            tuple(self.run / "store" / case.id for case in of_role(self.cases, *roles)) for roles in _SOURCES
        )
        unlabelled = self.learnt_from(unlabelled)
        if self.method.uses_unlabelled and not unlabelled:
            raise DataError(
                f"{self.run}/cases.jsonl: no unlabelled case, but method {self.method.name} learns from them. "
                'Add scans to imagesUn, set data.labelled, or choose method.name = "supervised".'
            )
        source = BatchSource(
            labelled,
            unlabelled,
            patch=self.plan.patch,
            batch=self.plan.batch,
            seed=self.train.seed,
            settings=self.sampling,
            outside_label=0 if self.plan.labels.ignore is None else self.plan.labels.ignore,
        )
        return TrainingData(source, unlabelled, validation, self.run / "scan_labels")

    def learnt_from(self, unlabelled: tuple[Path, ...]) -> tuple[Path, ...]:
        """Those of the unlabelled cases that `method.label_scans` draws, in their order, or all. Each case is drawn by
        its id, so that the others stay when some are excluded."""
        count = self.method.label_scans
        if not self.method.labels_whole_scans or not 0 < count < len(unlabelled):
            return unlabelled

        def lot(case: Path) -> float:
            return float(Draw(seed=self.train.seed).generator(f"whether {case.name} is labelled whole").random())

        drawn = set(sorted(unlabelled, key=lot)[:count])
        return tuple(case for case in unlabelled if case in drawn)

    def origin(self) -> Origin:
        return origin_of(self.plan, self.cases, self.sampling, self.augment, self.method, self.train.seed)

    def build(self, phases: Phases) -> Method:
        return build_method(
            self.plan,
            self.method,
            phases,
            seed=self.train.seed,
            device=self.device,
            autocast=self.place.autocast,
        )


def set_up_torch(settings: TrainSettings) -> int:
    """Threads and determinism as the settings say; returns the number of threads."""
    if settings.threads:
        torch.set_num_threads(settings.threads)
    torch.use_deterministic_algorithms(settings.deterministic, warn_only=True)
    # On a GPU pooling and cross-entropy have no such algorithm: said in the settings, not by torch in every run.
    warnings.filterwarnings("ignore", message=".* does not have a deterministic implementation")
    torch.backends.cudnn.benchmark = not settings.deterministic
    return torch.get_num_threads()


def calibrated(session: Session) -> Session:
    """The session with the number of steps that the budget in minutes allows here, and with `method.label_scope` and
    `label_scans` settled where they are open. A scratch copy is trained for some seconds.

    Validations are not in it: they come on top. Raises `ConfigError` where scans are to be labelled and cannot be.
    """
    session, labelling = _with_labelling(session)

    def waited_for(before: Callable[[int], None], step: int) -> None:
        if session.device.type == "cuda":  # steps are queued there; the clock is to see them done
            torch.cuda.synchronize(session.device)
        before(step)

    steps = calibrated_steps(
        session.train.budget_minutes,
        session.method,
        lambda phases, before: _scratch_steps(session, phases, partial(waited_for, before), settled=True),
        refresh_seconds=_refresh_seconds(session),
        labelling_seconds=labelling,
    )
    return replace(session, train=replace(session.train, steps=steps, calibrated=True))


def rehearse(session: Session) -> None:
    """Take a step or two of every phase with a scratch copy; nothing is left of it.

    So memory that does not suffice shows before the first step, and not after hours of warm-up. Raises `TrainingError`.
    """
    phases = Phases(1, 1 + LARGEST_TURN, 2 + LARGEST_TURN) if session.method.uses_unlabelled else Phases(0, 1, 1)
    _scratch_steps(session, phases, lambda step: None)


def _scratch_steps(session: Session, phases: Phases, before: Callable[[int], None], *, settled: bool = False) -> None:
    """Train a scratch copy through the phases, without refreshes. before: called before each step. settled: cases are
    in memory before the first, as in a run after one pass; else each step reads unlabelled ones that are new."""
    rounds = min(session.method.rounds, phases.train_stop - phases.warmup_stop)  # each takes a step at least
    method_settings = replace(session.method, teacher_every=scratch_teacher_every(session.method), rounds=rounds)
    scratch = replace(session, method=method_settings, train=replace(session.train, refresh_steps=0))
    with named_out_of_memory(scratch.place):
        method, data = scratch.build(phases), replace(scratch.open_data(), scan_labels=None)
        if settled:
            data.source.fill_memory(unlabelled=session.method.uses_unlabelled)
        for step, labelled, unlabelled in step_inputs(data, method, phases, scratch.train, scratch.place):
            before(step)
            method.step(labelled, unlabelled, Draw(seed=scratch.train.seed, step=step))


def _refresh_seconds(session: Session) -> float:
    """What the refreshes of predicted places cost a training step on average, from one refresh by a new network.

    Not the first: on a GPU that one loads what all later ones find loaded.
    """
    method, data = session.build(Phases.of(session.method, session.train.steps)), session.open_data()
    labels_scans = session.method.labels_whole_scans
    if not session.train.refresh_steps or not method.labeller or labels_scans or not data.unlabelled:
        return 0.0
    engine = TorchEngine(method.networks[method.labeller], session.device, session.place.autocast)

    def refresh(cases: int) -> float:
        began = time.perf_counter()
        predicted_locations(data.unlabelled, 0, cases, engine, session.plan, session.train.seed)
        return time.perf_counter() - began

    refresh(1)
    return refresh(session.train.refresh_cases) / session.train.refresh_steps


def _labelling_seconds(session: Session) -> tuple[float, int]:
    """What it takes to label a scan, as often as it is labelled, from some of them by a new network; and how many there
    are. From one alone, if it plainly takes too long for enough scans to be labelled."""
    phases = Phases.of(session.method, session.train.steps)
    method, data = session.build(phases), session.open_data()
    labeller = method.scan_labeller(phases.warmup_stop)
    if not labeller or not data.unlabelled:
        return 0.0, 0
    engine = TorchEngine(method.networks[labeller], session.device, session.place.autocast)
    window, times, scans = session.place.labelling_window(), 1 + len(method.scans_labelled_anew), len(data.unlabelled)

    def seconds(cases: Sequence[Path]) -> float:
        with TemporaryDirectory() as folder:
            began = time.perf_counter()
            label_scans(cases, Path(folder), engine, window, session.plan, seed=session.train.seed)
            return (time.perf_counter() - began) / len(cases) * times

    first = seconds(data.unlabelled[:1])  # finds nothing loaded: more than the others take
    if first * min(scans, LEAST_SCANS) > 60 * session.train.budget_minutes * PLAINLY_MORE:
        return first, scans
    return seconds(data.unlabelled[:: math.ceil(scans / TIMED_SCANS)]), scans


def _with_labelling(session: Session) -> tuple[Session, float]:
    """The session with `method.label_scope` and `label_scans` settled, and the seconds that labelling takes.

    All scans are labelled if a quarter of the budget suffices, else as many as that does for. Where these are too few
    to learn from, all are, in half of the budget at most, or patches.
    """
    method, (each, scans) = session.method, _labelling_seconds(session)
    if not method.labels_whole_scans:
        return session, 0.0
    budget, seconds = 60 * session.train.budget_minutes, each * scans
    if seconds > budget * USUAL_LABELLING and not method.label_scans:
        count = int(budget * USUAL_LABELLING / each)
        if count >= LEAST_SCANS:
            method, seconds = replace(method, label_scans=count), each * count
        elif method.label_scope == "auto" and seconds > budget * MOST_LABELLING:
            return replace(session, method=replace(method, label_scope="patch")), 0.0
    return replace(session, method=replace(method, label_scope="scan")), seconds


def train_session(session: Session, *, quiet: bool = False) -> None:
    """Train (or go on training) to the last step; leaves checkpoints, metrics, the model and the feedback maps."""
    if session.device.type == "cuda" and load_latest(session.run / "checkpoints") is None:
        rehearse(session)
    phases = Phases.of(session.method, session.train.steps)
    method, data = session.build(phases), session.open_data()
    train_method(
        session.run,
        method,
        data,
        session.place,
        settings=session.train,
        origin=session.origin(),
        method_settings=session.method,
        quiet=quiet,
    )
    if isinstance(method, MetaPseudoLabels):
        _write_feedback_maps(session, method, data.unlabelled)
    card = {
        "method": session.method.name,
        "feedback": session.method.feedback if session.method.name == "mpl" else None,
        "network": method.evaluated,
        "steps": session.train.steps,
        "seed": session.train.seed,
        "mirror_axes": list(session.augment.mirror_axes) if session.augment.enabled else [],
        "dataset": session.plan.dataset,
        "labelled_cases": [case.id for case in of_role(session.cases, "labelled")],
        "taught_cases": len(of_role(session.cases, "taught")),
        "unlabelled_cases": len(data.unlabelled),
        "torch": torch.__version__,
        "intended_use": "Research. Not a medical device; have a qualified person check every result.",
    }
    network = method.networks[method.evaluated]
    save_model(session.run / "model", network, session.plan, role="student", card=card)


_SOURCES: tuple[tuple[Role, ...], ...] = (("labelled", "taught"), ("unlabelled",), ("validation",))
"""Roles of the cases that are learnt from with labels, without, and watched."""


def ranking_engines(session: Session, against: Path | None) -> tuple[TorchEngine, TorchEngine | None]:
    """The network whose labels count, and the one that may contradict it: of the same run, or another run's model, or
    None where the run has one network alone.

    Raises `DataError` without a checkpoint, and `ConfigError` where the other model is of another plan.
    """
    phases = Phases.of(session.method, session.train.steps)
    method = session.build(phases)
    checkpoint = load_latest(session.run / "checkpoints")
    if checkpoint is None:
        raise DataError(f"{session.run}: no checkpoint here. Train the run first: semiseg train {session.run}")
    numbers = {
        key.removeprefix("method/"): value for key, value in checkpoint.numbers.items() if key.startswith("method/")
    }
    method.load_state(checkpoint.tensors, numbers)
    first = method.networks[method.evaluated]
    if against is None:
        second = method.networks[_contradicts(method)]
        return TorchEngine(first, session.device), None if second is first else TorchEngine(second, session.device)
    other = load_model(against)
    same = ("spacing_mm", "channels", "labels", "normalisation", "patch")
    if different := [name for name in same if getattr(other.plan, name) != getattr(session.plan, name)]:
        raise ConfigError(
            f"{against}: has another {different[0]} than {session.run}, whose prepared scans it is to label. Name a "
            "run that was made with the same plan."
        )
    return TorchEngine(first, session.device), torch_engine(other, session.device)


def _contradicts(method: Method) -> str:
    """The network of a method that is most independent of the one that is evaluated."""
    for name in ("teacher_average", "teacher", "partner_average", "partner"):
        if name in method.networks:
            return name
    return "student"


def _write_feedback_maps(session: Session, method: MetaPseudoLabels, unlabelled: tuple[Path, ...]) -> None:
    """For the report: what the teacher is told about its labels in the middle of some unlabelled scans."""
    if method.feedback != "dense":
        return
    data = session.open_data()
    images, labels = data.source.labelled(session.train.steps)
    labelled = Batch(torch.from_numpy(images).to(session.device), torch.from_numpy(labels).to(session.device))
    for case in map(open_case, unlabelled[:FEEDBACK_CASES]):
        patch = case.read_image(_middle(case, session.plan.patch))
        given, feedback = method.feedback_map(labelled, torch.from_numpy(patch)[None].to(session.device))
        with atomic_file(session.run / "feedback" / f"{case.meta.id}.npz") as temporary, temporary.open("wb") as file:
            np.savez_compressed(
                file,
                image=patch[0],
                pseudo_label=given[0].cpu().numpy().astype(np.uint8),
                feedback=feedback[0].float().cpu().numpy(),
                spacing_mm=np.array(session.plan.spacing_mm),
            )


def _middle(case: OpenCase, patch: tuple[int, int, int]) -> Box:
    z, y, x = ((n - p) // 2 for n, p in zip(case.meta.shape_zyx, patch, strict=True))
    return Box((z, y, x), (z + patch[0], y + patch[1], x + patch[2]))
