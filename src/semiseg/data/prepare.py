"""Preparation: scans normalised and resampled as the plan says, stored case by case, never done twice.

The order is nnU-Net's: normalise on the scan's own grid, then resample. Nothing is cropped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from semiseg.cases import WAS_KILLED, each_case
from semiseg.data.body import body_locations
from semiseg.data.histograms import quantiles
from semiseg.data.labels import count_values, read_checked_label
from semiseg.data.plan import Plan
from semiseg.data.scan_rows import ScanRows, preparation_axis
from semiseg.data.shared_store import entry, link_case
from semiseg.errors import DataError, SemisegError
from semiseg.files import (
    append_jsonl,
    digest_of,
    is_full,
    read_json,
    read_jsonl,
    why_not_written,
    write_json,
    write_jsonl,
)
from semiseg.geometry import triple
from semiseg.io.dataset import Case
from semiseg.io.scans import RawVolume, hash_of, read_scan, stamps_of
from semiseg.io.store import CASE_FILES, Places, StoredCase, check_files, read_case_meta, write_case
from semiseg.ops.resample import keep_known, resample_label
from semiseg.randomness import Draw
from semiseg.types import BoolArray, FloatArray, LabelArray, Shape

PREPARATION_VERSION = 8
"""Raised whenever the same scan and plan would be stored differently, so that old stores are made anew."""
MAX_LOCATIONS = 512
Progress = Callable[[int, int, str], None]
"""Called with (cases done, cases in all, id of the case just done)."""


@dataclass(frozen=True, kw_only=True)
class PreparedCase:
    """What became of one case: stored under `hash`, found `reused` from an earlier run, or the `error` as text. stamps:
    size and time of the files that it was made of, and of those that it is stored in."""

    id: str
    hash: str | None = None
    reused: bool = False
    error: str | None = None
    stamps: dict[str, list[int]] | None = None


def _recipe(plan: Plan) -> dict[str, Any]:
    """All in the plan that preparation depends on."""
    return {
        "version": PREPARATION_VERSION,
        "spacing_mm": list(plan.spacing_mm),
        "anisotropic_axis": plan.anisotropic_axis,
        "normalisation": [asdict(channel) for channel in plan.normalisation],
        "classes": sorted(plan.labels.names),
        "ignore": plan.labels.ignore,
        "unknown": list(plan.labels.unknown),
    }


def write_recipe(store_folder: Path, plan: Plan) -> None:
    """Write down what the stored cases were all prepared by."""
    write_json(store_folder / "recipe.json", _recipe(plan))


def check_recipe(store_folder: Path, plan: Plan) -> None:
    """Raise `DataError` where the cases were stored for another plan."""
    file = store_folder / "recipe.json"
    found, wanted = read_json(file), _recipe(plan)
    changed = [key for key in wanted if not isinstance(found, dict) or found.get(key) != wanted[key]]
    if changed:
        raise DataError(
            f"{file}: the scans were prepared with another {', '.join(changed)} than plan.toml has now. "
            "Run `semiseg prepare` again."
        )


def case_hash(case: Case, plan: Plan) -> str:
    """A hash of the case's file contents and of all in the plan that preparation depends on."""
    recipe = _recipe(plan) | {"labelled": case.label is not None}
    try:
        return hash_of(_sources(case), salt=json.dumps(recipe, sort_keys=True))
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror}). Restore or remove it.") from None


def prepare_case(case: Case, plan: Plan, store_folder: Path, shared: Path | None = None) -> PreparedCase:
    """Read, normalise, resample and store one case under `store_folder/ID`, unless it is there unchanged.

    shared: a store that other runs have, too: what is there is not done again, and what is done is kept there.
    Raises `DataError` naming the file that cannot be used.
    """
    digest = case_hash(case, plan)
    folder = store_folder / case.id
    if _is_stored(folder, digest):
        return PreparedCase(id=case.id, hash=digest, reused=True)
    if shared is None:
        _prepare(case, plan, digest, folder)
        return PreparedCase(id=case.id, hash=digest)
    with entry(shared, case.id, digest) as stored:
        was_there = _is_stored(stored, digest)
        if not was_there:
            _prepare(case, plan, digest, stored)
        link_case(stored, folder)
    return PreparedCase(id=case.id, hash=digest, reused=was_there)


def _prepare(case: Case, plan: Plan, digest: str, folder: Path) -> None:
    volume = read_scan(case.images)
    source_label = None
    if case.label is not None:
        source_label, _ = read_checked_label(case.label, case.images[0], volume.grid, plan.labels)
    try:
        scan = ScanRows(volume.channels, volume.grid.spacing_mm, plan)
    except DataError as error:
        raise DataError(f"{case.images[0]}: {error}") from None
    image = scan.rows(0, scan.shape[0])
    label = None
    if source_label is not None:
        label = resample_label(source_label, scan.shape, preparation_axis(volume.grid.spacing_mm, plan))
        if plan.labels.ignore is not None:
            keep_known(source_label, label, plan.labels.ignore)
    meta = _describe(case, plan, digest, volume, image, label)
    write_case(folder, image=image, label=label, meta=meta)


