"""Volumes and pictures as answers, and errors as sentences."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from hashlib import sha256
from typing import Any

import anyio
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from semiseg.errors import SemisegError
from semiseg.files import why_not_written
from semiseg.view.guard import TooLargeError
from semiseg.view.volumes import Volume
from semiseg.words import printable

_PIECE = 1 << 20


def nifti_response(volume: Volume, wanted: str | None) -> Response:
    """A volume as a NIfTI file, or the range of its bytes that was asked for."""
    header, voxels = volume.nifti()
    total = len(header) + len(voxels)
    first, last = 0, total - 1
    headers = {"Accept-Ranges": "bytes"}
    status = 200
    if wanted is not None and (part := _range(wanted, total)):
        if isinstance(part, str):
            return Response(status_code=416, headers={"Content-Range": f"bytes */{total}"})
        first, last = part
        headers["Content-Range"] = f"bytes {first}-{last}/{total}"
        status = 206
    headers["Content-Length"] = str(last - first + 1)

    async def pieces() -> AsyncIterator[bytes | memoryview]:
        for piece in _pieces(header, voxels, first, last + 1):
            yield piece
            await anyio.sleep(0)

    return StreamingResponse(pieces(), status, headers, media_type="application/octet-stream")


def _range(wanted: str, total: int) -> tuple[int, int] | str | None:
    """First and last byte of a `Range` header of one range; None to ignore it, "none" for one outside of the file."""
    unit, _, spec = wanted.partition("=")
    start, dash, end = spec.strip().partition("-")
    if unit.strip() != "bytes" or not dash or "," in spec:
        return None
    if not (start + end).isdecimal() or (end and not end.isdecimal()) or (start and not start.isdecimal()):
        return None
    if not start:
        return (max(0, total - int(end)), total - 1) if int(end) else "none"
    first, last = int(start), min(int(end), total - 1) if end else total - 1
    return (first, last) if first < total and first <= last else "none"


def _pieces(header: bytes, voxels: memoryview, first: int, stop: int) -> Iterator[bytes | memoryview]:
    if first < len(header):
        yield header[first:stop]
    at, stop = max(0, first - len(header)), stop - len(header)
    while at < stop:
        yield voxels[at : min(at + _PIECE, stop)]
        at += _PIECE


def png_response(picture: bytes, request: Request) -> Response:
    """A picture, or that the one which the browser has is right."""
    tag = f'"{sha256(picture).hexdigest()[:24]}"'
    headers = {"ETag": tag, "Cache-Control": "private, no-cache"}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(picture, media_type="image/png", headers=headers)


async def said(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code)


async def refused(_: Request, error: Exception) -> Response:
    return JSONResponse({"error": printable(str(error))}, 422)


async def unreadable(_: Request, error: Exception) -> Response:
    assert isinstance(error, OSError)
    named = why_not_written(error) if error.filename else f"a file cannot be read or written ({error.strerror})."
    return JSONResponse({"error": printable(named)}, 500)


async def too_large(_: Request, __: Exception) -> Response:
    return JSONResponse({"error": "That is more than is taken."}, 413)


async def not_understood(_: Request, error: Exception) -> Response:
    return JSONResponse({"error": f"Not understood: {printable(str(error))}"}, 400)


async def failed(_: Request, __: Exception) -> Response:
    return JSONResponse({"error": "This is a mistake of semiseg; the terminal says more."}, 500)


ERRORS: Mapping[Any, Callable[[Request, Exception], Awaitable[Response]]] = {
    HTTPException: said,
    SemisegError: refused,
    OSError: unreadable,
    TooLargeError: too_large,
    ValueError: not_understood,
    Exception: failed,
}
"""What becomes of each kind of error, for an application."""
