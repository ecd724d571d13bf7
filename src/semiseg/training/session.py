"""A training session: a prepared run folder opened, its open questions settled, trained and shipped as a model."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.utils.deterministic

from semiseg.augment.settings import AugmentSettings
from semiseg.data.batches import BatchSource
from semiseg.data.case_hashes import hashed_ids
from semiseg.data.patients import by_patient
from semiseg.data.plan import Plan
from semiseg.data.prepare import check_recipe
from semiseg.data.readers import fitting_readers
from semiseg.data.roles import WITH_LABELS, Role, RunCase, of_role
from semiseg.data.sampling import SamplingSettings
from semiseg.errors import ConfigError, DataError
from semiseg.io.store_index import read_index, write_index
from semiseg.methods.base import Method
from semiseg.methods.build import build_method
from semiseg.methods.phases import Phases
from semiseg.methods.settings import MethodSettings
from semiseg.models.layers import Network
from semiseg.prediction.model import load_model, save_model
from semiseg.processes import ranks_here, usable_cores
from semiseg.randomness import Draw
from semiseg.rows import read_rounds
from semiseg.training.checkpoint import load_latest
from semiseg.training.feedback_maps import write_feedback_maps
from semiseg.training.inputs import Feed, Place, TrainingData
from semiseg.training.judgement import judge_training
from semiseg.training.loop import train_method
from semiseg.training.origin import Origin, origin_of
from semiseg.training.out_of_memory import named_out_of_memory
from semiseg.training.precision import autocast_dtype
from semiseg.training.scan_labels import found_poses
from semiseg.training.settings import TrainSettings
from semiseg.training.settled import read_settled, write_settled
from semiseg.training.trial import fastest_threads
from semiseg.world import first_alone, first_sample, rank, size


@dataclass(frozen=True)
class Session:
    """A prepared run, ready to be trained. cases: with their roles. train.precision must be settled."""

    run: Path
    cases: list[RunCase]
    plan: Plan
    sampling: SamplingSettings
    augment: AugmentSettings
    method: MethodSettings
    train: TrainSettings
    device: torch.device
    tries_threads: bool = False
    """Whether another number of threads may be tried where the pace collapses."""
    distils: bool = False
    """Whether a model of our own labelled the taught cases."""
    compiled: bool = False
    """Whether training passes are compiled."""
    patients: str = ""
    """`DataSettings.patients`."""

    @property
    def place(self) -> Place:
        plan = self.plan
        has_unit = any(one.scheme == "ct" for one in plan.normalisation)
        augment = self.augment.suited_to(plan.anisotropic_axis, plan.mirror_axes, plan.turn_degrees, has_unit=has_unit)
        return Place(
            self.plan,
            augment,
            self.device,
            autocast_dtype(self.train.precision),
        )

    def open_data(self, readers: int = 0) -> TrainingData:
        """readers: processes that read batches ahead, 0 for a thread.

        Raises `DataError` where the store was made for another plan, or where a method needs unlabelled cases and there
        are none.
        """
        check_recipe(self.run / "store", self.plan)
        labelled, unlabelled, validation = (
            tuple(self.run / "store" / case.id for case in of_role(self.cases, *roles)) for roles in _SOURCES
        )
        if self.method.needs_unlabelled and not unlabelled:
            raise DataError(
                f"{self.run}/cases.jsonl: no unlabelled case, but method {self.method.name} learns from them. "
                'Add scans to imagesUn, or choose method.name = "supervised" (--method supervised).'
            )
        learnt_from = {case.id: case.hash for case in of_role(self.cases, *_SOURCES[0], *_SOURCES[1])}
        first_alone(partial(_fitting_index, self.run / "store", learnt_from))
        source = BatchSource(
            labelled,
            unlabelled,
            patch=self.plan.patch,
            batch=self.plan.batch,
            seed=self.train.seed,
            settings=self.sampling,
            histograms=self._histograms,
            accepted=self.labelled_by_programs,
            rank=rank(),
            world=size(),
            index=read_index(self.run / "store"),
            readers=readers,
        )
        labels = self.run / "scan_labels"
        return TrainingData(source, labelled, unlabelled, validation, labels)

    @property
    def labelled_by_programs(self) -> list[str] | None:
        """Ids of the cases that a program labelled; None in a run whose labels are all a person's own. What a teacher
        labelled to be distilled is learnt from as own labels are."""
        if not of_role(self.cases, *WITH_LABELS[1:]):
            return None
        roles: tuple[Role, ...] = ("accepted",) if self.distils else ("accepted", "taught")
        return [case.id for case in of_role(self.cases, *roles)]

    @property
    def _histograms(self) -> tuple[float, tuple[int, ...]] | None:
        channels = tuple(i for i, one in enumerate(self.plan.normalisation) if one.scheme == "zscore")
        augment = self.place.augment
        wanted = augment.enabled and augment.histogram_probability > 0 and channels
        return (augment.histogram_probability, channels) if wanted else None

    def origin(self) -> Origin:
        weights = read_settled(self.run).weights if self.train.weights else None
        return origin_of(self.plan, self.cases, self.sampling, self.augment, self.method, self.train.seed, weights)

    def build(self, phases: Phases) -> Method:
        return build_method(
            self.plan,
            self.method,
            phases,
            seed=self.train.seed,
            device=self.device,
            autocast=self.place.autocast,
            compiled=self.compiled,
        )


def _fitting_index(store: Path, hashes: dict[str, str | None]) -> None:
    """See to it that a store has an index that fits the cases; raises `DataError` where one of them is not there."""
    index = read_index(store)
    if index is None or not index.fits(hashes):
        write_index(store, list(hashes))
    there = {entry.name for entry in os.scandir(store)}
    if missing := [id for id in hashes if id not in there]:
        raise DataError(f"{store / missing[0]}: the stored case is missing. Run `semiseg prepare` again.")


_memory: Any = torch.utils.deterministic  # a property of a module, which has no annotation


@contextmanager
def torch_as_it_was() -> Iterator[None]:
    """Within, `set_up_torch` may be called; afterwards threads, determinism and warnings are the caller's again."""
    threads, mode = torch.get_num_threads(), torch.get_deterministic_debug_mode()
    filled = _memory.fill_uninitialized_memory
    benchmark = torch.backends.cudnn.benchmark
    with warnings.catch_warnings():
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            torch.set_deterministic_debug_mode(mode)
            _memory.fill_uninitialized_memory = filled
            torch.backends.cudnn.benchmark = benchmark


