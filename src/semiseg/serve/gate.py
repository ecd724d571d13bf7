"""Who is let in: whoever has the address, which holds the token of this start; pages of other sites are not."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from semiseg.view.guard import HOSTS, answered, is_token, refused, with_headers

PREFIX = "/t/"
"""Of all paths; the token follows."""
_NO_PAGE = {"Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; sandbox"}


class Gate:
    """Middleware around all routes, which lie below `/t/TOKEN`. Clients keep that part of an address; they know no
    cookies, and Slicer fetches scans without any header of its own."""

    def __init__(self, app: ASGIApp, *, token: str, is_local: bool, origin: str = "") -> None:
        """is_local: for this machine alone. origin: of a page of another site that may ask, such as OHIF's."""
        self._token, self._is_local, self._origin = token, is_local, origin
        self._app = app
        if origin:
            self._app = CORSMiddleware(
                app, allow_origins=[origin], allow_methods=["GET", "POST", "PUT"], allow_headers=["*"]
            )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # nothing here speaks by a WebSocket
        guarded = with_headers(send, _NO_PAGE)
        inside = self._path_inside(scope["path"])
        if refusal := self._refusal(scope):
            await refused(scope, *refusal)(scope, receive, guarded)
        elif inside is None:
            sentence = (
                "Use the address that semiseg serve printed: it holds the token of this start. It is for 3D Slicer "
                "(field Server of the module MONAI Label) and OHIF."
            )
            await refused(scope, 403, sentence)(scope, receive, guarded)
        else:
            await answered(self._app, {**scope, "path": inside, "raw_path": inside.encode()}, receive, guarded)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "").rpartition(":")[0] or headers.get("host", "")
        if self._is_local and host not in HOSTS:  # of any port: it may come through a tunnel
            return 421, "This server answers for 127.0.0.1 and localhost alone."
        origin = headers.get("origin")
        if origin is not None and origin != self._origin:
            return 403, "A page of another site may not do this. Name its origin: semiseg serve --ohif ORIGIN."
        return None

    def _path_inside(self, path: str) -> str | None:
        """The path below the token; None without the right one."""
        before, _, rest = path.removeprefix(PREFIX).partition("/")
        return f"/{rest}" if path.startswith(PREFIX) and is_token(before, self._token) else None
