"""The FLARE 2022 release, in whatever sub-folders it was unpacked.

    Training/FLARE22_LabeledCase50/{images/FLARE22_Tr_0001_0000.nii.gz, labels/FLARE22_Tr_0001.nii.gz}
    Training/FLARE22_UnlabeledCase1-1000/Case_00001_0000.nii.gz   Training/FLARE22_UnlabeledCase1001-2000/...
    Tuning/{images/FLARETs_0001_0000.nii.gz, labels/FLARETs_0001.nii.gz}  (or Validation/, ValidationSet/)
    Testing/FLARETs_0001_0000.nii.gz

Names tell all: a scan ends with `_0000`, its label does not. Tuning and testing scans share their ids.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from semiseg.io.dataset import Case, Remark
from semiseg.io.file_kinds import scan_files, stem, visible
from semiseg.io.flare22_labels import FLARE22_LABELS
from semiseg.io.layouts.folders import Found, Problems, keep_first, note_files, unlabelled_folders, unlabelled_series
from semiseg.io.layouts.series import SeriesChoice, is_place

_IMAGE_ENDING = "_0000"
_MEASURED = re.compile(r"(flare(20)?22[_-]?)?(tuning|valid|test)", re.IGNORECASE)
_SIGN = re.compile(r"FLARE22_Tr_\d{4}(_0000)?")


def is_flare22(root: Path) -> bool:
    """Whether a labelled scan or label of the release lies somewhere below `root`."""
    return any(_SIGN.fullmatch(stem(file)) for file in scan_files(root, deep=True))


def read_flare22(root: Path, choice: SeriesChoice) -> Found:
    """Read every scan below `root`; with the challenge's labels and pairs."""
    problems: Problems = []
    images: dict[tuple[str, str], Path] = {}
    references: dict[tuple[str, str], Path] = {}
    for file in scan_files(root, deep=True):
        name, stage = stem(file), _stage(root, file)
        if name.endswith(_IMAGE_ENDING):
            keep_first(images, (stage, name.removesuffix(_IMAGE_ENDING)), file, problems)
        elif _is_pseudo_label(root, file):
            text = "a pseudo-label is no reference: the release has none here. Move it out of the folder."
            problems.append((file, text))
        else:
            keep_first(references, (stage, name), file, problems)
    remarks: list[Remark] = []
    heaps = [root / folder for folder in unlabelled_folders(root)]
    others = (
        file
        for file in visible(root, deep=True)
        if not (any(heap in file.parents for heap in heaps) and is_place(file))
    )
    note_files(others, problems, remarks)
    for key, file in references.items():
        if key not in images:
            text = f"a label without an image: there is no {key[1]}_0000.nii.gz. Add the scan, or move the label away."
            problems.append((file, text))
    return Found(
        name="FLARE22",
        channels=("CT",),
        labels=FLARE22_LABELS,
        cases=_cases(images, references) + unlabelled_series(root, choice, problems, remarks),
        problems=problems,
        remarks=remarks,
    )


def _cases(images: dict[tuple[str, str], Path], references: dict[tuple[str, str], Path]) -> list[Case]:
    """One case a scan; an id that two stages share gets the stage's name in front."""
    uses = Counter(name for _, name in images)
    return [
        Case(
            id=f"{stage}_{name}" if stage and uses[name] > 1 else name,
            images=(file,),
            label=references.get((stage, name)),
            split="test" if stage or name.startswith("FLARETs") else "train",
        )
        for (stage, name), file in images.items()
    ]


def _stage(root: Path, file: Path) -> str:
    """The folder of tuning, validation or testing scans that the file lies in, empty for training."""
    folders = file.relative_to(root).parts[:-1]
    return next((folder for folder in folders if _MEASURED.match(folder)), "")


def _is_pseudo_label(root: Path, file: Path) -> bool:
    """The release labels no `Case_*`, so that a label with such a name is some model's output."""
    folders = file.relative_to(root).parts[:-1]
    return stem(file).startswith("Case_") or any("pseudo" in folder.lower() for folder in folders)
