"""The routes that show something: what is here, the run, the list, a case and its pictures, the queue."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response

from semiseg.files import digest_of
from semiseg.io.colours import organ_colours
from semiseg.reporting.overlays import PLANES
from semiseg.view.asking import number, one_of, organ_name, whole_number
from semiseg.view.contents import ViewCase, doubt_of, state_of
from semiseg.view.looks import OWN_WINDOWS, WINDOWS, looks_of
from semiseg.view.measures import Measures
from semiseg.view.review import ORDERS, review
from semiseg.view.sending import nifti_response, png_response
from semiseg.view.shared import Pages
from semiseg.view.source import Layer
from semiseg.view.table import FILTERS, SORTS, decision_of, is_stale


def report(pages: Pages, _: Request) -> Response:
    page = pages.source.folder / "report.html"
    if pages.source.kind != "run" or not page.is_file():
        raise HTTPException(404, "The report is written when the run has ended.")
    return FileResponse(page, media_type="text/html")


def info(pages: Pages, _: Request) -> Response:
    source = pages.source
    contents = source.contents()
    colours = organ_colours(contents.organs.values())
    is_run = source.kind == "run"
    windows = WINDOWS if any(map(contents.is_ct, range(len(contents.channels)))) else ()
    reviewable = bool(source.all_reviewed())
    return JSONResponse(
        {
            "kind": source.kind,
            "name": contents.name,
            "organs": [
                {"value": value, "name": name, "colour": colours[name]} for value, name in contents.organs.items()
            ],
            "looks": [look.name for look in looks_of(contents)],
            "windows": [{"name": name, "low": low, "high": high} for name, low, high in windows],
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


def run_state(pages: Pages, request: Request) -> Response:
    if pages.training is None:
        raise HTTPException(404, "This is a folder, no run.")
    return JSONResponse(pages.training.now(whole_number(request, "after", -1)))


def cases(pages: Pages, request: Request) -> Response:
    pages.refresh()
    query = request.query_params
    organ_name(pages, query.get("organ", ""))
    one_of(query.get("sort", "id"), SORTS, "sort")
    if wanted := query.get("filter"):
        one_of(wanted, FILTERS, "filter")
    whole_number(request, "offset", 0), whole_number(request, "limit", 0)
    return JSONResponse(pages.table.chosen(query))


def case(pages: Pages, request: Request) -> Response:
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
                    "url": f"/api/cases/{quote(case.id, safe='')}/layers/{layer.name}.nii?v={_version(layer)}",
                }
                | (_grey(pages, case, layer) if layer.kind == "image" else {})
                for layer in layers
            ],
            "reviewed_layer": source.reviewed_layer(case),
            "doubtful": dict(zip(PLANES, pages.drawing.doubtful(case, measured, ""), strict=True)),
            "centroids": _centroids(contents.organs, measured),
            "doubt": doubt_of(contents.doubts.get(case.id)),
            "label_sha256": digest,
            "decisions": pages.log.lines[-1]["number"] if pages.log.lines else 0,
            "decision": decision_of(stand, case.id, names),
            "stale": is_stale(stand, case.id, names, digest),
            "corrected": source.correction(case) is not None,
        }
    )


def _version(layer: Layer) -> str:
    """Of a layer's files: an address that is asked for once stands for what it showed then."""
    return digest_of([list(map(str, layer.paths)), state_of(*layer.paths)])[:16]


def _grey(pages: Pages, case: ViewCase, layer: Layer) -> dict[str, Any]:
    """The window in which a channel opens, and those that it has of its own, or that those of CT are for it."""
    is_ct = pages.source.contents().is_ct(layer.channel)
    own = [] if is_ct else zip(OWN_WINDOWS, pages.drawing.own_windows(case, layer.channel), strict=True)
    return {
        "window": pages.drawing.window(case, layer.channel),
        "windows": [{"name": name, "low": low, "high": high} for name, (low, high) in own],
        "is_ct": is_ct,
    }


def _centroids(organs: dict[int, str], measured: Measures | None) -> dict[str, tuple[float, float, float]]:
    if measured is None:
        return {}
    found = measured["organs"]
    return {name: found[str(value)]["centroid"] for value, name in organs.items() if str(value) in found}


def layer(pages: Pages, request: Request) -> Response:
    case = pages.case(request)
    name = request.path_params["name"]
    layer = next((layer for layer in pages.source.layers(case) if layer.name == name), None)
    if layer is None:
        raise HTTPException(404, "This case has no such layer.")
    return nifti_response(pages.volumes.get(case, layer), request.headers.get("range"))


def drawn_slice(pages: Pages, request: Request) -> Response:
    case, query = pages.case(request), request.query_params
    plane = one_of(query.get("plane", "axial"), PLANES, "plane")
    style = one_of(query.get("style", "outline"), ("outline", "fill"), "style")
    organ = organ_name(pages, query.get("organ", ""))
    low, high = (number(request, name) for name in ("low", "high"))
    opacity = number(request, "opacity")
    return png_response(
        pages.drawing.slice(
            case,
            plane=plane,
            index=whole_number(request, "index", -1),
            layers=[name for name in query.get("layers", "").split(",") if name],
            style=style,
            opacity=0.6 if opacity is None else min(1.0, max(0.0, opacity)),
            window=None if low is None or high is None else (low, high),
            organ=organ,
            longest=min(1024, max(64, whole_number(request, "size", 640))),
        ),
        request,
    )


def thumbnail(pages: Pages, request: Request) -> Response:
    return png_response(pages.drawing.thumbnail(pages.case(request)), request)


def strip(pages: Pages, request: Request) -> Response:
    case, query = pages.case(request), request.query_params
    picture = pages.drawing.strip(
        case,
        organ=organ_name(pages, query.get("organ", "")),
        style=one_of(query.get("style", "outline"), ("outline", "fill"), "style"),
        overlay=query.get("overlay", "1") == "1",
        look=whole_number(request, "look", 0),
    )
    return png_response(picture, request)


def review_queue(pages: Pages, request: Request) -> Response:
    pages.refresh()
    order = one_of(request.query_params.get("order", "doubt"), ORDERS, "order")
    organ = organ_name(pages, request.query_params.get("organ", ""))
    return JSONResponse(review(pages.source, pages.table, pages.log, pages.reviewer, order, organ))
