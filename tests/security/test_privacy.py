"""What DICOM and NIfTI say of patients is looked for in all that the commands write, print and send, within compressed
files, too: the whole way on generated scans, and the ways that end with an error."""

from __future__ import annotations

import base64
import gzip
import io
import json
import re
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image, PngImagePlugin

pytest.importorskip("pydicom")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "view"))  # for servers in a thread
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "serve"))

import pydicom

from dicom_series import write_series
from semiseg.demo.dataset import write_phantom_dataset
from semiseg.files import cache_folder

TAGS = {
    "PatientName": "Geheimrath^Zacharias",
    "PatientID": "MRN77310042",
    "PatientBirthDate": "19430217",
    "OtherPatientIDs": "ALTNR5512",
    "PatientAddress": "Lindwurmgasse",
    "ReferringPhysicianName": "Quacksalber^Ottokar",
    "AccessionNumber": "ACC99118",
    "InstitutionName": "Nimmerleinklinik",
    "StudyDescription": "Abdomen of Zacharias G",
    "PatientComments": "Zacharias wants a copy",
}
WORDS = (
    *("Geheimrath", "Zacharias", "MRN77310042", "19430217", "1943-02-17", "ALTNR5512", "Lindwurmgasse"),
    *("Quacksalber", "Ottokar", "ACC99118", "Nimmerlein"),
)
ROOT_UID = "1.2.826.0.1.3680043.8.498.7731"
PATTERN = re.compile("|".join(map(re.escape, (*WORDS, ROOT_UID))), re.IGNORECASE)
MAY_NAME_THEM = re.compile(r"_(seg|rtstruct)\.dcm$")
"""DICOM that a clinic's archive is to file under its patient."""
MOST_UNPACKED = 1 << 26
TORCH = ("--device", "cpu", "--engine", "torch", "--precision", "float32")
AND_MORE = ("--statistics", "--preview")
LABELLED, UNLABELLED, TEST = ("phantom_000", "phantom_001"), ("phantom_002", "phantom_003"), ("phantom_004",)


def write_dicom(folder: Path, scan: Path, number: int, **tags: Any) -> list[Path]:
    """A NIfTI scan as DICOM slices of a patient."""
    image = nib.as_closest_canonical(nib.load(scan))
    x, y, z = image.affine.diagonal()[:3]
    start = image.affine[:3, 3] * (-1, -1, 1)
    files = write_series(
        folder,
        np.asarray(image.dataobj).astype(np.int16).transpose(2, 1, 0),
        orientation=(-1, 0, 0, 0, -1, 0),
        spacing=(round(float(y), 8), round(float(x), 8)),
        positions=[(start[0], start[1], start[2] + k * z) for k in range(image.shape[2])],
        intercepts=(0.0,),
        uid=f"{ROOT_UID}.{number}",
        **(TAGS | tags),
    )
    for file in files:
        one = pydicom.dcmread(file)
        one.add_new((0x0009, 0x0010), "LO", "SOMEBODY")
        one.add_new((0x0009, 0x1001), "LO", "Zacharias Geheimrath")
        one.save_as(file)
    return files


