"""Series of DICOM as the scans of a dataset's folder: a folder, a zip or an enhanced file for each case, or a heap."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from semiseg.errors import DataError
from semiseg.io.dataset import Remark
from semiseg.io.dicom.places import Chosen, called, choose, left_out, path_of, the_one
from semiseg.io.dicom.series import Series, Unusable, find_series
from semiseg.io.dicom.sources import is_zip
from semiseg.io.file_kinds import holds_dicom, kind_of, scan_named, visible
from semiseg.io.masks import is_mask_folder

Problems = list[tuple[Path, str]]


@dataclass(frozen=True)
class SeriesChoice:
    """Which series of DICOM are scans. series: UID, id, part of a description, or `all`; empty takes the only one of a
    folder. resample: those that lie on no regular grid, too."""

    series: str = ""
    resample: bool = False


ONLY = SeriesChoice()
_LABELS = {"images": "labels", "imagesTr": "labelsTr", "imagesTs": "labelsTs"}
"""Where the labels of a folder of images lie, in every layout."""


def dicom_places(folder: Path) -> list[Path]:
    """What of a folder of scans holds DICOM: sub-folders, zips, and files."""
    return [entry for entry in visible(folder) if is_place(entry)]


def is_place(entry: Path) -> bool:
    """Whether something in a folder of scans is read as DICOM."""
    if entry.is_dir() or is_zip(entry):
        return holds_dicom(entry)
    return entry.is_file() and kind_of(entry) == "dicom"


def series_by_id(
    folder: Path, labels: Collection[str], choice: SeriesChoice, problems: Problems, remarks: list[Remark]
) -> dict[str, Path]:
    """The series in a folder of scans, by case. What is called as a label holds that case; all others are named by the
    hash of their UID. Loose files and folders that no label is called as are looked through together: a series may be
    spread over them.
    """
    found: dict[str, Path] = {}
    others: list[Unusable] = []
    heap: list[Path] = []

    def add(place: Path, files: list[Path] | None, name: str | None = None) -> None:
        try:
            there = find_series(place, files=files, resample=choice.resample)
            chosen = choose(folder, there, choice.series) if name is None else _alone(place, there, choice.series)
        except DataError as error:
            problems.append((place, str(error)))
            return
        at = called(place, place if name else folder, there)
        problems.extend((at, text[:1].upper() + text[1:]) for text in (chosen.why, *chosen.several) if text)
        for series in chosen.series:
            path = path_of(place if name else folder, series, resample=choice.resample)
            if (first := found.setdefault(name or series.id, path)) != path:
                problems.append((path, f"the same series as {first}. Keep one of the two."))
            elif series.regular:
                remarks.append(("note", path, f"{series.made_regular} Look at its labels there."))
        for one in there if chosen.series else ():
            if isinstance(one, Unusable) and one.series not in chosen.series:
                if one.left_out or not one.id or choice.series:
                    others.append(one)
                else:
                    problems.append((path_of(place if name else folder, one), one.why))

    for place in dicom_places(folder):
        if case_name(place) in labels:
            add(place, None, case_name(place))
        elif is_zip(place):
            add(place, None)
        else:
            for file in visible(place, deep=True) if place.is_dir() else [place]:
                if is_zip(file):
                    add(file, None)
                else:
                    heap.append(file)
    if heap:
        add(folder, heap)
    remarks += [("note", folder, f"DICOM: {text}") for text in left_out(others)]
    return found


def _alone(place: Path, found: Sequence[Series | Unusable], asked: str) -> Chosen:
    """The one series of a case; what is asked for counts where there are several."""
    likely = [one for one in found if isinstance(one, Series) or one.mendable]
    return Chosen((the_one(place, found, "" if len(likely) == 1 else asked),))


def labelled_name(place: Path) -> str:
    """What a data set calls the scan of a folder, a zip or a file that lies in its folder of images: as its label, or
    empty where there is none of that name. So a scan has one id, whether the data set or its place is named."""
    images, name = place.absolute().parent, case_name(place.absolute())
    labels = _LABELS.get(images.name)
    if not labels:
        return ""
    there = images.parent / labels
    return name if scan_named(there, name) or is_mask_folder(there / name) else ""


def case_name(place: Path) -> str:
    """What a folder, a zip or a file is called as a case."""
    return place.name[:-4] if place.name.lower().endswith((".zip", ".dcm", ".ima")) else place.name
