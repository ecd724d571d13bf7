"""What a step is given: augmented batches on the device, and labels of whole unlabelled scans for methods with them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from itertools import cycle, islice, pairwise
from math import degrees, prod
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from semiseg.augment.settings import Augmentation
from semiseg.augment.views import labelled_view, unlabelled_views
from semiseg.data.batches import Batch as StoredBatch
from semiseg.data.batches import BatchSource
from semiseg.data.plan import Plan
from semiseg.data.poses import Pose, Poses, possible_poses
from semiseg.files import write_jsonl
from semiseg.geometry import triple
from semiseg.io.store import StoredCase
from semiseg.methods.base import Batch, Method, UnlabelledBatch
from semiseg.methods.phases import Phases
from semiseg.prediction.engines.torch_engine import TorchEngine
from semiseg.randomness import Draw
from semiseg.rows import RoundRow, read_rounds
from semiseg.training.progress import every_so_often
from semiseg.training.refresh import predicted_locations
from semiseg.training.scan_labels import (
    KeptPlaces,
    clear_poses,
    found_poses,
    kept_labels,
    kept_poses,
    label_scans,
    labels_folder,
    poses_of,
    remove_other_labels,
)
from semiseg.training.settings import TrainSettings
from semiseg.training.trust import FIRST_LOOK, HOPELESS, LOOKED_AT, TOO_EARLY, Found, looked_at, verdict
from semiseg.transfer import to_device
from semiseg.types import AnyArray
from semiseg.words import counted
from semiseg.world import first_alone, first_sample

StepInputs = tuple[int, Batch, UnlabelledBatch | None]
ROUNDS_FILE = "rounds.jsonl"
LABELLED_SHARE = 0.2
"""Voxels of scans that a round labels, by those of patches that training has seen since the last one: some 9 % of its
time, since a voxel that is labelled costs a third of one that is learnt from, and tiles overlap."""
REFRESHED = 4
"""Unlabelled scans that are predicted at each refresh, in turn."""
LEAST_LABELLED = 8
"""Scans that a round is worth beginning for, where there are so many."""
LOOKS, SEEN_IN_POSES = 2, 20
"""Rounds that look whether scans lie otherwise than the labelled ones, and scans that each looks at."""
DEAR_LABELLING = 0.25
"""Share of the minutes: if labelling takes more it is said."""


@dataclass(frozen=True)
class TrainingData:
    """The source of a run's batches, and the stored cases (folders) that the loop itself looks at. scan_labels: folder
    for labels of whole unlabelled scans; None gives them blank ones, for steps that are only timed."""

    source: BatchSource
    labelled: tuple[Path, ...]
    unlabelled: tuple[Path, ...]
    validation: tuple[Path, ...]
    scan_labels: Path | None = None


@dataclass(frozen=True)
class Place:
    """Where and how batches are made ready: the same for every step."""

    plan: Plan
    augment: Augmentation
    device: torch.device
    autocast: torch.dtype | None


@dataclass
class Feed:
    """Gives steps their inputs, stretch by stretch, and remembers between stretches what it has labelled.

    locations: where the labeller found organs in unlabelled scans, by case and class. say: told how far labelling is.
    pausing: seconds that went into labelling, for whoever counts; set it back to 0.
    """

    data: TrainingData
    method: Method
    settings: TrainSettings
    place: Place
    locations: dict[str, Any] = field(default_factory=dict)
    say: Callable[[str], None] = lambda text: None
    pausing: float = 0.0
    _round_of: int | None = None
    """The first step of the round whose labels are published."""
    _trusted: bool = True

    def __post_init__(self) -> None:
        if self.data.scan_labels is not None:
            self.method.shortest_round = min(LEAST_LABELLED, self._asked) * self._scan_steps / LABELLED_SHARE

    def steps(self, start: int, stop: int, phases: Phases) -> Iterator[StepInputs]:
        """Step and augmented batches of the steps [start, stop).

        A method's `scan_labellers` label unlabelled scans before the first of their patches, and it gets none of them
        where the labels are not to be trusted. Else, where `refresh_steps` asks for it, its labeller predicts some
        scans in between, into `locations`.
        """
        cuts = {
            start,
            stop,
            phases.pretrain_stop,
            phases.warmup_stop,
            phases.train_stop,
            *self.method.turns,
            *self.method.labelling_steps,
        }
        labels_scans = bool(self.method.labelling_steps)
        refreshes: set[int] = set()
        if self.settings.refresh_steps and self.data.unlabelled and not labels_scans:
            first = phases.warmup_stop
            refreshes = set(range(first, phases.train_stop, self.settings.refresh_steps)) - {0}  # knows nothing yet
        if self.locations and self._round_of is None:
            self.data.source.publish(dict(self.locations), from_step=start)
            self._round_of = start
        for begin, end in pairwise(sorted(cut for cut in cuts | refreshes if start <= cut <= stop)):
            unlabelled = self.method.needs_unlabelled(begin) and bool(self.data.unlabelled)
            if unlabelled and self.method.scan_labellers(begin):
                unlabelled = self._with_labels(begin)
            if unlabelled and self.method.labeller and begin in refreshes:
                self._refresh(begin, phases)
            for stored in self.data.source.iterate(begin, end, unlabelled=unlabelled):
                first = first_sample(len(stored.images))
                draw = Draw(seed=self.settings.seed, step=stored.step, sample=first)
                yield stored.step, *_views(stored, draw, self.place)

    def _refresh(self, step: int, phases: Phases) -> None:
        turn = (step - phases.warmup_stop) // self.settings.refresh_steps
        labeller = self.method.networks[str(self.method.labeller)]
        engine = TorchEngine(labeller, self.place.device, self.place.autocast)
        self.locations |= predicted_locations(
            self.data.unlabelled, turn, REFRESHED, engine, self.place.plan, self.settings.seed
        )
        self.data.source.publish(dict(self.locations), from_step=step)

    def _with_labels(self, step: int) -> bool:
        """See to it that the scans of the step's round are labelled; whether they are to be learnt from."""
        rounds = self.method.labelling_steps
        first = max(one for one in rounds if one <= step)
        if self._round_of != first:
            began = time.perf_counter()
            self._trusted = self._label(step, rounds.index(first) + 1, rounds)
            self._round_of = first
            self.pausing += time.perf_counter() - began
        return self._trusted

    def _label(self, step: int, number: int, rounds: Sequence[int]) -> bool:
        """From `step` on unlabelled patches come with the first labeller's labels, and some lie on the classes that it
        found; unless the second one, a state of the network before, contradicts it on a few of them."""
        data, place, method = self.data, self.place, self.method
        if data.scan_labels is None:
            data.source.publish_labels(blank_labels)
            return True
        first, before = rounds[number - 1], rounds[number - 2] if number > 1 else 0
        said = self._said(first) if step > first else None  # before the run was stopped
        if said and not said["trusted"]:
            return False  # and the networks have been remembered anew since
        drawn = self._drawn(number, first, before)
        networks = [method.networks[name] for name in method.scan_labellers(step)]
        folders = [labels_folder(data.scan_labels, network) for network in networks]
        first_alone(partial(remove_other_labels, data.scan_labels, folders))

        def label(
            cases: Sequence[Path],
            network: nn.Module,
            folder: Path,
            poses: Sequence[Pose] = (),
            *,
            to_look: bool = False,
        ) -> dict[int, int]:
            """In how many each class is found. to_look: only to see whether labels agree."""
            what = "scans are labelled, to see whether two states agree" if to_look else "unlabelled scans are labelled"
            progress = every_so_often(self.say, f"Round {number}: {{}} of {{}} {what}.", at_end=not to_look)
            engine = TorchEngine(network, place.device, place.autocast)
            seed = self.settings.seed
            return label_scans(cases, folder, engine, self._plan, seed=seed, poses=poses, progress=progress)

        judged = (
            _Judged(True, said["why"], poses_of(said), unknown=tuple(said["unknown"]))
            if said
            else self._judge(label, list(zip(networks, folders, strict=True)), first, drawn, len(rounds))
        )
        classes: dict[int, int] = judged.classes
        lying: Poses = {}
        method.unknown = tuple(value for value, name in place.plan.labels.organs.items() if name in judged.unknown)
        if judged.trusted:
            classes = label(drawn, networks[0], folders[0], judged.poses)
            places = KeptPlaces(folders[0], [case.name for case in drawn])
            lying = kept_poses(folders[0], places)
            data.source.publish(places, from_step=step, among=set(places))
            data.source.publish_labels(partial(kept_labels, folders[0]), among=set(places), poses=lying)
        if said:
            return True
        row: RoundRow = {
            "round": number,
            "step": first,
            "scans": len(drawn) if judged.trusted else 0,
            "agreement": None if judged.found is None else judged.found.agreement_shown,
            "found": {name: classes.get(value, 0) for value, name in place.plan.labels.organs.items()},
            "trusted": judged.trusted,
            "why": judged.why,
            "unknown": list(judged.unknown),
            "poses": [asdict(pose) for pose in judged.poses],
            "lying": dict(Counter(pose.name for pose in lying.values())),
        }
        first_alone(lambda: self._write_round(row))
        return judged.trusted

    def _judge(
        self,
        label: Callable[..., dict[int, int]],
        networks: Sequence[tuple[nn.Module, Path]],
        first: int,
        drawn: Sequence[Path],
        rounds: int,
    ) -> _Judged:
        """Whether a round is to be learnt from, by a few of its scans, and in which poses its scans may lie. label:
        has a network label scans into a folder."""
        few = drawn[:LOOKED_AT]
        if len(networks) == 1:
            return _Judged(True, "", self._poses(first, drawn, networks[0][0]))
        if len(few) < min(LOOKED_AT, self._asked):
            return _Judged(False, TOO_EARLY)
        classes: dict[int, int] = {}

        def compared(some: Sequence[Path], poses: Sequence[Pose] = ()) -> Found:
            for network, folder in networks:
                classes.clear()
                classes.update(label(some, network, folder, poses, to_look=True))
            folders = [folder for _, folder in networks]
            return looked_at(some, folders, self.place.plan, self.data.source.labelled_cases)

        began = time.perf_counter()
        found, poses = compared(few[:FIRST_LOOK]), tuple[Pose, ...]()
        if found.best >= HOPELESS:
            found = compared(few)
            each = (time.perf_counter() - began) / len(few) / len(networks)
            poses = self._poses(first, drawn, networks[0][0])
            self._say_if_dear(each * (2 * (1 + len(poses)) if poses else 1), len(drawn), rounds)
            found = compared(few, poses) if poses else found
        return _Judged(*verdict(found), poses, found, classes, found.unknown)

    def _poses(self, first: int, drawn: Sequence[Path], network: nn.Module) -> tuple[Pose, ...]:
        """In which poses besides that of the labelled scans those of a round may lie: what the round before found, or
        what this network sees, which looks until a few rounds have been learnt from."""
        before = self._rounds_before(first)
        if known := found_poses(before):
            return known
        possible = possible_poses(self._plan)
        if not possible or sum(row["trusted"] for row in before) >= LOOKS:
            return ()
        self.say("Looking whether some unlabelled scans lie otherwise than the labelled ones.")
        engine = TorchEngine(network, self.place.device, self.place.autocast)
        return clear_poses(drawn[:SEEN_IN_POSES], engine, self._plan, possible)

    def _say_if_dear(self, each: float, drawn: int, rounds: int) -> None:
        """Say what labelling scans takes of the minutes where that is much, by the seconds that one takes, and what to
        do."""
        minutes = self.settings.minutes
        dear = each * (drawn + min(LOOKED_AT, drawn)) * rounds / 60
        if self.settings.steps is None and dear > DEAR_LABELLING * minutes:
            fewer = ", or label fewer scans (--set method.label_scans=8, in a new run)" if drawn > 8 else ""
            self.say(
                f"Labelling {counted(drawn, 'unlabelled scan')} in each of {rounds} rounds takes about {dear:.1f} of "
                f"{minutes:g} minutes. Give more minutes{fewer}."
            )

    @property
    def _asked(self) -> int:
        """Scans of a round, by the method."""
        everything = len(self.data.unlabelled)
        return min(self.method.scans_to_label or everything, everything)

    @cached_property
    def _scan_steps(self) -> float:
        """The voxels of a scan, by those of the patches of a step."""
        scan = fmean(self.data.source.labelled_cases.volumes)
        return scan / (self.place.plan.batch * prod(self.place.plan.patch))

    def _drawn(self, number: int, first: int, before: int) -> tuple[Path, ...]:
        """The unlabelled scans of a round that begins with a step, the one before it with another: so many as the
        settings say, or all; fewer where a doubtful network would take long for them beside the training in between.

        Rounds take turns through the scans in an order that is drawn once. So where there are scans for two rounds or
        more, no network labels a scan that it has just learnt from (cross-labelling: Huo et al., ATSO, CVPR 2021).
        """
        cases, count = self.data.unlabelled, self._asked
        begin = (number - 1) * count
        if len(self.method.scan_labellers(first)) > 1:
            worth = int(LABELLED_SHARE * (first - before) / self._scan_steps)
            times = 1 + len(found_poses(self._rounds_before(first)))  # mirror images are not counted
            count = min(count, worth, max(worth // times, LOOKED_AT))  # looking in all poses is no reason for none

        def lot(case: Path) -> float:
            return float(Draw(seed=self.settings.seed).generator(f"when {case.name} is labelled").random())

        turns = cycle(sorted(cases, key=lot))
        return tuple(sorted(islice(turns, begin, begin + count)))

    @cached_property
    def _plan(self) -> Plan:
        """With mirroring and turning as this run has them."""
        augment = self.place.augment
        turns = triple(map(degrees, augment.rotation_radians))
        return replace(self.place.plan, mirror_axes=augment.mirror_axes, turn_degrees=turns)

    def _rounds_before(self, first: int) -> list[RoundRow]:
        return [row for row in self._rounds if row["step"] < first]

    def _said(self, first: int) -> RoundRow | None:
        """What was said of the round that begins with a step, if it was."""
        return next((row for row in self._rounds if row["step"] == first), None)

    @property
    def _rounds(self) -> list[RoundRow]:
        assert self.data.scan_labels is not None  # nothing is labelled otherwise
        return read_rounds(self.data.scan_labels.parent)

    def _write_round(self, row: RoundRow) -> None:
        """Tell the log, the report and the person what became of a round."""
        assert self.data.scan_labels is not None  # nothing is labelled otherwise
        file = self.data.scan_labels.parent / ROUNDS_FILE
        before = [dict(one) for one in read_rounds(file.parent) if one["step"] < row["step"]]
        write_jsonl(file, [*before, dict(row)])
        if row["why"]:
            self.say(f"Round {row['round']}: {row['why']}")
        if row["lying"]:
            lie = "; ".join(f"{name}: {count}" for name, count in row["lying"].items())
            self.say(
                f"Round {row['round']}: {sum(row['lying'].values())} of {row['scans']} scans lie otherwise than the "
                f"labelled ones ({lie}), and are learnt from as if they lay alike."
            )


@dataclass(frozen=True)
class _Judged:
    """What a few scans of a round say: whether and why it is to be learnt from, and in which poses scans may lie. Where
    two states of the network were held against each other: what was found, in how many scans each class is, and of
    which organs nothing is learnt."""

    trusted: bool
    why: str
    poses: tuple[Pose, ...] = ()
    found: Found | None = None
    classes: dict[int, int] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()


def blank_labels(case: StoredCase) -> AnyArray:
    """Of a case, for steps that are only timed."""
    return np.zeros(case.shape_zyx, dtype=np.uint8)


def _views(stored: StoredBatch, draw: Draw, place: Place) -> tuple[Batch, UnlabelledBatch | None]:
    """The batch on the device, augmented there."""

    def send(array: AnyArray) -> Tensor:
        return to_device(array, place.device)

    def layout(images: Tensor) -> Tensor:
        return images.contiguous(memory_format=torch.channels_last_3d)

    images, labels = labelled_view(send(stored.images), send(stored.labels), draw, place.augment, place.plan.labels)
    labelled = Batch(layout(images), labels)
    if stored.unlabelled is None:
        return labelled, None
    pseudo = None if stored.pseudo_labels is None else (send(stored.pseudo_labels), place.plan.labels)
    weak, strong, given = unlabelled_views(send(stored.unlabelled), draw, place.augment, pseudo)
    return labelled, UnlabelledBatch(layout(weak), layout(strong), given)
