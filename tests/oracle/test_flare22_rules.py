"""`--rules flare22` against an independent statement of the challenge's rules on top of surface-distance."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import surface_distance
from scipy import ndimage
from surface_distance import lookup_tables

from semiseg.io.flare22_labels import FLARE22_LABELS
from semiseg.scoring import EvaluateSettings, evaluate_folder
from semiseg.scoring.flare22 import score_case_flare22
from semiseg.types import LabelArray

pytestmark = pytest.mark.filterwarnings("ignore:Please (import|use) .*:DeprecationWarning")

TOLERANCES_MM = [5, 3, 3, 5, 2, 2, 2, 2, 2, 3, 5, 7, 3]  # labels 1 to 13
ONLY_LABELLED_SLICES = {5, 6, 10}
Scores = list[tuple[float, float]]


@pytest.fixture(autouse=True, scope="module")
def _fast_tables() -> Iterator[None]:
    """The package builds its 256 areas anew in every call; keeping them changes no number and saves a
    minute."""
    with pytest.MonkeyPatch.context() as patch:
        name = "create_table_neighbour_code_to_surface_area"
        patch.setattr(lookup_tables, name, cache(getattr(lookup_tables, name)))
        yield


def by_the_rules(reference_xyz: LabelArray, prediction_xyz: LabelArray, zooms: tuple[Any, ...]) -> Scores:
    """(Dice, NSD) of labels 1 to 13 from arrays as nibabel loads them."""
    scores: Scores = []
    for value, tolerance_mm in enumerate(TOLERANCES_MM, start=1):
        truth, guess = reference_xyz == value, prediction_xyz == value
        if truth.any() and guess.any():
            if value in ONLY_LABELLED_SLICES:
                z = np.nonzero(truth)[2]
                truth, guess = truth[:, :, z.min() : z.max()], guess[:, :, z.min() : z.max()]
            dice = surface_distance.compute_dice_coefficient(truth, guess)
            nsd = np.float64(0)
            if dice >= 0.2:
                distances = surface_distance.compute_surface_distances(truth, guess, zooms)
                nsd = surface_distance.compute_surface_dice_at_tolerance(distances, tolerance_mm)
            scores.append((float(round(dice, 4)), float(round(nsd, 4))))
        else:
            agreed = float(not truth.any() and not guess.any())
            scores.append((agreed, agreed))
    return scores


def ours(reference_xyz: LabelArray, prediction_xyz: LabelArray, zooms: tuple[Any, ...]) -> Scores:
    dx, dy, dz = (float(size) for size in zooms)
    organs = score_case_flare22(reference_xyz.T, prediction_xyz.T, (dz, dy, dx))
    return [(float(s["dice"] or 0), float(s["nsd"] or 0)) for s in organs.values()]


def in_one_slice(label_xyz: LabelArray) -> set[int]:
    """Organs of the slice rule for which the challenge's own range is empty."""
    depth = {v: np.unique(np.nonzero(label_xyz == v)[2]).size for v in ONLY_LABELLED_SLICES}
    return {v for v, slices in depth.items() if slices == 1}


def generated_pair(rng: np.random.Generator) -> tuple[LabelArray, LabelArray, tuple[float, ...]]:
    """A map of one to four box-like organs; its prediction is shifted, noisy, incomplete or made up."""
    shape = tuple(int(n) for n in rng.integers(3, 9, 3))
    reference = np.zeros(shape, dtype=np.uint8)
    favourites = np.array([1, 2, 5, 6, 8, 10, 12, 13])
    for value in rng.choice(favourites, size=int(rng.integers(1, 5)), replace=False):
        corners = [np.sort(rng.choice(n + 1, 2, replace=False)) for n in shape]
        reference[tuple(slice(*pair) for pair in corners)] = value
    prediction = np.roll(reference, tuple(rng.integers(-2, 3, 3)), axis=(0, 1, 2))
    noise = rng.random(shape) < rng.choice([0.0, 0.02, 0.3])
    prediction[noise] = rng.choice(favourites, size=int(noise.sum()))
    if rng.random() < 0.2:
        prediction[prediction == rng.choice(favourites)] = 0
    spacings = [(1.0, 1.0, 1.0), (0.4, 0.4, 0.4), (0.6, 0.6, 3.0), (0.74, 0.74, 2.5), (0.9765625, 0.9765625, 5.0)]
    return reference, prediction, spacings[int(rng.integers(len(spacings)))]


def test_equal_on_thousands_of_generated_maps() -> None:
    rng = np.random.Generator(np.random.Philox(key=22))
    compared, low, cut = 0, 0, 0
    while compared < 2000:
        reference, prediction, zooms = generated_pair(rng)
        if in_one_slice(reference):
            continue
        expected = by_the_rules(reference, prediction, zooms)
        assert ours(reference, prediction, zooms) == expected
        compared += 1
        low += sum(0 < dice < 0.2 for dice, _ in expected)
        cut += sum(0.2 < expected[v - 1][1] < 1 for v in ONLY_LABELLED_SLICES)
    assert min(low, cut) > 100  # the rules that bite were met often


