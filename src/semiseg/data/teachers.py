"""Label maps of another program, or person, brought to the dataset's labels: nnU-Net's predictions, TotalSegmentator's
folders and `--ml` files, anyone's.

Where such labels do not know an organ, what they call background is background or that organ, and the loss takes it for
that. Where all organs are known, whatever else they name is background.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from semiseg.cases import WAS_KILLED, map_cases
from semiseg.data.partial import from_masks, with_unknown
from semiseg.data.roles import RunCase
from semiseg.errors import ConfigError, DataError
from semiseg.files import read_json, read_toml
from semiseg.io.dataset import LabelScheme
from semiseg.io.file_kinds import label_map, scan_files, scan_named, stem, visible
from semiseg.io.grid import Grid
from semiseg.io.scans import read_grid, read_label, write_label
from semiseg.types import BoolArray, LabelArray
from semiseg.words import counted, shortened

NAMES_FILES = ("names.toml", "names.json")
_RESAMPLE = "Resample it onto the scan, or restore the file."
Source = int | str
"""A value of a label map, or the name of a file."""


@dataclass(frozen=True)
class Teacher:
    """Where a teacher's labels lie, and what they mean: for each organ that it knows the values, or files, of which it
    is made."""

    folder: Path
    names: dict[int, tuple[Source, ...]]
    labels: LabelScheme

    @property
    def unknown(self) -> dict[int, str]:
        """Organs that it does not know."""
        return {value: name for value, name in self.labels.organs.items() if value not in self.names}

    @property
    def scheme(self) -> LabelScheme:
        """The classes with what its label maps leave open."""
        return with_unknown(self.labels, self.unknown)


def open_teacher(folder: Path, names: Path | None, labels: LabelScheme) -> Teacher:
    """A folder of labels: `ID.nii.gz`, or `ID/ORGAN.nii.gz`.

    names: a TOML or JSON file with the dataset's organs, and what they are there: values, or names of files (or of
    classes, where the folder has nnU-Net's dataset.json). None looks for names.toml or names.json, and takes equal
    names else. Raises `ConfigError` where it remains unclear which value is which.
    """
    if not folder.is_dir():
        raise ConfigError(f"data.teacher_labels = {folder}: there is no such folder.")
    names = names or next((file for name in NAMES_FILES if (file := folder / name).is_file()), None)
    listed = _listed_classes(folder)
    if names is None:
        known: dict[str, Source] = {_plain(name): value for name, value in listed.items()} or {
            _plain(stem(file)): stem(file) for case in visible(folder) if case.is_dir() for file in scan_files(case)
        }
        found: dict[int, tuple[Source, ...]] = {
            value: (known[_plain(name)],) for value, name in labels.organs.items() if _plain(name) in known
        }
        if not found:
            raise ConfigError(
                f"data.teacher_labels = {folder}: nothing says which organ is which. Write {folder / NAMES_FILES[0]} "
                f'with a line for each organ: {next(iter(labels.organs.values()))} = 1, or the name of a file: "liver".'
            )
        return Teacher(folder, found, labels)
    return Teacher(folder, _given_names(names, labels, listed), labels)


def _plain(name: str) -> str:
    return name.strip().casefold().replace(" ", "_").replace("-", "_")


def _listed_classes(folder: Path) -> dict[str, int]:
    """The classes by nnU-Net's dataset.json, which it writes beside its predictions."""
    file = folder / "dataset.json"
    if not file.is_file():
        return {}
    description = read_json(file)
    table = description.get("labels") if isinstance(description, dict) else None
    if not isinstance(table, dict) or not all(isinstance(value, int) for value in table.values()):
        raise DataError(f'{file}: "labels" must be names with whole numbers, as nnU-Net writes them.')
    return {str(name): int(value) for name, value in table.items() if value}


