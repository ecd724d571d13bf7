"""A real server in a thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from starlette.types import ASGIApp

from semiseg.serve.command import app_of, with_pages
from semiseg.serve.rest import Rest
from semiseg.serve.work import Infers, Work, open_work
from semiseg.view.command import bound_socket, server
from semiseg.view.server import make_app
from semiseg.view.shared import Pages

TOKEN = "the-token-of-a-test"


class Served:
    """A server, and a client that keeps its connection."""

    def __init__(self, work: Work, port: int, client: httpx.Client) -> None:
        self.work, self.port, self.client = work, port, client

    @property
    def url(self) -> str:
        """As it is typed into 3D Slicer."""
        return f"http://127.0.0.1:{self.port}/t/{TOKEN}"


@contextmanager
def serving(
    work: Work, infers: Infers | None = None, *, origin: str = "", pages: Pages | None = None
) -> Iterator[Served]:
    rest = Rest(work, infers, reviewer="the user")
    listening = bound_socket(0)
    port = listening.getsockname()[1]
    app: ASGIApp = app_of(rest, token=TOKEN, origin=origin)
    running = server(with_pages(app, make_app(pages, token=TOKEN, port=port)) if pages else app)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}/t/{TOKEN}/", timeout=60) as client:
            while not running.started:
                assert thread.is_alive()
            yield Served(work, port, client)
    finally:
        running.should_exit = True
        thread.join()
        listening.close()


def model_of(model: Path, work: Work) -> Infers:
    """By torch, which needs no check."""
    from semiseg.predict_run import OnRequest
    from semiseg.prediction.settings import PredictSettings

    settings = PredictSettings(engine="torch", precision="float32", device="cpu")
    return OnRequest(model, work.scans(), work.folder, settings=settings)


@contextmanager
def serving_model(model: Path, scans: Path, output: Path, *, origin: str = "") -> Iterator[Served]:
    work = open_work(model, scans, output)
    with serving(work, model_of(model, work), origin=origin) as served:
        yield served
