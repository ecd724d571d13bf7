"""Who is let in: this machine, by this address, with the token of this start; and what a page of it may load."""

from __future__ import annotations

import secrets
import time
import traceback
from collections.abc import Mapping
from html import escape
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HOSTS = ("127.0.0.1", "localhost")
MOST_BODY_BYTES = 1 << 20
"""Of a request; a route that takes a file has a limit of its own (`Limited`)."""
_SAFE = ("GET", "HEAD", "OPTIONS")
_PAGE = (
    "default-src 'self'; img-src 'self' data: blob:; worker-src 'self' blob:; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'self'"
)
_REPORT = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'self'; sandbox allow-popups"
)
"""The report is a page of its own, with styles and pictures within and no script."""
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class TooLargeError(Exception):
    """More bytes came than are taken."""


def with_headers(send: Send, headers: Mapping[str, str]) -> Send:
    """The answer with these headers besides those of every answer, and kept nowhere unless it says otherwise."""

    async def guarded(message: Message) -> None:
        if message["type"] == "http.response.start":
            sent = MutableHeaders(scope=message)
            for name, value in {**_HEADERS, **headers}.items():
                sent[name] = value
            sent.setdefault("Cache-Control", "no-store")
        await send(message)

    return guarded


async def answered(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Have the routes answer; a mistake of ours is printed, since uvicorn is told to be silent (`command.server`)."""
    try:
        await app(scope, receive, send)
    except Exception:
        traceback.print_exc()
        raise


def is_token(given: str, token: str) -> bool:
    """In a time that tells nothing."""
    return secrets.compare_digest(given.encode(), token.encode())


def refused(scope: Scope, status: int, sentence: str) -> Response:
    """A sentence for who may not come in: as a page for a browser, as JSON for clients."""
    if "text/html" not in Headers(scope=scope).get("accept", ""):
        return JSONResponse({"error": sentence}, status)
    title = "<!doctype html><meta charset=utf-8><title>semiseg</title>"
    return HTMLResponse(f"{title}<p>{escape(sentence)}</p>", status)


class Guard:
    """Middleware around all routes. A request that is refused reaches none of them."""

    def __init__(self, app: ASGIApp, *, token: str, port: int) -> None:
        self._app, self._token = app, token
        self._cookie = f"semiseg-{port}"  # cookies know no ports

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # nothing here speaks by a WebSocket

        began = time.perf_counter()

        async def timed(message: Message) -> None:
            if message["type"] == "http.response.start":
                took = f"answer;dur={1000 * (time.perf_counter() - began):.1f}"
                MutableHeaders(scope=message)["Server-Timing"] = took
            await send(message)

        guarded = with_headers(timed, {"Content-Security-Policy": _REPORT if scope["path"] == "/report" else _PAGE})
        refusal = self._refusal(scope)
        if refusal is None and self._is_entrance(scope):
            response = RedirectResponse("/", status_code=303)
            # Not "strict": the address may be clicked in a page, and its redirect would come without the cookie. What
            # changes something is kept from other sites by `_refusal`.
            response.set_cookie(self._cookie, self._token, httponly=True, samesite="lax", path="/")
            await response(scope, receive, guarded)
        elif refusal is None and not self._has_cookie(scope):
            sentence = "Open the address that was printed at the start: it holds the token."
            await refused(scope, 403, sentence)(scope, receive, guarded)
        elif refusal is not None:
            await refused(scope, *refusal)(scope, receive, guarded)
        else:
            await answered(self._app, scope, receive, guarded)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        name, _, port = host.partition(":")  # of any port: it may come through a tunnel
        if name not in HOSTS or not (port or "80").isdecimal() or len(headers.getlist("host")) != 1:
            return 421, "This server answers for 127.0.0.1 and localhost alone."
        if scope["method"] not in _SAFE:
            origin = headers.get("origin")
            if origin is not None and origin != f"http://{host}":
                return 403, "A page of another site may not do this."
            if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
                return 403, "A page of another site may not do this."
        return None

    def _is_entrance(self, scope: Scope) -> bool:
        """Whether the token is in the address of the first page."""
        if scope["path"] != "/" or scope["method"] != "GET":
            return False
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        return is_token(given, self._token)

    def _has_cookie(self, scope: Scope) -> bool:
        return is_token(HTTPConnection(scope).cookies.get(self._cookie, ""), self._token)


def new_token() -> str:
    """256 bits that nobody can guess."""
    return secrets.token_urlsafe(32)


def limited(receive: Receive, most: int) -> Receive:
    """The messages of a request's body, up to so many bytes; `TooLargeError` is raised beyond."""
    left = most

    async def counted() -> Message:
        nonlocal left
        message = await receive()
        if message["type"] == "http.request":
            left -= len(message.get("body", b""))
            if left < 0:
                raise TooLargeError
        return message

    return counted
