"""What the headers of DICOM files say of slices: of classic files one each, of enhanced ones one for every frame.

Nothing that names a patient is read: the tags are those of `_TAGS`.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from semiseg.io.dicom.library import library
from semiseg.io.dicom.sources import files_of, opener

_TAGS = [
    "SOPClassUID", "SOPInstanceUID", "Modality", "SeriesInstanceUID", "SeriesDescription", "InstanceNumber",
    "ImageType", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel",
    "PhotometricInterpretation", "NumberOfFrames", "PixelSpacing", "ImageOrientationPatient", "ImagePositionPatient",
    "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "TemporalPositionIdentifier",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
]  # fmt: skip
_DIRECTORY = "1.2.840.10008.1.3.10"
_DEFLATED = "1.2.840.10008.1.2.1.99"
_MOST_INFLATED_BYTES = 1 << 30
MOST_FRAMES = 100_000


@dataclass(frozen=True, slots=True)
class Pixels:
    """How a file stores its voxels."""

    rows: int
    columns: int
    allocated: int
    stored: int
    high: int
    signed: bool
    samples: int = 1
    photometric: str = "MONOCHROME2"
    syntax: str = ""


@dataclass(frozen=True, slots=True)
class Slice:
    """A slice: a classic file, or a frame of an enhanced one. position and directions are DICOM's (LPS, millimetres).

    orientation: the direction along a row, then along a column. spacing: between rows, then between columns. number:
    InstanceNumber, of a frame its own, from 1. instance: SOPInstanceUID. marks: ImageType.
    """

    file: Path
    frame: int
    frames: int
    number: int | None
    uid: str
    instance: str
    description: str
    modality: str
    marks: tuple[str, ...]
    pixels: Pixels
    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    spacing: tuple[float, ...] | None
    slope: float = 1.0
    inter: float = 0.0
    table: bool = False

    @property
    def name(self) -> str:
        """How messages name it: by its file's own name and InstanceNumber, or the frame."""
        if self.frames > 1:
            return f"frame {self.frame + 1} of {self.file.name}"
        return f"InstanceNumber {self.number} ({self.file.name})" if self.number is not None else self.file.name


@dataclass(frozen=True)
class Unread:
    """A file that is DICOM and no slices, and why."""

    file: Path
    why: str


def slices_of(place: Path) -> Iterator[Slice | Unread]:
    """All slices of all files of a folder, a zip or a file. Files that are not DICOM are passed over."""
    with opener(place) as open_file:
        for file in files_of(place):
            try:
                with open_file(file) as stream:
                    yield from _slices(file, stream)
            except OSError as error:
                yield Unread(file, f"it cannot be read ({error.strerror or type(error).__name__})")


def read_dataset(stream: IO[bytes], *, pixels: bool = False, tags: list[str] | None = None) -> Any | None:
    """pydicom's data set of a file; None for what is no DICOM file, or a directory of a medium.

    pixels: the voxels, too. tags: only these (with the voxels). Raises what pydicom raises for damaged ones.
    """
    pydicom = library()
    start = stream.read(132)
    marked = start[128:132] == b"DICM"
    if not marked and start[:2] not in (b"\x08\x00", b"\x02\x00"):
        return None
    stream.seek(0)
    wanted = None if tags is None else [*tags, *(["PixelData"] if pixels else [])]
    read = {"stop_before_pixels": not pixels, "specific_tags": wanted, "force": not marked}
    if not marked:
        return pydicom.dcmread(stream, **read)
    meta = pydicom.filereader.read_preamble(stream, force=False) and pydicom.filereader._read_file_meta_info(stream)
    if meta.get("TransferSyntaxUID") != _DEFLATED:
        stream.seek(0)
        return pydicom.dcmread(stream, **read)
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated = inflater.decompress(stream.read(), _MOST_INFLATED_BYTES)
    if inflater.unconsumed_tail:
        raise ValueError("it inflates to more than is allowed")
    dataset = pydicom.filereader.read_dataset(
        pydicom.filebase.DicomBytesIO(inflated),
        False,
        True,
        specific_tags=wanted and [pydicom.tag.Tag(t) for t in wanted],
    )
    dataset.file_meta = meta
    return dataset


def _slices(file: Path, stream: IO[bytes]) -> Iterable[Slice | Unread]:
    try:
        dataset = read_dataset(stream, tags=_TAGS)
        if dataset is None or _text(dataset, "SOPClassUID") == _DIRECTORY:
            return []
        return _from_dataset(file, dataset)
    except OSError:
        raise
    except Exception as error:  # noqa: BLE001 (pydicom raises anything, and its texts quote values)
        return [Unread(file, f"its header is damaged ({type(error).__name__})")]


