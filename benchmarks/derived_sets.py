"""Data sets made from others, as unlike them as sets of other people are: for defaults that are to carry.

    python benchmarks/derived_sets.py --data FOLDER --output FOLDER

Cases are training cases of the older sets, those that are tested on here, too. By set:

  thick_heart   left atrium: slices of 7.5 mm, pixels of 0.625 mm, bodies of 0.8 to 1.25 times the size, another
                contrast in each scan, dark margins, rows and columns exchanged in a third
  thick_neck    head and neck: slices of 7.5 mm, twice the resolution in plane, intensities in units of each scan's own
  fine_temple   hippocampus: a third of the pixel size in plane, slices of 3 mm, dark margins, both parts as one organ
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
from scipy.ndimage import zoom

from semiseg.files import write_json
from semiseg.io.layouts import read_dataset
from semiseg.io.nifti import open_nifti

LABELLED, UNLABELLED, TESTS = 4, 20, 20
Scan = tuple[np.ndarray, np.ndarray, tuple[float, float, float]]
"""Image and label as x, y, z, and the sizes of a voxel in mm."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    organs = {"brainstem": 1, "spinal_cord": 2, "right_parotid": 3, "left_parotid": 4}
    made: list[tuple[str, str, dict[str, int], Callable[[Scan, np.random.Generator], Scan]]] = [
        ("thick_heart", "Dataset102_LeftAtriumHalf", {"left_atrium": 1}, _thick_heart),
        ("thick_neck", "Dataset101_HeadNeckCT", organs, _thick_neck),
        ("fine_temple", "Dataset004_Hippocampus", {"hippocampus": 1}, _fine_temple),
    ]
    for name, source, labels, change in made:
        dataset = read_dataset(arguments.data / source)
        cases = {case.id: case for case in dataset.cases}
        ids = dataset.train_order[: LABELLED + UNLABELLED] + dataset.train_order[-TESTS:]
        folder = arguments.output / name
        for number, id in enumerate(ids):
            case, part = cases[id], "Tr" if number < LABELLED + UNLABELLED else "Ts"
            assert case.label is not None
            scan = _read(case.images[0], case.label)
            image, label, voxel_mm = change(scan, np.random.default_rng(number))
            _write(image.astype(np.float32), voxel_mm, folder / f"images{part}" / f"{name}_{number:03d}_0000.nii.gz")
            if number < LABELLED or part == "Ts":
                _write(label.astype(np.uint8), voxel_mm, folder / f"labels{part}" / f"{name}_{number:03d}.nii.gz")
        description = {
            "name": name,
            "channel_names": {"0": "MRI"},
            "labels": {"background": 0, **labels},
            "numTraining": LABELLED,
            "file_ending": ".nii.gz",
        }
        write_json(folder / "dataset.json", description)
        print(f"{name}: {LABELLED} labelled, {UNLABELLED} unlabelled and {TESTS} test scans")


def _thick_heart(scan: Scan, rng: np.random.Generator) -> Scan:
    image, label, (x, y, z) = scan
    size = rng.uniform(0.8, 1.25)
    image, label = _resized(_slabs(image, 6), _whole_slices(label, 6), 2 * size)
    image = image / 255
    image = 200 * np.clip(image, 0, 1) ** rng.uniform(0.5, 1.8) + 20 * rng.uniform(0, 1)
    margin = rng.integers(0, 40, 4)
    widths = ((margin[0], margin[1]), (margin[2], margin[3]), (0, 0))
    image, label = np.pad(image, widths), np.pad(label, widths)
    if rng.uniform() < 1 / 3:
        image, label = image.transpose(1, 0, 2), label.transpose(1, 0, 2)
    return image, label, (x / 2, y / 2, 6 * z)


def _thick_neck(scan: Scan, rng: np.random.Generator) -> Scan:
    image, label, (x, y, z) = scan
    image, label = _resized(_slabs(image, 3), _whole_slices(label, 3), 2)
    image = (image + 1024) * rng.uniform(0.2, 2)
    return image, label, (x / 2, y / 2, 3 * z)


def _fine_temple(scan: Scan, rng: np.random.Generator) -> Scan:
    image, label, (x, y, z) = scan
    image, label = _resized(_slabs(image, 3), _whole_slices(label, 3), 3)
    widths = (*((int(a), int(b)) for a, b in rng.integers(0, 30, (2, 2))), (0, 0))
    return np.pad(image, widths), np.pad(label > 0, widths), (x / 3, y / 3, 3 * z)


def _slabs(image: np.ndarray, slices: int) -> np.ndarray:
    """Means of so many slices each; what is left at the end is dropped."""
    kept = image.shape[2] // slices * slices
    slabs = image[:, :, :kept].reshape(*image.shape[:2], -1, slices)
    return np.asarray(slabs.mean(axis=3))


def _whole_slices(label: np.ndarray, slices: int) -> np.ndarray:
    """The middle slice of each slab."""
    kept = label.shape[2] // slices * slices
    return label[:, :, slices // 2 : kept : slices]


def _resized(image: np.ndarray, label: np.ndarray, factor: float) -> tuple[np.ndarray, np.ndarray]:
    """Larger or smaller in plane; labels by the largest of linearly resampled classes."""
    factors = (factor, factor, 1)
    shares = [zoom((label == value).astype(np.float32), factors, order=1) for value in range(int(label.max()) + 1)]
    return zoom(image.astype(np.float32), factors, order=1), np.argmax(shares, axis=0)


def _read(image: Path, label: Path) -> Scan:
    loaded, labels = open_nifti(image), open_nifti(label)
    x, y, z = (float(mm) for mm in loaded.header.get_zooms()[:3])
    return np.asarray(loaded.dataobj, dtype=np.float32), np.asarray(labels.dataobj), (x, y, z)


def _write(array: np.ndarray, voxel_mm: tuple[float, float, float], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, np.diag((*voxel_mm, 1.0))), path)  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
