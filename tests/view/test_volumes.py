"""Layers: what a page gets is the file's voxels, whole or in part; what is kept has a limit."""

from __future__ import annotations

import threading
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from view_server import Served, save_scan, serving, wait_until_measured

from semiseg.io.scans import read_grid, read_volume
from semiseg.io.store import open_case, write_labels
from semiseg.types import AnyArray
from semiseg.view.source import open_source
from semiseg.view.volumes import ByteCache, Volumes, difference_of


def plain(folder: Path, scan: AnyArray, affine: AnyArray) -> Path:
    save_scan(folder / "images" / "one.nii.gz", scan, affine)
    z, y, x = scan.shape[-3:]
    save_scan(folder / "labels" / "one.nii.gz", np.ones((z, y, x), dtype=np.uint8), affine)
    return folder


@pytest.mark.parametrize(
    ("dtype", "values", "served_as"),
    [
        (np.int16, (-1024, 3071), np.int16),
        (np.uint8, (0, 255), np.int16),
        (np.uint16, (0, 30_000), np.int16),
        (np.uint16, (0, 60_000), np.float32),
        (np.int32, (-70_000, 5), np.float32),
        (np.float32, (-0.5, 0.25), np.float32),
        (np.float64, (-0.5, 0.25), np.float32),
    ],
)
def test_a_scan_keeps_its_values(tmp_path: Path, dtype: type, values: tuple[float, float], served_as: type) -> None:
    scan = np.linspace(*values, 6 * 7 * 8).reshape(6, 7, 8).astype(dtype)
    with serving(plain(tmp_path / "data", scan, np.diag([-1.5, 1.5, 4, 1]))) as served:
        found = fetched(served, "one", "scan", tmp_path)
    assert found.get_data_dtype() == served_as
    expected = read_volume([tmp_path / "data" / "images" / "one.nii.gz"])
    np.testing.assert_array_equal(nib.as_closest_canonical(found).get_fdata().transpose(2, 1, 0), expected.array[0])


def test_a_scaled_scan_is_sent_as_it_is_stored(tmp_path: Path) -> None:
    folder = plain(tmp_path / "data", np.zeros((4, 5, 6), dtype=np.int16), np.eye(4))
    image = nib.Nifti1Image(np.arange(120, dtype=np.int16).reshape(6, 5, 4), np.eye(4))
    image.header.set_slope_inter(0.5, -100)
    nib.save(image, folder / "images" / "one.nii.gz")
    with serving(folder) as served:
        found = fetched(served, "one", "scan", tmp_path)
    assert found.get_data_dtype() == np.int16
    np.testing.assert_array_equal(found.get_fdata(), nib.load(folder / "images" / "one.nii.gz").get_fdata())


def test_a_label_that_does_not_lie_on_its_scan_is_not_drawn_on_it(tmp_path: Path) -> None:
    folder = plain(tmp_path / "data", np.zeros((6, 7, 8), dtype=np.int16), np.eye(4))
    moved = np.eye(4)
    moved[0, 3] = 3
    save_scan(folder / "labels" / "one.nii.gz", np.ones((6, 7, 8), dtype=np.uint8), moved)
    with serving(folder) as served:
        wait_until_measured(served)
        name = served.json("/api/cases/one")["layers"][1]["name"]
        for picture in (f"layers/{name}.nii", f"slice.png?layers={name}", "strip.png", "thumbnail.png"):
            answer = served.client.get(f"/api/cases/one/{picture}")
            assert answer.status_code == 422, picture
            assert "not on the grid of its scan: the geometries differ" in answer.json()["error"]
        assert "up to 3 mm apart" in served.json("/api/cases")["rows"][0]["misfit"]
        refused = served.decide("one", "accept")
        assert refused.status_code == 409
        assert "does not lie on its scan" in refused.json()["error"]
        assert served.decide("one", "set_aside").status_code == 200


def fetched(served: Served, case: str, name: str, folder: Path) -> nib.Nifti1Image:
    answer = served.get(f"/api/cases/{case}/layers/{name}.nii")
    assert answer.status_code == 200, answer.text
    assert int(answer.headers["content-length"]) == len(answer.content)
    (folder / f"{name}.nii").write_bytes(answer.content)
    return nib.load(folder / f"{name}.nii")  # type: ignore[return-value]


def test_a_range_is_answered(label_folder: Path) -> None:
    with serving(label_folder) as served:
        url = "/api/cases/case_1/layers/reference.nii"
        whole = served.get(url).content
        total = len(whole)
        for asked, first, stop in (
            ("bytes=0-351", 0, 352),
            ("bytes=300-400", 300, 401),
            ("bytes=1000-", 1000, total),
            ("bytes=-7", total - 7, total),
            (f"bytes=10-{total + 99}", 10, total),
        ):
            answer = served.client.get(url, headers={"Range": asked})
            assert answer.status_code == 206
            assert answer.content == whole[first:stop]
            assert answer.headers["content-range"] == f"bytes {first}-{stop - 1}/{total}"
        for asked in ("bytes=1-2,4-5", "items=0-1", "bytes=a-b", "bytes=-", "bytes=5"):
            assert served.client.get(url, headers={"Range": asked}).content == whole
        assert served.client.get(url, headers={"Range": f"bytes={total}-"}).status_code == 416


