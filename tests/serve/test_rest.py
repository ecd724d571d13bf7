"""What goes over the wire: the bytes that Slicer's client depends on, OHIF's requests, tokens, and hostile ones."""

from __future__ import annotations

import gzip
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import nibabel as nib
import numpy as np
import pytest
from rest_server import TOKEN, Served, serving, serving_model

from semiseg.geometry import from_canonical
from semiseg.io.scans import read_grid, read_label, write_label
from semiseg.prediction.inputs import Scan
from semiseg.serve.rest import MOST_WAITING
from semiseg.serve.work import open_work

OHIF = "http://localhost:3000"


@pytest.fixture(scope="module")
def served(model_folder: Path, scans: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving_model(model_folder, scans, tmp_path_factory.mktemp("served") / "review", origin=OHIF) as found:
        yield found


def raw(port: int, head: str, body: bytes = b"") -> tuple[int, dict[str, str], bytes]:
    """A request as it is written, and the answer as it comes: status, headers in small letters, body."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + body)
        with connection.makefile("rb") as answer:
            status = int(answer.readline().split()[1])
            headers = {}
            while line := answer.readline().strip():
                name, _, value = line.decode().partition(":")
                headers[name.lower()] = value.strip()
            return status, headers, answer.read(int(headers.get("content-length", "0")))


def form(**fields: str) -> tuple[str, bytes]:
    """As Slicer's client writes it: a boundary with characters that others would put into quotes."""
    boundary = "----------lImIt_of_THE_fIle_eW_$"
    lines = [
        part
        for name, value in fields.items()
        for part in (f"--{boundary}", f'Content-Disposition: form-data; name="{name}"', "", value)
    ]
    body = "\r\n".join([*lines, f"--{boundary}--", ""]).encode()
    return f"Content-Type: multipart/form-data; boundary={boundary}\nContent-Length: {len(body)}", body


@pytest.mark.parametrize(
    "path", ["info/", "info", "datastore/?output=all", "datastore/", "datastore/image?image=fine", ""]
)
def test_answers_have_a_length_and_lead_nowhere_else(served: Served, path: str) -> None:
    """The client reads the socket itself: it knows no chunks, follows nothing and unpacks nothing."""
    head = f"GET /t/{TOKEN}/{path} HTTP/1.1\nHost: 127.0.0.1:{served.port}\nAccept-Encoding: gzip"
    status, headers, body = raw(served.port, head)
    assert status == 200
    assert int(headers["content-length"]) == len(body) > 0
    assert "transfer-encoding" not in headers
    assert "content-encoding" not in headers
    assert "location" not in headers


def test_the_address_without_a_slash_answers(served: Served) -> None:
    """By which the module that reviews looks whether there is a server."""
    assert raw(served.port, f"GET /t/{TOKEN} HTTP/1.1\nHost: localhost:{served.port}")[0] == 200


def test_the_reply_with_a_label_is_one_piece(served: Served) -> None:
    headers, body = form(params=json.dumps({"result_extension": ".nrrd", "result_dtype": "uint8"}))
    head = f"POST /t/{TOKEN}/infer/semiseg?image=thick HTTP/1.1\nHost: 127.0.0.1:{served.port}\n{headers}"
    status, answered, content = raw(served.port, head, body)
    assert status == 200
    assert int(answered["content-length"]) == len(content)
    assert "transfer-encoding" not in answered
    kind, _, boundary = answered["content-type"].partition("; boundary=")
    assert kind == "multipart/form-data"
    before, params, image, after = content.split(f"--{boundary}".encode())
    assert (before, after.strip()) == (b"", b"--")
    assert b"filename" not in params
    assert b'filename="label.nrrd"' in image


def test_a_browser_without_the_token_gets_a_sentence(served: Served) -> None:
    asked = f"GET / HTTP/1.1\nHost: 127.0.0.1:{served.port}\nAccept: text/html,*/*;q=0.8"
    status, _, body = raw(served.port, asked)
    assert status == 403
    assert b"<p>Use the address that semiseg serve printed" in body


def test_no_token_no_answer(served: Served) -> None:
    for path in (
        "/",
        "/info/",
        "/t/",
        "/t/wrong/info/",
        f"/t/{TOKEN}x/info/",
        f"/t/{TOKEN[:-1]}/info/",
        f"/T/{TOKEN}/",
    ):
        status, _, body = raw(served.port, f"GET {path} HTTP/1.1\nHost: 127.0.0.1:{served.port}")
        assert status == 403
        assert "address that semiseg serve printed" in json.loads(body)["error"]
    status, _, _ = raw(served.port, f"GET /t/{TOKEN}/info/ HTTP/1.1\nHost: evil.example:{served.port}")
    assert status == 421


def test_pages_of_other_sites_may_not_ask(served: Served, scans: Path, tmp_path: Path) -> None:
    for method, path in (("GET", "info/"), ("POST", "activelearning/random"), ("PUT", "datastore/label?image=fine")):
        answer = served.client.request(method, path, headers={"Origin": "https://evil.example"})
        assert answer.status_code == 403
        assert "access-control-allow-origin" not in answer.headers
    with serving(open_work(None, _with_names(scans, tmp_path / "named"), tmp_path / "review")) as closed:
        answer = closed.client.get("info/", headers={"Origin": OHIF})
        assert answer.status_code == 403
        assert "--ohif" in answer.json()["error"]


def _with_names(scans: Path, folder: Path) -> Path:
    """The scans as a plain dataset without labels."""
    (folder / "labels").mkdir(parents=True)
    (folder / "images").symlink_to(scans)
    (folder / "labels.json").write_text('{"liver": 1, "left_kidney": 2}', encoding="utf-8")
    return folder


def test_ohif_asks(served: Served) -> None:
    """Its client's requests, one after another, from its own page: each answer may be read by it, and a label is bare
    NRRD whose voxels are as cornerstone sorts them: columns, rows, slices ascending along row × column."""
    own = {"Origin": OHIF, "Accept": "application/json, multipart/form-data"}
    preflight = {
        "Origin": OHIF,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type",
    }
    allowed = served.client.options("activelearning/random", headers=preflight)
    assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, OHIF)
    info = served.client.get("info/", headers=own)
    assert info.headers["access-control-allow-origin"] == OHIF
    assert isinstance(info.json()["labels"], list)
    assert served.client.get("train/?check_if_running=true", headers=own).status_code == 404
    assert served.client.post("activelearning/random", json={}, headers=own).json()["id"] in ("fine", "middle", "thick")
    params = {
        "result_extension": ".nrrd", "result_dtype": "uint8", "result_compress": False, "restore_label_idx": False,
    }  # fmt: skip
    for id in ("fine", "middle", "thick"):
        answer = served.client.post(
            f"infer/semiseg?image={id}&output=image", files={"params": (None, json.dumps(params))}, headers=own
        )
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == OHIF
        header, _, voxels = answer.content.partition(b"\n\n")
        fields = dict(line.split(": ", 1) for line in header.decode().splitlines()[1:])
        assert (fields["type"], fields["encoding"]) == ("uint8", "raw")
        label, grid = read_label(served.work.folder / "pseudo_labels" / f"{id}.nii.gz")
        stored = from_canonical(label, grid.affine)
        assert fields["sizes"] == " ".join(map(str, stored.shape))
        assert len(voxels) == stored.size
        lps = np.diag([-1, -1, 1]) @ grid.affine[:3, :3]
        ascending = float(np.cross(lps[:, 0], lps[:, 1]) @ lps[:, 2]) > 0
        expected = stored if ascending else stored[:, :, ::-1]
        np.testing.assert_array_equal(np.frombuffer(voxels, np.uint8), expected.ravel(order="F"))
        assert len(set(voxels)) > 2


