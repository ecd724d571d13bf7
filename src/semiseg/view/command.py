"""`semiseg view`: the server of the pages, from its start to Ctrl-C."""

from __future__ import annotations

import getpass
import socket
import webbrowser
from contextlib import suppress
from pathlib import Path

import uvicorn

from semiseg.errors import ConfigError
from semiseg.view.guard import new_token
from semiseg.view.server import make_app
from semiseg.view.shared import Pages
from semiseg.view.source import open_source
from semiseg.words import printable

ADDRESS = "127.0.0.1"


def serve(
    folder: Path,
    *,
    port: int = 0,
    browser: bool = True,
    labels: Path | None = None,
    decisions: Path | None = None,
    reviewer: str = "",
) -> None:
    """Serve the pages until the process is stopped. Raises `ConfigError` where the port is taken, `DataError` where the
    folder cannot be shown."""
    source = open_source(folder, labels=labels, decisions=decisions)
    listening = bound_socket(port)
    port = listening.getsockname()[1]
    token = new_token()
    pages = Pages(source, reviewer=printable(reviewer or user_name()))
    pages.start()
    address = f"http://{ADDRESS}:{port}/?token={token}"
    print(f"Open {address}\nStop with Ctrl-C.", flush=True)
    if browser:
        open_browser(address)
    try:
        with suppress(KeyboardInterrupt):  # which is how it ends
            server(make_app(pages, token=token, port=port)).run(sockets=[listening])
    finally:
        pages.stop()
        listening.close()


def open_browser(address: str) -> None:
    """Open a window with the address, where there is a desktop; a browser of the terminal would take the terminal."""
    with suppress(webbrowser.Error):
        if type(webbrowser.get()) is not webbrowser.GenericBrowser:
            webbrowser.open(address)


def server(app: object) -> uvicorn.Server:
    """uvicorn without logs: of requests, whose addresses hold the token and ids, and of those that Ctrl-C cuts off."""
    return uvicorn.Server(
        uvicorn.Config(
            app,  # type: ignore[arg-type]
            log_level="critical",
            access_log=False,
            server_header=False,
            ws="none",
            proxy_headers=False,
            timeout_graceful_shutdown=2,
        )
    )


def bound_socket(port: int, host: str = ADDRESS) -> socket.socket:
    """A socket of this machine alone, unless a host is named. Raises `ConfigError` where there is none."""
    # With its protocol named asyncio sends small answers at once; otherwise each waits 40 ms for an acknowledgement.
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(128)  # a browser that is faster than the server waits
    except (OSError, OverflowError) as error:
        listening.close()
        if host != ADDRESS:
            raise ConfigError(f"--host {host}, --port {port}: cannot be used ({error}).") from None
        raise ConfigError(f"--port {port}: cannot be used ({error}). Give another, or 0 for a free one.") from None
    return listening


def user_name() -> str:
    """Of who runs this, as the system has it."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # no entry, as in some containers
        return "reviewer"