def _given_names(file: Path, labels: LabelScheme, listed: dict[str, int]) -> dict[int, tuple[Source, ...]]:
    if not file.is_file():
        raise ConfigError(f"data.teacher_names = {file}: there is no such file.")
    table: Any = read_toml(file) if file.suffix == ".toml" else read_json(file)
    values = {name: value for value, name in labels.organs.items()}
    found: dict[int, tuple[Source, ...]] = {}
    for name, given in table.items() if isinstance(table, dict) else ():
        if name not in values:
            raise ConfigError(f"{file}: {name} is no organ of the dataset. Those are {', '.join(values)}.")
        sources = given if isinstance(given, list) else [given]
        if not sources or not all(isinstance(one, str) or (type(one) is int and one > 0) for one in sources):
            raise ConfigError(f"{file}: {name} = {given!r}: give a value above 0, a name, or a list of these.")
        found[values[name]] = tuple(listed.get(one, one) if isinstance(one, str) else one for one in sources)
    if not found:
        raise ConfigError(f"{file}: names no organ. Give a line for each that the labels know: NAME = VALUE.")
    return found


def taught_by_others(
    cases: Sequence[RunCase],
    teacher: Teacher,
    output: Path,
    *,
    workers: int = 1,
    progress: Callable[[int, int, str], None] | None = None,
) -> list[RunCase]:
    """The cases, of which the unlabelled ones that the teacher labelled have its label map, as `output/ID.nii.gz`.

    Raises `DataError` that names every label that does not fit, and `ConfigError` where there is none for any case.
    """
    wanted = [case for case in cases if case.role == "unlabelled" and _files(teacher.folder, case.id)]
    if not wanted:
        raise ConfigError(
            f"data.teacher_labels = {teacher.folder}: has no label of an unlabelled case. Name the files, or folders, "
            "by the ids of the scans: ID.nii.gz, or ID/ORGAN.nii.gz."
        )
    output.mkdir(exist_ok=True)
    problems = map_cases(
        partial(_take_over, teacher=teacher, output=output),
        wanted,
        workers=workers,
        lost=lambda case: f"{case.id}: {WAS_KILLED}.",
        progress=(lambda done, total, case: progress(done, total, case.id)) if progress else None,
    )
    if wrong := [text for text in problems if text]:
        raise DataError(
            f"{counted(len(wrong), 'label')} of data.teacher_labels cannot be used:\n  "
            + "\n  ".join(wrong)
            + "\nMend them, or take them out of the folder."
        )
    files = {case.id: str(label_map(output, case.id).resolve()) for case in wanted}
    return [replace(case, role="taught", label=files[case.id]) if case.id in files else case for case in cases]


def _files(folder: Path, case: str) -> list[Path]:
    """The label map of a case, or its masks."""
    whole = scan_named(folder, case)
    return [whole] if whole else scan_files(folder / case)


def _take_over(case: RunCase, teacher: Teacher, output: Path) -> str | None:
    """Write a case's label map; what is wrong with it."""
    image, target = Path(case.images[0]), label_map(output, case.id)
    try:
        grid = read_grid(image)
        label = _label(case, teacher, image, grid)
        if target.is_file() and np.array_equal(read_label(target)[0], label):
            return None  # so that what was prepared of it is known again
        write_label(target, label, grid, image)
    except DataError as error:
        return str(error)
    return None


def _label(case: RunCase, teacher: Teacher, image: Path, grid: Grid) -> LabelArray:
    files = _files(teacher.folder, case.id)
    is_map = files[0].parent == teacher.folder
    if is_map:
        array = _on_grid(files[0], image, grid)
        if words := [str(one) for sources in teacher.names.values() for one in sources if isinstance(one, str)]:
            raise DataError(f"{files[0]}: a map of values, but the names say {shortened(words)}. Give values.")
        masks = {value: np.isin(array, sources) for value, sources in teacher.names.items()}
    else:
        by_name = {stem(file): file for file in files}
        masks = {
            value: _union([_on_grid(by_name[str(one)], image, grid) > 0 for one in sources])
            for value, sources in teacher.names.items()
            if all(str(one) in by_name for one in sources)
        }
        if not masks:
            shown = shortened([str(one) for sources in teacher.names.values() for one in sources])
            raise DataError(f"{files[0].parent}: has none of the files {shown}.")
    return from_masks(masks, teacher.scheme)


def _union(masks: Sequence[BoolArray]) -> BoolArray:
    union: BoolArray = np.logical_or.reduce(masks)
    return union


def _on_grid(file: Path, image: Path, grid: Grid) -> LabelArray:
    array, own = read_label(file)
    if misfit := own.misfit(grid, _RESAMPLE):
        raise DataError(f"{file}: not on the grid of {image}: {misfit}")
    return array
