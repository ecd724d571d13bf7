"""What `prepare` and `run` say of a dataset before they begin: as the check does, but from headers and stored cases."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from filecmp import cmp
from hashlib import sha256
from pathlib import Path

import numpy as np

from semiseg.data.check_case import Remark, Severity, inspect_header, role_of
from semiseg.data.extents import odd_extents
from semiseg.data.patients import patients_in_both, untold_patients
from semiseg.io.dataset import Case, Dataset, LabelScheme
from semiseg.io.store_index import IndexedCases

_SHOWN = 5
"""So many lines of one kind are printed, and then how many more there are."""
_TELLING_BYTES = 1 << 16


def print_remarks(dataset: Dataset, patients: str) -> None:
    """Print to stderr what was set aside, what is doubtful of the set, and of the headers of its scans. patients:
    `DataSettings.patients`."""
    print_alike("set aside", dataset.problems)
    found: list[Remark] = [*dataset.remarks]
    scans = []
    for case in dataset.cases:
        grids = [inspect_header(file, found) for file in case.images]
        if grids[0]:
            scans.append((case.images[0], grids[0].shape_zyx, grids[0].spacing_mm))
    found += [*odd_extents(scans), *_tests_trained_on(dataset.cases), *patient_remarks(dataset, patients)]
    for severity in ("warning", "note"):  # what cannot be read is said by what reads it
        print_alike(severity, [(file, text) for kind, file, text in found if kind == severity])


def patient_remarks(dataset: Dataset, pattern: str) -> list[Remark]:
    """Of patients who have several scans, or seem to: a warning where one is trained and tested on, and a note where
    nothing says who is who. pattern: `DataSettings.patients`."""
    tests, training = ([case.id for case in dataset.cases if case.split == split] for split in ("test", "train"))
    said: list[tuple[Severity, str]] = [
        ("warning", patients_in_both(tests, training, pattern)),
        ("note", untold_patients([*training, *tests], pattern)),
    ]
    return [(severity, dataset.root, text) for severity, text in said if text]


def _tests_trained_on(cases: Sequence[Case]) -> list[Remark]:
    """A warning for each test scan whose file is a training scan's, byte for byte. The check finds copies that are
    stored otherwise, too."""
    sizes = {case: case.images[0].stat().st_size for case in cases if case.images[0].is_file()}
    tested = {size for case, size in sizes.items() if case.split == "test"}
    alike: defaultdict[tuple[int, bytes], list[Case]] = defaultdict(list)
    for case, size in sizes.items():
        if size in tested:
            with suppress(OSError):  # what cannot be read is said by what reads it
                alike[size, _middle(case.images[0], size)].append(case)
    return [
        (
            "warning",
            test.images[0],
            f"the same file as {role_of(twin)} case {twin.id}: a test scan is trained on. Remove one.",
        )
        for found in alike.values()
        for test in found
        for twin in found
        if (test.split, twin.split) == ("test", "train") and _same(test.images[0], twin.images[0])
    ]


def _same(file: Path, other: Path) -> bool:
    """Whether two files are the same, byte for byte; not where one cannot be read."""
    try:
        return cmp(file, other, shallow=False)
    except OSError:
        return False


def _middle(file: Path, size: int) -> bytes:
    """A hash of a part by which scans are told apart: files of scans that are not packed are of one size and begin with
    air."""
    with file.open("rb") as stream:
        stream.seek(size // 2)
        return sha256(stream.read(_TELLING_BYTES)).digest()


def print_label_remarks(cases: Sequence[Case], stored: IndexedCases, labels: LabelScheme) -> None:
    """Print to stderr which labels are empty, and which classes no stored training label has. stored: the cases, in
    their order."""
    has_label = np.array([case.label is not None for case in cases], dtype=bool)
    voxels = {value: stored.voxels_of(value)[has_label] for value in labels.organs}
    files = [case.label for case in cases if case.label is not None]
    is_empty = ~np.any([counts > 0 for counts in voxels.values()], axis=0)
    empty = [file for file, nothing in zip(files, is_empty, strict=True) if nothing]
    print_alike("warning", [(file, "the label is empty on the plan's grid: no voxel has a class.") for file in empty])
    unseen = [name for value, name in labels.organs.items() if not voxels[value].any()]
    if unseen and files:
        print(
            f"warning: no training label contains {', '.join(unseen)} on the plan's grid: it cannot be learned.",
            file=sys.stderr,
        )


def print_alike(title: str, lines: Iterable[tuple[Path, str]], named: str = " (semiseg check names them)") -> None:
    """Print to stderr a line each, at most five whose texts begin alike. named: where the others are."""
    alike: defaultdict[str, list[str]] = defaultdict(list)
    for file, text in lines:
        alike[text[:30]].append(f"{title}: {file}: {text.removeprefix(f'{file}: ')}")
    for found in alike.values():
        for line in found[:_SHOWN]:
            print(line, file=sys.stderr)
        if len(found) > _SHOWN:
            print(f"{title}: {len(found) - _SHOWN} more of the same kind{named}", file=sys.stderr)
