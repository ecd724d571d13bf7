"""The routes of the pages. Answers that take time are made in threads; no id becomes a path: ids are looked up."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

import anyio
from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from semiseg.corrections import AskedSlices, Taken, export_cases, import_correction
from semiseg.decisions import DecisionLog, Verdict
from semiseg.errors import DataError, SemisegError
from semiseg.io.scans import read_grid
from semiseg.reporting.figures import organ_colours
from semiseg.reporting.overlays import PLANES
from semiseg.view.drawing import Drawing
from semiseg.view.guard import MOST_BODY_BYTES, Guard, TooLargeError, limited
from semiseg.view.measures import Measurer, Measures
from semiseg.view.review import ORDERS, review
from semiseg.view.source import Source, ViewCase, doubt_of
from semiseg.view.table import FILTERS, SORTS, Table, decision_of, is_stale
from semiseg.view.training import Training
from semiseg.view.volumes import Volume, Volumes
from semiseg.words import printable

STATIC = Path(__file__).with_name("static")
WINDOWS = (
    ("soft tissue", -160, 240),
    ("liver", -30, 150),
    ("mediastinum", -125, 275),
    ("lung", -1350, 150),
    ("bone", -450, 1050),
    ("brain", 0, 80),
    ("everything", -1024, 3071),
)
"""Of CT, in HU; the first is where a case opens."""
MOST_EXPORTED = 200
MOST_UPLOAD_BYTES = 2 << 30
"""Of a corrected label map: 512 x 512 x 1,000 voxels of 8 bytes."""
_PIECE = 1 << 20
_AT_ONCE = 2
"""Answers that read volumes or draw, at a time."""


class Pages:
    """What the routes share."""

    def __init__(self, source: Source, *, reviewer: str) -> None:
        self.source, self.reviewer = source, reviewer
        source.contents()  # what cannot be shown is said before the server starts
        self.log = DecisionLog(source.decisions)
        self.deciding = threading.Lock()
        self.measurer = Measurer(source)
        self.table = Table(source, self.measurer, self.log)
        self.volumes = Volumes(source)
        self.drawing = Drawing(source, self.volumes, self.measurer)
        self.training = Training(source.folder) if source.kind == "run" else None
        self._heavy: CapacityLimiter | None = None

    def start(self) -> None:
        self.measurer.start()

    def stop(self) -> None:
        self.measurer.stop()

    @property
    def heavy(self) -> CapacityLimiter:
        """Of threads that read and draw; made within the event loop that uses it."""
        if self._heavy is None:
            self._heavy = CapacityLimiter(_AT_ONCE)
        return self._heavy

    def case(self, request: Request) -> ViewCase:
        return self.known(request.path_params["id"])

    def known(self, id: object) -> ViewCase:
        """A case by its id; 404 for one that is not in the table."""
        case = self.source.contents().cases.get(id) if isinstance(id, str) else None
        if case is None:
            raise HTTPException(404, "There is no such case here.")
        return case

    def refresh(self) -> None:
        """Read the decisions that others have written."""
        with self.deciding:
            self.log.refresh()


def make_app(pages: Pages, *, token: str, port: int) -> Starlette:
    """The application of a run or a folder."""

    def heavy(answer: Callable[[Pages, Request], Response]) -> Any:
        async def endpoint(request: Request) -> Response:
            return await run_sync(answer, pages, request, limiter=pages.heavy)

        return endpoint

    def light(answer: Callable[[Pages, Request], Response]) -> Any:
        async def endpoint(request: Request) -> Response:
            return await run_sync(answer, pages, request)

        return endpoint

    def posted(answer: Callable[[Pages, dict[str, Any]], Response]) -> Any:
        async def endpoint(request: Request) -> Response:
            body = await _json(request)
            return await run_sync(answer, pages, body)

        return endpoint

    async def corrections(request: Request) -> Response:
        return await _take_correction(pages, request)

    routes = [
        Route("/", _app_page),
        Route("/report", light(_report)),
        Route("/api/info", light(_info)),
        Route("/api/run", light(_run)),
        Route("/api/cases", light(_cases)),
        Route("/api/cases/{id}", light(_case)),
        Route("/api/cases/{id}/layers/{name}.nii", heavy(_layer)),
        Route("/api/cases/{id}/slice.png", heavy(_slice)),
        Route("/api/cases/{id}/thumbnail.png", heavy(_thumbnail)),
        Route("/api/cases/{id}/strip.png", heavy(_strip)),
        Route("/api/review", light(_review)),
        Route("/api/decisions", posted(_decide), methods=["POST"]),
        Route("/api/decisions/undo", posted(_undo), methods=["POST"]),
        Route("/api/export", posted(_export), methods=["POST"]),
        Route("/api/corrections", corrections, methods=["POST"]),
        Mount("/static", StaticFiles(directory=STATIC, check_dir=False)),
    ]
    return Starlette(
        routes=routes,
        middleware=[Middleware(Guard, token=token, port=port)],
        exception_handlers={
            HTTPException: _said,
            SemisegError: _refused,
            OSError: _unreadable,
            TooLargeError: _too_large,
            ValueError: _not_understood,
            Exception: _failed,
        },
    )


async def _said(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code)


async def _refused(_: Request, error: Exception) -> Response:
    return JSONResponse({"error": printable(str(error))}, 422)


async def _unreadable(_: Request, error: Exception) -> Response:
    reason = error.strerror if isinstance(error, OSError) else None
    return JSONResponse({"error": f"A file cannot be read or written ({reason or type(error).__name__})."}, 500)


async def _too_large(_: Request, __: Exception) -> Response:
    return JSONResponse({"error": "That is more than is taken."}, 413)


async def _not_understood(_: Request, error: Exception) -> Response:
    return JSONResponse({"error": f"Not understood: {printable(str(error))}"}, 400)


async def _failed(_: Request, __: Exception) -> Response:
    return JSONResponse({"error": "This is a mistake of semiseg; the terminal says more."}, 500)


async def _app_page(_: Request) -> Response:
    page = STATIC / "index.html"
    if not page.is_file():
        raise HTTPException(404, "The pages are not built: make pages (needs Node 20), or install a wheel.")
    return FileResponse(page, media_type="text/html", headers={"Cache-Control": "no-cache"})


def _report(pages: Pages, _: Request) -> Response:
    page = pages.source.folder / "report.html"
    if pages.source.kind != "run" or not page.is_file():
        raise HTTPException(404, "The report is written when the run has ended.")
    return FileResponse(page, media_type="text/html")


def _info(pages: Pages, _: Request) -> Response:
    source = pages.source
    contents = source.contents()
    colours = organ_colours(contents.organs.values())
    is_run = source.kind == "run"
    reviewable = bool(source.all_reviewed())
    return JSONResponse(
        {
            "kind": source.kind,
            "name": contents.name,
            "organs": [
                {"value": value, "name": name, "colour": colours[name]} for value, name in contents.organs.items()
            ],
            "modality": "ct" if contents.is_ct else "other",
            "windows": [{"name": name, "low": low, "high": high} for name, low, high in WINDOWS]
            if contents.is_ct
            else [],
            "default_window": WINDOWS[0][0] if contents.is_ct else None,
            "pages": {
                "run": is_run,
                "cases": bool(contents.cases),
                "review": reviewable,
                "report": is_run and (source.folder / "report.html").is_file(),
            },
            "label_reviewed": source.label_reviewed,
            "reviewer": pages.reviewer,
            "roles": sorted({case.role for case in contents.cases.values()}),
            "doubts": bool(contents.doubts),
            "corrections": source.takes_corrections,
        }
    )


def _run(pages: Pages, request: Request) -> Response:
    if pages.training is None:
        raise HTTPException(404, "This is a folder, no run.")
    return JSONResponse(pages.training.now(_whole(request, "after", -1)))


def _cases(pages: Pages, request: Request) -> Response:
    pages.refresh()
    query = request.query_params
    _organ(pages, query.get("organ", ""))
    _one_of(query.get("sort", "id"), SORTS, "sort")
    if wanted := query.get("filter"):
        _one_of(wanted, FILTERS, "filter")
    _whole(request, "offset", 0), _whole(request, "limit", 0)
    return JSONResponse(pages.table.chosen(query))


def _case(pages: Pages, request: Request) -> Response:
    pages.refresh()
    source, case = pages.source, pages.case(request)
    contents = source.contents()
    measured = pages.measurer.now(case)
    reviewed = source.reviewed(case)
    digest = pages.measurer.hash_of(reviewed[0]) if reviewed else None
    stand = pages.table.stand().get(case.id, {})
    names = list(contents.organs.values())
    found = pages.table.found(measured)
    scores = contents.scores.get(case.id, {})
    organs: list[dict[str, Any]] = []
    for value, name in contents.organs.items():
        organ = measured["organs"].get(str(value)) if measured else None
        organs.append(
            {
                "name": name,
                "score": scores.get(name),
                "volume_ml": organ["volume_ml"] if organ else (0.0 if measured else None),
                "fragments": organ["fragments"] if organ else (0 if measured else None),
                "outlier": name in found["outliers"],
                "missing": name in found["missing"],
                "decision": decision_of(stand, case.id, [name]),
                "stale": is_stale(stand, case.id, [name], digest),
                "doubtful": dict(zip(PLANES, organ["doubtful"], strict=True)) if organ else None,
            }
        )
    grid = pages.drawing.grid(case)
    layers = source.layers(case)
    return JSONResponse(
        {
            "id": case.id,
            "role": case.role,
            "shape_zyx": grid.shape_zyx,
            "spacing_mm": grid.spacing_mm,
            "orientation": grid.orientation,
            "organs": organs,
            "layers": [
                {
                    "name": layer.name,
                    "kind": layer.kind,
                    "title": layer.title,
                    "url": f"/api/cases/{_quoted(case.id)}/layers/{layer.name}.nii",
                }
                for layer in layers
            ],
            "reviewed_layer": source.reviewed_layer(case),
            "doubtful": dict(zip(PLANES, pages.drawing.doubtful(case, measured, ""), strict=True)),
            "centroids": _centroids(contents.organs, measured),
            "window": pages.drawing.window(case) if case.images else None,
            "doubt": doubt_of(contents.doubts.get(case.id)),
            "label_sha256": digest,
            "decision": decision_of(stand, case.id, names),
            "stale": is_stale(stand, case.id, names, digest),
            "corrected": source.correction(case) is not None,
        }
    )


def _centroids(organs: dict[int, str], measured: Measures | None) -> dict[str, tuple[float, float, float]]:
    if measured is None:
        return {}
    found = measured["organs"]
    return {name: found[str(value)]["centroid"] for value, name in organs.items() if str(value) in found}


def _layer(pages: Pages, request: Request) -> Response:
    case = pages.case(request)
    name = request.path_params["name"]
    layer = next((layer for layer in pages.source.layers(case) if layer.name == name), None)
    if layer is None:
        raise HTTPException(404, "This case has no such layer.")
    return nifti_response(pages.volumes.get(case, layer), request.headers.get("range"))


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

    async def pieces() -> Any:
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


def _slice(pages: Pages, request: Request) -> Response:
    case, query = pages.case(request), request.query_params
    plane = _one_of(query.get("plane", "axial"), PLANES, "plane")
    style = _one_of(query.get("style", "outline"), ("outline", "fill"), "style")
    organ = _organ(pages, query.get("organ", ""))
    low, high = (_number(request, name) for name in ("low", "high"))
    opacity = _number(request, "opacity")
    return _png(
        pages.drawing.slice(
            case,
            plane=plane,
            index=_whole(request, "index", -1),
            layers=[name for name in query.get("layers", "").split(",") if name],
            style=style,
            opacity=0.6 if opacity is None else min(1.0, max(0.0, opacity)),
            window=None if low is None or high is None else (low, high),
            organ=organ,
            longest=min(1024, max(64, _whole(request, "size", 640))),
        ),
        request,
    )


def _thumbnail(pages: Pages, request: Request) -> Response:
    return _png(pages.drawing.thumbnail(pages.case(request)), request)


def _strip(pages: Pages, request: Request) -> Response:
    case, query = pages.case(request), request.query_params
    picture = pages.drawing.strip(
        case,
        organ=_organ(pages, query.get("organ", "")),
        style=_one_of(query.get("style", "outline"), ("outline", "fill"), "style"),
        overlay=query.get("overlay", "1") == "1",
    )
    return _png(picture, request)


def _png(picture: bytes, request: Request) -> Response:
    """A picture, or that the one which the browser has is right."""
    tag = f'"{sha256(picture).hexdigest()[:24]}"'
    headers = {"ETag": tag, "Cache-Control": "private, no-cache"}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(picture, media_type="image/png", headers=headers)


def _review(pages: Pages, request: Request) -> Response:
    pages.refresh()
    order = _one_of(request.query_params.get("order", "doubt"), ORDERS, "order")
    organ = _organ(pages, request.query_params.get("organ", ""))
    return JSONResponse(review(pages.source, pages.table, pages.log, pages.reviewer, order, organ))


def _decide(pages: Pages, body: dict[str, Any]) -> Response:
    case = pages.known(body.get("case"))
    organ, decision, digest = body.get("organ"), body.get("decision"), body.get("label_sha256")
    seconds, audit = body.get("seconds", 0.0), body.get("audit", False)
    if organ is not None:
        _organ(pages, organ)
    verdicts: tuple[Verdict, ...] = get_args(Verdict)
    if decision not in verdicts:
        raise HTTPException(400, f"decision: give one of {', '.join(verdicts)}.")
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < 1e6:
        raise HTTPException(400, "seconds: give a number from 0 on.")
    if not isinstance(audit, bool) or not isinstance(digest, str):
        raise HTTPException(400, "label_sha256: give the hash of the label that was judged; audit: true or false.")
    reviewed = pages.source.reviewed(case)
    if reviewed is None:
        raise HTTPException(409, "This case has no label to judge.")
    if pages.measurer.hash_of(reviewed[0]) != digest:
        raise HTTPException(409, "The label has changed since it was shown. Look at it again.")
    with pages.deciding:
        line = pages.log.add(
            case.id,
            decision,
            organ=organ or None,
            reviewer=pages.reviewer,
            label_sha256=digest,
            seconds=float(seconds),
            audit=audit,
        )
    return JSONResponse(line)


def _undo(pages: Pages, _: dict[str, Any]) -> Response:
    with pages.deciding:
        undone = pages.log.undo(pages.reviewer)
    if undone is None:
        raise HTTPException(409, "There is no decision of yours to take back.")
    return JSONResponse(undone)


def _export(pages: Pages, body: dict[str, Any]) -> Response:
    ids = body.get("cases")
    if not isinstance(ids, list) or not 0 < len(ids) <= MOST_EXPORTED:
        raise HTTPException(400, f"cases: give 1 to {MOST_EXPORTED} ids.")
    cases = [pages.known(id).id for id in ids]
    return JSONResponse({"folder": str(export_cases(_corrected_run(pages), cases))})


def _corrected_run(pages: Pages) -> Path:
    if not pages.source.takes_corrections:
        raise HTTPException(409, "These labels are no run's: mend the label maps where they lie.")
    return pages.source.folder


async def _take_correction(pages: Pages, request: Request) -> Response:
    if int(request.headers.get("content-length", "0")) > MOST_UPLOAD_BYTES:
        raise TooLargeError
    limited_request = Request(request.scope, limited(request.receive, MOST_UPLOAD_BYTES))
    async with limited_request.form(max_files=1, max_fields=4, max_part_size=1 << 16) as form:
        case = pages.known(form.get("case"))
        upload = form.get("label")
        if upload is None or isinstance(upload, str):
            raise HTTPException(400, "label: send the corrected label map as a file.")
        run, slices = _corrected_run(pages), _slices(form.get("axis"), form.get("indices"))
        # A name of ours: that of the sender is no path. Only its ending says whether it is compressed.
        ending = ".nii.gz" if (upload.filename or "").lower().endswith(".gz") else ".nii"
        with TemporaryDirectory(prefix="semiseg-") as folder:
            path = Path(folder) / f"label{ending}"
            with path.open("wb") as file:
                while piece := await upload.read(_PIECE):
                    await run_sync(file.write, piece)

            taken = await run_sync(_imported, run, case, path, slices, limiter=pages.heavy)
    if taken is None:
        raise HTTPException(422, "This label is as it was handed out. Where it is right as it is, accept it.")
    return JSONResponse(asdict(taken))


def _imported(run: Path, case: ViewCase, path: Path, slices: AskedSlices | None) -> Taken | None:
    try:
        # The header first: it bounds what is read, however much a small file would become.
        if misfit := read_grid(path).misfit(read_grid(case.images[0]), "Save it on the scan's grid."):
            raise DataError(f"{path}: not on the grid of the scan {case.id}: {misfit}")
        return import_correction(run, case.id, path, slices)
    except DataError as error:
        raise DataError(str(error).replace(str(path), "The corrected label")) from None


def _slices(axis: object, indices: object) -> AskedSlices | None:
    """The slices of a canonical scan that were corrected; None for all."""
    if not axis and not indices:
        return None
    numbers = indices.split(",") if isinstance(indices, str) and indices else []
    if axis not in ("0", "1", "2") or not numbers or not all(one.isdecimal() and len(one) < 7 for one in numbers):
        raise HTTPException(400, "axis, indices: give 0, 1 or 2 (Z, Y, X), and numbers of slices such as 3,4,5.")
    return AskedSlices(axis=int(str(axis)), indices=tuple(sorted(set(map(int, numbers)))))


async def _json(request: Request) -> dict[str, Any]:
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


def _one_of(given: str, known: Any, name: str) -> Any:
    if given not in known:
        raise HTTPException(400, f"{name}: give one of {', '.join(known)}.")
    return given


def _organ(pages: Pages, given: object) -> str:
    if given and given not in pages.source.contents().organs.values():
        raise HTTPException(400, "organ: there is no such organ here.")
    return str(given or "")


def _whole(request: Request, name: str, usual: int) -> int:
    given = request.query_params.get(name)
    if given is None or given == "":
        return usual
    if not given.removeprefix("-").isdecimal() or len(given) > 9:
        raise HTTPException(400, f"{name}: give a whole number.")
    return int(given)


def _number(request: Request, name: str) -> float | None:
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


def _quoted(id: str) -> str:
    from urllib.parse import quote

    return quote(id, safe="")