def set_up_torch(threads: int, *, deterministic: bool) -> None:
    """Threads and determinism of this process."""
    torch.set_num_threads(threads)
    # Not by `use_deterministic_algorithms`, which imports torch's compiler: seconds, and few runs compile.
    torch.set_deterministic_debug_mode("warn" if deterministic else "default")
    # New memory is not to be filled with NaN, which that mode does to find reads of it: 4 to 9 % of a step.
    _memory.fill_uninitialized_memory = False
    # On a GPU pooling and cross-entropy have no such algorithm: said in the settings, not by torch in every run.
    warnings.filterwarnings("ignore", message=".* does not have a deterministic implementation")
    torch.backends.cudnn.benchmark = not deterministic


def rehearse(session: Session) -> None:
    """Take a step or two of every phase with a scratch copy; nothing is left of it.

    So memory that does not suffice shows before the first step, and not after hours of warm-up. Raises `TrainingError`.
    """
    scratch = replace(session, train=replace(session.train, refresh_steps=0))
    with named_out_of_memory(scratch.place):
        method, data = scratch.build(Phases.of_steps(0, 1, 1)), replace(scratch.open_data(), scan_labels=None)
        begin, end = method.period, method.period + 2  # of the training phase: with a step of each kind
        phases = Phases.of_steps(1, end, end + 1) if session.method.uses_unlabelled else Phases.of_steps(0, 1, 1)
        method.phases = phases
        feed = Feed(data, method, scratch.train, scratch.place)
        stretches = [(0, 1), (begin, end), (end, end + 1)] if session.method.uses_unlabelled else [(0, 1)]
        for start, stop in stretches:
            for step, labelled, unlabelled in feed.steps(start, stop, phases):
                draw = Draw(seed=scratch.train.seed, step=step, sample=first_sample(len(labelled.images)))
                method.step(labelled, unlabelled, draw)


