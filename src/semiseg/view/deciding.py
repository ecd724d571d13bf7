"""The routes that change something: decisions, undo, labels handed out and taken back."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

from anyio.to_thread import run_sync
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from semiseg.corrections import AskedSlices, Taken, export_cases, import_correction
from semiseg.decisions import Verdict, not_undone
from semiseg.errors import DataError
from semiseg.io.file_kinds import ending
from semiseg.io.scans import read_grid
from semiseg.view.asking import organ_name
from semiseg.view.contents import ViewCase
from semiseg.view.guard import TooLargeError, limited
from semiseg.view.shared import Pages

MOST_EXPORTED = 200
MOST_UPLOAD_BYTES = 2 << 30
"""Of a corrected label map: 512 x 512 x 1,000 voxels of 8 bytes."""
_PIECE = 1 << 20


def decide(pages: Pages, body: dict[str, Any]) -> Response:
    case = pages.known(body.get("case"))
    organ, decision, digest = body.get("organ"), body.get("decision"), body.get("label_sha256")
    seconds, audit = body.get("seconds", 0.0), body.get("audit", False)
    if organ is not None:
        organ_name(pages, organ)
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
    if decision == "accept" and (misfit := pages.measurer.misfit(case)):
        raise HTTPException(409, f"This label does not lie on its scan: {misfit}. Mend the file, or set it aside.")
    with pages.deciding:
        pages.log.refresh()
        if (other := _of_another(pages, case.id, organ or None, digest, body.get("decisions"))) is not None:
            raise HTTPException(409, other)
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


_DID = {
    "accept": "accepted it",
    "set_aside": "set it aside",
    "label": "wants it labelled",
    "unsure": "was unsure of it",
}


def _of_another(pages: Pages, case: str, organ: str | None, digest: str, seen: object) -> str | None:
    """What another reviewer decided on this label meanwhile. seen: the number of the last decision when the label was
    looked up; where it is not given, nothing counts as meanwhile."""
    if not isinstance(seen, int):
        return None
    for line in reversed(not_undone(pages.log.lines)):
        if line["number"] <= seen:
            return None
        same = (line["case"], line["label_sha256"]) == (case, digest)
        if same and (organ is None or line["organ"] in (None, organ)) and line["reviewer"] != pages.reviewer:
            ago = datetime.now(UTC) - datetime.fromisoformat(line["time"])
            of = f" ({line['organ']})" if line["organ"] else ""
            return (
                f"{line['reviewer']} {_DID[line['decision']]}{of} {max(0, round(ago.total_seconds()))} s ago: {case}."
            )
    return None


def undo(pages: Pages, body: dict[str, Any]) -> Response:
    """case: where it is given, a last decision of another case is named and not taken back (412)."""
    with pages.deciding:
        pages.log.refresh()
        last = pages.log.last(pages.reviewer)
        if last and body.get("case") not in (None, last["case"]):
            of = f"{last['organ']} of {last['case']}" if last["organ"] else last["case"]
            raise HTTPException(412, f"Your last decision is on {of}: {last['decision'].replace('_', ' ')}.")
        undone = pages.log.undo(pages.reviewer)
    if undone is None:
        raise HTTPException(409, "There is no decision of yours to take back.")
    return JSONResponse(undone)


def export(pages: Pages, body: dict[str, Any]) -> Response:
    ids = body.get("cases")
    if not isinstance(ids, list) or not 0 < len(ids) <= MOST_EXPORTED:
        raise HTTPException(400, f"cases: give 1 to {MOST_EXPORTED} ids.")
    cases = [pages.known(id).id for id in ids]
    return JSONResponse({"folder": str(export_cases(_corrected_run(pages), cases))})


def _corrected_run(pages: Pages) -> Path:
    if not pages.source.takes_corrections:
        raise HTTPException(409, "These labels are no run's: mend the label maps where they lie.")
    return pages.source.folder


async def take_correction(pages: Pages, request: Request) -> Response:
    if int(request.headers.get("content-length", "0")) > MOST_UPLOAD_BYTES:
        raise TooLargeError
    limited_request = Request(request.scope, limited(request.receive, MOST_UPLOAD_BYTES))
    async with limited_request.form(max_files=1, max_fields=4, max_part_size=1 << 16) as form:
        case = pages.known(form.get("case"))
        upload = form.get("label")
        if upload is None or isinstance(upload, str):
            raise HTTPException(400, "label: send the corrected label map as a file.")
        run, slices = _corrected_run(pages), _slices(form.get("axis"), form.get("indices"))
        # A name of ours: that of the sender is no path. Only its ending says which format it is.
        kept = ending(upload.filename or "") or ".nii.gz"
        with TemporaryDirectory(prefix="semiseg-") as folder:
            path = Path(folder) / f"label{kept}"
            with path.open("wb") as file:
                while piece := await upload.read(_PIECE):
                    await run_sync(file.write, piece)

            taken = await run_sync(_imported, run, case, path, slices, limiter=pages.limiter())
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
