"""What can be looked at: runs at every stage, datasets, folders of labels, other labels; and what cannot."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from view_server import save_label, save_scan, serving

from semiseg.errors import ConfigError, DataError
from semiseg.files import write_json
from semiseg.run_folder import alone_in
from semiseg.view.source import open_source


def test_a_dataset_is_shown(phantoms: Path, tmp_path: Path) -> None:
    with serving(phantoms, decisions=tmp_path / "decisions.jsonl") as served:
        info = served.json("/api/info")
        assert (info["kind"], info["windows"][0]["name"], info["label_reviewed"]) == ("folder", "soft tissue", "labels")
        assert info["pages"] == {"run": False, "cases": True, "review": True, "report": False}
        rows = served.json("/api/cases")["rows"]
        assert [row["role"] for row in rows].count("test") == 1
        assert served.get("/api/run").status_code == 404
        assert served.get("/report").status_code == 404
        labelled = next(row["id"] for row in rows if served.json(f"/api/cases/{row['id']}")["reviewed_layer"])
        assert served.decide(labelled, "accept").status_code == 200
    assert not (phantoms / "decisions.jsonl").exists()
    assert not (phantoms / "view").exists()


def test_labels_of_another_program_are_judged_beside_the_references(phantoms: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels"
    shutil.copytree(phantoms / "labelsTr", labels)
    first = sorted(path.name.removesuffix(".nii.gz") for path in labels.iterdir())[0]
    with serving(phantoms, labels=labels, decisions=tmp_path / "decisions.jsonl") as served:
        case = served.json(f"/api/cases/{first}")
        assert [layer["name"] for layer in case["layers"]] == ["scan", "reference", "pseudo_label", "difference"]
        assert case["reviewed_layer"] == "pseudo_label"
        assert len(served.json("/api/review")["queue"]) == 2


def test_scans_and_labels_of_other_formats_are_shown_as_they_lie(phantoms: Path, tmp_path: Path) -> None:
    """Also where the voxels of a header are exchanged: the pages notice, and the label's hash is another."""
    data = tmp_path / "data"
    for folder, ending in (("imagesTr", ".nrrd"), ("labelsTr", ".mhd")):
        (data / folder).mkdir(parents=True)
        for file in (phantoms / folder).iterdir():
            image = SimpleITK.ReadImage(str(file))
            for key in image.GetMetaDataKeys():
                image.EraseMetaData(key)
            SimpleITK.WriteImage(image, str(data / folder / file.name.replace(".nii.gz", ending)))
    shutil.copy(phantoms / "dataset.json", data)
    scan = sorted((phantoms / "imagesTr").iterdir())[0]
    id = scan.name.removesuffix("_0000.nii.gz")
    with serving(data, decisions=tmp_path / "decisions.jsonl") as served:
        before = served.json(f"/api/cases/{id}")
        for layer, file in (("scan", scan), ("reference", phantoms / "labelsTr" / f"{id}.nii.gz")):
            shown = nib.Nifti1Image.from_bytes(served.get(f"/api/cases/{id}/layers/{layer}.nii").content)
            assert np.array_equal(np.asarray(shown.dataobj), np.asarray(nib.load(file).dataobj))
            assert np.array_equal(shown.affine, nib.load(file).affine)
        voxels = data / "labelsTr" / f"{id}.raw"
        voxels.write_bytes(bytes(voxels.stat().st_size))
        shown = nib.Nifti1Image.from_bytes(served.get(f"/api/cases/{id}/layers/reference.nii").content)
        assert not np.asarray(shown.dataobj).any()
        assert served.json(f"/api/cases/{id}")["label_sha256"] != before["label_sha256"]