def test_what_is_not_there_is_said(served: Served) -> None:
    ask = served.client
    for answer, status, word in (
        (ask.get("datastore/image?image=../fine"), 404, "no such image"),
        (ask.get("datastore/image"), 404, "no such image"),
        (ask.get("datastore/label?label=fine&tag=final"), 404, "no such label"),
        (ask.post("infer/other?image=fine", files={"params": (None, "{}")}), 404, "no such model"),
        (ask.post("infer/semiseg?image=fine&output=dicom_seg", files={"params": (None, "{}")}), 400, "output"),
        (ask.post("infer/semiseg?image=fine", files={"params": (None, "[")}), 400, "JSON"),
        (ask.post("infer/semiseg?image=fine", files={"params": (None, "{}"), "file": ("a.nii", b"a")}), 400, "files"),
        (ask.post("infer/semiseg?image=fine&session_id=1", files={"params": (None, "{}")}), 404, "its folder"),
        (ask.post("activelearning/none", json={}), 404, "Strategies here: random"),
        (ask.put("datastore/?image=mine", files={"file": ("mine.nii.gz", b"a")}), 403, "its folder"),
        (ask.put("session/", files={"files": ("mine.nii.gz", b"a")}), 403, "its folder"),
        (ask.post("train/semiseg", json={}), 404, "semiseg run"),
        (ask.put("datastore/label?image=fine", data={"params": "{}"}), 400, "as a file"),
        (ask.put("datastore/label?image=fine&tag=original", files={"label": ("a.nii", b"a")}), 400, "final"),
        (ask.put("datastore/label?image=fine", files={"label": ("a.exe", b"a")}), 400, ".nrrd"),
        (ask.get("nothing"), 404, "Not Found"),
        (ask.delete("datastore/label?id=fine&tag=final"), 405, "Not Allowed"),
    ):  # fmt: skip
        assert answer.status_code == status, answer.text
        assert word in answer.json()["error"]


