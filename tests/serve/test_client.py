"""The client that 3D Slicer's module of MONAI Label bundles, unmodified (monailabel 0.8.5)."""

from __future__ import annotations

import hashlib
import shutil
import urllib.request
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import numpy as np
import pytest
from rest_server import Served, serving_model

from semiseg.decisions import read_decisions
from semiseg.geometry import to_canonical
from semiseg.io.scans import read_grid, read_label, read_volume, write_label
from semiseg.types import LabelArray

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it imports `cgi`, which Python has given up
    client_module = pytest.importorskip(
        "monailabel.client.client", reason="the client is not installed: pip install --no-deps monailabel==0.8.5"
    )
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")

ORGANS = ["liver", "left_kidney", "spleen", "gallbladder"]


@pytest.fixture(scope="module")
def served(model_folder: Path, scans: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving_model(model_folder, scans, tmp_path_factory.mktemp("served") / "review") as found:
        yield found


def client_of(served: Served, folder: Path, client_id: str = "user-xyz") -> Any:
    return client_module.MONAILabelClient(served.url, tmpdir=str(folder), client_id=client_id)


def downloaded(served: Served, sample: dict[str, Any], folder: Path) -> Path:
    """As Slicer fetches a scan: without any header of its own, and with a look at the hash."""
    file = folder / sample["name"]
    urllib.request.urlretrieve(f"{served.url}/datastore/image?image={quote_plus(sample['id'])}", file)
    assert sample["checksum"] == f"SHA256:{hashlib.sha256(file.read_bytes()).hexdigest()}"
    return file


def saved_as_slicer_does(
    client: Any, id: str, label: LabelArray, scan: Path, order: list[str], file: Path
) -> dict[str, Any]:
    """Segments are numbered by their order in the list, whatever they were; `idx` is that of the list with background.
    label: with the values of `ORGANS`."""
    sent = np.zeros_like(label)
    for position, name in enumerate(order, start=1):
        sent[label == 1 + ORGANS.index(name)] = position
    write_label(file, sent, read_grid(scan), scan)
    info = [{"name": name, "idx": position} for position, name in enumerate(order, start=2)]
    return dict(client.save_label(id, str(file), params={"label_info": info, "model": "semiseg"}))


def test_the_whole_way(served: Served, scans: Path, tmp_path: Path) -> None:
    """info, next, the scan, its label by the model, the same as the original label, a mended one with its segments in
    another order: on grids of 0.6, 1 and 5 mm, equal voxels at each step."""
    client = client_of(served, tmp_path)
    assert not client.auth_enabled()
    assert not client.train_status(check_if_running=True)
    info = client.info()
    assert info["labels"] == ORGANS
    assert info["models"]["semiseg"]["type"] == "segmentation"
    assert info["datastore"] == {"total": 3, "completed": 0}
    assert not info.get("config")  # of which Slicer says that the server is too old
    seen = set()
    for done in range(3):
        sample = client.next_sample("random", {})
        id = sample["id"]
        seen.add(id)
        scan = downloaded(served, sample, tmp_path)
        np.testing.assert_array_equal(read_volume([scan]).array, read_volume([scans / f"{id}.nii.gz"]).array)
        assert "original" not in client.datastore()["objects"][id]["labels"]

        file, params = client.infer("semiseg", id, {"result_extension": ".nrrd", "result_dtype": "uint8"})
        assert list(params["label_names"]) == ORGANS
        assert file.endswith(".nrrd")
        label, values = as_slicer_reads(Path(file), scan)
        assert values == {0, 1, 2, 4}  # the absent organ has kept its place
        np.testing.assert_array_equal(label, read_label(served.work.folder / "pseudo_labels" / f"{id}.nii.gz")[0])

        about = client.datastore()["objects"][id]["labels"]["original"]["info"]
        assert list(about["params"]["label_names"]) == ORGANS
        original = client.download_label(id, "original")
        assert original.endswith(".nii.gz")
        np.testing.assert_array_equal(read_label(Path(original))[0], label)

        mended = label.copy()
        mended[2:5, 3:9, 4:8] = 2
        mended[label == 4] = 0
        order = ["gallbladder", "left_kidney", "spleen", "liver"]
        answer = saved_as_slicer_does(client, id, mended, scan, order, tmp_path / "mended.nii.gz")
        assert answer["became"] == "corrected"
        assert answer["absent"] == ["spleen", "gallbladder"]
        assert answer["changed_voxels"] == np.count_nonzero(mended != label)
        kept, grid = read_label(served.work.folder / "corrections" / f"{id}.nii.gz")
        np.testing.assert_array_equal(kept, mended)
        assert grid.difference(read_grid(scans / f"{id}.nii.gz")) is None
        np.testing.assert_array_equal(read_label(Path(client.download_label(id, "final")))[0], mended)
        assert client.info()["datastore"] == {"total": 3, "completed": done + 1}
    assert seen == {"fine", "middle", "thick"}
    assert client.next_sample("random", {}) == {}


def as_slicer_reads(file: Path, scan: Path) -> tuple[LabelArray, set[int]]:
    """By SimpleITK, on the grid of the scan's file as that lies: canonical `(Z, Y, X)`, and the values of the file."""
    sitk = pytest.importorskip("SimpleITK")
    label, image = sitk.ReadImage(str(file)), sitk.ReadImage(str(scan))
    assert label.GetPixelIDTypeAsString() == "8-bit unsigned integer"
    there = sitk.Resample(label, image, sitk.Transform(), sitk.sitkNearestNeighbor, 255, sitk.sitkUInt8)
    voxels = sitk.GetArrayFromImage(there)
    assert not (voxels == 255).any()
    return to_canonical(voxels.transpose(), read_grid(scan).affine), set(np.unique(sitk.GetArrayFromImage(label)))


def test_what_was_left_as_it_is_is_accepted(model_folder: Path, scans: Path, tmp_path: Path) -> None:
    with serving_model(model_folder, scans, tmp_path / "review") as served:
        client = client_of(served, tmp_path, "ann")
        file, _ = client.infer("semiseg", "fine", {})
        label, _ = as_slicer_reads(Path(file), scans / "fine.nii.gz")
        answer = saved_as_slicer_does(
            client, "fine", label, scans / "fine.nii.gz", ORGANS[::-1], tmp_path / "same.nii.gz"
        )
        assert answer["became"] == "accepted as it was"
        assert not (tmp_path / "review" / "corrections").exists()
        (line,) = read_decisions(tmp_path / "review" / "decisions.jsonl")
        assert (line["case"], line["decision"], line["reviewer"]) == ("fine", "accept", "ann")
        assert client.info()["datastore"]["completed"] == 1


def test_what_does_not_fit_is_refused_with_the_reason(served: Served, scans: Path, tmp_path: Path) -> None:
    client = client_of(served, tmp_path)
    scan = scans / "thick.nii.gz"
    label = np.zeros(read_grid(scan).shape_zyx, dtype=np.uint8)

    def refusal(file: Path, info: list[dict[str, Any]], image: str = "thick") -> str:
        with pytest.raises(client_module.MONAILabelClientException) as refused:
            client.save_label(image, str(file), params={"label_info": info})
        return str(refused.value.msg)

    label[2, 3, 4] = 1
    write_label(tmp_path / "label.nii.gz", label, read_grid(scan), scan)
    assert "not known here: Segment_1." in refusal(tmp_path / "label.nii.gz", [{"name": "Segment_1", "idx": 1}])
    assert "Two segments of one name: liver" in refusal(tmp_path / "label.nii.gz", [{"name": "liver"}] * 2)
    label[2, 3, 5] = 2
    write_label(tmp_path / "label.nii.gz", label, read_grid(scan), scan)
    assert "has value 2, but 1 segment" in refusal(tmp_path / "label.nii.gz", [{"name": "liver", "idx": 1}])
    other = scans / "middle.nii.gz"
    write_label(tmp_path / "other.nii.gz", np.zeros(read_grid(other).shape_zyx, np.uint8), read_grid(other), other)
    said = refusal(tmp_path / "other.nii.gz", [{"name": "liver", "idx": 1}])
    assert "not on the grid of its scan: the shapes differ" in said
    assert str(tmp_path) not in said
    assert "no such image" in refusal(tmp_path / "label.nii.gz", [], image="../thick")
    (tmp_path / "label.seg.nrrd").write_bytes(b"NRRD0004\n")
    assert ".nii.gz in Slicer" in refusal(tmp_path / "label.seg.nrrd", [])


def test_eight_people_at_once(model_folder: Path, tmp_path: Path, scans: Path) -> None:
    """Each takes scans until none is left, labels them by the model, draws a cross of their own and saves: no scan is
    given to two of them, and what each was told is saved lies there."""
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(16):
        shutil.copy(scans / "thick.nii.gz", folder / f"case {number}.nii.gz")
    with serving_model(model_folder, folder, tmp_path / "review") as served:

        def person(number: int) -> dict[str, LabelArray]:
            own = tmp_path / f"person {number}"
            own.mkdir()
            client, kept = client_of(served, own), {}
            while sample := client.next_sample("random", {}):
                file, _ = client.infer("semiseg", sample["id"], {})
                label, _ = as_slicer_reads(Path(file), folder / "case 0.nii.gz")
                label = label.copy()
                label[1 + number % 8, :, 5] = label[1 + number % 8, 6, :] = 3
                scan = downloaded(served, sample, own)
                assert (
                    saved_as_slicer_does(client, sample["id"], label, scan, ORGANS, own / "label.nii.gz")["became"]
                    == "corrected"
                )
                assert sample["id"] not in kept
                kept[sample["id"]] = label
            return kept

        with ThreadPoolExecutor(8) as people:
            all_kept = list(people.map(person, range(8)))
    together = {id: label for kept in all_kept for id, label in kept.items()}
    assert len(together) == 16
    corrections = tmp_path / "review" / "corrections"
    for id in together:
        kept = read_label(corrections / f"{id}.nii.gz")[0]
        earlier = [read_label(file)[0] for file in (corrections / "earlier").glob(f"{id}-*.nii.gz")]
        drawn = [labels[id] for labels in all_kept if id in labels]
        assert len(drawn) == 1 + len(earlier)
        for one in drawn:
            assert any(np.array_equal(one, there) for there in (kept, *earlier))


def test_two_who_mend_one_scan_lose_nothing(model_folder: Path, scans: Path, tmp_path: Path) -> None:
    with serving_model(model_folder, scans, tmp_path / "review") as served:
        scan = scans / "fine.nii.gz"
        labels = [np.zeros(read_grid(scan).shape_zyx, dtype=np.uint8) for _ in range(8)]
        for number, label in enumerate(labels):
            label[number, 3:6, 3:6] = 1

        def person(number: int) -> None:
            own = tmp_path / str(number)
            own.mkdir()
            client = client_of(served, own)
            saved_as_slicer_does(client, "fine", labels[number], scan, ORGANS, own / "label.nii.gz")

        with ThreadPoolExecutor(8) as people:
            list(people.map(person, range(8)))
    folder = tmp_path / "review" / "corrections"
    files = [folder / "fine.nii.gz", *(folder / "earlier").glob("fine-*.nii.gz")]
    assert len(files) == 8
    kept = [read_label(file)[0] for file in files]
    for label in labels:
        assert sum(np.array_equal(label, one) for one in kept) == 1
