"""Medical Segmentation Decathlon folders: dataset.json lists the files, several channels are one 4D file."""

from __future__ import annotations

from pathlib import Path

from semiseg.errors import DataError
from semiseg.io.dataset import Case, LabelScheme, Split
from semiseg.io.layouts.folders import (
    TEST,
    TEST_LABELS,
    TRAINING,
    TRAINING_LABELS,
    UNLABELLED,
    Found,
    Problems,
    by_stem,
    read_object,
    scans,
    stem,
)
from semiseg.io.layouts.nnunet import dataset_channels, dataset_labels
from semiseg.io.nifti import NIFTI_ENDINGS


def read_msd(root: Path, labels: LabelScheme | None) -> Found:
    """Read the listed files, and scans in imagesTr/ and imagesUn/ that are not listed as unlabelled cases."""
    file = root / "dataset.json"
    description = read_object(file)
    problems: Problems = []
    cases = _listed(root, description.get("training", []), "train", "training", problems)
    cases += _listed(root, description.get("test", []), "test", "test", problems)
    cases += _unlisted(root, cases, problems)
    return Found(
        name=str(description.get("name", root.name)),
        channels=dataset_channels(description, file),
        labels=labels or dataset_labels(description, file),
        cases=cases,
        pairs=description.get("mirror_pairs"),
        problems=problems,
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
            label = next((f for f in scans(root / TEST_LABELS) if stem(f) == stem(image)), None)
        if label is not None and not label.is_file():
            problems.append(
                (label, f"{key} lists this label, but there is no such file. Restore it, or edit the list.")
            )
            label = None
        if image.is_file():
            cases.append(Case(id=stem(image), images=(image,), label=label, split=split))
        else:
            problems.append((image, f"{key} lists this scan, but there is no such file. Restore it, or edit the list."))
    return cases


def _inside(root: Path, entry: object, file: Path, key: str) -> Path:
    """The path of an entry; raises `DataError` for what is no NIfTI name or leads out of the folder."""
    if not isinstance(entry, str) or not entry.endswith(NIFTI_ENDINGS):
        raise DataError(f"{file}: {key}: {entry!r} is no path of a .nii.gz or .nii file. Correct the entry.")
    if Path(entry).is_absolute() or ".." in Path(entry).parts:
        raise DataError(f"{file}: {key}: {entry} lies outside of the dataset's folder. Use paths within it.")
    return root / entry


def _unlisted(root: Path, listed: list[Case], problems: Problems) -> list[Case]:
    """Scans that lie in the folders without being listed; a label that is not listed is a problem, not a case."""
    known = {path.resolve() for case in listed for path in (*case.images, case.label) if path is not None}
    cases = []
    for folder in (TRAINING, UNLABELLED):
        files = [scan for scan in scans(root / folder) if scan.resolve() not in known]
        cases += [Case(id=name, images=(scan,), label=None) for name, scan in by_stem(files, problems).items()]
    for folder in (TRAINING_LABELS, TEST_LABELS):
        for label in scans(root / folder):
            if label.resolve() not in known:
                problems.append((label, "dataset.json does not list this label. Add it to the list, or move it away."))
    files = [scan for scan in scans(root / TEST) if scan.resolve() not in known]
    return cases + [
        Case(id=name, images=(f,), label=None, split="test") for name, f in by_stem(files, problems).items()
    ]