def rehearsed(session: Session) -> Session:
    """The session after `rehearse`: with eager passes where compiled ones fail, as `settled.toml` says then."""
    if session.compiled:
        try:
            rehearse(session)
            return session
        except Exception:  # noqa: BLE001 (whatever a compiler raises, or no memory for what it keeps)
            session = replace(session, compiled=False)
            write_settled(session.run, replace(read_settled(session.run), compiled=False))
    rehearse(session)
    return session


def train_session(session: Session, *, quiet: bool = False) -> None:
    """Train (or go on training) to the last step; leaves checkpoints, metrics, the model and the feedback maps."""
    if session.device.type == "cuda" and load_latest(session.run / "checkpoints") is None:
        session = rehearsed(session)
    method = session.build(Phases.of_steps(0, 1, 1))
    data = session.open_data(fitting_readers(session.device.type))
    try:
        _train(session, method, data, quiet=quiet)
    finally:
        data.source.close()


def _train(session: Session, method: Method, data: TrainingData, *, quiet: bool) -> None:
    if session.train.weights and load_latest(session.run / "checkpoints") is None:
        model = load_model(session.train.weights)
        if (model.plan.labels.names, model.plan.channels) != (session.plan.labels.names, session.plan.channels):
            raise ConfigError(f"train.weights = {session.train.weights}: knows other labels or channels than the run.")
        weights = replace(read_settled(session.run), weights=model.hash)
        first_alone(partial(write_settled, session.run, weights))
        if not method.start_from({name: torch.from_numpy(value) for name, value in model.weights().items()}):
            raise ConfigError(
                f"train.weights = {session.train.weights}: no network of {session.run}/plan.toml has the sizes of this "
                "model. Let the run take the model's plan: delete plan.toml and settled.toml."
            )
    steps, seconds = train_method(
        session.run,
        method,
        data,
        session.place,
        settings=session.train,
        origin=session.origin(),
        retry_threads=_fastest_threads_here if session.device.type == "cpu" and session.tries_threads else lambda: 0,
        quiet=quiet,
    )
    first_alone(lambda: _ship(session, method, data, steps=steps, seconds=seconds, quiet=quiet))


def _fastest_threads_here() -> int:
    return fastest_threads(max(1, usable_cores() // ranks_here()))


def _ship(session: Session, method: Method, data: TrainingData, *, steps: int, seconds: float, quiet: bool) -> None:
    """What is left when training has ended: notices, feedback maps and the model."""
    said = judge_training(
        session.run,
        session.train,
        steps=steps,
        seconds=seconds,
        loss=method.judged(steps - 1).loss,
        labelled=len(by_patient((case.id for case in of_role(session.cases, "labelled")), session.patients)),
        scored=bool(data.validation) or any(case.label for case in of_role(session.cases, "test")),
    )
    for text in () if quiet else said:
        print(f"Note: {text}")
    write_feedback_maps(session.run / "feedback", method, data, session.place, step=steps)
    card = {
        "method": session.method.name,
        "network": method.evaluated,
        "steps": steps,
        "seed": session.train.seed,
        "mirror_axes": list(session.place.augment.mirror_axes),
        "poses": [asdict(pose) for pose in found_poses(read_rounds(session.run))],
        "dataset": session.plan.dataset,
        "labelled_cases": hashed_ids(session.run, (case.id for case in of_role(session.cases, "labelled"))),
        **{f"{role}_cases": len(of_role(session.cases, role)) for role in WITH_LABELS[1:]},
        "unlabelled_cases": len(data.unlabelled),
        "torch": torch.__version__,
        "intended_use": "Research. Not a medical device; have a qualified person check every result.",
    }
    network = method.networks[method.evaluated]
    assert isinstance(network, Network)
    save_model(session.run / "model", network, session.plan, role="student", card=card)


_SOURCES: tuple[tuple[Role, ...], ...] = (WITH_LABELS, ("unlabelled",), ("validation",))
"""Roles of the cases that are learnt from with labels, without, and watched."""