def test_an_organ_in_one_slice_stops_the_script_and_is_scored_here() -> None:
    reference = np.zeros((6, 6, 6), dtype=np.uint8)
    reference[1:5, 1:5, 3] = 5
    with pytest.raises(ValueError, match="zero-size"):  # what the empty range 3:3 comes to
        surface_distance.compute_surface_distances(reference[:, :, 3:3] == 5, reference[:, :, 3:3] == 5, (1, 1, 1))
    assert ours(reference, reference, (1.0, 1.0, 1.0))[4] == (1.0, 1.0)
    below = np.where(np.arange(6) < 3, np.uint8(5), np.uint8(0)) * np.ones((6, 6, 1), dtype=np.uint8)
    assert ours(reference, below, (1.0, 1.0, 1.0))[4] == (0.0, 0.0)


def test_the_last_labelled_slice_is_left_out() -> None:
    reference = np.zeros((8, 8, 9), dtype=np.uint8)
    reference[2:6, 2:6, 2:7] = 10
    prediction = reference.copy()
    prediction[:, :, 6] = prediction[:, :, 7] = 0
    prediction[0:2, 0:2, 7] = 10
    assert ours(reference, prediction, (1.0, 1.0, 1.0))[9] == (1.0, 1.0)
    reference[reference == 10] = 9  # the gallbladder has no such rule
    prediction[prediction == 10] = 9
    assert ours(reference, prediction, (1.0, 1.0, 1.0))[8][0] < 1.0


def altered(label_xyz: LabelArray) -> Iterator[LabelArray]:
    """Shifted, eroded and noisy predictions of a real map."""
    yield np.roll(label_xyz, (2, -1, 1), axis=(0, 1, 2))
    edge = np.zeros(label_xyz.shape, dtype=np.bool_)
    for axis in range(3):
        edge |= np.diff(label_xyz.astype(np.int16), axis=axis, append=0) != 0
    yield np.where(edge, np.uint8(0), label_xyz)
    rng = np.random.Generator(np.random.Philox(key=3))
    field = ndimage.gaussian_filter(rng.standard_normal(label_xyz.shape), 3)
    yield np.where(field > field.std(), np.roll(label_xyz, 5, axis=2), label_xyz)


def test_equal_on_real_maps(real_data: Path, tmp_path: Path) -> None:
    references = real_data / "ct_whole" / "flare22_ids" / "labels"
    files = sorted(references.glob("*.nii.gz"))
    assert files
    predictions = [tmp_path / f"altered-{n}" for n in range(3)]
    for file in files:
        image = nib.load(file)
        stored = np.asarray(image.dataobj).astype(np.uint8)
        for folder, array in zip(predictions, altered(stored), strict=True):
            folder.mkdir(exist_ok=True)
            nib.save(nib.Nifti1Image(array, None, image.header), folder / file.name)
    for folder in predictions:
        assert_folder_equal(references, folder)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "LPI", "ASL"])
def test_equal_on_files_of_any_orientation(codes: str, tmp_path: Path) -> None:
    """The script slices the stored third axis; with LPI that grows to the feet, with ASL to the left."""
    rng = np.random.Generator(np.random.Philox(key=5))
    reference = np.zeros((20, 18, 16), dtype=np.uint8)
    for value in range(1, 14):
        start = rng.integers(0, 10, 3)
        reference[tuple(slice(a, a + 6) for a in start)] = value
    prediction = np.roll(reference, (1, 0, 1), axis=(0, 1, 2))
    axes = nib.orientations.axcodes2ornt(codes)
    affine = np.eye(4)
    for stored, (axis, sign) in enumerate(axes):
        affine[:3, stored] = 0
        affine[int(axis), stored] = sign * (0.8, 1.1, 2.5)[stored]
    for name, array in (("references", reference), ("predictions", prediction)):
        (tmp_path / name).mkdir()
        nib.save(nib.Nifti1Image(array, affine), tmp_path / name / "case.nii.gz")
    assert_folder_equal(tmp_path / "references", tmp_path / "predictions")


def assert_folder_equal(references: Path, predictions: Path) -> None:
    summary = evaluate_folder(predictions, references, FLARE22_LABELS, settings=EvaluateSettings(rules="flare22"))
    assert summary["cases"]
    for case in summary["cases"]:
        image = nib.load(case["reference"])
        arrays = [np.asarray(nib.load(case[key]).dataobj).astype(np.uint8) for key in ("reference", "prediction")]
        expected = by_the_rules(arrays[0], arrays[1], image.header.get_zooms())
        assert [(s["dice"], s["nsd"]) for s in case["organs"].values()] == expected
