"""What SEG and RTSTRUCT files of a large series take: seconds, memory beside the label map, and bytes on the disk.

    python benchmarks/dicom_outputs.py LABELS.nii.gz FOLDER [--slices 700] [--formats dicom-seg rtstruct]

LABELS: a label map; its slices are repeated, up and down, and its two halves get values of their own, until there are
so many slices and up to 13 organs. A series of them is written into FOLDER/series.
"""

from __future__ import annotations

import argparse
import sys
import time
from importlib import import_module
from pathlib import Path

import numpy as np

from semiseg.geometry import to_canonical
from semiseg.io.dicom.derived import MadeBy, read_source
from semiseg.io.dicom.rtstruct import write_rtstruct
from semiseg.io.dicom.segmentation import require_highdicom, write_segmentation
from semiseg.io.dicom.series import find_series
from semiseg.io.scans import read_label
from semiseg.prediction.memory import peak_bytes, reset_peak

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # for `made_series.py`
ORGANS = 13


def tall(label_zyx: np.ndarray, slices: int) -> np.ndarray:
    """Labels of so many slices and up to 13 organs."""
    label = label_zyx.copy()
    right = label[:, :, label.shape[2] // 2 :]
    right[right > 0] += label.max()
    label[label > ORGANS] = ORGANS
    both = np.concatenate([label, label[::-1]])
    return np.concatenate([both] * -(-slices // len(both)))[:slices]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("labels", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--slices", type=int, default=700)
    parser.add_argument("--formats", nargs="+", default=["dicom-seg", "dicom-labelmap", "rtstruct"])
    arguments = parser.parse_args()
    write_series = import_module("made_series").write_series
    label, grid = read_label(arguments.labels)
    planes = tall(label, arguments.slices)
    place = arguments.folder / "series"
    if not place.exists():
        z, y, x = grid.spacing_mm
        write_series(place, np.zeros(planes.shape, np.int16), spacing=(x, y, z))
    (series,) = find_series(place)
    label = np.ascontiguousarray(to_canonical(planes.transpose(2, 1, 0), series.grid.affine))  # type: ignore[union-attr]
    del planes
    organs = {value: f"organ {value}" for value in range(1, ORGANS + 1)}
    require_highdicom()
    for form in arguments.formats:
        reset_peak()
        held, started, file = peak_bytes(), time.perf_counter(), arguments.folder / f"{form}.dcm"
        source, made_by = read_source(series), MadeBy(model="0" * 64)  # type: ignore[arg-type]
        if form == "rtstruct":
            write_rtstruct(file, label, source, organs, made_by)
        else:
            write_segmentation(file, label, source, organs, made_by, labelmap=form == "dicom-labelmap")
        seconds = time.perf_counter() - started
        memory, written = (peak_bytes() - held) / 1e6, file.stat().st_size / 1e6
        beside = f"{memory:.0f} MB beside {label.nbytes / 1e6:.0f} MB of labels"
        print(f"{form}: {label.shape}, {seconds:.1f} s, {beside}, a file of {written:.0f} MB", flush=True)


if __name__ == "__main__":
    main()
