"""Folders of label maps in, summary.json and summary.csv out."""

from __future__ import annotations

import csv
import json
import tracemalloc
import unicodedata
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from semiseg.errors import ConfigError, DataError
from semiseg.io.dataset import LabelScheme
from semiseg.io.flare22_labels import FLARE22_LABELS
from semiseg.scoring import EvaluateSettings, Summary, evaluate_folder, read_summary
from semiseg.scoring.scheme import scheme_of
from semiseg.types import LabelArray

LABELS = LabelScheme(names={0: "background", 1: "anterior", 2: "posterior"})


def save(path: Path, label_xyz: LabelArray, spacing_mm_xyz: tuple[float, float, float] = (1.0, 1.0, 2.0)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(label_xyz, np.diag([*spacing_mm_xyz, 1.0])), path)
    return path


def label_map(shift: int = 0) -> LabelArray:
    label = np.zeros((10, 11, 12), dtype=np.uint8)
    label[2:6, 2:8, 2 + shift : 7 + shift] = 1
    label[6:9, 2:8, 2:7] = 2
    return label


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """References and predictions of five cases, each prediction a little worse than the one before."""
    for n in range(5):
        save(tmp_path / "references" / f"case-{n}.nii.gz", label_map())
        save(tmp_path / "predictions" / f"case-{n}.nii.gz", label_map(shift=n))
    return tmp_path / "references", tmp_path / "predictions"


def test_the_summary_is_written_and_read_back(folders: tuple[Path, Path], tmp_path: Path) -> None:
    references, predictions = folders
    calls: list[tuple[int, int]] = []
    summary = evaluate_folder(
        predictions, references, LABELS, output=tmp_path, progress=lambda done, total: calls.append((done, total))
    )
    assert read_summary(tmp_path / "summary.json") == summary
    assert calls == [(n, 5) for n in range(1, 6)]
    assert summary["organs"] == {"1": "anterior", "2": "posterior"}
    dice = [case["organs"]["anterior"]["dice"] for case in summary["cases"]]
    assert dice == pytest.approx([1 - n / 5 for n in range(5)])
    assert summary["per_organ"]["anterior"]["dice"]["mean"] == pytest.approx(0.6)
    assert summary["per_organ"]["posterior"]["hd95_mm"] == {"mean": 0.0, "low": 0.0, "high": 0.0, "count": 5}
    assert summary["mean"]["dice"]["mean"] == pytest.approx(0.8)
    with (tmp_path / "summary.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["case"], row["organ"]) for row in rows[:3]] == [
        ("case-0", "anterior"),
        ("case-0", "posterior"),
        ("case-1", "anterior"),
    ]
    assert float(rows[2]["dice"]) == pytest.approx(0.8)
    assert float(rows[0]["volume_ml"]) == pytest.approx(4 * 6 * 5 * 2 / 1000)


def test_processes_change_nothing(folders: tuple[Path, Path], tmp_path: Path) -> None:
    references, predictions = folders
    one = evaluate_folder(predictions, references, LABELS, output=tmp_path / "one")
    two = evaluate_folder(predictions, references, LABELS, output=tmp_path / "two", workers=2)
    assert one == two


def test_errors_come_out_of_processes_as_they_are(folders: tuple[Path, Path]) -> None:
    references, predictions = folders
    save(predictions / "case-3.nii.gz", label_map()[:-1])
    with pytest.raises(DataError, match=r"case-3.nii.gz: not on the grid of .*\(12, 11, 9\)"):
        evaluate_folder(predictions, references, LABELS, workers=2)


def test_cases_with_images_come_as_a_list(folders: tuple[Path, Path], tmp_path: Path) -> None:
    references, predictions = folders
    image = tmp_path / "image.nii.gz"
    summary = evaluate_folder(predictions, [("case-1", references / "case-1.nii.gz", image)], LABELS)
    assert [(case["id"], case["image"]) for case in summary["cases"]] == [("case-1", str(image))]
    assert (predictions / "summary.json").exists()
    assert summary["mean"]["dice"]["low"] is None  # one case has no spread


def test_every_missing_prediction_is_named_before_anything_is_scored(folders: tuple[Path, Path]) -> None:
    references, predictions = folders
    for n in (1, 4):
        (predictions / f"case-{n}.nii.gz").unlink()
    (references / "case-0.nii.gz").write_bytes(b"never opened")
    with pytest.raises(DataError, match="2 of 5 predictions are missing: case-1, case-4"):
        evaluate_folder(predictions, references, LABELS)
    assert not (predictions / "summary.json").exists()


def test_an_accent_may_be_written_in_two_ways(folders: tuple[Path, Path]) -> None:
    """As one character, or as a letter and its accent, which macOS prefers."""
    for folder, form in zip(folders, ("NFC", "NFD"), strict=True):
        (folder / "case-0.nii.gz").rename(folder / unicodedata.normalize(form, "Müller.nii.gz"))
    summary = evaluate_folder(folders[1], folders[0], LABELS)
    assert unicodedata.normalize("NFC", "Müller") in {case["id"] for case in summary["cases"]}


def test_another_geometry_is_refused(folders: tuple[Path, Path]) -> None:
    references, predictions = folders
    save(predictions / "case-2.nii.gz", label_map(), (1.0, 1.0, 3.0))
    with pytest.raises(DataError, match=r"case-2.nii.gz: not on the grid of .*spacings"):
        evaluate_folder(predictions, references, LABELS)