def sent(served: Served, name: str, content: bytes, params: object = None) -> httpx.Response:
    """As a label of the scan `fine`."""
    return served.client.put(
        "datastore/label?image=fine", data={"params": json.dumps(params or {})}, files={"label": (name, content)}
    )


def test_hostile_labels_are_named(served: Served, scans: Path, tmp_path: Path) -> None:
    """What is no label, is cut off, claims more than it holds, becomes terabytes, or is a scan: a sentence each, and
    nothing is kept."""
    scan = scans / "fine.nii.gz"
    grid = read_grid(scan)
    z, y, x = grid.shape_zyx
    noise = np.random.default_rng(0).integers(0, 3, grid.shape_zyx, np.uint8)
    write_label(tmp_path / "good.nii.gz", noise, grid, scan)
    good = gzip.decompress((tmp_path / "good.nii.gz").read_bytes())
    trailing = gzip.compress(good + bytes(80 << 20), 1)
    far = bytearray(good)
    far[108:112] = np.float32(2e9).tobytes()  # where the voxels begin
    nrrd = f"NRRD0004\ntype: uint8\ndimension: 3\nspace: left-posterior-superior\nsizes: {x} {y} {z}\n"
    nrrd += "space directions: (0.6,0,0) (0,0.6,0) (0,0,0.6)\nspace origin: (-12.5,80.25,31)\nencoding: gzip\n"
    huge = nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4))
    huge.header["dim"][1:4], huge.header["vox_offset"] = 30000, 352
    for name, content, word in (
        ("a.nii.gz", b"", "readable"),
        ("a.nii.gz", b"no gzip", "readable"),
        ("a.nii.gz", gzip.compress(good)[:-900], "damaged or truncated"),
        ("a.nii.gz", trailing, "more than the header"),
        ("a.nii.gz", gzip.compress(bytes(far)), "damaged or cut off"),
        ("a.nii.gz", gzip.compress(bytes(huge.header.binaryblock)), "damaged or cut off"),
        ("a.nrrd", (nrrd + "byte skip: 99999999999\n\n").encode() + gzip.compress(bytes(1 << 20)), "Restore"),
        ("a.nrrd", (nrrd + "\n").encode() + gzip.compress(bytes(1 << 28)), "more than the header"),
        ("a.nrrd", (nrrd + "data file: /etc/passwd\n\n").encode(), "outside of its own folder"),
        ("a.nrrd", (nrrd + "data file: ../../x.raw\n\n").encode(), "outside of its own folder"),
        ("a.nii.gz", scan.read_bytes(), "value"),
    ):
        answer = sent(served, name, content)
        assert answer.status_code == 422, (name, word, answer.text)
        assert word in answer.json()["error"], answer.text
        assert str(tmp_path.parent) not in answer.text
        assert "semiseg-" not in answer.text  # where it was put meanwhile
    assert not (served.work.folder / "corrections").exists()


@pytest.mark.parametrize("kind", [".nii", ".nii.gz", ".nrrd", ".mha"])
def test_labels_come_in_any_format_that_slicer_writes(
    model_folder: Path, scans: Path, tmp_path: Path, kind: str
) -> None:
    with serving(open_work(None, _with_names(scans, tmp_path / "named"), tmp_path / "review")) as served:
        grid = read_grid(scans / "thick.nii.gz")
        label = np.zeros(grid.shape_zyx, np.uint8)
        label[2:4, 5:9, 3:8], label[6:8, 5:9, 3:8] = 1, 2
        write_label(tmp_path / f"label{kind}", label, grid)
        params = json.dumps({"label_info": [{"name": "left_kidney"}, {"name": "liver"}]})
        answer = served.client.put(
            "datastore/label?image=thick",
            data={"params": params},
            files={"label": (f"whatever/it is{kind.upper()}", (tmp_path / f"label{kind}").read_bytes())},
        )
        assert answer.json()["became"] == "corrected"
        kept, _ = read_label(tmp_path / "review" / "corrections" / "thick.nii.gz")
        np.testing.assert_array_equal(kept, np.array([0, 2, 1])[label])


