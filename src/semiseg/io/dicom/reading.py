"""DICOM: the format's own part of `semiseg.io.scans`. Slices are read one after the other into the volume."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import IO

import numpy as np

from semiseg.errors import ConfigError, DataError
from semiseg.geometry import triple
from semiseg.io.dicom.decoding import Decoder
from semiseg.io.dicom.headers import NATIVE, UNKNOWN_LENGTH, Slice, check_fragments, read_header, value_length
from semiseg.io.dicom.library import library
from semiseg.io.dicom.places import series_of
from semiseg.io.dicom.sources import archive_of, opener
from semiseg.io.dicom.values import Form, form_of, rescaled, stored_dtype, used_bits, widened
from semiseg.io.grid import Grid
from semiseg.io.voxels import StoredVoxels
from semiseg.types import AnyArray

RLE = "1.2.840.10008.1.2.5"
BY_GDCM = {
    "1.2.840.10008.1.2.4.50": "JPEG baseline",
    "1.2.840.10008.1.2.4.51": "JPEG extended",
    "1.2.840.10008.1.2.4.57": "JPEG lossless",
    "1.2.840.10008.1.2.4.70": "JPEG lossless, first order",
    "1.2.840.10008.1.2.4.80": "JPEG-LS lossless",
    "1.2.840.10008.1.2.4.81": "JPEG-LS near-lossless",
    "1.2.840.10008.1.2.4.90": "JPEG 2000 lossless",
    "1.2.840.10008.1.2.4.91": "JPEG 2000",
}


def read_grid(path: Path) -> Grid:
    """As `Format.read_grid`."""
    return series_of(path).grid


def read_voxels(path: Path) -> StoredVoxels:
    """As `Format.read_voxels`."""
    series = series_of(path)
    form = form_of(series.slices)
    pixels = series.slices[0].pixels
    shape = (len(series.slices), pixels.rows, pixels.columns)
    if series.regular:
        shape = triple(reversed(series.regular.shape_xyz))
    try:
        voxels = np.empty(shape, dtype=form.dtype)
    except (MemoryError, ValueError):
        raise DataError(f"{path}: its headers claim {shape} voxels, more than memory can hold. Restore it.") from None
    planes = _planes(path, series.slices, form)
    if series.regular:
        slices = iter(planes)
        voxels = series.regular.fill(voxels, lambda index: next(slices))
    else:
        for index, plane in enumerate(planes):
            if form.kind == "whole" and (wider := widened(plane, voxels.dtype)) != voxels.dtype:
                voxels = voxels.astype(wider)
            voxels[index] = plane
    return StoredVoxels(voxels.transpose(2, 1, 0), series.grid, form.slope, form.inter)


def read_some(path: Path, channel: int, most_bytes: int) -> tuple[AnyArray, int]:
    """As `Format.read_some`: of slices in the middle."""
    series = series_of(path)
    form = form_of(series.slices)
    pixels = series.slices[0].pixels
    plane_bytes = pixels.rows * pixels.columns * max(1, pixels.allocated // 8)
    count = max(1, min(len(series.slices), most_bytes // plane_bytes, 3))
    middle = (len(series.slices) - count) // 2
    some = series.slices[middle : middle + count]
    values = [plane * np.float32(form.slope) + np.float32(form.inter) for plane in _planes(path, some, form)]
    return np.concatenate([plane.ravel() for plane in values]), count * plane_bytes


def files(path: Path) -> tuple[Path, ...]:
    """As `Format.files`: those of the series, in the order of slices; a zip itself, since nothing is unpacked."""
    series = series_of(path)
    found = dict.fromkeys(series.files)
    return tuple(dict.fromkeys(file if file.exists() else archive_of(file) for file in found))


def digest_of(path: Path) -> str:
    """SHA-256 of the contents of a series' files in the order of slices, and of whether it is made regular."""
    series = series_of(path)
    digest = hashlib.sha256(b"regular" if series.regular else b"")
    with opener(archive_of(series.files[0])) as open_file:
        for file in dict.fromkeys(series.files):
            with _named(path, file, series.slices), open_file(file) as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())  # type: ignore[arg-type]
    digest.update(repr(series.frames).encode())
    return digest.hexdigest()


