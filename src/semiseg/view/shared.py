"""What the routes of the pages share."""

from __future__ import annotations

import threading

from anyio import CapacityLimiter
from starlette.exceptions import HTTPException
from starlette.requests import Request

from semiseg.decisions import DecisionLog
from semiseg.view.contents import ViewCase
from semiseg.view.drawing import Drawing
from semiseg.view.measures import Measurer
from semiseg.view.source import Source
from semiseg.view.table import Table
from semiseg.view.training import Training
from semiseg.view.volumes import Volumes

_AT_ONCE = {"case": 2, "thumbnails": 1}
"""Answers that read volumes or draw, at a time: of the case that is looked at, and of those in the list, which must not
keep it waiting."""


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
        self._limiters: dict[str, CapacityLimiter] = {}

    def start(self) -> None:
        self.measurer.start()

    def stop(self) -> None:
        self.measurer.stop()

    def limiter(self, kind: str = "case") -> CapacityLimiter:
        """Of threads that read and draw; made within the event loop that uses it."""
        if kind not in self._limiters:
            self._limiters[kind] = CapacityLimiter(_AT_ONCE[kind])
        return self._limiters[kind]

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
