"""Labels of a run handed out to be mended in ITK-SNAP or 3D Slicer, and taken back. Without torch.

What is handed out: a folder with `ID_scan.nii.gz` and `ID.nii.gz`, its label, of each case, and the names and colours
of the organs. What is taken back is checked against the scan, and kept as `RUN/corrections/ID.nii.gz`.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from semiseg.data.colour_tables import ITK_SNAP_FILE, SLICER_FILE, itk_snap_labels, slicer_colours
from semiseg.data.handed_out import HandedOut, is_untouched, keep_handed_out, read_handed_out
from semiseg.data.labels import read_checked_label
from semiseg.data.partial import ignore_value
from semiseg.data.plan import Plan, read_plan
from semiseg.data.reviews import (
    CORRECTIONS,
    PSEUDO_LABELS,
    REVIEWED_LABELS,
    TEACHER_LABELS,
    CorrectionNote,
    Slices,
    read_note,
)
from semiseg.data.roles import RunCase, read_run_cases
from semiseg.decisions import label_sha256
from semiseg.errors import ConfigError, DataError
from semiseg.files import atomic_file, write_json, write_text
from semiseg.io.dataset import LabelScheme
from semiseg.io.file_kinds import ending, label_map, scans_by_stem, stem
from semiseg.io.grid import Grid
from semiseg.io.scans import files_of, read_grid, read_label, write_label, write_scan
from semiseg.run_folder import refuse_links
from semiseg.words import counted, shortened

EXPORT = "export"
"""Folder of a run for what is handed out, where none is named."""
CHANGED = "changed"
AXES = ("axial", "coronal", "sagittal")
_SCAN = re.compile(r".+_scan(_\d+)?")
_RANGE = re.compile(r"(\d+)(?:-(\d+))?")


@dataclass(frozen=True, kw_only=True)
class Taken:
    """A correction that was taken back: voxels that differ from the label that was handed out, and the slices that it
    is learnt from (None: all)."""

    case: str
    changed_voxels: int
    slices: Slices | None


@dataclass(frozen=True, kw_only=True)
class AskedSlices:
    """Which slices of a label count: these, or (None) those along the axis that were changed."""

    axis: int
    indices: tuple[int, ...] | None


def parse_slices(text: str) -> AskedSlices | None:
    """What `axial:40-60,72` or `axial:changed` says, numbers from 1 on as the pages show them, both ends included;
    nothing for an empty text."""
    if not text:
        return None
    name, _, numbers = text.partition(":")
    wrong = ConfigError(
        f"--slices {text}: write axial, coronal or sagittal, a colon, and numbers such as 40-60,72, or changed."
    )
    if name not in AXES:
        raise wrong
    if numbers == CHANGED:
        return AskedSlices(axis=AXES.index(name), indices=None)
    found: set[int] = set()
    for part in numbers.split(","):
        if (match := _RANGE.fullmatch(part.strip())) is None:
            raise wrong
        first, last = int(match[1]), int(match[2] or match[1])
        if not 1 <= first <= last < 100_000:
            raise wrong
        found |= set(range(first - 1, last))
    return AskedSlices(axis=AXES.index(name), indices=tuple(sorted(found)))


def current_label(run: Path, case: RunCase, *, mended: bool = True) -> Path | None:
    """The label of a case that a person would judge or mend, and None where it has none. mended: corrections count."""
    folders = (PSEUDO_LABELS, REVIEWED_LABELS, TEACHER_LABELS)
    files = [label_map(run / folder, case.id) for folder in ((CORRECTIONS,) if mended else ()) + folders]
    own = [Path(case.label)] if case.label else []
    return next((file for file in (*files, *own) if file.exists()), None)


def export_cases(run: Path, ids: Sequence[str], folder: Path | None = None) -> Path:
    """Hand out the scans and labels of cases, with the names of the organs; returns the folder, by default
    `run/export`. A label that lies there already, perhaps half mended, is left as it is, unless it is as it was handed
    out: then the label that the case has now takes its place.

    Raises `DataError` for a case that the run does not have, or that has no label yet, and `ConfigError` where a
    person's file is in the place of one of the texts.
    """
    plan, cases = _opened(run)
    folder = run / EXPORT if folder is None else folder
    if unknown := [id for id in ids if id not in cases]:
        raise DataError(f"{run}: has no case {shortened(unknown)}.")
    labels = {id: current_label(run, cases[id]) for id in ids}
    if missing := [id for id, label in labels.items() if label is None]:
        raise DataError(
            f"{run}: no label to mend yet of {shortened(missing)}. Label the scans first: semiseg predict {run} "
            "--unlabelled"
        )
    handed_out = read_handed_out(folder)
    texts = {
        ITK_SNAP_FILE: itk_snap_labels(plan.labels),
        SLICER_FILE: slicer_colours(plan.labels),
        "README.txt": _readme(run, folder),
    }
    _refuse_others(folder, texts, handed_out)
    for id, label in labels.items():
        images = [Path(image) for image in cases[id].images]
        for number, image in enumerate(images):
            channel = f"_{number}" if len(images) > 1 else ""
            kept = ending(image) if len(files_of([image])) == 1 else ""
            _copy(image, folder / f"{id}_scan{channel}{kept or '.nii.gz'}")
        assert label is not None  # refused above
        target = label_map(folder, id)
        if is_untouched(target, handed_out):
            target.unlink()
        if not target.exists():
            _copy(label, target)
            judged = current_label(run, cases[id], mended=False) or label
            source = label_sha256(*files_of([judged]))
            handed_out[target.name] = HandedOut(sha256=label_sha256(target), source_sha256=source)
            keep_handed_out(folder, handed_out)
    for name, text in texts.items():
        write_text(folder / name, text)
        handed_out[name] = HandedOut(sha256=label_sha256(folder / name))
    keep_handed_out(folder, handed_out)
    return folder


def _refuse_others(folder: Path, texts: Mapping[str, str], handed_out: Mapping[str, HandedOut]) -> None:
    """Raise `ConfigError` for a file in the place of one of these that was not written here, or changed since."""
    for file in (folder / name for name in texts):
        ours = texts[file.name].encode(errors="surrogatepass")
        if file.exists() and not is_untouched(file, handed_out) and file.read_bytes() != ours:
            raise ConfigError(
                f"{file}: is there already, and not as it was handed out. Move it away, or name another folder with "
                "--output."
            )


def _copy(source: Path, target: Path) -> None:
    """Byte by byte where that is the same format in one file."""
    if target.exists():
        return
    if ending(source) != ending(target) or len(files_of([source])) > 1:
        write_scan(target, source)
        return
    with atomic_file(target) as temporary:
        shutil.copyfile(source, temporary)


def _readme(run: Path, folder: Path) -> str:
    return (
        f"Open ID_scan.nii.gz, and ID.nii.gz as its segmentation, with {ITK_SNAP_FILE} (ITK-SNAP) or {SLICER_FILE} "
        "(3D Slicer).\n"
        "Mend ID.nii.gz and save it under the same name, on the same grid, with the same values.\n"
        f"Take it back: semiseg correct {run} {folder} (where you mended some slices alone: --slices axial:40-60).\n"
    )


def import_folder(
    run: Path, folder: Path, *, case: str = "", slices: AskedSlices | None = None
) -> tuple[list[Taken], list[str]]:
    """Take corrected labels back: `folder/ID.nii.gz`, or one file, of the case that is named or that has its name.
    Labels that are as they were handed out are passed over.

    Returns what was taken, and a sentence for each label that was refused.
    """
    _, cases = _opened(run)
    if folder.is_file():
        files = {case or stem(folder): folder}
    elif folder.is_dir():
        found = scans_by_stem(folder)
        files = {id: file for id, file in found.items() if id in cases or not _SCAN.fullmatch(id)}
        if case:
            files = {id: file for id, file in files.items() if id == case}
    else:
        raise DataError(f"{folder}: there is no such file or folder.")
    if not files:
        raise DataError(f"{folder}: holds no label that was handed out. Labels are ID.nii.gz there.")
    if of_slicer := next((file for file in files.values() if file.name.lower().endswith(".seg.nrrd")), None):
        raise DataError(
            f"{of_slicer}: a segmentation of 3D Slicer, which may hold a part of the grid and other values. Save a "
            "label map there, ID.nii.gz: Segmentations, Export to files."
        )
    if strange := [id for id in files if id not in cases]:
        raise DataError(f"{folder}: {shortened(strange)}: no case of {run}. Name labels by their case.")
    taken, refused = [], []
    handed_out = read_handed_out(folder if folder.is_dir() else folder.parent)
    for id, file in sorted(files.items()):
        if slices is None and is_untouched(file, handed_out):
            continue
        handed = handed_out.get(file.name)
        try:
            one = import_correction(
                run, id, file, slices, source_sha256=handed.get("source_sha256") if handed else None
            )
        except DataError as error:
            refused.append(str(error))
        else:
            taken += [one] if one else []
    return taken, refused


def import_correction(
    run: Path, case: str, file: Path, slices: AskedSlices | None = None, *, source_sha256: str | None = None
) -> Taken | None:
    """Take a corrected label of a run back, as `take_back` does; also returns None for one that `run/export` handed
    out, though the run has another one by now. Raises `DataError` where it cannot be used."""
    plan, cases = _opened(run)
    if case not in cases:
        raise DataError(f"{run}: has no case {case}.")
    handed = read_handed_out(run / EXPORT).get(label_map(run / EXPORT, case).name)
    if slices is None and handed and file.is_file() and label_sha256(file) == handed["sha256"]:
        return None
    before, image = current_label(run, cases[case], mended=False), Path(cases[case].images[0])
    return take_back(
        run / CORRECTIONS, case, image, plan.labels, file, before=before, slices=slices, source_sha256=source_sha256
    )


def take_back(
    corrections: Path,
    case: str,
    image: Path,
    labels: LabelScheme,
    file: Path,
    *,
    before: Path | None,
    slices: AskedSlices | None = None,
    source_sha256: str | None = None,
) -> Taken | None:
    """Keep a corrected label as `corrections/ID.nii.gz`, after it was checked against the scan's grid and the labels.
    Slices that were corrected before count on. Returns None where it is as it was handed out and no slices are named.

    before: the label that was judged. slices: those that are to be learnt from; None is all of them. source_sha256: of
    the label that was handed out, where that is known; else it was `before`. Raises `DataError` where the label cannot
    be used, and where changed slices are asked for and the label that was handed out is another now.
    """
    grid = read_grid(image)
    label, _ = read_checked_label(file, image, grid, replace(labels, ignore=ignore_value(labels)))
    base = None if before is None else read_label(before)[0]
    changed = np.ones(label.shape, dtype=bool) if base is None else label != base
    target = label_map(corrections, case)
    note = read_note(corrections, case)
    is_whole = not target.is_file() or note.fits(target)  # else taking one back was cut off
    if slices is None and is_whole:
        handed_out = read_label(target)[0] if target.is_file() else base
        if handed_out is not None and np.array_equal(label, handed_out):
            return None
    now = None if before is None else label_sha256(*files_of([before]))
    if slices is not None and slices.indices is None and source_sha256 not in (None, now):
        raise DataError(
            f"{file}: the run has another label of this scan by now than was handed out, so that the slices which you "
            "changed are not known. Name them by number."
        )
    chosen = _chosen(slices, changed, grid, file)
    if chosen is not None and target.is_file() and (is_whole or note.slices):
        chosen = _together(note.slices, chosen, file)
    sha256 = note.source_sha256 or source_sha256 or now
    with atomic_file(target) as temporary:
        write_label(temporary, label, grid, image)
        note = CorrectionNote(slices=chosen, source_sha256=sha256, label_sha256=label_sha256(temporary))
        # Before the label: one whose note is of another is refused, and one without a note is learnt from as a whole.
        write_json(corrections / f"{case}.json", asdict(note))
    return Taken(case=case, changed_voxels=int(np.count_nonzero(changed)), slices=chosen)


def _together(before: Slices | None, now: Slices, file: Path) -> Slices | None:
    """The slices of a correction and of the one before it; None where all counted before."""
    if before is None:
        return None
    if before.axis != now.axis:
        raise DataError(
            f"{file}: {AXES[before.axis]} slices of this scan were corrected before. Name {AXES[before.axis]} slices "
            "again, or leave --slices out where the whole label is right now."
        )
    return replace(now, indices=tuple(sorted({*before.indices, *now.indices})))


def _chosen(asked: AskedSlices | None, changed: np.ndarray, grid: Grid, file: Path) -> Slices | None:
    if asked is None:
        return None
    across = tuple(axis for axis in range(3) if axis != asked.axis)
    indices = asked.indices
    if indices is None:
        indices = tuple(int(i) for i in np.flatnonzero(changed.any(axis=across)))
        if not indices:
            raise DataError(f"{file}: no slice differs from the label that was handed out. Name the slices by number.")
    size = grid.shape_zyx[asked.axis]
    if outside := [i for i in indices if i >= size]:
        raise DataError(
            f"{file}: there is no {AXES[asked.axis]} slice {outside[0] + 1}: they are numbered from 1 to {size}."
        )
    return Slices(axis=asked.axis, indices=indices)


def taken_text(taken: Sequence[Taken]) -> list[str]:
    """A line for each."""
    lines = []
    for one in taken:
        where = "the whole scan"
        if one.slices is not None:
            where = counted(len(one.slices.indices), f"{AXES[one.slices.axis]} slice")
        lines.append(f"{one.case}: {where}; {counted(one.changed_voxels, 'voxel')} changed")
    return lines


def _opened(run: Path) -> tuple[Plan, dict[str, RunCase]]:
    if not (run / "plan.toml").is_file():
        raise DataError(f"{run}: no prepared run here (no plan.toml).")
    refuse_links(run)
    return read_plan(run / "plan.toml"), {case.id: case for case in read_run_cases(run / "cases.jsonl")}
