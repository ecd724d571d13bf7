"""What goes out: labels as NRRD, and the reply of several parts that Slicer's client reads."""

from __future__ import annotations

import json
import secrets
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from starlette.responses import Response

from semiseg.geometry import from_canonical
from semiseg.io import nrrd
from semiseg.io.grid import Grid
from semiseg.types import LabelArray


def label_nrrd(label: LabelArray, grid: Grid, *, compressed: bool) -> bytes:
    """A canonical label map as an NRRD file in the order of its scan's stored axes, 8 bits a voxel where that suffices.
    Slices ascend along row × column, as DICOM viewers sort them (OHIF's reads the voxels, and no directions)."""
    stored, affine = from_canonical(label, grid.affine), grid.affine.copy()
    if np.linalg.det(affine[:3, :3]) < 0:
        affine[:3, 3] += affine[:3, 2] * (stored.shape[2] - 1)
        affine[:3, 2] *= -1
        stored = stored[:, :, ::-1]
    kind = np.uint8 if int(label.max(initial=0)) < 256 else np.uint16
    with TemporaryDirectory(prefix="semiseg-") as folder:
        file = Path(folder) / "label.nrrd"
        nrrd.write(file, stored.astype(kind, copy=False), replace(grid, affine=affine), None, compressed=compressed)
        return file.read_bytes()


def parts_response(params: dict[str, Any], file: bytes) -> Response:
    """`params` without the name of a file, then a file: Slicer's client takes the first file of the reply."""
    boundary = f"semiseg-{secrets.token_hex(16)}"
    body = b"\r\n".join(
        [
            f"--{boundary}".encode(),
            b'Content-Disposition: form-data; name="params"',
            b"Content-Type: application/json",
            b"",
            json.dumps(params).encode(),
            f"--{boundary}".encode(),
            b'Content-Disposition: form-data; name="image"; filename="label.nrrd"',
            b"Content-Type: application/octet-stream",
            b"",
            file,
            f"--{boundary}--".encode(),
            b"",
        ]
    )
    return Response(body, media_type=f"multipart/form-data; boundary={boundary}")
