"""What a request asks for, held against what there is; what is not understood is named (400)."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from semiseg.view.guard import MOST_BODY_BYTES, limited
from semiseg.view.shared import Pages


async def json_body(request: Request) -> dict[str, Any]:
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise HTTPException(415, "Send JSON.")
    body = b""
    try:
        taken = Request(request.scope, limited(request.receive, MOST_BODY_BYTES))
        body = await taken.body()
    except ClientDisconnect:
        raise HTTPException(400, "The request broke off.") from None
    with suppress(ValueError, RecursionError):
        value = json.loads(body or b"{}")
        if isinstance(value, dict):
            return value
    raise HTTPException(400, "Send a JSON object.")


def one_of(given: str, known: Any, name: str) -> Any:
    if given not in known:
        raise HTTPException(400, f"{name}: give one of {', '.join(known)}.")
    return given


def organ_name(pages: Pages, given: object) -> str:
    if given and given not in pages.source.contents().organs.values():
        raise HTTPException(400, "organ: there is no such organ here.")
    return str(given or "")


def whole_number(request: Request, name: str, usual: int) -> int:
    given = request.query_params.get(name)
    if given is None or given == "":
        return usual
    if not given.removeprefix("-").isdecimal() or len(given) > 9:
        raise HTTPException(400, f"{name}: give a whole number.")
    return int(given)


def number(request: Request, name: str) -> float | None:
    given = request.query_params.get(name)
    if not given:
        return None
    try:
        value = float(given)
    except ValueError:
        value = float("nan")
    if not abs(value) < 1e9:
        raise HTTPException(400, f"{name}: give a number.")
    return value
