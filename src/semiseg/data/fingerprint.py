"""The fingerprint: shapes, spacings and intensities of a training set, from which the plan is computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from semiseg.cases import WAS_KILLED, map_cases
from semiseg.data.labels import read_checked_label
from semiseg.errors import DataError
from semiseg.files import write_json
from semiseg.io.dataset import Case, Dataset, LabelScheme
from semiseg.io.scans import read_grid, read_volume
from semiseg.randomness import Draw
from semiseg.types import DoubleArray, FloatArray, Shape, Spacing

FOREGROUND_SAMPLES = 10_000
"""Voxels drawn (with replacement) from the labelled foreground of each case, nnU-Net's number."""


@dataclass(frozen=True, kw_only=True)
class CaseFingerprint:
    """One training scan; spacing_mm and shape_zyx are its own, in canonical order."""

    id: str
    shape_zyx: Shape
    spacing_mm: Spacing
    labelled: bool


@dataclass(frozen=True, kw_only=True)
class ChannelIntensity:
    """One channel over the labelled foreground of all labelled cases, in the scan's own units.

    minimum and maximum are over every foreground voxel, the others over the drawn ones.
    """

    minimum: float
    maximum: float
    mean: float
    median: float
    deviation: float
    percentile_00_5: float
    percentile_99_5: float


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """What the planner has to know of a training set.

    cases: every training case that could be read, labelled or not. intensities: one entry a channel.
    class_voxels: voxels of every class over all labelled cases, 0 where it never occurs. problems: `(case
    id, text)` of the cases that could not be read and were left out.
    """

    dataset: str
    channels: tuple[str, ...]
    cases: tuple[CaseFingerprint, ...]
    intensities: tuple[ChannelIntensity, ...]
    class_voxels: dict[int, int]
    problems: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, kw_only=True)
class _Measured:
    """One case's part: samples `(C, n)` and extremes `(C, 2)` of its foreground if it has any, or the error."""

    case: CaseFingerprint | None = None
    samples: FloatArray | None = None
    extremes: DoubleArray | None = None
    voxels: dict[int, int] = field(default_factory=dict)
    error: str | None = None


def compute_fingerprint(
    dataset: Dataset,
    cases: Sequence[Case],
    *,
    workers: int = 1,
    seed: int = 0,
    progress: Callable[[int, int, str], None] | None = None,
) -> Fingerprint:
    """Measure the training cases, `workers` processes at a time; the result does not depend on `workers`.

    cases: the training cases as the run sees them: a case whose `label` is None counts as unlabelled, and only its
    header is read. seed: of the voxels drawn from the foreground. progress: called with (done, total, case id).

    Raises `DataError` if no labelled case with foreground can be read; single unreadable cases become `problems`.
    """
    if not any(case.label for case in cases):
        raise DataError(f"{dataset.root}: no training case has a label. Give at least one label map to learn from.")
    measure = partial(_measure, labels=dataset.labels, channels=len(dataset.channels), draw=Draw(seed=seed))
    measured = map_cases(
        measure,
        cases,
        workers=workers,
        lost=lambda case: _Measured(error=f"{case.images[0]}: {WAS_KILLED}. Leave the case out."),
        progress=(lambda done, total, case: progress(done, total, case.id)) if progress else None,
    )
    problems = tuple((c.id, m.error) for c, m in zip(cases, measured, strict=True) if m.error is not None)
    samples = [m.samples for m in measured if m.samples is not None]
    if not samples:
        first = f" The first problem: {problems[0][1]}" if problems else ""
        raise DataError(f"{dataset.root}: no labelled case with a voxel of any class could be read.{first}")
    extremes = np.stack([m.extremes for m in measured if m.extremes is not None])
    return Fingerprint(
        dataset=dataset.name,
        channels=dataset.channels,
        cases=tuple(m.case for m in measured if m.case is not None),
        intensities=_intensities(np.concatenate(samples, axis=1), extremes),
        class_voxels={k: sum(m.voxels.get(k, 0) for m in measured) for k in sorted(dataset.labels.names)},
        problems=problems,
    )


def write_fingerprint(path: Path, fingerprint: Fingerprint) -> None:
    """Write the fingerprint as JSON."""
    write_json(path, asdict(fingerprint))


def _measure(case: Case, labels: LabelScheme, channels: int, draw: Draw) -> _Measured:
    try:
        grid = read_grid(case.images[0])
        entry = CaseFingerprint(
            id=case.id, shape_zyx=grid.shape_zyx, spacing_mm=grid.spacing_mm, labelled=case.label is not None
        )
        if case.label is None:
            return _Measured(case=entry)
        volume = read_volume(case.images)
        if volume.array.shape[0] != channels:
            raise DataError(
                f"{case.images[0]}: {volume.array.shape[0]} channels, but the dataset declares {channels}. "
                "Give one image per channel, or correct channel_names."
            )
        label, voxels = read_checked_label(case.label, case.images[0], volume.grid, labels)
    except DataError as error:
        return _Measured(error=str(error))
    mask = (label != 0) & (label < labels.count)
    foreground = volume.array[:, mask]
    if foreground.shape[1] == 0:
        return _Measured(case=entry, voxels=voxels)
    chosen = draw.generator(f"fingerprint/{case.id}").integers(foreground.shape[1], size=FOREGROUND_SAMPLES)
    extremes = np.stack([foreground.min(axis=1), foreground.max(axis=1)], axis=1).astype(np.float64)
    return _Measured(case=entry, samples=foreground[:, chosen], extremes=extremes, voxels=voxels)


def _intensities(samples: FloatArray, extremes: DoubleArray) -> tuple[ChannelIntensity, ...]:
    """samples: `(C, n)`. extremes: `(cases, C, 2)`. Sums in float64, since MRI intensities can pass 1e6."""
    lows, medians, highs = np.percentile(samples.astype(np.float64), (0.5, 50.0, 99.5), axis=1)
    return tuple(
        ChannelIntensity(
            minimum=float(extremes[:, c, 0].min()),
            maximum=float(extremes[:, c, 1].max()),
            mean=float(samples[c].mean(dtype=np.float64)),
            median=float(medians[c]),
            deviation=float(samples[c].std(dtype=np.float64)),
            percentile_00_5=float(lows[c]),
            percentile_99_5=float(highs[c]),
        )
        for c in range(samples.shape[0])
    )
