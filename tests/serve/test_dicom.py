"""Series of DICOM, served to Slicer as NIfTI and to OHIF by their UIDs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from rest_server import Served, serving_model

from semiseg.io.dicom.series import hashed
from semiseg.io.scans import read_label, read_volume, write_label
from semiseg.serve.work import open_work

pydicom = pytest.importorskip("pydicom")

from dicom_series import AXIAL, TAGS_OF_A_PATIENT, oblique_orientations, random_voxels, write_series  # noqa: E402

DIRECTIONS = {
    "axial": AXIAL,
    "feet first": (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0),  # slices ascend to the feet
    "sagittal": (0.0, 1.0, 0.0, 0.0, 0.0, -1.0),
    "oblique": oblique_orientations(1)[0],
}


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of four, two of them in one sub-folder."""
    folder = tmp_path_factory.mktemp("dicom") / "data"
    for number, (name, orientation) in enumerate(DIRECTIONS.items()):
        voxels = random_voxels((11, 18, 21), low=900, high=1300)
        write_series(folder / ("two" if number < 2 else name), voxels, orientation=orientation, seed=number)
    return folder


@pytest.fixture(scope="module")
def served(model_folder: Path, series: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving_model(model_folder, series, tmp_path_factory.mktemp("served") / "review") as found:
        yield found


def by_uid(folder: Path) -> dict[str, list[pydicom.Dataset]]:
    """Files by their series, as cornerstone sorts them: by position along row × column."""
    found: dict[str, list[pydicom.Dataset]] = {}
    for file in folder.rglob("*"):
        if file.is_file():
            dataset = pydicom.dcmread(file)
            found.setdefault(dataset.SeriesInstanceUID, []).append(dataset)
    for files in found.values():
        along = np.array(files[0].ImageOrientationPatient, dtype=float)
        normal = np.cross(along[:3], along[3:])
        files.sort(key=lambda file: float(np.dot(normal, np.array(file.ImagePositionPatient, dtype=float))))
    return found


def test_ohif_gets_the_label_of_its_own_series(served: Served, series: Path) -> None:
    """Each voxel is that of the label map at the place which the headers of the files give."""
    params = json.dumps({"result_extension": ".nrrd", "result_dtype": "uint8", "result_compress": False})
    found = by_uid(series)
    assert len(found) == 4
    for uid, files in found.items():
        answer = served.client.post(f"infer/semiseg?image={uid}&output=image", files={"params": (None, params)})
        assert answer.status_code == 200, answer.text
        voxels = np.frombuffer(answer.content.partition(b"\n\n")[2], np.uint8)
        case = served.work.by_series(uid)
        assert case
        label = nib.load(served.work.folder / "pseudo_labels" / f"{case.id}.nii.gz")
        assert len(np.unique(voxels)) > 2
        expected = [at_places_of(file, label) for file in files]
        np.testing.assert_array_equal(voxels.reshape(np.shape(expected)), expected)


def at_places_of(file: pydicom.Dataset, label: nib.Nifti1Image) -> np.ndarray:
    """The values of a label map at the pixels of a slice, (rows, columns)."""
    along = np.array(file.ImageOrientationPatient, dtype=float)
    row_mm, column_mm = map(float, file.PixelSpacing)
    rows, columns = np.indices((file.Rows, file.Columns))
    lps = np.array(file.ImagePositionPatient, dtype=float)
    places = lps + columns[..., None] * along[:3] * column_mm + rows[..., None] * along[3:] * row_mm
    index = nib.affines.apply_affine(np.linalg.inv(label.affine), places * [-1, -1, 1])
    assert np.abs(index - index.round()).max() < 0.01
    i, j, k = np.moveaxis(index.round().astype(int), -1, 0)
    return np.asarray(label.dataobj)[i, j, k]


def test_slicer_gets_nifti_and_sends_labels_back(served: Served, tmp_path: Path) -> None:
    sample = served.client.post("activelearning/random", json={}).json()
    assert sample["name"] == f"{sample['id']}.nii"
    scan = tmp_path / sample["name"]
    scan.write_bytes(served.client.get("datastore/image", params={"image": sample["id"]}).content)
    case = served.work.cases[sample["id"]]
    of_series = read_volume(case.images)
    as_sent = read_volume([scan])
    np.testing.assert_array_equal(as_sent.array, of_series.array)
    assert as_sent.grid.difference(of_series.grid) is None
    label = (of_series.array[0] > 100).astype(np.uint8)
    write_label(tmp_path / "label.nii.gz", label, as_sent.grid, scan)
    params = {"params": json.dumps({"label_info": [{"name": "gallbladder", "idx": 1}]})}
    with (tmp_path / "label.nii.gz").open("rb") as file:
        answer = served.client.put(
            "datastore/label", params={"image": sample["id"]}, data=params, files={"label": file}
        )
    assert answer.json()["became"] == "corrected", answer.text
    np.testing.assert_array_equal(
        read_label(served.work.folder / "corrections" / f"{sample['id']}.nii.gz")[0], 4 * label
    )


def test_no_tag_of_a_patient_leaves_the_series(served: Served) -> None:
    sent = [served.client.get(path).content for path in ("info/", "datastore/?output=all")]
    for _ in range(4):
        answer = served.client.post("activelearning/random", json={})
        sent.append(answer.content)
        sent.append(served.client.get("datastore/image", params={"image": answer.json()["id"]}).content)
    sent += [path.read_bytes() for path in served.work.folder.rglob("*") if path.is_file()]
    for tag in TAGS_OF_A_PATIENT:
        assert not [content for content in sent if tag.encode() in content]
    for uid in by_uid(Path(json.loads((served.work.folder / "serve.json").read_text(encoding="utf-8"))["data"])):
        assert not [content for content in sent if uid.encode() in content]


def test_a_series_is_found_by_its_uid_whatever_lies_beside_it(tmp_path: Path) -> None:
    """Localizers in the series, a derived one that was named, a broken one beside it; of two volumes neither."""
    data, uids = tmp_path / "data", [pydicom.uid.generate_uid() for _ in range(4)]
    voxels, scout = random_voxels((8, 9, 11)), DIRECTIONS["sagittal"]
    for number, uid in enumerate(uids[:3]):
        write_series(data / str(number), voxels, uid=uid)
    write_series(data / "0", voxels[:1], uid=uids[0], orientation=scout, marks=("", "", "LOCALIZER"), seed=1)
    write_series(data / "1", random_voxels((9, 20, 28)), uid=uids[1], spacing=(0.4, 0.35), seed=1)
    (data / "labels.json").write_text('{"liver": 1}')
    work = open_work(None, data, tmp_path / "review")
    assert len(work.cases) == 4
    assert (case := work.by_series(uids[0]))
    assert case.id == hashed(uids[0])
    assert work.by_series(uids[1]) is None
    shutil.rmtree(data / "1")
    assert (case := work.by_series(uids[2]))
    assert case.id == hashed(uids[2])
    assert work.by_series(uids[3]) is None
