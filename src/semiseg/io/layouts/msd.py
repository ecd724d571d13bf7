"""Medical Segmentation Decathlon folders: dataset.json lists the files, several channels are one 4D file."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

from semiseg.errors import DataError
from semiseg.io.dataset import Case, Remark, Split
from semiseg.io.file_kinds import ENDINGS_TEXT, is_scan, scan_files, scan_named, stem
from semiseg.io.layouts.folders import (
    TEST,
    TEST_LABELS,
    TRAINING,
    TRAINING_LABELS,
    Found,
    Problems,
    by_stem,
    note_other_folders,
    note_training_count,
    note_unread,
    read_object,
    unlabelled_folders,
    unlabelled_series,
)
from semiseg.io.layouts.nnunet import dataset_channels, dataset_labels
from semiseg.io.layouts.series import SeriesChoice


def read_msd(root: Path, choice: SeriesChoice) -> Found:
    """Read the listed files, and scans in imagesTr/ and imagesUn/ that are not listed as unlabelled cases."""
    file = root / "dataset.json"
    description = read_object(file)
    problems: Problems = []
    remarks: list[Remark] = []
    folders = [TRAINING, TRAINING_LABELS, *unlabelled_folders(root), TEST, TEST_LABELS]
    for folder in folders:
        note_unread(root / folder, problems, remarks, dicom=folder in unlabelled_folders(root))
    cases = _listed(root, description.get("training", []), "train", "training", problems)
    cases += _listed(root, description.get("test", []), "test", "test", problems)
    cases = _with_folders(root, cases)
    cases += _unlisted(root, cases, problems)
    cases += unlabelled_series(root, choice, problems, remarks)
    used = [path for case in cases for path in (*case.images, case.label) if path is not None]
    note_other_folders(root, {*folders, *(path.relative_to(root).parts[0] for path in used)}, remarks)
    note_training_count(description, file, cases, remarks)
    return Found(
        name=str(description.get("name", root.name)),
        channels=dataset_channels(description, file),
        labels=dataset_labels(description, file),
        cases=cases,
        pairs=description.get("mirror_pairs"),
        problems=problems,
        remarks=remarks,
    )


def _listed(root: Path, entries: object, split: Split, key: str, problems: Problems) -> list[Case]:
    """The cases of one list: `{"image": ..., "label": ...}` or a bare path of an image."""
    file = root / "dataset.json"
    if not isinstance(entries, list):
        raise DataError(f"{file}: {key} must be a list of files, not {type(entries).__name__}.")
    cases = []
    for entry in entries:
        parts = entry if isinstance(entry, dict) else {"image": entry}
        image = _inside(root, parts.get("image"), file, key)
        label = _inside(root, parts["label"], file, key) if parts.get("label") is not None else None
        if split == "test" and label is None:
            label = scan_named(root / TEST_LABELS, stem(image))
        if label is not None and not label.is_file():
            text = f"{key} lists this label, but there is no such file. Restore it, or edit the list."
            problems.append((label, text))
            label = None
        if image.is_file():
            cases.append(Case(id=stem(image), images=(image,), label=label, split=split))
        else:
            problems.append((image, f"{key} lists this scan, but there is no such file. Restore it, or edit the list."))
    return cases


def _with_folders(root: Path, cases: list[Case]) -> list[Case]:
    """The cases; where files of several folders have one name, as `case_1/imaging.nii.gz`, ids have the folders too."""
    uses = Counter(stem(image) for image in {case.images[0] for case in cases})
    ids = {case.images[0]: "_".join((*case.images[0].relative_to(root).parts[:-1], case.id)) for case in cases}
    return [replace(case, id=ids[case.images[0]]) if uses[case.id] > 1 else case for case in cases]


def _inside(root: Path, entry: object, file: Path, key: str) -> Path:
    """The path of an entry; raises `DataError` for what is no name of a scan or leads out of the folder."""
    if not isinstance(entry, str) or not is_scan(entry):
        raise DataError(f"{file}: {key}: {entry!r} is no path of a {ENDINGS_TEXT} file. Correct the entry.")
    if Path(entry).is_absolute() or ".." in Path(entry).parts:
        raise DataError(f"{file}: {key}: {entry} lies outside of the dataset's folder. Use paths within it.")
    return root / entry


def _unlisted(root: Path, listed: list[Case], problems: Problems) -> list[Case]:
    """Scans that lie in the folders without being listed; a label that is not listed is a problem, not a case."""
    known = {path.resolve() for case in listed for path in (*case.images, case.label) if path is not None}
    cases = []
    for folder in (TRAINING, *unlabelled_folders(root)):
        files = [scan for scan in scan_files(root / folder) if scan.resolve() not in known]
        cases += [Case(id=name, images=(scan,), label=None) for name, scan in by_stem(files, problems).items()]
    for folder in (TRAINING_LABELS, TEST_LABELS):
        for label in scan_files(root / folder):
            if label.resolve() not in known:
                problems.append((label, "dataset.json does not list this label. Add it to the list, or move it away."))
    files = [scan for scan in scan_files(root / TEST) if scan.resolve() not in known]
    tests = by_stem(files, problems)
    return cases + [Case(id=name, images=(scan,), label=None, split="test") for name, scan in tests.items()]
