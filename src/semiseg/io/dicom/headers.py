"""What the headers of DICOM files say of slices: of classic files one each, of enhanced ones one for every frame.

Nothing that names a patient is read: the tags are those of `_TAGS`.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from semiseg.errors import SemisegError
from semiseg.io.dicom.library import library
from semiseg.io.dicom.sources import files_of, is_inflated, length_of, opener
from semiseg.io.file_kinds import starts_as_dicom

_TAGS = [
    "SOPClassUID", "SOPInstanceUID", "Modality", "SeriesInstanceUID", "SeriesDescription", "InstanceNumber",
    "ImageType", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel",
    "PhotometricInterpretation", "NumberOfFrames", "PixelSpacing", "ImageOrientationPatient", "ImagePositionPatient",
    "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "TemporalPositionIdentifier",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
]  # fmt: skip
_DIRECTORY = "1.2.840.10008.1.3.10"
_DEFLATED = "1.2.840.10008.1.2.1.99"
_PLAIN = {
    (True, True): "1.2.840.10008.1.2",
    (False, True): "1.2.840.10008.1.2.1",
    (False, False): "1.2.840.10008.1.2.2",
}
NATIVE = (*_PLAIN.values(), _DEFLATED)
"""Implicit and explicit little endian, big endian, deflated."""
_VOXELS = 0x7FE00010
UNKNOWN_LENGTH = 0xFFFFFFFF
_ITEM, _END_OF_ITEMS = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"
_MOST_INFLATED_BYTES, _PIECE_BYTES = 1 << 29, 1 << 20
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
    InstanceNumber, of a frame its own, from 1. instance: SOPInstanceUID. marks: ImageType. cut: the file ends before
    its voxels do.
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
    cut: bool = False

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
    modality: str = ""


def slices_of(place: Path, files: Sequence[Path] | None = None) -> Iterator[Slice | Unread]:
    """All slices of all files of a folder, a zip or a file, or of these of them. Files that are not DICOM are passed
    over."""
    kept: dict[Any, Any] = {}
    with opener(place) as open_file:
        for file in files_of(place) if files is None else files:
            try:
                with open_file(file) as stream:
                    yield from (_sharing(found, kept) for found in _slices(file, stream))
            except OSError as error:
                yield Unread(file, f"Cannot be read ({error.strerror or type(error).__name__}).")


@dataclass(frozen=True)
class Opened:
    """A DICOM file: its data set up to the voxels, at whose element the stream then stands. encoded: whether types of
    values are implicit, and whether numbers are little endian."""

    dataset: Any
    stream: IO[bytes]
    syntax: str
    encoded: tuple[bool, bool]


def read_header(stream: IO[bytes], tags: list[str]) -> Opened | None:
    """What a file says of these tags; None for what is no DICOM file.

    Raises whatever pydicom raises for damaged ones, of which no text is to be shown: it may quote values.
    """
    pydicom = library()
    start = stream.read(132)
    if not starts_as_dicom(start):
        return None
    marked = start[128:] == b"DICM"
    stream.seek(0)
    if marked:
        pydicom.filereader.read_preamble(stream, False)
        meta = pydicom.filereader._read_file_meta_info(stream)
        if meta.get("TransferSyntaxUID") == _DEFLATED:
            return _inflated(stream, meta, tags)
        stream.seek(0)
    dataset = pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=tags, force=not marked)
    encoded: tuple[bool, bool] = dataset.original_encoding
    syntax = str(dataset.file_meta.get("TransferSyntaxUID", "")) or _PLAIN[encoded]
    return Opened(dataset, stream, syntax, encoded)


def _inflated(stream: IO[bytes], meta: Any, tags: list[str]) -> Opened:
    """A file whose data set is deflated as a whole, inflated in memory up to a limit."""
    pydicom = library()
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    data = io.BytesIO()
    while packed := inflater.unconsumed_tail or stream.read(_PIECE_BYTES):
        data.write(inflater.decompress(packed, _PIECE_BYTES))
        if data.tell() > _MOST_INFLATED_BYTES:
            raise ValueError
    data.seek(0)
    wanted = [pydicom.tag.Tag(tag) for tag in tags]
    dataset = pydicom.filereader.read_dataset(
        data, False, True, stop_when=lambda tag, *_: tag == _VOXELS, specific_tags=wanted
    )
    dataset.file_meta = meta
    return Opened(dataset, data, _DEFLATED, (False, True))


_SHARED = ("uid", "description", "modality", "marks", "pixels", "orientation", "spacing")


def _sharing(found: Slice | Unread, kept: dict[Any, Any]) -> Slice | Unread:
    """The slice with the values of earlier ones where they are equal: an archive has hundreds of thousands."""
    if isinstance(found, Unread):
        return found
    values = {name: getattr(found, name) for name in _SHARED}
    return replace(found, **{name: kept.setdefault(value, value) for name, value in values.items()})


def _slices(file: Path, stream: IO[bytes]) -> Iterable[Slice | Unread]:
    try:
        opened = read_header(stream, _TAGS)
        if opened is None or _text(opened.dataset, "SOPClassUID") == _DIRECTORY:
            return []
        return _from_dataset(file, opened)
    except (OSError, SemisegError):
        raise
    except Exception:  # noqa: BLE001 (pydicom raises anything, and its texts quote values)
        return [Unread(file, "A damaged header. Restore or remove the file.")]


def _from_dataset(file: Path, opened: Opened) -> list[Slice | Unread]:
    dataset = opened.dataset
    modality = _text(dataset, "Modality") or "?"
    if "Rows" not in dataset or "Columns" not in dataset:
        return [Unread(file, "No image.", modality)]
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
        syntax=opened.syntax,
    )
    count = max(1, _number(dataset, "NumberOfFrames", 1))
    if count > MOST_FRAMES:
        return [Unread(file, f"{file.name}: claims {count:,} frames. Restore the file.", modality)]
    whole = {
        "uid": _text(dataset, "SeriesInstanceUID"),
        "instance": _text(dataset, "SOPInstanceUID") or str(dataset.file_meta.get("MediaStorageSOPInstanceUID", "")),
        "description": _text(dataset, "SeriesDescription"),
        "modality": modality,
        "pixels": pixels,
        "cut": _is_cut_off(opened, pixels, count),
    }
    shared = _first(dataset, "SharedFunctionalGroupsSequence")
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    if count == 1 and shared is None and not per_frame:
        return [_slice(file, 0, 1, _whole_or_none(dataset, "InstanceNumber"), whole, [dataset], flat=True)]
    if per_frame and len(per_frame) != count:
        return [
            Unread(
                file, f"{file.name}: claims {count} frames and describes {len(per_frame)}. Restore the file.", modality
            )
        ]
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


def _is_cut_off(opened: Opened, pixels: Pixels, frames: int) -> bool:
    """Whether the file ends before its voxels do. What is compressed in a zip is not looked at: it would have to be
    inflated."""
    stream = opened.stream
    try:
        length = value_length(stream, *opened.encoded)
        if opened.syntax in NATIVE:
            size = pixels.rows * pixels.columns * pixels.samples * pixels.allocated // 8 * frames
            return length < size or stream.tell() + size > length_of(stream)
        if length == UNKNOWN_LENGTH and not is_inflated(stream):
            check_fragments(stream)
    except (EOFError, struct.error):
        return True
    except ValueError:  # other elements than are read: who reads the voxels says so
        pass
    return False


def check_fragments(stream: IO[bytes]) -> None:
    """Raise `EOFError` where a compressed value is cut off: decoders fill what lacks. The stream stays where it is."""
    start = stream.tell()
    end = length_of(stream)
    place = start
    while True:
        stream.seek(place)
        head = stream.read(8)
        if len(head) < 8:
            raise EOFError
        tag, length = head[:4], int.from_bytes(head[4:], "little")
        if tag == _END_OF_ITEMS:
            break
        place += 8 + length
        if tag != _ITEM or place > end:
            raise EOFError
    stream.seek(start)


def value_length(stream: IO[bytes], implicit: bool, little: bool) -> int:
    """Read the head of the element of voxels, at which the stream stands; the length of its value."""
    order = "<" if little else ">"
    head = stream.read(8)
    group, element = struct.unpack(f"{order}HH", head[:4])
    if (group, element) != (0x7FE0, 0x0010):
        raise ValueError
    if implicit:
        return int(struct.unpack(f"{order}L", head[4:])[0])
    if head[4:6] not in (b"OW", b"OB"):
        raise ValueError
    return int(struct.unpack(f"{order}L", stream.read(4))[0])


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