def _from_dataset(file: Path, dataset: Any) -> list[Slice | Unread]:
    modality = _text(dataset, "Modality") or "?"
    if "Rows" not in dataset or "Columns" not in dataset:
        return [Unread(file, f"{modality} without an image")]
    photometric = _text(dataset, "PhotometricInterpretation") or "MONOCHROME2"
    allocated = _number(dataset, "BitsAllocated", 16)
    stored = _number(dataset, "BitsStored", allocated)
    pixels = Pixels(
        rows=_number(dataset, "Rows", 0),
        columns=_number(dataset, "Columns", 0),
        allocated=allocated,
        stored=stored,
        high=_number(dataset, "HighBit", stored - 1),
        signed=_number(dataset, "PixelRepresentation", 0) == 1,
        samples=_number(dataset, "SamplesPerPixel", 1),
        photometric=photometric,
        syntax=str(getattr(dataset, "file_meta", {}).get("TransferSyntaxUID", "")),
    )
    count = max(1, _number(dataset, "NumberOfFrames", 1))
    if count > MOST_FRAMES:
        return [Unread(file, f"it claims {count:,} frames")]
    whole = {
        "uid": _text(dataset, "SeriesInstanceUID"),
        "instance": _text(dataset, "SOPInstanceUID") or str(dataset.file_meta.get("MediaStorageSOPInstanceUID", "")),
        "description": _text(dataset, "SeriesDescription"),
        "modality": modality,
        "pixels": pixels,
    }
    shared = _first(dataset, "SharedFunctionalGroupsSequence")
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    if count == 1 and shared is None and not per_frame:
        return [_slice(file, 0, 1, _whole_or_none(dataset, "InstanceNumber"), whole, [dataset], flat=True)]
    if per_frame and len(per_frame) != count:
        return [Unread(file, f"it claims {count} frames and describes {len(per_frame)}")]
    groups = per_frame or [None] * count
    return [_slice(file, k, count, k + 1, whole, [group, shared, dataset]) for k, group in enumerate(groups)]


def _slice(
    file: Path,
    frame: int,
    frames: int,
    number: int | None,
    whole: dict[str, Any],
    places: list[Any],
    *,
    flat: bool = False,
) -> Slice:
    """places: data sets that say things of the slice, the most particular first."""

    def find(group: str, keyword: str) -> Any:
        for place in places:
            inner = place if place is None or flat or place is places[-1] else _first(place, group)
            if inner is not None and (value := inner.get(keyword)) not in (None, ""):
                return value
        return None

    marks = find("CTImageFrameTypeSequence", "FrameType") or find("MRImageFrameTypeSequence", "FrameType")
    marks = marks or find("PETFrameTypeSequence", "FrameType") or places[-1].get("ImageType") or ()
    slope, inter = (find("PixelValueTransformationSequence", f"Rescale{part}") for part in ("Slope", "Intercept"))
    return Slice(
        file=file,
        frame=frame,
        frames=frames,
        number=number,
        marks=tuple(str(mark).strip().upper() for mark in ([marks] if isinstance(marks, str) else marks)),
        position=_numbers(find("PlanePositionSequence", "ImagePositionPatient"), 3),
        orientation=_numbers(find("PlaneOrientationSequence", "ImageOrientationPatient"), 6),
        spacing=_numbers(find("PixelMeasuresSequence", "PixelSpacing"), 2),
        slope=1.0 if slope is None else float(slope),
        inter=0.0 if inter is None else float(inter),
        table=find("", "ModalityLUTSequence") is not None if flat else False,
        **whole,
    )


def _first(dataset: Any, keyword: str) -> Any | None:
    items = dataset.get(keyword) if dataset is not None and keyword else None
    return items[0] if items else None


def _text(dataset: Any, keyword: str) -> str:
    value = dataset.get(keyword)
    return "" if value is None else str(value).strip().strip("\0")


def _number(dataset: Any, keyword: str, default: int) -> int:
    value = dataset.get(keyword)
    return default if value is None or value == "" else int(value)


def _whole_or_none(dataset: Any, keyword: str) -> int | None:
    try:
        return _number(dataset, keyword, 0) if dataset.get(keyword) not in (None, "") else None
    except (TypeError, ValueError):
        return None


def _numbers(value: Any, count: int) -> tuple[float, ...] | None:
    """So many finite numbers, or None."""
    try:
        found = tuple(float(v) for v in value) if value is not None else ()
    except (TypeError, ValueError):
        return None
    return found if len(found) == count and all(abs(v) < 1e6 for v in found) else None