def test_values_outside_of_the_labels_are_refused(folders: tuple[Path, Path]) -> None:
    references, predictions = folders
    label = label_map()
    label[0, 0, :3] = 7
    save(predictions / "case-2.nii.gz", label)
    with pytest.raises(DataError, match=r"case-2.nii.gz: 3 voxels have value 7, but the labels are 0, 1, 2"):
        evaluate_folder(predictions, references, LABELS)


def test_scoring_takes_a_few_bytes_a_voxel(tmp_path: Path) -> None:
    """Both maps and a mask, not eight bytes a voxel besides: every worker holds a case."""
    label = np.zeros((128, 128, 128), dtype=np.uint8)
    label[20:30, 20:30, 20:30], label[60:70, 60:70, 30:40] = 1, 2
    for folder in ("references", "predictions"):
        save(tmp_path / folder / "a.nii.gz", label)
    evaluate_folder(tmp_path / "predictions", tmp_path / "references", LABELS)  # what is loaded once
    tracemalloc.start()
    try:
        evaluate_folder(tmp_path / "predictions", tmp_path / "references", LABELS)
        assert tracemalloc.get_traced_memory()[1] < 6 * label.size
    finally:
        tracemalloc.stop()


def test_the_ignore_label_comes_from_the_label_scheme(folders: tuple[Path, Path]) -> None:
    references, predictions = folders
    label = label_map()
    label[:, :, 7:] = 3
    save(references / "case-2.nii.gz", label)
    labels = LabelScheme(names=LABELS.names, ignore=3)
    summary = evaluate_folder(predictions, [("case-2", references / "case-2.nii.gz", None)], labels)
    assert summary["cases"][0]["organs"]["anterior"]["dice"] == pytest.approx(2 * 3 / (5 + 3))


def test_tolerances_per_organ(folders: tuple[Path, Path]) -> None:
    references, predictions = folders
    settings = EvaluateSettings(tolerance_mm=1.0, organ_tolerance_mm={"anterior": 100.0})
    summary: Summary = evaluate_folder(predictions, references, LABELS, settings=settings)
    assert summary["tolerance_mm"] == {"anterior": 100.0, "posterior": 1.0}
    assert summary["per_organ"]["anterior"]["nsd"]["mean"] == 1.0
    with pytest.raises(ConfigError, match="names liver, but the organs are anterior, posterior"):
        evaluate_folder(predictions, references, LABELS, settings=EvaluateSettings(organ_tolerance_mm={"liver": 5.0}))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"rules": "flare21"}, "rules = 'flare21' is none of standard, flare22"),
        ({"tolerance_mm": -1.0}, "tolerance_mm = -1.0 must be"),
        ({"organ_tolerance_mm": {"liver": float("nan")}}, "organ_tolerance_mm.liver = nan must be"),
    ],
)
def test_bad_settings(values: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        EvaluateSettings(**values)  # type: ignore[arg-type]


def test_flare22_refuses_other_labels(folders: tuple[Path, Path]) -> None:
    references, predictions = folders
    with pytest.raises(ConfigError, match="score labels 1 to 13, but this dataset has 1, 2"):
        evaluate_folder(predictions, references, LABELS, settings=EvaluateSettings(rules="flare22"))
    swapped = {**FLARE22_LABELS.names, 1: "spleen", 3: "liver"}
    with pytest.raises(ConfigError, match="take liver as label 1, but this dataset has it as 3"):
        evaluate_folder(predictions, references, LabelScheme(names=swapped), settings=EvaluateSettings(rules="flare22"))


def test_an_empty_reference_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no reference label maps"):
        evaluate_folder(tmp_path, tmp_path, LABELS)
    with pytest.raises(DataError, match="no such folder"):
        evaluate_folder(tmp_path, tmp_path / "nowhere", LABELS)


def test_a_damaged_summary_names_the_key(folders: tuple[Path, Path], tmp_path: Path) -> None:
    references, predictions = folders
    evaluate_folder(predictions, references, LABELS, output=tmp_path)
    text = (tmp_path / "summary.json").read_text()
    (tmp_path / "summary.json").write_text(text.replace('"rules": "standard"', '"rules": "home-made"'))
    with pytest.raises(DataError, match=r"summary.json: rules: .*Run `semiseg evaluate` again"):
        read_summary(tmp_path / "summary.json")
    for damage, key in (
        (lambda found: found["organs"].popitem(), "tolerance_mm"),
        (lambda found: found["per_organ"].popitem(), "per_organ"),
        (lambda found: found["cases"][0]["organs"].popitem(), "cases: "),
        (lambda found: found["mean"].popitem(), "mean, per_organ"),
    ):
        found = json.loads(text)
        damage(found)
        (tmp_path / "summary.json").write_text(json.dumps(found))
        with pytest.raises(DataError, match=rf"summary.json: {key}.*Run `semiseg evaluate` again"):
            read_summary(tmp_path / "summary.json")


def test_references_of_dicom_without_labels_say_what_to_type(tmp_path: Path) -> None:
    (tmp_path / "a_seg.dcm").touch()
    with pytest.raises(DataError, match=r"Add --labels MODEL/plan\.toml .*or --labels DATA/dataset\.json"):
        scheme_of(None, tmp_path, "standard")
