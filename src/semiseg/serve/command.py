"""`semiseg serve`: from its start to Ctrl-C."""

from __future__ import annotations

import socket
import sys
from contextlib import suppress
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from semiseg.errors import ConfigError
from semiseg.serve.gate import PREFIX, Gate
from semiseg.serve.rest import Rest, make_rest
from semiseg.serve.work import Infers, Work
from semiseg.view.command import ADDRESS, bound_socket, server, user_name
from semiseg.view.guard import HOSTS, new_token
from semiseg.view.server import are_built, make_app
from semiseg.view.shared import Pages
from semiseg.words import counted, printable

EVERYWHERE = "0.0.0.0"


def serve(work: Work, infers: Infers | None, *, host: str = ADDRESS, port: int = 0, origin: str = "") -> None:
    """Serve until the process is stopped. origin: of OHIF's pages, where they may ask. Raises `ConfigError` where the
    port or the host cannot be used."""
    is_local = host in HOSTS
    listening = bound_socket(port, host)
    token, port = new_token(), listening.getsockname()[1]
    address = f"http://{socket.gethostname() if host == EVERYWHERE else host}:{port}{PREFIX}{token}/"
    if not is_local:
        print(
            f"semiseg: warning: --host {host}: other machines can reach this. Whoever has the address can read the "
            "scans and send labels, and nothing is encrypted on its way. Better leave --host out and use a tunnel: "
            f"ssh -L {port}:127.0.0.1:{port} {socket.gethostname()}",
            file=sys.stderr,
        )
    reviewer = printable(user_name())
    rest = Rest(work, infers, reviewer=reviewer)
    app: ASGIApp = app_of(rest, token=token, is_local=is_local, origin=origin)
    total, completed = rest.queue.counts()
    print(f"{counted(total - completed, 'scan')} of {total} to label. What is saved goes into {work.folder}.")
    print(f"MONAI Label server, for 3D Slicer: {address}")
    has_pages = is_local and (work.folder / "run.toml").is_file() and are_built()
    pages = Pages(work.source, reviewer=reviewer) if has_pages else None
    if pages:
        app = with_pages(app, make_app(pages, token=token, port=port))
        print(f"Pages, in a browser of this machine: http://{ADDRESS}:{port}/?token={token}")
        pages.start()
    print("Stop with Ctrl-C.", flush=True)
    try:
        with suppress(KeyboardInterrupt):  # which is how it ends
            server(app).run(sockets=[listening])
    finally:
        if pages:
            pages.stop()
        listening.close()


def app_of(rest: Rest, *, token: str, is_local: bool = True, origin: str = "") -> ASGIApp:
    """The application behind its gate."""
    return Gate(make_rest(rest), token=token, is_local=is_local, origin=origin)


def with_pages(app: ASGIApp, pages: ASGIApp) -> ASGIApp:
    """Both, each behind its own guard: what does not lie below `/t/` is the pages'."""

    async def both(scope: Scope, receive: Receive, send: Send) -> None:
        is_ours = scope["type"] != "http" or scope["path"].startswith(PREFIX)
        await (app if is_ours else pages)(scope, receive, send)

    return both


def checked_origin(given: str) -> str:
    """An origin as browsers send it; raises `ConfigError` for what is none."""
    scheme, host = urlsplit(given)[:2]
    if given and (scheme not in ("http", "https") or not host or given != f"{scheme}://{host}"):
        raise ConfigError(f"--ohif {given}: give scheme, host and port alone, such as http://localhost:3000.")
    return given