def write(path: Path, stored: AnyArray, grid: Grid, like: Path | None) -> None:
    """As `Format.write`: scans are not written as DICOM."""
    raise DataError(f"{path}: label maps are not written as DICOM slices. Name a .nii.gz file.")


def _planes(path: Path, slices: Sequence[Slice], form: Form) -> Iterator[AnyArray]:
    """What the form holds of each slice, `(rows, columns)`, in order; frames of one file in one go."""
    with opener(archive_of(slices[0].file)) as open_file, Decoder() as decoder:
        for file, group in groupby(slices, key=lambda found: found.file):
            frames = list(group)
            with _named(path, file, frames), open_file(file) as stream:
                for found, plane in zip(frames, _stored(stream, frames, decoder), strict=True):
                    yield rescaled(used_bits(plane, found.pixels), found, form)


@contextmanager
def _named(path: Path, file: Path, frames: Sequence[Slice]) -> Iterator[None]:
    """Whatever a damaged file raises as a sentence, without what libraries say: it may quote what the file holds."""
    try:
        yield
    except (DataError, ConfigError, GeneratorExit):
        raise
    except MemoryError:
        raise
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise DataError(f"{path}: {file.name} cannot be read ({why}). Restore it.") from None
    except EOFError:
        raise DataError(f"{path}: {frames[0].name} is cut off: voxels are missing. Restore the file.") from None
    except Exception as error:  # noqa: BLE001 (decoders raise anything)
        raise DataError(
            f"{path}: the voxels of {frames[0].name} cannot be read ({type(error).__name__}): the file is damaged. "
            "Restore it."
        ) from None


def _stored(stream: IO[bytes], frames: Sequence[Slice], decoder: Decoder) -> Iterator[AnyArray]:
    """The frames of one file as it stores them, in the order that is asked for."""
    opened = read_header(stream, ["BitsAllocated"])
    if opened is None:
        raise ValueError
    syntax, source = opened.syntax, opened.stream
    length = value_length(source, *opened.encoded)
    if syntax in NATIVE:
        yield from _native(source, frames, ">" if opened.encoded == (False, False) else "<", length)
    elif syntax == RLE or syntax in BY_GDCM:
        if length != UNKNOWN_LENGTH:
            raise ValueError
        check_fragments(source)
        yield from _compressed(source, frames, syntax, decoder)
    else:
        raise DataError(
            f"{frames[0].file.name}: compressed as {library().uid.UID(syntax).name}, which is not read. Decompress it, "
            "with dcmtk's dcmdjpeg or gdcmconv --raw for example."
        )


def _native(stream: IO[bytes], frames: Sequence[Slice], order: str, length: int) -> Iterator[AnyArray]:
    pixels = frames[0].pixels
    size = pixels.rows * pixels.columns * pixels.allocated // 8
    start = stream.tell()
    dtype = stored_dtype(pixels).newbyteorder(order)  # type: ignore[arg-type]
    for found in frames:
        if (found.frame + 1) * size > length:
            raise EOFError
        stream.seek(start + found.frame * size)
        data = stream.read(size)
        if len(data) < size:
            raise EOFError
        plane = np.frombuffer(data, dtype).reshape(pixels.rows, pixels.columns)
        yield plane.astype(stored_dtype(pixels), copy=False)


def _compressed(stream: IO[bytes], frames: Sequence[Slice], syntax: str, decoder: Decoder) -> Iterator[AnyArray]:
    pixels = frames[0].pixels
    asked = [found.frame for found in frames]
    plugin = "pydicom" if syntax == RLE else "gdcm"
    if plugin not in library().pixels.get_decoder(syntax).available_plugins:
        raise ConfigError(f"{BY_GDCM[syntax]} needs python-gdcm: pip install '.[dicom]'.")
    options = {
        "syntax": syntax,
        "plugin": plugin,
        "indices": None if asked == list(range(frames[0].frames)) else asked,
        "pixels": {
            "rows": pixels.rows,
            "columns": pixels.columns,
            "samples_per_pixel": 1,
            "photometric_interpretation": pixels.photometric,
            "pixel_representation": int(pixels.signed),
            "bits_allocated": pixels.allocated,
            "bits_stored": pixels.stored,
            "number_of_frames": frames[0].frames,
        },
    }
    for array in decoder.frames(stream, options, len(asked)):
        yield array.astype(stored_dtype(pixels), copy=False)
