"""What a client sends: parameters as JSON in a form, and a label map as a file of it."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from anyio.to_thread import run_sync
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from semiseg.io.file_kinds import ending, is_written
from semiseg.view.guard import MOST_BODY_BYTES, TooLargeError, limited

_PIECE = 1 << 20


async def read_form(request: Request, most: int, folder: Path | None = None) -> tuple[dict[str, Any], Path | None]:
    """The parameters of a form of at most so many bytes, and its label as a file in a folder; without a folder none is
    taken. Raises `TooLargeError`, and `HTTPException` that says what is wrong."""
    given = request.headers.get("content-length", "0")
    if not given.isdecimal() or int(given) > most:
        raise TooLargeError
    taken = Request(request.scope, limited(request.receive, most))
    try:
        async with taken.form(max_files=1 if folder else 0, max_fields=8, max_part_size=MOST_BODY_BYTES) as form:
            params, upload = _object(form.get("params")), form.get("label")
            if folder is None or upload is None or isinstance(upload, str):
                return params, None
            # A name of ours: that of the sender is no path. Its ending says what it is.
            path = folder / f"label{_ending(upload.filename or '')}"
            with path.open("wb") as file:
                while piece := await upload.read(_PIECE):
                    await run_sync(file.write, piece)
            return params, path
    except ClientDisconnect:
        raise HTTPException(400, "The request broke off.") from None


def _ending(name: str) -> str:
    name = name.lower()
    if name.endswith(".seg.nrrd"):
        raise HTTPException(
            400,
            "A .seg.nrrd file holds a part of the grid alone. Choose .nii.gz in Slicer: Edit, Application Settings, "
            "MONAI Label, File Extension.",
        )
    if not is_written(name):
        raise HTTPException(400, "label: send a file that ends with .nii.gz, .nii, .nrrd or .mha.")
    return ending(name)


def _object(given: object) -> dict[str, Any]:
    with suppress(ValueError, RecursionError):
        value = json.loads(given) if isinstance(given, str) and given else {}
        if isinstance(value, dict):
            return value
    raise HTTPException(400, "params: give a JSON object.")
