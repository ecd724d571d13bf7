"""A folder for each scan, with a mask for each organ: TotalSegmentator's and AbdomenAtlas' data sets.

ROOT/labels.json                               {"liver": 1, "spleen": 2}: the organs to learn
ROOT/s0001/ct.nii.gz (or mri.nii.gz)           the scan
ROOT/s0001/segmentations/liver.nii.gz, ...     its masks; a scan without them is unlabelled
ROOT/imagesUn/                                 further unlabelled scans
ROOT/imagesTs/, ROOT/labelsTs/                 test scans, and their label maps or folders of masks
ROOT/meta.csv                                  TotalSegmentator's table: what its column `split` calls test is test
"""

from __future__ import annotations

import csv
from pathlib import Path

from semiseg.errors import DataError
from semiseg.io.dataset import Case, Remark, Split
from semiseg.io.file_kinds import scan_files, scans_by_stem, visible
from semiseg.io.layouts.folders import (
    TEST,
    TEST_LABELS,
    Found,
    Problems,
    by_stem,
    note_files,
    note_other_folders,
    note_unread,
    pair_up,
    references_in,
    unlabelled_folders,
    unlabelled_series,
)
from semiseg.io.layouts.series import SeriesChoice
from semiseg.io.masks import MASKS, is_mask_folder, named_organs
from semiseg.io.modality import UNKNOWN_CHANNEL
from semiseg.words import shortened

SCANS = ("ct", "mri")
"""Names of the scan, where other files lie beside it."""
_TABLE = "meta.csv"


def is_masks(root: Path) -> bool:
    """Whether a sub-folder has a scan and a folder of masks."""
    return any(is_mask_folder(entry / MASKS) and scan_files(entry) for entry in visible(root) if entry.is_dir())


def read_masks(root: Path, choice: SeriesChoice) -> Found:
    """Read every sub-folder, and the folders of unlabelled and of test scans. Raises `DataError` where nothing names
    the organs."""
    problems: Problems = []
    remarks: list[Remark] = []
    tests = _tests(root / _TABLE)
    unlabelled = unlabelled_folders(root)
    others = (*unlabelled, TEST, TEST_LABELS)
    folders = [entry for entry in visible(root) if entry.is_dir() and entry.name not in others]
    labelled = [folder / MASKS for folder in folders if is_mask_folder(folder / MASKS)]
    if not labelled:
        raise DataError(f"{root}: no sub-folder has masks. Put them into ID/{MASKS}, beside ID/{SCANS[0]}.nii.gz.")
    if strangers := tests - {folder.name for folder in folders}:
        problems.append((root / _TABLE, f"calls {shortened(sorted(strangers))} test, which have no folder."))
    cases = []
    for folder in folders:
        masks = folder / MASKS
        read = [masks] if masks in labelled else []
        note_files([entry for entry in visible(folder) if entry not in read], problems, remarks)
        if image := _scan(folder, problems):
            split: Split = "test" if folder.name in tests else "train"
            label = masks if masks in labelled else None
            cases.append(Case(id=folder.name, images=(image,), label=label, split=split))
        elif masks in labelled:
            problems.append((masks, "masks without a scan beside their folder. Add the scan, or move them away."))
    for name in (*unlabelled, TEST):
        note_unread(root / name, problems, remarks, dicom=name != TEST)
        scans = {id: {0: image} for id, image in by_stem(scan_files(root / name), problems).items()}
        references = references_in(root / TEST_LABELS, problems) if name == TEST else {}
        cases += pair_up(scans, references, "test" if name == TEST else "train", (UNKNOWN_CHANNEL,), problems)
    note_unread(root / TEST_LABELS, problems, remarks, masks=True)
    note_other_folders(root, [entry.name for entry in visible(root) if entry.is_dir()], remarks)
    return Found(
        name=root.resolve().name,
        channels=(UNKNOWN_CHANNEL,),
        labels=named_organs(labelled[0])[1],
        cases=cases + unlabelled_series(root, choice, problems, remarks),
        problems=problems,
        remarks=remarks,
    )


def _scan(folder: Path, problems: Problems) -> Path | None:
    """The scan of a folder: the only file there, or the one that is called so."""
    found = scans_by_stem(folder)
    called = [found[name] for name in SCANS if name in found]
    if len(found) > 1 and len(called) != 1:
        text = f"which of {shortened(sorted(found))} is the scan? Call it {SCANS[0]}.nii.gz, or keep it alone here."
        problems.append((folder, text))
        return None
    return called[0] if called else next(iter(found.values()), None)


def _tests(table: Path) -> set[str]:
    """Ids that TotalSegmentator's table calls test; none without one."""
    if not table.is_file():
        return set()
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            file.seek(0)
            rows = [*csv.DictReader(file, delimiter=";" if ";" in first else ",", strict=True)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{table}: no table that can be read ({error}). Save it as CSV in UTF-8, or take it away."
        ) from None
    return {row["image_id"] for row in rows if row.get("split") == "test" and row.get("image_id")}