def write_nifti(path: Path, scan: Path) -> Path:
    """A NIfTI scan whose header says whose it is, in all places that it has for words."""
    image = nib.load(scan)
    for name in ("descrip", "aux_file", "db_name", "intent_name"):
        image.header[name] = "Zacharias"
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Geheimrath^Zacharias 19430217"))
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of a plain pair of folders: series of DICOM and a NIfTI scan, labelled, unlabelled and for tests."""
    made = tmp_path_factory.mktemp("phantoms") / "data"
    write_phantom_dataset(made, seed=0, labelled=2, unlabelled=2, test=1, shape_zyx=(24, 32, 32))
    root = tmp_path_factory.mktemp("clinic") / "data"
    for number, id in enumerate(LABELLED):
        write_dicom(root / "images" / id, made / "imagesTr" / f"{id}_0000.nii.gz", number)
        write_nifti(root / "labels" / f"{id}.nii.gz", made / "labelsTr" / f"{id}.nii.gz")
    write_dicom(root / "unlabelled" / "a", made / "imagesUn" / f"{UNLABELLED[0]}_0000.nii.gz", 5)
    write_nifti(root / "unlabelled" / "b.nii.gz", made / "imagesUn" / f"{UNLABELLED[1]}_0000.nii.gz")
    for id in TEST:
        write_dicom(root / "imagesTs" / id, made / "imagesTs" / f"{id}_0000.nii.gz", 7)
        write_nifti(root / "labelsTs" / f"{id}.nii.gz", made / "labelsTs" / f"{id}.nii.gz")
    (root / "dataset.json").write_bytes((made / "dataset.json").read_bytes())
    return root


@dataclass
class Said:
    """All that commands printed."""

    command: Callable[..., Any]
    texts: list[str] = field(default_factory=list)

    def __call__(self, *arguments: object, code: int = 0) -> Any:
        answer = self.command(*arguments)
        assert answer.code == code, (arguments, answer)
        self.texts.append(f"{arguments}\n{answer.out}\n{answer.err}")
        return answer


@pytest.fixture(scope="module")
def said(semiseg_command: Callable[..., Any]) -> Said:
    return Said(semiseg_command)


@pytest.fixture(scope="module")
def run(data: Path, said: Said, tiny: list[str], one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole way, with all that a run can leave; what else the commands made lies beside it."""
    work = tmp_path_factory.mktemp("work")
    run = work / "run"
    quick = ["--set", "predict.engine=onnx", "--set", "predict.precision=float32", "--set", "train.steps=8"]
    said("run", run, "--data", data, *tiny, *quick, "--method", "pseudo_label")
    said("rank", run)
    said("predict", run, "--unlabelled", *TORCH)
    forms = ("nifti", "nrrd", "dicom-seg", "rtstruct")
    said("predict", run, data / "imagesTs", "--output", work / "out", *TORCH, *AND_MORE, "--format", *forms)
    said("predict", run, data / "unlabelled" / "b.nii.gz", "--output", work / "nifti", *TORCH, "--probabilities")
    said("report", run)
    said("correct", run, "--export", work / "ids.txt", code=2)
    for form in ("onnx", "model"):
        said("export", run, "--to", form, "--output", work / f"export_{form}")
    return run


def contents(file: Path) -> Iterator[bytes]:
    """The bytes of a file, and those that are packed within."""
    yield from unpacked(file.read_bytes(), depth=3)


def unpacked(data: bytes, depth: int) -> Iterator[bytes]:
    yield data
    yield data.replace(b"\0", b"")  # UTF-16
    if depth == 0:
        return
    if data[:2] == b"\x1f\x8b":
        with suppress(OSError, EOFError, zlib.error), gzip.open(io.BytesIO(data)) as stream:
            yield from unpacked(stream.read(MOST_UNPACKED), depth - 1)
    if zipfile.is_zipfile(io.BytesIO(data)):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for entry in archive.infolist():
                yield entry.filename.encode()
                yield from unpacked(archive.read(entry), depth - 1)
    if data[:4] == b"\x89PNG":
        yield from png_texts(data)
    for packed in re.findall(rb"base64,([A-Za-z0-9+/=\s]{64,})", data):
        with suppress(ValueError):
            yield from unpacked(base64.b64decode(packed), depth - 1)


def png_texts(data: bytes) -> Iterator[bytes]:
    place = 8
    while place + 8 <= len(data):
        size, kind = int.from_bytes(data[place : place + 4]), data[place + 4 : place + 8]
        chunk = data[place + 8 : place + 8 + size]
        if kind in (b"tEXt", b"zTXt", b"iTXt", b"eXIf"):
            yield chunk
            start = chunk.find(b"x\x9c")
            if start >= 0:
                with suppress(zlib.error):
                    yield zlib.decompress(chunk[start:])
        place += 12 + size


def found_in(text: bytes) -> set[str]:
    return set(PATTERN.findall(text.decode("latin-1")))


def found_below(folder: Path) -> dict[str, set[str]]:
    """What of the patients is in files and names of files, but in those that are to name them."""
    found: dict[str, set[str]] = {}
    for file in folder.rglob("*"):
        name = str(file.relative_to(folder))
        words = found_in(name.encode())
        if file.is_file() and not MAY_NAME_THEM.search(file.name):
            words |= {word for text in contents(file) for word in found_in(text)}
        if words:
            found[name] = words
    return found


