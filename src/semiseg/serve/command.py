"""`semiseg serve`: from its start to Ctrl-C."""

from __future__ import annotations

import sys
from contextlib import suppress
from urllib.parse import urlsplit

from starlette.types import ASGIApp

from semiseg.errors import ConfigError
from semiseg.serve.gate import Gate
from semiseg.serve.rest import Rest, make_rest
from semiseg.serve.work import Infers, Work
from semiseg.view.command import ADDRESS, bound_socket, server, user_name
from semiseg.view.guard import HOSTS, new_token
from semiseg.words import counted, printable


def serve(work: Work, infers: Infers | None, *, host: str = ADDRESS, port: int = 0, origin: str = "") -> None:
    """Serve until the process is stopped. origin: of OHIF's pages, where they may ask. Raises `ConfigError` where the
    port or the host cannot be used."""
    is_local = host in HOSTS
    listening = bound_socket(port, host)
    token = new_token()
    address = f"http://{host}:{listening.getsockname()[1]}/t/{token}/"
    if not is_local:
        print(
            f"semiseg: warning: --host {host}: other machines can reach this. Whoever has the address can read the "
            "scans and send labels, and nothing on the way is encrypted. Use it in a network that you trust, or leave "
            "--host out and use a tunnel: ssh -L PORT:127.0.0.1:PORT.",
            file=sys.stderr,
        )
    rest = Rest(work, infers, reviewer=printable(user_name()))
    total, completed = rest.queue.counts()
    print(f"{counted(total - completed, 'scan')} of {total} to label. What is saved goes into {work.folder}.")
    print(f"MONAI Label server, for 3D Slicer: {address}\nStop with Ctrl-C.", flush=True)
    try:
        with suppress(KeyboardInterrupt):  # which is how it ends
            server(app_of(rest, token=token, is_local=is_local, origin=origin)).run(sockets=[listening])
    finally:
        listening.close()


def app_of(rest: Rest, *, token: str, is_local: bool = True, origin: str = "") -> ASGIApp:
    """The application behind its gate."""
    return Gate(make_rest(rest), token=token, is_local=is_local, origin=origin)


def checked_origin(given: str) -> str:
    """An origin as browsers send it; raises `ConfigError` for what is none."""
    scheme, host = urlsplit(given)[:2]
    if given and (scheme not in ("http", "https") or not host or given != f"{scheme}://{host}"):
        raise ConfigError(f"--ohif {given}: give scheme, host and port alone, such as http://localhost:3000.")
    return given
