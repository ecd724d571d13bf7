"""What 3D Slicer's and OHIF's modules of MONAI Label ask for, and what they get. No id becomes a path: they are looked
up."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from semiseg.data.partial import ignore_value
from semiseg.data.reviews import REVIEWED_LABELS
from semiseg.errors import DataError
from semiseg.io.file_kinds import ending, is_written
from semiseg.io.label_scheme import IGNORE
from semiseg.io.scans import files_of, read_grid, read_label, stamps_of
from semiseg.serve.asking import read_form
from semiseg.serve.forms import label_nrrd, parts_response
from semiseg.serve.queue import Queue
from semiseg.serve.saving import most_bytes, save, segment_names
from semiseg.serve.work import Infers, Work
from semiseg.view import sending
from semiseg.view.contents import ViewCase
from semiseg.view.guard import MOST_BODY_BYTES
from semiseg.view.source import Layer
from semiseg.view.volumes import Volume, Volumes
from semiseg.words import printable

MODEL = "semiseg"
ORIGINAL, FINAL = "original", "final"
"""Tags of MONAI Label: the label that is handed out, and the one that a person sent."""
MOST_WAITING = 16
"""Scans that may wait to be predicted. Clients wait as long as it takes, and say so; more than these are refused."""
_AT_ONCE = 2
_UID = re.compile(r"[0-9.]{1,64}")


class Rest:
    """What the routes share."""

    def __init__(self, work: Work, infers: Infers | None, *, reviewer: str) -> None:
        self.work, self.infers, self.reviewer = work, infers, reviewer
        self.queue = Queue(work)
        self._volumes = Volumes(work.source)
        self._sums: dict[str, tuple[object, str]] = {}
        self._limiters: dict[str, CapacityLimiter] = {}
        self._waiting = 0

    def limiter(self, name: str, count: int) -> CapacityLimiter:
        """Of threads; made within the event loop that uses it."""
        return self._limiters.setdefault(name, CapacityLimiter(count))

    def known(self, id: str | None) -> ViewCase:
        """A case by its id, or by the UID of its series, as OHIF has it; 404 for one that is not served."""
        case = self.work.cases.get(id or "")
        if case is None and id and _UID.fullmatch(id):
            case = self.work.by_series(id)
        if case is None or not case.images:
            raise HTTPException(404, "There is no such image here.")
        return case

    # --- What there is

    def info(self, _: Request) -> Response:
        organs = self.work.scheme.organs
        total, completed = self.queue.counts()
        about = {"type": "segmentation", "labels": list(organs.values()), "dimension": 3, "config": {}}
        models = {MODEL: about | {"description": "The model of semiseg serve"}} if self.infers else {}
        return JSONResponse(
            {
                "name": f"semiseg: {self.work.source.contents().name}",
                "description": "Labels to look at and to mend",
                "labels": list(organs.values()),
                "models": models,
                "trainers": {},
                "strategies": {name: {"description": name} for name in self.queue.strategies},
                "scoring": {},
                "train_stats": {},
                "datastore": {"total": total, "completed": completed},
            }
        )

    def datastore(self, request: Request) -> Response:
        if request.query_params.get("output") != "all":
            total, completed = self.queue.counts()
            return JSONResponse({"total": total, "completed": completed})
        corrected = self.work.source.corrected()
        objects = {}
        for case in self.work.cases.values():
            if not case.images:
                continue
            labels = {}
            if original := self.work.original(case):
                labels[ORIGINAL] = self._label_info(original)
            if case.id in corrected:
                labels[FINAL] = self._label_info(corrected[case.id])
            objects[case.id] = {"image": {"info": {}}, "labels": labels}
        return JSONResponse({"name": self.work.source.contents().name, "description": "", "objects": objects})

    def _label_info(self, file: Path) -> dict[str, Any]:
        """Names by value and in the order of values: Slicer gives the first to value 1, and so on."""
        names = {name: value for value, name in self.work.scheme.organs.items()}
        if file.parent.name == REVIEWED_LABELS:  # of which a part may not be known
            names[IGNORE] = ignore_value(self.work.scheme)
        return {"ext": ending(file), "info": {"params": {"label_names": names}}}

    # --- Scans and labels go out

    def next_image(self, request: Request) -> Response:
        strategy = request.path_params["strategy"]
        if strategy not in self.queue.strategies:
            raise HTTPException(404, f"Strategies here: {', '.join(self.queue.strategies)}.")
        case = self.queue.next(strategy)
        if case is None:
            return JSONResponse({})
        # Slicer keeps what it downloads by its name: without the hash, another server's scan of that name is shown.
        return JSONResponse(
            {"id": case.id, "name": f"{case.id}{_ending(case)}", "checksum": f"SHA256:{self._sum(case)}"}
        )

    def image(self, request: Request) -> Response:
        case = self.known(request.query_params.get("image"))
        if _goes_as_it_is(case):
            return FileResponse(case.images[0], filename=f"image{_ending(case)}")
        return sending.nifti_response(self._scan(case), None)

    def _scan(self, case: ViewCase) -> Volume:
        """The first channel."""
        return self._volumes.get(case, Layer(name="scan", title="", kind="image", form="scan", paths=case.images))

    def _sum(self, case: ViewCase) -> str:
        state = stamps_of(case.images)
        known = self._sums.get(case.id)
        if known is None or known[0] != state:
            known = self._sums[case.id] = (state, self._hashed(case))
        return known[1]

    def _hashed(self, case: ViewCase) -> str:
        if _goes_as_it_is(case):
            with case.images[0].open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        header, voxels = self._scan(case).nifti()
        digest = hashlib.sha256(header)
        digest.update(voxels)
        return digest.hexdigest()

    def label(self, request: Request) -> Response:
        case = self.known(request.query_params.get("label"))
        tag = request.query_params.get("tag") or FINAL
        file = {ORIGINAL: self.work.original, FINAL: self.work.source.correction}.get(tag, lambda _: None)(case)
        if file is None:
            raise HTTPException(404, "There is no such label here.")
        if misfit := read_grid(file).misfit(read_grid(case.images[0]), "Save it on the scan's grid."):
            raise DataError(f"The label is not on the grid of its scan: {misfit}")
        kind, content = ending(file), b""
        if _is_one_file(file) and not read_grid(file).doubts:
            content = file.read_bytes()
        else:
            label, grid = read_label(file)
            kind, content = ".nrrd", label_nrrd(label, grid, compressed=True)
        headers = {"Content-Disposition": f'attachment; filename="label{kind}"'}
        return Response(content, headers=headers, media_type="application/octet-stream")

    # --- A model labels

    async def infer(self, request: Request) -> Response:
        if self.infers is None or request.path_params["model"] != MODEL:
            raise HTTPException(404, "There is no such model here." if self.infers else "This server has no model.")
        output = request.query_params.get("output") or "all"
        if output not in ("all", "image", "json"):
            raise HTTPException(400, "output: give all, image or json.")
        if request.query_params.get("session_id"):
            raise HTTPException(404, _NO_SCANS)
        case = await run_sync(self.known, request.query_params.get("image"))
        params, _ = await read_form(request, MOST_BODY_BYTES)
        if self._waiting >= MOST_WAITING:
            raise HTTPException(503, "Too many scans wait to be labelled. Try again in a minute.")
        self._waiting += 1
        try:
            made = await run_sync(self.work.inferred, case, self.infers, limiter=self.limiter("infer", 1))
        finally:
            self._waiting -= 1
        names = {name: value for value, name in self.work.scheme.organs.items()}
        answer = {"label_names": names, "model": MODEL, "image": case.id}
        if output == "json":
            return JSONResponse(answer)
        compressed = output == "all" and params.get("result_compress") is not False
        file = await run_sync(_as_nrrd, made, compressed, limiter=self.limiter("heavy", _AT_ONCE))
        if output == "image":
            return Response(file, media_type="application/octet-stream")
        return parts_response(answer, file)

    # --- A label comes back

    async def save(self, request: Request) -> Response:
        case = await run_sync(self.known, request.query_params.get("image"))
        if (tag := request.query_params.get("tag") or FINAL) != FINAL:
            raise HTTPException(400, f"tag {printable(tag)}: labels are kept as {FINAL}, which is what no tag means.")
        most = most_bytes(await run_sync(read_grid, case.images[0]))
        with TemporaryDirectory(prefix="semiseg-") as folder:
            params, file = await read_form(request, most + MOST_BODY_BYTES, Path(folder))
            if file is None:
                raise HTTPException(400, "label: send the label map as a file.")
            saved = await run_sync(save, self.work, case, file, segment_names(params), limiter=self.limiter("save", 1))
        if saved.accepted:
            who = params.get("client_id")
            name = printable(who)[:100] if isinstance(who, str) and who else self.reviewer
            await run_sync(self.queue.accept, case, saved.accepted, name)
        became = "accepted as it was" if saved.accepted else "corrected" if saved.corrected else "unchanged"
        about = {"became": became, "changed_voxels": saved.changed_voxels, "absent": saved.absent}
        return JSONResponse({"image": case.id, "label": case.id, "tag": FINAL} | about)


_NO_SCANS = "This server labels the scans of its folder, and takes no others. Put the scan there and start it again."


def _ending(case: ViewCase) -> str:
    """Of the file that a client gets."""
    return ending(case.images[0]) if _goes_as_it_is(case) else ".nii"


def _goes_as_it_is(case: ViewCase) -> bool:
    """Whether the scan is one file of one channel, which Slicer reads, and reads at the same place: of two forms of a
    NIfTI header that disagree it may take the other. Of others the first channel is sent as NIfTI."""
    if len(case.images) != 1 or not _is_one_file(case.images[0]):
        return False
    grid = read_grid(case.images[0])
    return grid.channels == 1 and not grid.doubts


def _is_one_file(path: Path) -> bool:
    return is_written(path) and len(files_of([path])) == 1


def _as_nrrd(file: Path, compressed: bool) -> bytes:
    label, grid = read_label(file)
    return label_nrrd(label, grid, compressed=compressed)


def make_rest(rest: Rest) -> Starlette:
    """The routes, each with and without the slash at its end: clients follow no redirect."""

    def light(answer: Callable[[Request], Response]) -> Any:
        async def endpoint(request: Request) -> Response:
            return await run_sync(answer, request)

        return endpoint

    def heavy(answer: Callable[[Request], Response]) -> Any:
        async def endpoint(request: Request) -> Response:
            return await run_sync(answer, request, limiter=rest.limiter("heavy", _AT_ONCE))

        return endpoint

    async def alive(_: Request) -> Response:
        return JSONResponse({"name": MODEL})

    def none(status: int, sentence: str) -> Any:
        async def endpoint(_: Request) -> Response:
            raise HTTPException(status, sentence)

        return endpoint

    no_training = none(404, "Nothing is trained here: semiseg run learns from what was saved.")
    routes = [
        ("/", alive, ["GET"]),
        ("/info/", light(rest.info), ["GET"]),
        ("/datastore/", light(rest.datastore), ["GET"]),
        ("/datastore/", none(403, _NO_SCANS), ["PUT"]),
        ("/datastore/image", heavy(rest.image), ["GET"]),
        ("/datastore/image", none(403, _NO_SCANS), ["PUT"]),
        ("/datastore/label", heavy(rest.label), ["GET"]),
        ("/datastore/label", rest.save, ["PUT"]),
        ("/activelearning/{strategy}", heavy(rest.next_image), ["POST"]),
        ("/infer/{model}", rest.infer, ["POST"]),
        ("/session/", none(403, _NO_SCANS), ["PUT"]),
        ("/train/", no_training, ["GET", "POST", "DELETE"]),
        ("/train/{model}", no_training, ["POST"]),
        ("/auth/", none(404, "There are no accounts here."), ["GET"]),
    ]
    app = Starlette(
        routes=[
            Route(path, endpoint, methods=methods)
            for given, endpoint, methods in routes
            for path in dict.fromkeys((given, given.rstrip("/") or "/"))
        ],
        exception_handlers=sending.ERRORS,
    )
    app.router.redirect_slashes = False
    return app