def test_what_is_looked_for_is_there_to_be_found(data: Path, run: Path, tmp_path: Path) -> None:
    """In the scans, in the DICOM that is written, and in whatever it might be packed in."""
    scans = found_below(data)
    assert {word.lower() for words in scans.values() for word in words} >= {w.lower() for w in WORDS if "-" not in w}
    made = [file for file in (run.parent / "out").rglob("*") if MAY_NAME_THEM.search(file.name)]
    assert ["Geheimrath" in found_in(file.read_bytes()) for file in made] == [True, True]
    text = b"of Zacharias"
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("b.gz", gzip.compress(text))
    np.savez_compressed(tmp_path / "c.npz", a=np.frombuffer(text, dtype=np.uint8))
    comment = PngImagePlugin.PngInfo()
    comment.add_text("Comment", "of Zacharias", zip=True)
    Image.new("L", (4, 4)).save(tmp_path / "d.png", pnginfo=comment)
    encoded = base64.b64encode((tmp_path / "d.png").read_bytes()).decode()
    (tmp_path / "e.html").write_text(f"<img src='data:image/png;base64,{encoded}'>")
    (tmp_path / "f.txt").write_text("of Zacharias", encoding="utf-16")
    (tmp_path / "Zacharias").touch()
    assert set(found_below(tmp_path)) == {"a.zip", "c.npz", "d.png", "e.html", "f.txt", "Zacharias"}


def test_nothing_of_a_patient_is_in_what_the_commands_leave(run: Path) -> None:
    work = run.parent
    files = {str(file.relative_to(work)) for file in work.rglob("*") if file.is_file()}
    expected = {
        f"run/{name}" for name in ("report.html", "summary.json", "cases.jsonl", "ranking.csv", "metrics.jsonl")
    }
    expected |= {"run/store/cases.index", "run/model/card.json", "out/statistics.json", "export_model/README.md"}
    assert expected <= files
    assert found_below(work) == {}


def test_nothing_of_a_patient_is_in_what_the_commands_print(run: Path, said: Said) -> None:
    assert len(said.texts) > 8
    assert [found for text in said.texts if (found := found_in(text.encode()))] == []


def test_names_of_files_are_ids_of_cases_and_do_not_leave_with_a_model(run: Path) -> None:
    """A NIfTI file, a folder or a zip with a label is a case of its name, in the run alone. What is known of engines on
    this machine does not name them either."""
    assert all(id in (run / "cases.jsonl").read_text() for id in (*LABELLED, *TEST))
    for folder in (run / "model", *run.parent.glob("export_*")):
        texts = [text for file in folder.rglob("*") if file.is_file() for text in contents(file)]
        assert len(texts) >= 6
        assert not [id for id in (*LABELLED, *UNLABELLED, *TEST) if any(id.encode() in text for text in texts)]
    known = [file.read_text() for file in (cache_folder() / "engines").iterdir()]
    assert any("worst_dice" in text for text in known)
    assert not [id for id in (*LABELLED, *UNLABELLED, *TEST) if any(id in text for text in known)]


def test_what_has_no_label_is_named_by_a_hash(data: Path, run: Path) -> None:
    rows = [json.loads(line) for line in (run / "cases.jsonl").read_text().splitlines()]
    ids = {row["id"] for row in rows if row["role"] == "unlabelled"}
    assert ids == {"b", next(id for id in ids if re.fullmatch("[0-9a-f]{12}", id))}


def without(files: list[Path]) -> None:
    files[5].unlink()


def cut_off(files: list[Path]) -> None:
    files[5].write_bytes(files[5].read_bytes()[:900])


def cut_within_voxels(files: list[Path]) -> None:
    files[5].write_bytes(files[5].read_bytes()[:-500])


def twice(files: list[Path]) -> None:
    shutil.copy(files[3], files[3].with_name("again"))


def replaced(old: str, new: bytes) -> Callable[[list[Path]], None]:
    """Another value of the same length, which no library would have written."""

    def change(files: list[Path]) -> None:
        for file in files:
            data = file.read_bytes()
            assert data.count(old.encode()) >= 1
            file.write_bytes(data.replace(old.encode(), new))

    return change


@pytest.mark.parametrize(
    ("change", "said_of_it"),
    [
        (without, "1 slice is missing"),
        (cut_off, "1 slice is missing"),
        (cut_within_voxels, "cut off"),
        (twice, "a duplicate"),
        (replaced("19430217", b"Zacharia"), "1 scan in"),  # no date
        (replaced(f"{ROOT_UID}.9", b"Zacharias".ljust(len(ROOT_UID) + 2)), "1 scan in"),  # no UID
        (replaced("Geheimrath^Zacharias", b"Zacharias\x80\xff=^^^^^^^^"), "1 scan in"),  # no name
        (replaced("MONOCHROME2", b"Zacharias  "), "Colour images are not read"),
        (replaced("DS\x04\x001.0 ", b"DS\x04\x00Zach"), "amaged header"),  # no slope
    ],
)
def test_nothing_of_a_patient_is_said_of_a_series_that_is_damaged(
    change: Callable[[list[Path]], None], said_of_it: str, run: Path, data: Path, said: Said, tmp_path: Path
) -> None:
    scan = next(data.parent.parent.glob("phantoms*/data/imagesTs/*"))
    change(write_dicom(tmp_path / "scan", scan, 9))
    forms = ("nifti", "dicom-seg", "rtstruct")
    answer = said.command("predict", run, tmp_path / "scan", "--output", tmp_path / "out", *TORCH, "--format", *forms)
    assert "Traceback" not in answer.err
    assert said_of_it in answer.out + answer.err
    assert found_in((answer.out + answer.err).encode()) == set()
    if (tmp_path / "out").exists():
        assert found_below(tmp_path / "out") == {}


