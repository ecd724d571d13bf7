"""One bad file is named and stops no other: damaged scans, pipes, wrong headers, strange names, hostile JSON."""

from __future__ import annotations

import csv
import gzip
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import blosc2
import nibabel as nib
import numpy as np
import pytest
from rich.console import Console

from semiseg.data.fingerprint import compute_fingerprint
from semiseg.errors import DataError
from semiseg.files import read_json
from semiseg.io.layouts import read_dataset
from semiseg.io.scans import read_grid, read_label, read_volume
from semiseg.io.store import open_labels
from semiseg.scoring.tables import print_table

Command = Callable[..., Any]


def scan(path: Path, array: np.ndarray | None = None, affine: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.arange(8 * 9 * 10, dtype=np.int16).reshape(8, 9, 10) if array is None else array
    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return path


def header_edited(path: Path, offset: int, value: np.ndarray) -> Path:
    """The scan with other bytes in its header."""
    content = bytearray(gzip.decompress(scan(path).read_bytes()))
    content[offset : offset + value.nbytes] = value.tobytes()
    path.write_bytes(gzip.compress(bytes(content)))
    return path


def test_every_flipped_byte_of_a_gzip_file_is_found_or_changes_nothing(tmp_path: Path) -> None:
    """Names and times in the gzip header are free; everything else is under the checksum or the stream's own order."""
    file = scan(tmp_path / "a.nii.gz")
    whole, truth = file.read_bytes(), read_volume([file]).array
    accepted = []
    for place in range(len(whole)):
        content = bytearray(whole)
        content[place] ^= 0x41
        file.write_bytes(content)
        try:
            read = read_volume([file]).array
        except DataError:
            continue
        else:
            assert np.array_equal(read, truth)
            accepted.append(place)
    assert max(accepted, default=0) < len(whole) - 100  # of the gzip header alone


@pytest.mark.parametrize(
    ("offset", "value", "text"),
    [
        (108, np.float32(np.inf), "not a readable NIfTI file"),  # vox_offset
        (42, np.array([3000, 3000, 3000], np.int16), "the header claims"),  # dim
        (280, np.array([9e8, 0, 0], np.float32), "singular or not finite|no scan's"),  # srow_x
        (280, np.array([5e3, 0, 0], np.float32), "are no scan's. Repair the header"),
    ],
)
def test_a_header_that_cannot_be_is_refused(tmp_path: Path, offset: int, value: np.ndarray, text: str) -> None:
    file = header_edited(tmp_path / "a.nii.gz", offset, value)
    with pytest.raises(DataError, match=text):
        read_grid(file)


@pytest.mark.parametrize("kind", ["pipe", "device", "loop", "folder"])
def test_what_is_no_file_is_not_waited_for(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "a.nii.gz"
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    else:
        file.symlink_to("/dev/zero" if kind == "device" else file)
    with pytest.raises(DataError, match=r"a\.nii\.gz: (no file, but|there is no such file|not a readable)"):
        read_grid(file)
    if kind != "loop":
        with pytest.raises(DataError, match="no file, but"):
            read_json(file)


@pytest.fixture
def odd_set(phantoms: Path, tmp_path: Path) -> Path:
    """The phantoms with pipes, loops and damaged files among the unlabelled scans."""
    data = shutil.copytree(phantoms, tmp_path / "data")
    folder = data / "imagesTr"
    os.mkfifo(folder / "pipe_0000.nii.gz")
    os.mkfifo(folder / "pipe.dcm")
    (folder / "loop_0000.nii.gz").symlink_to("loop_0000.nii.gz")
    header_edited(folder / "far_0000.nii.gz", 280, np.array([9e8, 0, 0], np.float32))
    header_edited(folder / "large_0000.nii.gz", 42, np.array([3000, 3000, 3000], np.int16))
    return data


def test_check_names_them_all_and_goes_on(odd_set: Path, semiseg_command: Command) -> None:
    answer = semiseg_command("check", odd_set)
    assert answer.code == 1
    for name in ("far_0000.nii.gz", "large_0000.nii.gz", "loop_0000.nii.gz"):
        assert name in answer.out
    assert "Traceback" not in answer.err


def test_predict_names_bad_scans_and_goes_on(
    odd_set: Path, semiseg_command: Command, phantoms: Path, tiny: list[str], tmp_path: Path
) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    assert semiseg_command("prepare", run, "--data", phantoms, *tiny, "--quiet").code == 0
    assert semiseg_command("train", run, "--quiet").code == 0
    latin = os.fsdecode(os.fsencode(str(odd_set / "imagesTs")) + b"/caf\xe9_0000.nii.gz")
    shutil.copy(next((odd_set / "imagesTs").iterdir()), latin)
    answer = semiseg_command("predict", run, odd_set / "imagesTr", odd_set / "imagesTs", "--output", out, "--quiet",
                             "--engine", "torch", "--device", "cpu")  # fmt: skip
    assert answer.code == 1
    assert "failed: caf\\udce9: " in answer.err
    assert "characters that cannot be printed. Rename it." in answer.err
    assert all(f"failed: {name}: " in answer.err for name in ("far", "large"))
    assert len(list(out.glob("phantom_*.nii.gz"))) == 3  # all of the others


def test_a_flipped_bit_in_the_store_is_found_and_the_case_made_again(
    semiseg_command: Command, phantoms: Path, tiny: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert semiseg_command("prepare", run, "--data", phantoms, *tiny, "--quiet").code == 0
    generator = np.random.default_rng(0)
    for name in ("image.b2nd", "case.json"):
        file = run / "store" / "phantom_002" / name
        whole = file.read_bytes()
        for place in generator.integers(0, len(whole), 5):
            content = bytearray(whole)
            content[place] ^= 1 << int(generator.integers(8))
            file.write_bytes(content)
            assert semiseg_command("prepare", run, "--data", phantoms, *tiny, "--quiet").code == 0
            assert file.read_bytes() == whole


def run_when_opened(inputs: Any, output: Any, offset: Any) -> None:
    """What blosc2 keeps as source text beside an array."""
    output[:] = inputs[0]


def test_source_text_in_an_array_is_not_run(tmp_path: Path) -> None:
    values = blosc2.asarray(np.zeros((4, 5, 6), np.uint8), urlpath=str(tmp_path / "values.b2nd"), mode="w")
    lazy = blosc2.lazyudf(run_when_opened, (values,), dtype=np.uint8, shape=(4, 5, 6))
    lazy.save(urlpath=str(tmp_path / "labels.b2nd"))
    with pytest.raises(DataError, match=r"damaged \(labels\.b2nd: Encountered active serialized value"):
        open_labels(tmp_path / "labels.b2nd", (4, 5, 6))


HOSTILE = {
    "a value that fills the memory": '{"labels": {"background": 0, "liver": 2000000000}',
    "a million labels": '{"labels": {' + ", ".join(f'"c{i}": {i}' for i in range(100_000)) + "}",
    "deep nesting": '{"labels": ' + "[" * 100_000 + "]" * 100_000,
    "a number of 5,000 digits": '{"labels": {"background": 0, "liver": ' + "1" * 5000 + "}",
    "half of a surrogate pair": '{"labels": {"background": 0, "\\ud800": 1}',
    "an escape sequence": '{"labels": {"background": 0, "\\u001b[31mliver": 1}',
    "pairs that cannot be hashed": '{"labels": {"background": 0, "a": 1, "b": 2}, "mirror_pairs": [[["a"], {"b": 1}]]',
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_dataset_json_is_a_named_error(name: str, semiseg_command: Command, tmp_path: Path) -> None:
    scan(tmp_path / "imagesTr" / "a_0000.nii.gz")
    scan(tmp_path / "labelsTr" / "a.nii.gz", np.ones((8, 9, 10), np.uint8))
    rest = ', "channel_names": {"0": "CT"}, "file_ending": ".nii.gz"}'
    (tmp_path / "dataset.json").write_text(HOSTILE[name] + rest)
    answer = semiseg_command("check", tmp_path)
    assert (answer.code, f"{tmp_path / 'dataset.json'}: " in answer.err) == (2, True)


def test_an_entry_of_dots_does_not_name_the_store(tmp_path: Path) -> None:
    scan(tmp_path / "imagesTr" / "..nii.gz")
    scan(tmp_path / "imagesTr" / "a.nii.gz")
    scan(tmp_path / "labelsTr" / "a.nii.gz", np.ones((8, 9, 10), np.uint8))
    entries = [{"image": f"imagesTr/{name}.nii.gz", "label": "labelsTr/a.nii.gz"} for name in (".", "a")]
    description = {"labels": {"0": "background", "1": "x"}, "modality": {"0": "CT"}, "training": entries}
    (tmp_path / "dataset.json").write_text(json.dumps(description))
    dataset = read_dataset(tmp_path)
    assert [case.id for case in dataset.cases] == ["a"]
    assert "would be no plain name of a file" in dataset.problems[0][1]


@pytest.mark.parametrize("name", ["a\u0085b", "a\u2028b"])
def test_ids_that_end_lines_elsewhere_are_refused(name: str, tmp_path: Path) -> None:
    for stem in (name, "c"):
        scan(tmp_path / "images" / f"{stem}.nii.gz")
        scan(tmp_path / "labels" / f"{stem}.nii.gz", np.ones((8, 9, 10), np.uint8))
    dataset = read_dataset(tmp_path)
    assert [case.id for case in dataset.cases] == ["c"]
    assert "cannot be printed" in dataset.problems[0][1]


def test_an_organ_may_be_called_as_a_tag_of_the_console(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("[/]", ["organ", "[bold]"], [["[/]", "1"], ["mean", "[/red]"]], Console(force_terminal=True, width=80))
    assert capsys.readouterr().out.count("[/]") == 2


def test_a_formula_in_a_table_is_text(semiseg_command: Command, tmp_path: Path) -> None:
    """Spreadsheets run what begins with an equals sign."""
    for folder in ("predictions", "references"):
        scan(tmp_path / folder / "=1+2.nii.gz", np.ones((8, 9, 10), np.uint8))
    answer = semiseg_command("evaluate", "--predictions", tmp_path / "predictions", "--references",
                             tmp_path / "references", "--quiet")  # fmt: skip
    assert answer.code == 0, answer
    with (tmp_path / "predictions" / "summary.csv").open() as file:
        assert [row["case"] for row in csv.DictReader(file)] == ["'=1+2"]


def test_grids_are_held_against_each_other_where_they_are_furthest_apart(tmp_path: Path) -> None:
    long = np.zeros((4, 4, 400), np.uint8)
    first = read_label(scan(tmp_path / "a.nii.gz", long))[1]
    for change, differs in (((2, 2, 5e-3), True), ((0, 3, 0.05), True), ((0, 3, 0.005), False), ((2, 2, 1e-5), False)):
        affine = np.eye(4)
        affine[0, 3] = 500.0
        same = read_label(scan(tmp_path / "b.nii.gz", long, affine.copy()))[1]
        affine[change[0], change[1]] += change[2]
        other = read_label(scan(tmp_path / "c.nii.gz", long, affine))[1]
        assert (same.difference(other) is not None) == differs, change
    assert "their corners lie up to 500 mm apart" in str(first.difference(same))


class Deadly(type(Path())):  # type: ignore[misc]
    """A path that ends every process which receives it, as a scan too large for the memory would."""

    def __reduce__(self) -> tuple[Any, tuple[int]]:
        return os._exit, (1,)


def test_a_scan_that_kills_every_process_is_named_in_the_fingerprint(phantoms: Path) -> None:
    dataset = read_dataset(phantoms)
    training = [case for case in dataset.cases if case.split == "train"]
    whole = compute_fingerprint(dataset, training)
    deadly = next(i for i, case in enumerate(training) if case.label is None)
    case = training[deadly]
    object.__setattr__(case, "images", (Deadly(case.images[0]),))
    found = compute_fingerprint(dataset, training, workers=2)
    ((id, text),) = found.problems
    assert id == case.id
    assert f"{case.images[0]}: the process that worked on it was killed" in text
    assert found.intensities == whole.intensities
