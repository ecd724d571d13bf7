"""The application: which route answers what, and in which thread. No id becomes a path: ids are looked up."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from anyio.to_thread import run_sync
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from semiseg.view import deciding, sending, showing
from semiseg.view.asking import json_body
from semiseg.view.guard import Guard
from semiseg.view.shared import Pages

STATIC = Path(__file__).with_name("static")


def make_app(pages: Pages, *, token: str, port: int) -> Starlette:
    """The application of a run or a folder."""

    def heavy(answer: Callable[[Pages, Request], Response], kind: str = "case") -> Any:
        async def endpoint(request: Request) -> Response:
            return await run_sync(answer, pages, request, limiter=pages.limiter(kind))

        return endpoint

    def light(answer: Callable[[Pages, Request], Response]) -> Any:
        async def endpoint(request: Request) -> Response:
            return await run_sync(answer, pages, request)

        return endpoint

    def posted(answer: Callable[[Pages, dict[str, Any]], Response]) -> Any:
        async def endpoint(request: Request) -> Response:
            body = await json_body(request)
            return await run_sync(answer, pages, body)

        return endpoint

    async def corrections(request: Request) -> Response:
        return await deciding.take_correction(pages, request)

    routes = [
        Route("/", _app_page),
        Route("/report", light(showing.report)),
        Route("/api/info", light(showing.info)),
        Route("/api/run", light(showing.run_state)),
        Route("/api/cases", light(showing.cases)),
        Route("/api/cases/{id}", light(showing.case)),
        Route("/api/cases/{id}/layers/{name}.nii", heavy(showing.layer)),
        Route("/api/cases/{id}/slice.png", heavy(showing.drawn_slice)),
        Route("/api/cases/{id}/thumbnail.png", heavy(showing.thumbnail, "thumbnails")),
        Route("/api/cases/{id}/strip.png", heavy(showing.strip)),
        Route("/api/review", light(showing.review_queue)),
        Route("/api/decisions", posted(deciding.decide), methods=["POST"]),
        Route("/api/decisions/undo", posted(deciding.undo), methods=["POST"]),
        Route("/api/export", posted(deciding.export), methods=["POST"]),
        Route("/api/corrections", corrections, methods=["POST"]),
        Mount("/static", StaticFiles(directory=STATIC, check_dir=False)),
    ]
    return Starlette(
        routes=routes,
        middleware=[Middleware(Guard, token=token, port=port)],
        exception_handlers=sending.ERRORS,
    )


def are_built() -> bool:
    """Whether the pages are there: in a clone they are built first."""
    return (STATIC / "index.html").is_file()


async def _app_page(_: Request) -> Response:
    page = STATIC / "index.html"
    if not page.is_file():
        raise HTTPException(404, "The pages are not built: make pages (needs Node 20), or install a wheel.")
    return FileResponse(page, media_type="text/html", headers={"Cache-Control": "no-cache"})