def test_a_folder_of_label_maps_without_names_is_shown(tmp_path: Path) -> None:
    label = np.zeros((6, 7, 8), dtype=np.uint8)
    label[2:4] = 2
    label[1] = 1
    save_label(tmp_path / "one.nii.gz", label)
    with serving(tmp_path) as served:
        assert [organ["name"] for organ in served.json("/api/info")["organs"]] == ["class_1", "class_2"]
        case = served.json("/api/cases/one")
        assert [layer["name"] for layer in case["layers"]] == ["reference"]
        assert "window" not in case["layers"][0], "labels have none"
        for picture in ("slice.png?layers=reference", "strip.png", "thumbnail.png"):
            assert served.client.get(f"/api/cases/one/{picture}").status_code == 200


def test_a_dataset_is_read_again_where_scans_come_and_not_where_decisions_do(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for number in range(2):
        save_scan(data / "images" / f"case_{number}.nii.gz", np.ones((4, 5, 6), dtype=np.int16), np.eye(4))
        save_label(data / "labels" / f"case_{number}.nii.gz", np.ones((4, 5, 6), dtype=np.uint8), (1.0, 1.0, 1.0))
    with serving(data) as served:
        before = served.pages.source.contents()
        assert served.decide("case_0", "accept").status_code == 200
        assert served.pages.source.contents() is before
        save_scan(data / "images" / "case_2.nii.gz", np.ones((4, 5, 6), dtype=np.int16), np.eye(4))
        assert [row["id"] for row in served.json("/api/cases")["rows"]] == ["case_0", "case_1", "case_2"]


@pytest.mark.parametrize("make", ["missing", "file", "empty", "strange"])
def test_what_is_nothing_to_look_at_is_said(tmp_path: Path, make: str) -> None:
    folder = tmp_path / "folder"
    if make == "file":
        folder.write_text("", encoding="utf-8")
    elif make != "missing":
        folder.mkdir()
    if make == "strange":
        (folder / "notes.txt").write_text("", encoding="utf-8")
    with pytest.raises(DataError, match="folder"):
        open_source(folder).contents()


def test_decisions_cannot_be_a_folder(label_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--decisions"):
        open_source(label_folder, decisions=tmp_path)


@pytest.mark.parametrize(
    "name", ["decisions.jsonl", "view/measures.jsonl", "corrections/one.nii.gz", "export/one.nii.gz"]
)
def test_a_run_with_a_link_that_leads_out_is_refused(run: Path, tmp_path: Path, name: str) -> None:
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="link"):
        open_source(run)


def rows(count: int) -> str:
    return "".join(
        json.dumps({"step": step, "phase": "train", "labelled_loss": 1 / step, "seconds": 2.0 * step}) + "\n"
        for step in range(1, count + 1)
    )


def test_a_training_is_watched(run: Path) -> None:
    with serving(run) as served:
        now = served.json("/api/run")
        assert (now["state"], now["step"], now["total"], now["rows"]) == ("not_begun", 0, 6, [])
        with alone_in(run):  # as training does
            assert served.json("/api/run")["state"] == "running"
            (run / "metrics.jsonl").write_text(rows(2), encoding="utf-8")
            now = served.json("/api/run", after=1)
            assert [row["step"] for row in now["rows"]] == [2]
            assert (now["state"], now["step"], now["seconds"], now["seconds_left"]) == ("running", 2, 4.0, 8.0)
            assert now["log"][-1] == "train    step 2 of 6  loss 0.5"
            (run / "metrics.jsonl").write_text(rows(3) + '{"step": 4, "ph', encoding="utf-8")
            assert [row["step"] for row in served.json("/api/run", after=2)["rows"]] == [3]
        assert served.json("/api/run")["state"] == "stopped"
        (run / "metrics.jsonl").write_text(rows(6), encoding="utf-8")
        (run / "model").mkdir()
        now = served.json("/api/run")
        assert (now["state"], now["seconds_left"]) == ("finished", 0.0)
        assert served.get("/report").status_code == 404
        (run / "report.html").write_text("<p>report</p>", encoding="utf-8")
        assert served.json("/api/info")["pages"]["report"]
        assert served.get("/report").text == "<p>report</p>"


def test_a_run_that_has_just_begun_is_shown(run: Path) -> None:
    for name in ("cases.jsonl", "plan.toml"):
        (run / name).unlink()
    with serving(run) as served:
        assert served.json("/api/info")["pages"] == {"run": True, "cases": False, "review": False, "report": False}
        assert served.json("/api/cases")["rows"] == []
        assert served.json("/api/run")["state"] == "not_begun"


def test_a_labelled_case_of_folds_has_the_prediction_of_the_network_that_has_not_seen_it(run: Path) -> None:
    shutil.copytree(run, run / "fold_0", ignore=shutil.ignore_patterns("store"))
    with serving(run) as served:
        labelled = served.json("/api/cases", role="labelled")["rows"][0]["id"]
        case = served.pages.source.contents().cases[labelled]
        assert case.reference is not None
        (run / "fold_0" / "predictions").mkdir()
        shutil.copy(case.reference, run / "fold_0" / "predictions" / f"{labelled}.nii.gz")
        layers = [layer["name"] for layer in served.json(f"/api/cases/{labelled}")["layers"]]
        assert layers == ["scan", "reference", "prediction", "difference"]


def test_a_folder_that_cannot_be_written_is_shown_all_the_same(run: Path) -> None:
    (run / "view").write_text("a file where a folder is to be", encoding="utf-8")
    with serving(run) as served:
        id = served.json("/api/review")["queue"][0]
        assert served.json(f"/api/cases/{id}")["organs"][0]["volume_ml"] > 0
        assert served.json("/api/cases", search=id)["rows"][0]["volume_ml"] > 0
        assert served.get(f"/api/cases/{id}/thumbnail.png").status_code == 200
        digest = served.json(f"/api/cases/{id}")["label_sha256"]
        (run / "decisions.jsonl").mkdir()
        answer = served.post("/api/decisions", case=id, decision="accept", label_sha256=digest)
        assert answer.status_code == 422
        assert "decisions.jsonl" in answer.json()["error"]


def test_looking_does_not_keep_a_run_from_being_trained(run: Path) -> None:
    with serving(run) as served:
        for _ in range(5):
            served.json("/api/run")
            with alone_in(run):
                pass


def test_a_run_by_minutes_has_a_timeline(run: Path) -> None:
    text = (run / "run.toml").read_text(encoding="utf-8").replace("steps = 6\n", "")
    (run / "run.toml").write_text(text, encoding="utf-8")
    minutes = 60.0
    (run / "settled.toml").write_text(
        f"minutes = {minutes}\ntimeline = [[0, 0.0, 0.001, 0], [100, 0.2, 0.004, 0]]\n", encoding="utf-8"
    )
    (run / "metrics.jsonl").write_text(rows(150), encoding="utf-8")
    with serving(run) as served:
        now = served.json("/api/run", after=149)
        assert now["total"] == 300
        assert now["seconds_left"] == pytest.approx(60 * minutes * (1 - 0.4))


def test_labels_that_come_later_are_found(run: Path) -> None:
    label = next((run / "pseudo_labels").iterdir())
    id = label.name.removesuffix(".nii.gz")
    kept = label.read_bytes()
    label.unlink()
    with serving(run) as served:
        assert id not in served.json("/api/review")["queue"]
        label.write_bytes(kept)
        assert id in served.json("/api/review")["queue"]
        assert served.json(f"/api/cases/{id}")["organs"][0]["volume_ml"] > 0


def test_the_most_doubtful_slice_is_the_networks_where_it_says(run: Path) -> None:
    id = sorted(path.name.removesuffix(".nii.gz") for path in (run / "pseudo_labels").iterdir())[0]
    with serving(run) as served:
        z, y, x = served.json(f"/api/cases/{id}")["shape_zyx"]
        assert served.json(f"/api/cases/{id}")["doubtful"]["axial"] in range(4, 16)
        means = {"axial": [0.0] * z, "coronal": [0.0] * y, "sagittal": [0.0] * x}
        means["axial"][1] = means["coronal"][2] = means["sagittal"][3] = 0.5
        strip = served.get(f"/api/cases/{id}/strip.png").content
        write_json(run / "doubt" / f"{id}.json", means)
        assert served.json(f"/api/cases/{id}")["doubtful"] == {"axial": 1, "coronal": 2, "sagittal": 3}
        assert served.get(f"/api/cases/{id}/strip.png").content != strip


def test_several_channels_are_layers(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for channel in range(2):
        scan = np.full((5, 6, 7), 10 * (channel + 1), dtype=np.int16)
        save_scan(data / "imagesTr" / f"one_{channel:04}.nii.gz", scan, np.eye(4))
    save_scan(data / "labelsTr" / "one.nii.gz", np.ones((5, 6, 7), dtype=np.uint8), np.eye(4))
    write_json(data / "dataset.json", {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "a": 1}})
    with serving(data, decisions=tmp_path / "decisions.jsonl") as served:
        case = served.json("/api/cases/one")
        assert [(layer["name"], layer["title"]) for layer in case["layers"]][:2] == [("scan", "T1"), ("scan_1", "T2")]
        for name, value in (("scan", 10), ("scan_1", 20)):
            voxels = np.frombuffer(served.get(f"/api/cases/one/layers/{name}.nii").content[352:], np.int16)
            assert set(voxels) == {value}


def test_an_archive_of_dicom_is_shown_with_label_maps_by_its_ids(tmp_path: Path) -> None:
    pytest.importorskip("pydicom")
    from dicom_series import random_voxels, write_series
    from semiseg.io.dicom.series import hashed
    from semiseg.io.scans import read_grid, write_label

    heap, ids = tmp_path / "heap", [hashed("1.2.3.1"), hashed("1.2.3.2")]
    for number in (1, 2):  # both of one folder
        write_series(heap / "Doe" / "1", random_voxels((6, 10, 14)), uid=f"1.2.3.{number}", seed=number)
        (tmp_path / "aside").mkdir(exist_ok=True)
        for file in (heap / "Doe" / "1").iterdir():
            file.rename(tmp_path / "aside" / f"{number}{file.name}")
    (tmp_path / "aside").rename(heap / "Doe" / "2")
    with serving(heap) as served:
        info = served.json("/api/info")
        assert info["pages"] == {"run": False, "cases": True, "review": False, "report": False}
        assert [row["id"] for row in served.json("/api/cases")["rows"]] == sorted(ids)
        case = served.json(f"/api/cases/{ids[0]}")
        assert (case["role"], case["shape_zyx"]) == ("scan", [6, 10, 14])
        assert served.get(case["layers"][0]["url"]).status_code == 200
    image = open_source(heap).case(ids[1]).images[0]  # type: ignore[union-attr]
    label = np.zeros((6, 10, 14), np.uint8)
    label[2:4, 3:6, 3:6] = 2
    (tmp_path / "labels").mkdir()
    write_label(tmp_path / "labels" / f"{ids[1]}.nii.gz", label, read_grid(image), image)
    with serving(heap, labels=tmp_path / "labels", decisions=tmp_path / "decisions.jsonl") as served:
        assert [organ["value"] for organ in served.json("/api/info")["organs"]] == [1, 2]
        assert served.json("/api/review")["queue"] == [ids[1]]
    assert not (heap / "decisions.jsonl").exists()


def test_segmentations_of_dicom_are_refused_with_what_to_do(tmp_path: Path) -> None:
    pytest.importorskip("pydicom")
    from dicom_series import random_voxels, write_series

    for file in write_series(tmp_path / "segs", random_voxels((2, 5, 5)), modality="SEG", ending=".dcm"):
        assert file.suffix == ".dcm"
    for arguments in ({}, {"labels": tmp_path / "segs"}):
        with pytest.raises(DataError, match=r"DICOM SEG are not shown here: .*--format nifti"):
            open_source(tmp_path / "segs", **arguments).contents()
