"""Damaged and hostile DICOM and zips: a sentence or a volume, never anything else, and no more memory than a volume
takes."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("pydicom")

from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from dicom_series import TAGS_OF_A_PATIENT, compress, random_voxels, write_enhanced, write_series
from semiseg.errors import SemisegError
from semiseg.io.scans import read_scan

KINDS = ("explicit", "implicit", "big endian", "deflated", "JPEG", "JPEG-LS", "JPEG 2000", "RLE", "enhanced", "zip")
_UNCOMPRESSED = {
    "explicit": ExplicitVRLittleEndian,
    "implicit": ImplicitVRLittleEndian,
    "big endian": ExplicitVRBigEndian,
    "deflated": DeflatedExplicitVRLittleEndian,
}
_COMPRESSED = {
    "JPEG": "JPEGLosslessProcess14_1",
    "JPEG-LS": "JPEGLSLossless",
    "JPEG 2000": "JPEG2000Lossless",
    "RLE": "RLELossless",
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """By kind what is read, and the file that is damaged."""
    root = tmp_path_factory.mktemp("hostile")
    voxels = random_voxels((3, 16, 12))
    found: dict[str, tuple[Path, Path]] = {}
    for kind, syntax in _UNCOMPRESSED.items():
        found[kind] = (root / kind, write_series(root / kind, voxels, syntax=syntax)[1])
    for kind, name in _COMPRESSED.items():
        files = write_series(root / kind, voxels)
        compress(files, name)
        found[kind] = (root / kind, files[1])
    write_enhanced(root / "enhanced.dcm", voxels)
    found["enhanced"] = (root / "enhanced.dcm",) * 2
    with zipfile.ZipFile(root / "all.zip", "w", zipfile.ZIP_DEFLATED) as zipped:
        for file in (root / "explicit").iterdir():
            zipped.write(file, file.name)
    found["zip"] = (root / "all.zip",) * 2
    return found


@settings(max_examples=20, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(KINDS),
    place=st.floats(0, 1),
    near_the_start=st.booleans(),
    taken=st.integers(0, 40),
    given=st.binary(max_size=12) | st.sampled_from([b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\0"]),
    cut=st.booleans(),
    number=st.integers(1, 2**40),
)
def test_damage_is_told_in_a_sentence(
    whole: dict[str, tuple[Path, Path]],
    kind: str,
    place: float,
    near_the_start: bool,
    taken: int,
    given: bytes,
    cut: bool,
    number: int,
) -> None:
    path, file = whole[kind]
    content = file.read_bytes()
    start = int(place * (min(len(content), 1500) if near_the_start else len(content)))
    rest = b"" if cut else content[start + taken :]
    file.write_bytes(content[:start] + given + rest)
    os.utime(file, ns=(number, number))  # what was known of the files before counts no longer
    said = "it was read, which may be: DICOM has no checksums"
    try:
        read_scan([path])
    except SemisegError as error:
        said = str(error)
    finally:
        file.write_bytes(content)
    assert len(said) > 20
    assert not any(tag in said for tag in TAGS_OF_A_PATIENT)


@pytest.mark.parametrize("claim", [2**16 - 1, 8192])
def test_a_header_that_claims_much_takes_nothing(claim: int, tmp_path: Path) -> None:
    import pydicom

    for file in write_series(tmp_path, random_voxels((3, 4, 5))):
        dataset = pydicom.dcmread(file)
        dataset.Rows = dataset.Columns = claim
        dataset.save_as(file)
    with pytest.raises(SemisegError, match=r"is cut off: voxels are missing|pixels are no slice's"):
        read_scan([tmp_path])


def test_frames_that_are_not_there_are_not_waited_for(tmp_path: Path) -> None:
    import pydicom

    write_enhanced(tmp_path / "a.dcm", random_voxels((3, 4, 5)))
    dataset = pydicom.dcmread(tmp_path / "a.dcm")
    dataset.NumberOfFrames = 10**9
    dataset.save_as(tmp_path / "a.dcm")
    with pytest.raises(SemisegError, match="claims 1,000,000,000 frames"):
        read_scan([tmp_path])