def test_difference_says_missed_added_and_another() -> None:
    reference = np.array([[[0, 1, 1, 2, 0, 9]]], dtype=np.uint8)
    found = np.array([[[0, 1, 0, 1, 2, 1]]], dtype=np.uint8)
    np.testing.assert_array_equal(difference_of(reference, found, ignore=9), [[[0, 0, 1, 3, 2, 0]]])
    np.testing.assert_array_equal(difference_of(reference, found), [[[0, 0, 1, 3, 2, 3]]])


def test_labels_of_rounds_and_feedback_lie_on_the_scan(run: Path, tmp_path: Path) -> None:
    """On the plan's grid, whose cells cover the scan's: the corners of both in millimetres."""
    id = sorted(path.stem.removesuffix(".nii") for path in (run / "pseudo_labels").iterdir())[0]
    stored = open_case(run / "store" / id).meta.shape_zyx
    labels = np.zeros(stored, dtype=np.uint8)
    labels[: stored[0] // 2, :, : stored[2] // 2] = 1
    write_labels(run / "scan_labels" / "0123456789abcdef" / f"{id}.b2nd", labels)
    patch = tuple(n // 2 for n in stored)
    feedback = np.linspace(-1, 1, int(np.prod(patch)), dtype=np.float32).reshape(patch)
    (run / "feedback").mkdir(exist_ok=True)
    np.savez_compressed(run / "feedback" / f"{id}.npz", feedback=feedback)
    with serving(run) as served:
        case = served.json(f"/api/cases/{id}")
        assert [one["name"] for one in case["layers"]] == ["scan", "pseudo_label", "round_1", "feedback"]
        scan, round_1 = (fetched(served, id, name, tmp_path) for name in ("scan", "round_1"))
        found = fetched(served, id, "feedback", tmp_path)
        assert served.get(f"/api/cases/{id}/slice.png", layers="round_1,feedback").status_code == 200
    assert nib.as_closest_canonical(round_1).shape == stored[::-1]
    np.testing.assert_allclose(edges(round_1), edges(scan), atol=1e-3)
    np.testing.assert_array_equal(np.asarray(round_1.dataobj), labels.transpose())
    low, high = edges(scan)
    middle = (edges(found)[0] + edges(found)[1]) / 2
    cell = np.abs(high - low) / np.array(stored[::-1])
    assert (np.abs(middle - (low + high) / 2) <= cell).all()
    np.testing.assert_array_equal(np.asarray(found.dataobj), feedback.transpose())


def edges(image: nib.Nifti1Image) -> AnyArray:
    """The outer corners of the first and the last cell of the canonical array, in mm."""
    canonical = nib.as_closest_canonical(image)
    ends = np.array([[-0.5] * 3, [n - 0.5 for n in canonical.shape[:3]]])
    return np.asarray([(canonical.affine @ [*end, 1])[:3] for end in ends])


def test_the_cache_keeps_to_its_limit() -> None:
    made: list[int] = []

    def make(number: int) -> bytes:
        made.append(number)
        return bytes(40)

    cache: ByteCache[bytes] = ByteCache(100, len)
    for number in (1, 2, 1, 3, 1, 2):  # 3 drops 2, which was used longest ago
        cache.get(number, lambda number=number: make(number))
    assert made == [1, 2, 3, 2]
    assert cache.bytes == 80
    assert cache.get("large", lambda: make(101) + bytes(61)) == bytes(101)
    assert cache.get("large", lambda: make(101)) == bytes(101)
    assert cache.bytes == 101, "the newest one alone"
    assert made == [1, 2, 3, 2, 101]


def test_a_value_is_made_once_by_many_threads() -> None:
    made: list[int] = []
    ready = threading.Barrier(8)
    cache: ByteCache[bytes] = ByteCache(100, len)

    def make() -> bytes:
        made.append(1)
        return b"value"

    def ask() -> None:
        ready.wait()
        assert cache.get("key", make) == b"value"

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [1]


def test_what_cannot_be_made_is_tried_again() -> None:
    cache: ByteCache[bytes] = ByteCache(100, len)

    def fails() -> bytes:
        raise ValueError("damaged")

    with pytest.raises(ValueError, match="damaged"):
        cache.get("key", fails)
    assert cache.get("key", lambda: b"mended") == b"mended"


def test_a_changed_file_is_read_again(label_folder: Path) -> None:
    source = open_source(label_folder)
    volumes = Volumes(source)
    case = source.contents().cases["case_1"]
    layer = source.layers(case)[0]
    first = volumes.get(case, layer)
    assert volumes.get(case, layer) is first
    file = label_folder / "case_1.nii.gz"
    file.write_bytes((label_folder / "case_5.nii.gz").read_bytes())
    assert (volumes.get(case, layer).array != first.array).any()
    assert read_grid(file).shape_zyx == first.array.shape
