"""The phantom data set on disk, laid out like an nnU-Net raw folder with `imagesUn` for the unlabelled scans."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from semiseg.demo.phantom import draw_grid, phantom_case
from semiseg.errors import ConfigError, DataError
from semiseg.files import atomic_file, read_json, write_json
from semiseg.geometry import from_canonical
from semiseg.io.flare22_labels import FLARE22_LABELS
from semiseg.randomness import Draw
from semiseg.types import AnyArray, DoubleArray, Shape, Spacing

RECIPE = "phantom.json"
_VERSION = 2
_LPS_EVERY = 9
"""One case in so many is stored as LPS, the others as RAS: reading must bring both to one orientation."""


@dataclass(frozen=True, kw_only=True)
class _Job:
    index: int
    image: Path
    label: Path | None

    def done(self) -> bool:
        return self.image.exists() and (self.label is None or self.label.exists())


def write_phantom_dataset(
    folder: Path,
    *,
    seed: int,
    labelled: int = 4,
    unlabelled: int = 24,
    test: int = 24,
    spacing_mm: Spacing = (8.0, 8.0, 8.0),
    shape_zyx: Shape | None = None,
    hidden_labels: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write the set into `folder` and return it; cases that are there already are not made again.

    labelled, unlabelled, test: numbers of cases; they are numbered in this order, and case n is the same patient
    whatever the counts. spacing_mm, shape_zyx: see `semiseg.demo.phantom.draw_grid`. hidden_labels: put the unlabelled
    scans with their labels into `imagesTr` and `labelsTr` and write `splits.json`, whose `train_order` begins with the
    labelled ones: so a label budget can be compared with all labels. progress: called with (cases done, cases).

    Raises `ConfigError` for counts that make no set, `DataError` if the folder holds a set made otherwise.
    """
    if labelled < 1 or unlabelled < 0 or test < 0:
        raise ConfigError(
            f"a phantom set needs labelled >= 1 and no negative counts, not {labelled}, {unlabelled}, {test}."
        )
    recipe = {
        "version": _VERSION,
        "seed": seed,
        "labelled": labelled,
        "unlabelled": unlabelled,
        "test": test,
        "spacing_mm": list(spacing_mm),
        "shape_zyx": None if shape_zyx is None else list(shape_zyx),
        "hidden_labels": hidden_labels,
    }
    _claim(folder, recipe)
    jobs = _jobs(folder, labelled, unlabelled, test, hidden_labels)
    for count, job in enumerate(jobs, start=1):
        if not job.done():
            _write_case(job, seed, spacing_mm, shape_zyx)
        if progress:
            progress(count, len(jobs))
    if hidden_labels:
        order = [_case_id(index) for index in range(labelled + unlabelled)]
        write_json(folder / "splits.json", {"train_order": order})
    # Last: a folder with a dataset.json is complete.
    write_json(folder / "dataset.json", _description(labelled + (unlabelled if hidden_labels else 0), seed))
    return folder


def _claim(folder: Path, recipe: dict[str, object]) -> None:
    """Note how the set is made, or raise if what is there was made otherwise."""
    path = folder / RECIPE
    if path.exists():
        there = read_json(path)
        changed = [key for key in recipe if not isinstance(there, dict) or there.get(key) != recipe[key]]
        if changed:
            raise DataError(
                f"{folder}: holds a phantom set with another {', '.join(changed)}. "
                "Choose an empty folder, or remove it."
            )
    elif folder.exists() and any(folder.iterdir()):
        raise DataError(f"{folder}: holds other files. Choose an empty folder for the phantom set.")
    else:
        write_json(path, recipe)


def _jobs(folder: Path, labelled: int, unlabelled: int, test: int, hidden_labels: bool) -> list[_Job]:
    jobs = []
    for index in range(labelled + unlabelled + test):
        name = _case_id(index)
        if index >= labelled + unlabelled:
            images, labels = "imagesTs", "labelsTs"
        elif index < labelled or hidden_labels:
            images, labels = "imagesTr", "labelsTr"
        else:
            images, labels = "imagesUn", ""
        label = folder / labels / f"{name}.nii.gz" if labels else None
        jobs.append(_Job(index=index, image=folder / images / f"{name}_0000.nii.gz", label=label))
    return jobs


def _write_case(job: _Job, seed: int, spacing_mm: Spacing, shape_zyx: Shape | None) -> None:
    draw = Draw(seed=seed, sample=job.index)
    shape, spacing = draw_grid(draw, spacing_mm=spacing_mm, shape_zyx=shape_zyx)
    image, label = phantom_case(draw, shape_zyx=shape, spacing_mm=spacing)
    affine = _affine(draw, shape, spacing, lps=job.index % _LPS_EVERY == 1)
    _write_nifti(job.image, image.astype(np.int16), affine)
    if job.label is not None:
        _write_nifti(job.label, label, affine)


def _affine(draw: Draw, shape: Shape, spacing: Spacing, *, lps: bool) -> DoubleArray:
    """RAS or LPS voxels to mm, with an origin that differs from scan to scan as on a real scanner."""
    steps = np.array(spacing[::-1])
    middle = np.round(draw.generator("origin").normal([0, -150, -400], [5, 20, 80]), 1)
    signs = np.array([-1, -1, 1]) if lps else np.ones(3)
    affine = np.diag([*(signs * steps), 1.0])
    affine[:3, 3] = middle - signs * steps * (np.array(shape[::-1]) - 1) / 2
    return affine


def _write_nifti(path: Path, array_zyx: AnyArray, affine: DoubleArray) -> None:
    image_type: Any = nib.Nifti1Image
    image = image_type(np.ascontiguousarray(from_canonical(array_zyx, affine)), affine)
    image.header.set_xyzt_units("mm", "sec")
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    with atomic_file(path) as temporary:
        nib.save(image, temporary)


def _description(training: int, seed: int) -> dict[str, object]:
    names = FLARE22_LABELS.names
    return {
        "name": "Phantom",
        "description": f"Generated abdominal CT phantoms (seed {seed}), organs in FLARE22's numbers.",
        "channel_names": {"0": "CT"},
        "labels": {name: value for value, name in names.items()},
        "mirror_pairs": [[names[a], names[b]] for a, b in FLARE22_LABELS.mirror_pairs],
        "numTraining": training,
        "file_ending": ".nii.gz",
    }


def _case_id(index: int) -> str:
    return f"phantom_{index:03d}"
