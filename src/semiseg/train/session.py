"""A training session: a prepared run folder opened, its open questions settled, trained and shipped as a model."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from semiseg.augment.settings import AugmentSettings
from semiseg.data.batches import BatchSource
from semiseg.data.plan import Plan, indivisible
from semiseg.data.prepare import check_recipe
from semiseg.data.roles import Role, RunCase, of_role
from semiseg.data.sampling import SamplingSettings
from semiseg.errors import ConfigError, DataError
from semiseg.methods.base import Method
from semiseg.methods.build import build_method
from semiseg.methods.mpl import MetaPseudoLabels
from semiseg.methods.phases import Phases
from semiseg.methods.settings import MethodSettings
from semiseg.predict.model import save_model
from semiseg.randomness import Draw
from semiseg.train.checkpoint import load_latest
from semiseg.train.feedback_maps import write_feedback_maps
from semiseg.train.inputs import Place, TrainingData, step_inputs
from semiseg.train.loop import train_method
from semiseg.train.origin import Origin, origin_of
from semiseg.train.out_of_memory import named_out_of_memory
from semiseg.train.precision import autocast_dtype
from semiseg.train.settings import TrainSettings

LARGEST_TURN = 2
"""A scratch run's teacher moves at least this often, so that both kinds of step are timed as often."""


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
            self.method.round_share,
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


def rehearse(session: Session) -> None:
    """Take a step or two of every phase with a scratch copy; nothing is left of it.

    So memory that does not suffice shows before the first step, and not after hours of warm-up. Raises `TrainingError`.
    """
    phases = Phases(1, 1 + LARGEST_TURN, 2 + LARGEST_TURN) if session.method.uses_unlabelled else Phases(0, 1, 1)
    scratch_steps(session, phases, lambda step: None)


def scratch_teacher_every(settings: MethodSettings) -> int:
    """`teacher_every` of the scratch run that is timed."""
    return min(settings.teacher_moves_every, LARGEST_TURN)


def scratch_steps(session: Session, phases: Phases, before: Callable[[int], None], *, settled: bool = False) -> None:
    """Train a scratch copy through the phases, without refreshes. before: called before each step. settled: cases are
    in memory before the first, as in a run after one pass; else each step reads unlabelled ones that are new."""
    length = phases.train_stop - phases.warmup_stop
    rounds = min(session.method.rounds_of(length), length)  # each takes a step at least
    method_settings = replace(session.method, teacher_every=scratch_teacher_every(session.method), rounds=rounds)
    scratch = replace(session, method=method_settings, train=replace(session.train, refresh_steps=0))
    with named_out_of_memory(scratch.place):
        method, data = scratch.build(phases), replace(scratch.open_data(), scan_labels=None)
        if settled:
            data.source.fill_memory(unlabelled=session.method.uses_unlabelled)
        for step, labelled, unlabelled in step_inputs(data, method, phases, scratch.train, scratch.place):
            before(step)
            method.step(labelled, unlabelled, Draw(seed=scratch.train.seed, step=step))


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
    if isinstance(method, MetaPseudoLabels) and method.feedback == "dense":
        write_feedback_maps(session.run / "feedback", method, data, session.place, step=session.train.steps)
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
