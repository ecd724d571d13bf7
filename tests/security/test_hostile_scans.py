"""Zips and headers that claim what they are not: a sentence each, and never more than a gigabyte."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semiseg.errors import DataError
from semiseg.io.scans import read_volume
from semiseg.prediction.inputs import find_scans

pytest.importorskip("pydicom")
from dicom_series import random_voxels, write_series

Command = Callable[..., Any]
NAMES = ("a.dcm", "b/c.dcm", "../victim", "/victim", "b/../../victim", "C:\\victim", "DICOMDIR", ".hidden", "x.txt",
         "\x1b[31m.dcm", "é.dcm", "a//b.dcm", "n" * 300)  # fmt: skip


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """The files of a small series."""
    return [file.read_bytes() for file in write_series(tmp_path_factory.mktemp("series"), random_voxels((4, 9, 12)))]


def read_all(path: Path) -> None:
    for scan in find_scans([path]):
        read_volume(scan.images)


@settings(max_examples=150, derandomize=True)
@given(data=st.data())
def test_zips_of_anything_are_refused_or_read(
    members: list[bytes], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Whole and damaged slices under good and bad names, with sizes, offsets and methods that are not theirs."""
    names = data.draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=5, unique=True))
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", data.draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))) as zipped:
        for index, name in enumerate(names):
            content = members[index % len(members)]
            zipped.writestr(name, content[: data.draw(st.sampled_from([len(content)] * 3 + [0, 140, 600]))])
    content = bytearray(made.getvalue())
    directory = content.find(b"PK\1\2")
    for place, size in data.draw(st.lists(st.sampled_from([(10, 2), (16, 4), (20, 4), (24, 4), (42, 4)]), max_size=2)):
        content[directory + place : directory + place + size] = data.draw(st.binary(min_size=size, max_size=size))
    content = content[: len(content) - data.draw(st.sampled_from([0, 0, 0, 5, 40]))]
    folder = tmp_path_factory.mktemp("zips")
    file = folder / "inner" / "scans.zip"
    file.parent.mkdir()
    file.write_bytes(content)
    said = ""
    try:
        read_all(file)
    except DataError as error:
        said = str(error)
    assert said == "" or said.startswith(str(file))
    assert "\x1b" not in said
    assert sorted(folder.rglob("*")) == [file.parent, file]


def overlapping(path: Path) -> None:
    """A zip of 3,000 names for the same compressed bytes, which claims what they all become (Fifield, 2019)."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr("a.dcm", bytes(128) + b"DICM" + bytes(1 << 24))
    content = path.read_bytes()
    start = content.find(b"PK\1\2")
    end = content.find(b"PK\5\6")
    entries = content[start:end] * 3000
    path.write_bytes(
        content[:start] + entries + struct.pack("<4sHHHHLLH", b"PK\5\6", 0, 0, 3000, 3000, len(entries), start, 0)
    )


def lying(path: Path) -> None:
    """A member that claims a kilobyte and becomes 256 MB."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped, zipped.open("a.dcm", "w", force_zip64=True) as one:
        one.write(bytes(128) + b"DICM")
        for _ in range(256):
            one.write(bytes(1 << 20))
    content = bytearray(path.read_bytes())
    directory = content.find(b"PK\1\2")
    content[directory + 24 : directory + 28] = struct.pack("<L", 1000)
    path.write_bytes(content)


def encrypted(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as zipped:
        zipped.writestr("a.dcm", bytes(128) + b"DICM")
    content = bytearray(path.read_bytes())
    content[content.find(b"PK\1\2") + 8] |= 1
    path.write_bytes(content)


def nested(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as zipped:
        zipped.writestr("inner.zip", path.name.encode())


def deflated(path: Path) -> None:
    """A DICOM file whose data set inflates to 768 MB: twice that, where it is inflated in one go."""
    import zlib

    from pydicom.dataset import FileMetaDataset
    from pydicom.filewriter import write_file_meta_info
    from pydicom.uid import CTImageStorage, DeflatedExplicitVRLittleEndian, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
    meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    packer = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    with path.open("wb") as file:
        file.write(bytes(128) + b"DICM")
        write_file_meta_info(file, meta, enforce_standard=True)
        file.write(packer.compress(b"\x08\0\x60\0CS\2\0CT" + b"\x09\0\1\0OB\0\0\0\0\0\xf0"))
        for _ in range(768):
            file.write(packer.compress(bytes(1 << 20)))
        file.write(packer.flush())


def large_slices(path: Path) -> None:
    """Slices that claim 65,535 x 65,535 voxels each."""
    import pydicom

    for file in write_series(path.with_name("series"), random_voxels((4, 9, 12))):
        dataset = pydicom.dcmread(file)
        dataset.Rows = dataset.Columns = 65535
        dataset.save_as(file)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
        for file in sorted(path.with_name("series").iterdir()):
            zipped.write(file, file.name)


@pytest.mark.parametrize(
    ("make", "name", "words"),
    [
        (overlapping, "scans.zip", "claim to inflate"),
        (lying, "scans.zip", "no series that is a volume"),
        (encrypted, "scans.zip", "encrypted"),
        (nested, "scans.zip", "no series that is a volume"),
        (deflated, "scan.dcm", "no series that is a volume"),
        (large_slices, "scans.zip", "65535 x 65535 pixels are no slice's"),
    ],
)
def test_what_becomes_large_is_refused_within_a_gigabyte(
    tmp_path: Path, make: Callable[[Path], None], name: str, words: str
) -> None:
    """In a process of its own, whose peak is looked at."""
    make(tmp_path / name)
    code = """
import resource, sys
from pathlib import Path
from semiseg.errors import DataError
from semiseg.io.scans import read_volume
from semiseg.prediction.inputs import find_scans
try:
    for scan in find_scans([Path(sys.argv[1])]):
        read_volume(scan.images)
except DataError as error:
    print(error)
status = Path("/proc/self/status")  # what getrusage says holds the peak of the process that started this one
if status.exists():
    print(next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith("VmHWM")))
else:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / name)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stderr == ""
    said, peak = done.stdout.splitlines()
    assert said.startswith(str(tmp_path / name))
    assert words in said
    assert int(peak) < 2**30