def test_more_than_a_label_can_be_is_not_taken(served: Served) -> None:
    """A body that says its length is refused at once, one that does not after so many bytes."""
    path = f"/t/{TOKEN}/datastore/label?image=fine"
    head = f"PUT {path} HTTP/1.1\nHost: 127.0.0.1:{served.port}\nContent-Type: multipart/form-data; boundary=b"
    assert raw(served.port, f"{head}\nContent-Length: 99999999999")[0] == 413

    def body() -> Iterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="label"; filename="a.nii"\r\n\r\n'
        for _ in range(64):
            yield bytes(1 << 18)

    kind = {"Content-Type": "multipart/form-data; boundary=b"}
    answer = served.client.put("datastore/label?image=fine", content=body(), headers=kind)
    assert answer.status_code == 413


class Waits:
    """Stands in for a model that takes its time: how many scans it has at once is counted."""

    hash = "none"

    def __init__(self) -> None:
        self.may_end = threading.Event()
        self.now = self.most = 0

    def __call__(self, scan: Scan, output: Path) -> Path:
        self.now += 1
        self.most = max(self.most, self.now)
        assert self.may_end.wait(60)
        self.now -= 1
        return scan.images[0].with_name("label") / "all.nii.gz"


def test_one_scan_at_a_time_and_the_others_wait(scans: Path, tmp_path: Path) -> None:
    named = _with_names(scans, tmp_path / "named")
    (tmp_path / "label").mkdir()
    waits = Waits()
    work = open_work(None, named, tmp_path / "review")
    answers: list[int] = []
    with serving(work, waits) as served:

        def ask() -> None:
            answer = httpx.post(f"{served.url}/infer/semiseg?image=fine&output=json", files=_PARAMS, timeout=60)
            answers.append(answer.status_code)

        asking = [threading.Thread(target=ask) for _ in range(MOST_WAITING + 4)]
        for one in asking:
            one.start()
        while len(answers) < 4:  # more than may wait
            assert any(one.is_alive() for one in asking)
        assert answers == [503] * 4
        assert served.client.get("info/").status_code == 200  # the rest goes on meanwhile
        waits.may_end.set()
        for one in asking:
            one.join()
    assert sorted(answers) == [200] * MOST_WAITING + [503] * 4
    assert waits.most == 1


_PARAMS: Any = {"params": (None, "{}")}


def test_labels_lie_where_slicer_shows_a_scan_whose_two_forms_disagree(model_folder: Path, tmp_path: Path) -> None:
    """SimpleITK, as Slicer, would take its qform: the scan and its labels go out on the one grid that we read."""
    sitk = pytest.importorskip("SimpleITK")
    (tmp_path / "data").mkdir()
    image = nib.Nifti1Image(np.random.default_rng(0).normal(50, 75, (26, 24, 22)).astype(np.int16), None)
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    image.set_qform(affine, 1)
    affine[:3, 3] = (12, -7, 30)
    image.set_sform(affine, 2)
    nib.save(image, tmp_path / "data" / "a.nii.gz")
    assert sitk.ReadImage(str(tmp_path / "data" / "a.nii.gz")).GetOrigin() == (0, 0, 0)
    with serving_model(model_folder, tmp_path / "data", tmp_path / "review") as served:
        name = served.client.post("activelearning/random", json={}).json()["name"]
        scan = tmp_path / name
        scan.write_bytes(served.client.get("datastore/image", params={"image": "a"}).content)
        shown = sitk.ReadImage(str(scan))
        assert shown.GetOrigin() == (-12, 7, 30)
        params = json.dumps({"result_compress": False})
        inferred = served.client.post("infer/semiseg?image=a&output=image", files={"params": (None, params)})
        kept = served.client.get("datastore/label", params={"label": "a", "tag": "original"})
        assert kept.headers["content-disposition"].endswith('label.nrrd"')
        for answer in (inferred, kept):
            (tmp_path / "label.nrrd").write_bytes(answer.content)
            label = sitk.ReadImage(str(tmp_path / "label.nrrd"))
            there = sitk.Resample(label, shown, sitk.Transform(), sitk.sitkNearestNeighbor, 255, sitk.sitkUInt8)
            voxels = sitk.GetArrayFromImage(there)
            expected = np.asarray(nib.load(tmp_path / "review" / "pseudo_labels" / "a.nii.gz").dataobj).transpose()
            np.testing.assert_array_equal(voxels, expected)
        mended = sitk.GetImageFromArray(np.where(voxels == 1, 2, voxels))
        mended.CopyInformation(shown)
        sitk.WriteImage(mended, str(tmp_path / "mended.nii.gz"))
        with (tmp_path / "mended.nii.gz").open("rb") as file:
            answer = served.client.put("datastore/label", params={"image": "a"}, files={"label": file})
        assert answer.json()["became"] == "corrected", answer.text