def test_what_libraries_warn_of_is_not_shown(data: Path, tmp_path: Path) -> None:
    """In a process of its own, where warnings are printed: pydicom's quote what they stumbled over."""
    scan = next(data.parent.parent.glob("phantoms*/data/imagesTs/*"))
    files = write_dicom(tmp_path / "scan", scan, 9, SpecificCharacterSet="ISO_IR 100")
    replaced("ISO_IR 100", b"Zacharias ")(files)
    done = subprocess.run(
        [sys.executable, "-m", "semiseg", "check", str(tmp_path / "scan")], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert found_in(done.stdout.encode()) == set()


def test_descriptions_are_shown_by_check_alone(run: Path, data: Path, said: Said, tmp_path: Path) -> None:
    """By them a person chooses a series; what is refused does not repeat them."""
    scan = next(data.parent.parent.glob("phantoms*/data/imagesTs/*"))
    for number, words in ((11, "Leber Geheimrath"), (12, "Thorax Zacharias")):
        for file in write_dicom(tmp_path / words, scan, number, SeriesDescription=words):
            (tmp_path / "scan").mkdir(exist_ok=True)
            file.rename(tmp_path / "scan" / f"{number}_{file.name}")
    predict = ("predict", run, tmp_path / "scan", "--output", tmp_path / "out", *TORCH)
    refused = said.command(*predict)
    assert (refused.code, "2 series in one folder" in refused.err) == (2, True)
    assert found_in((refused.out + refused.err).encode()) == set()
    assert found_in(said.command("check", tmp_path / "scan").out.encode()) == {"Geheimrath", "Zacharias"}
    chosen = said.command(*predict, "--series", "thorax")
    assert (chosen.code, found_in((chosen.out + chosen.err).encode())) == (0, set())
    assert found_below(tmp_path / "out") == {}


def test_nothing_of_a_patient_is_on_the_pages(run: Path) -> None:
    pytest.importorskip("starlette")
    from view_server import serving

    with serving(run) as served:
        sent = {path: served.get(path) for path in ("/api/info", "/api/cases", "/api/review", "/api/training", "/")}
        for case in served.json("/api/cases")["rows"]:
            one = served.get(f"/api/cases/{case['id']}")
            layers = [layer["url"] for layer in one.json()["layers"]]
            paths = [f"/api/cases/{case['id']}/strip.png", *layers]
            sent |= {path: served.client.get(path) for path in paths} | {case["id"]: one}
        sent["/api/cases/Zacharia"] = served.get("/api/cases/Zacharia")
    assert sum(answer.status_code == 200 for answer in sent.values()) > 15
    assert {path: words for path, answer in sent.items() if (words := found_in(answer.content))} == {}
    assert found_below(run) == {}  # thumbnails and measures of the pages


def test_nothing_of_a_patient_is_sent_with_a_scan_of_dicom(run: Path) -> None:
    """By the server for 3D Slicer. What lies there as NIfTI or NRRD goes out as it is (docs/privacy.md)."""
    pytest.importorskip("starlette")
    from rest_server import serving

    from semiseg.serve.work import open_work

    work = open_work(run, None, None)
    with serving(work) as served:
        ids = served.client.get("datastore/?output=all").json()["objects"]
        sent = [served.client.get("info/"), served.client.get("datastore/?output=all")]
        sent += [served.client.post("activelearning/random", json={"client_id": "a"})]
        sent += [served.client.get(f"datastore/image?image={id}") for id in ids if id != "b"]
        sent += [
            served.client.get(f"datastore/label?label={id}&tag=original") for id in ids if id not in LABELLED + TEST
        ]
        sent += [served.client.put(f"datastore/label?image={id}", files={"label": ("a.nrrd", b"NRRD")}) for id in ids]
    assert {answer.status_code for answer in sent} >= {200, 422}
    assert [words for answer in sent for text in unpacked(answer.content, 2) if (words := found_in(text))] == []
