"""Labels handed out and taken back by the pages: what is checked, and what the next training finds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from view_server import Served, serving

from semiseg.io.grid import Grid
from semiseg.io.scans import read_grid, read_label, write_label
from semiseg.types import AnyArray


@pytest.fixture
def served(run: Path) -> Iterator[Served]:
    with serving(run) as found:
        yield found


@pytest.fixture
def id(run: Path) -> str:
    return sorted(path.name.removesuffix(".nii.gz") for path in (run / "pseudo_labels").iterdir())[0]


def send(served: Served, case: str, file: Path, **more: str):  # type: ignore[no-untyped-def]
    files = {"label": (file.name, file.read_bytes())}
    return served.client.post("/api/corrections", data={"case": case} | more, files=files)


def mended(run: Path, id: str, folder: Path) -> tuple[Path, AnyArray]:
    label, grid = read_label(run / "pseudo_labels" / f"{id}.nii.gz")
    label = label.copy()
    label[10, 2:6, 2:6] = 2
    write_label(folder / "mended.nii.gz", label, grid)
    return folder / "mended.nii.gz", label


def test_a_case_goes_out_and_comes_back(served: Served, run: Path, id: str) -> None:
    folder = Path(served.post("/api/export", cases=[id]).json()["folder"])
    assert folder == run / "export"
    there = sorted(path.name for path in folder.iterdir())
    names = ["labels_itksnap.txt", "labels_slicer.ctbl", "README.txt", "handed_out.json"]
    assert there == sorted([f"{id}.nii.gz", f"{id}_scan.nii.gz", *names])
    label, grid = read_label(folder / f"{id}.nii.gz")
    label = label.copy()
    label[10, 2:6, 2:6] = 2
    write_label(folder / f"{id}.nii.gz", label, grid)
    answer = send(served, id, folder / f"{id}.nii.gz")
    assert answer.json() == {"case": id, "changed_voxels": 16, "slices": None}
    np.testing.assert_array_equal(read_label(run / "corrections" / f"{id}.nii.gz")[0], label)
    case = served.json(f"/api/cases/{id}")
    assert case["corrected"]
    assert "correction" in [layer["name"] for layer in case["layers"]]
    assert id not in served.json("/api/review")["queue"]


def test_a_label_that_nobody_touched_is_no_correction(served: Served, run: Path, id: str) -> None:
    """Though the model has learnt more since it was handed out."""
    folder = Path(served.post("/api/export", cases=[id]).json()["folder"])
    file, label = mended(run, id, folder)
    shutil.copy(file, run / "pseudo_labels" / f"{id}.nii.gz")
    answer = send(served, id, folder / f"{id}.nii.gz")
    assert answer.status_code == 422
    assert answer.json()["error"].startswith("This label is as it was handed out.")
    assert not (run / "corrections").exists()
    label[11, 2:6, 2:6] = 1
    write_label(file, label, read_grid(file))
    assert send(served, id, file).status_code == 200


def test_some_slices_are_taken(served: Served, run: Path, id: str, tmp_path: Path) -> None:
    file, _ = mended(run, id, tmp_path)
    assert send(served, id, file, axis="0", indices="10,9").json()["slices"] == {"axis": 0, "indices": [9, 10]}
    note = json.loads((run / "corrections" / f"{id}.json").read_text(encoding="utf-8"))
    assert note["slices"] == {"axis": 0, "indices": [9, 10]}
    assert note["source_sha256"] == served.json(f"/api/cases/{id}")["label_sha256"]


@pytest.mark.parametrize(
    ("more", "status"),
    [
        ({"axis": "3", "indices": "1"}, 400),
        ({"axis": "0"}, 400),
        ({"indices": "1"}, 400),
        ({"axis": "0", "indices": "1,-2"}, 400),
        ({"axis": "0", "indices": "9999"}, 422),
        ({"case": "../case"}, 404),
    ],
)
def test_what_is_not_meant_is_refused(
    served: Served, run: Path, id: str, tmp_path: Path, more: dict[str, str], status: int
) -> None:
    file, _ = mended(run, id, tmp_path)
    answer = send(served, more.pop("case", id), file, **more)
    assert answer.status_code == status
    assert answer.json()["error"]
    assert not (run / "corrections").exists()


@pytest.mark.parametrize("wrong", ["grid", "value", "no label", "unchanged", "bomb", "name"])
def test_a_label_that_does_not_fit_is_refused(served: Served, run: Path, id: str, tmp_path: Path, wrong: str) -> None:
    file, label = mended(run, id, tmp_path)
    grid = read_grid(file)
    if wrong == "grid":
        write_label(
            file, label, Grid(grid.shape_zyx, grid.spacing_mm, grid.affine + np.diag([0, 0, 0.5, 0]), grid.stored_mm)
        )
    elif wrong == "value":
        write_label(file, np.where(label == 2, 99, label).astype(np.uint8), grid)
    elif wrong == "no label":
        file.write_bytes(b"no NIfTI file")
    elif wrong == "unchanged":
        shutil.copy(run / "pseudo_labels" / f"{id}.nii.gz", file)
    elif wrong == "bomb":  # a small file that becomes large
        write_label(
            file, np.zeros((400, 600, 600), dtype=np.uint8), Grid((400, 600, 600), (1, 1, 1), np.eye(4), (1, 1, 1))
        )
    else:
        (tmp_path / "mended.exe").write_bytes(b"MZ")
        file = tmp_path / "mended.exe"
    answer = send(served, id, file)
    assert answer.status_code == 422
    assert answer.json()["error"].startswith(("The corrected label", "This label"))
    assert "/tmp" not in answer.json()["error"].partition(" of ")[0]
    assert not (run / "corrections").exists()


def test_labels_of_a_folder_are_mended_where_they_lie(label_folder: Path) -> None:
    with serving(label_folder) as served:
        assert not served.json("/api/info")["corrections"]
        assert served.post("/api/export", cases=["case_1"]).status_code == 409
        assert send(served, "case_1", label_folder / "case_2.nii.gz").status_code == 409