def prepare_cases(
    cases: Sequence[Case],
    plan: Plan,
    store_folder: Path,
    *,
    shared: Path | None = None,
    workers: int = 1,
    verify: bool = False,
    progress: Progress | None = None,
) -> list[PreparedCase]:
    """Prepare all cases, `workers` at a time, and return one result each, in the order of `cases`.

    shared: as in `prepare_case`. A case whose files, sources and stored ones, have the sizes and times that they had
    when they were last read is not read again, unless `verify` asks for it.

    A case that fails is reported in its result and stops no other; what is stored stays, so a second call goes on where
    the first was cut off. With more than one worker, processes are spawned with one compute thread each.
    """
    seen = _Seen(store_folder, plan)
    results: dict[int, PreparedCase] = {}
    for index, case in enumerate(cases):
        if not verify and (known := seen.hash_of(case)):
            results[index] = PreparedCase(id=case.id, hash=known, reused=True)
    if progress and results:
        progress(len(results), len(cases), cases[max(results)].id)
    left = [index for index in range(len(cases)) if index not in results]
    try:
        for number, result in each_case(
            partial(_attempt, plan=plan, store_folder=store_folder, shared=shared),
            [cases[index] for index in left],
            workers=workers,
            lost=lambda case: PreparedCase(id=case.id, error=f"{case.images[0]}: {WAS_KILLED}."),
        ):
            results[left[number]] = result
            seen.add(result)
            if progress:
                progress(len(results), len(cases), result.id)
    finally:
        seen.tidy()
    return [results[index] for index in range(len(cases))]


class _Seen:
    """`store/seen.jsonl`: by case the hash, and the sizes and times of its files when they were last read. A row is
    added as soon as a case is done, so that a command that was killed goes on without reading it again."""

    def __init__(self, store_folder: Path, plan: Plan) -> None:
        self._folder, self._file = store_folder, store_folder / "seen.jsonl"
        self._recipe = digest_of(_recipe(plan))
        self._added = 0
        try:
            self._rows = {str(row["id"]): row for row in read_jsonl(self._file)}
        except (DataError, KeyError):
            self._rows = {}  # everything is read anew
            self._file.unlink()

    def hash_of(self, case: Case) -> str | None:
        """The hash of a case whose files are as they were, None where they are to be read."""
        row = self._rows.get(case.id)
        if row is None or row.get("recipe") != self._recipe or row.get("stamps") != _stamps(case, self._folder):
            return None
        return str(row["hash"])

    def add(self, result: PreparedCase) -> None:
        """Keep what was read of a case."""
        if result.stamps is not None and self._folder.is_dir():
            row = {"id": result.id, "recipe": self._recipe, "hash": result.hash, "stamps": result.stamps}
            self._rows[result.id] = row
            append_jsonl(self._file, row)
            self._added += 1

    def tidy(self) -> None:
        """Leave one row of each case."""
        if self._added and self._folder.is_dir():
            write_jsonl(self._file, list(self._rows.values()))


def _sources(case: Case) -> list[Path]:
    return [*case.images, *([case.label] if case.label else [])]


def _stamps(case: Case, store_folder: Path | None) -> dict[str, list[int]] | None:
    """Of the sources, and of what is stored where a folder is given; None where a source is missing."""
    files = [store_folder / case.id / name for name in CASE_FILES] if store_folder else []
    stored = [path for path in files if path.exists()]
    try:
        of_stored = {str(file): [(stat := file.stat()).st_size, stat.st_mtime_ns] for file in stored}
        return stamps_of(_sources(case)) | of_stored
    except (OSError, DataError):
        return None


def _attempt(case: Case, plan: Plan, store_folder: Path, shared: Path | None) -> PreparedCase:
    try:
        before = _stamps(case, None)  # what changes while it is read is read again next time
        result = prepare_case(case, plan, store_folder, shared)
        after = _stamps(case, store_folder)
        unchanged = before and after and before.items() <= after.items()
        return replace(result, stamps=after) if unchanged else result
    except SemisegError as error:
        return PreparedCase(id=case.id, error=str(error))
    except MemoryError:
        text = f"{case.images[0]}: not enough memory at {plan.spacing_mm} mm a voxel. Check the spacing in its header."
        return PreparedCase(id=case.id, error=text)
    except OSError as error:
        error.filename = error.filename or str(store_folder / case.id)
        if is_full(error):
            raise  # the others would not fit either
        return PreparedCase(id=case.id, error=why_not_written(error))


def _is_stored(folder: Path, digest: str) -> bool:
    try:
        if not folder.is_dir() or read_case_meta(folder).hash != digest:
            return False
        check_files(folder)
    except DataError:
        return False  # damaged: done again and replaced
    return True


def _describe(
    case: Case, plan: Plan, digest: str, volume: RawVolume, image: FloatArray, label: LabelArray | None
) -> StoredCase:
    shape = triple(image.shape[1:])
    voxels: dict[int, int] = {}
    locations: dict[int, Places] = {}
    draw = Draw(seed=0)  # locations belong to the content of the case, not to a run
    if label is not None:
        voxels = count_values(label)
        for value in voxels.keys() & plan.labels.organs.keys():
            locations[value] = _sample_locations(label == value, draw.generator(f"locations/{case.id}/{value}"))
    body = body_locations(
        volume.channels[0],
        shape,
        ct=plan.normalisation[0].scheme == "ct",
        count=MAX_LOCATIONS,
        generator=draw.generator(f"locations/{case.id}/body"),
    )
    return StoredCase(
        id=case.id,
        shape_zyx=shape,
        spacing_mm=plan.spacing_mm,
        source_shape_zyx=volume.grid.shape_zyx,
        source_spacing_mm=volume.grid.spacing_mm,
        hash=digest,
        labelled=label is not None,
        channels=len(image),
        channel_quantiles=tuple(map(quantiles, image)),
        class_voxels=voxels,
        class_locations=locations,
        body_locations=body,
    )


def _sample_locations(mask: BoolArray, generator: np.random.Generator) -> tuple[Shape, ...]:
    occupied = np.flatnonzero(mask)
    chosen = generator.choice(occupied, min(MAX_LOCATIONS, occupied.size), replace=False)
    return tuple(triple(map(int, place)) for place in zip(*np.unravel_index(chosen, mask.shape), strict=True))
