"""A real server of the pages in a thread, and files for it to show."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np

from semiseg.geometry import from_canonical
from semiseg.io import nifti
from semiseg.io.grid import Grid
from semiseg.io.scans import write_label
from semiseg.types import AnyArray
from semiseg.view.command import bound_socket, server
from semiseg.view.server import make_app
from semiseg.view.shared import Pages
from semiseg.view.source import open_source

TOKEN = "the-token-of-a-test"


@dataclass(frozen=True)
class Served:
    """A server, and a client that has its cookie."""

    pages: Pages
    port: int
    client: httpx.Client

    def get(self, path: str, **query: object) -> httpx.Response:
        return self.client.get(path, params={key: str(value) for key, value in query.items()})

    def json(self, path: str, **query: object) -> dict:  # type: ignore[type-arg]
        answer = self.get(path, **query)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def post(self, path: str, **body: object) -> httpx.Response:
        return self.client.post(path, json=body)

    def decide(self, case: str, decision: str, **more: object) -> httpx.Response:
        digest = self.json(f"/api/cases/{case}")["label_sha256"]
        return self.post(
            "/api/decisions", **({"case": case, "decision": decision, "label_sha256": digest, "seconds": 2.0} | more)
        )


@contextmanager
def serving(
    folder: Path, *, labels: Path | None = None, decisions: Path | None = None, reviewer: str = "ann"
) -> Iterator[Served]:
    pages = Pages(open_source(folder, labels=labels, decisions=decisions), reviewer=reviewer)
    listening = bound_socket(0)
    port = listening.getsockname()[1]
    running = server(make_app(pages, token=TOKEN, port=port))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
    pages.start()
    thread.start()
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            while not running.started:
                assert thread.is_alive()
            assert client.get("/", params={"token": TOKEN}).status_code == 303
            yield Served(pages, port, client)
    finally:
        running.should_exit = True
        thread.join()
        pages.stop()
        listening.close()


def label_maps(folder: Path, spacing_mm: tuple[float, float, float] = (2.0, 1.0, 1.0)) -> Path:
    """Twelve label maps of two organs, one of which case_3 lacks; in case_5 it is large, in case_7 in two pieces."""
    folder.mkdir()
    (folder / "labels.json").write_text('{"background": 0, "liver": 1, "spleen": 2}', encoding="utf-8")
    for number in range(12):
        label = np.zeros((12, 20, 24), dtype=np.uint8)
        label[2:8, 3:11, 4:12] = 1
        label[3:7, 12:16, 14:18] = 0 if number == 3 else 2
        if number == 5:
            label[1:11, 11:19, 13:23] = 2
        if number == 7:
            label[10, 18, 20] = 2
        label[2, 3, 4 : 4 + number % 4] = 0
        save_label(folder / f"case_{number}.nii.gz", label, spacing_mm)
    return folder


def channels(folder: Path, **scans: AnyArray) -> Path:
    """A dataset of one case, whose scan has these channels."""
    for number, scan in enumerate(scans.values()):
        save_scan(folder / "imagesTr" / f"one_{number:04d}.nii.gz", scan, np.eye(4))
    save_scan(folder / "labelsTr" / "one.nii.gz", np.ones(scan.shape, dtype=np.uint8), np.eye(4))
    names = {str(number): name for number, name in enumerate(scans)}
    description = {"channel_names": names, "labels": {"background": 0, "organ": 1}, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(description), encoding="utf-8")
    return folder


def save_label(path: Path, label: AnyArray, spacing_mm: tuple[float, float, float] = (2.0, 1.0, 1.0)) -> None:
    affine = np.diag([*spacing_mm[::-1], 1.0])
    z, y, x = label.shape
    write_label(path, label, Grid((z, y, x), spacing_mm, affine, spacing_mm[::-1]))


def save_scan(path: Path, scan: AnyArray, affine: AnyArray) -> None:
    """A canonical scan in a file whose axes go as the affine says."""
    stored = from_canonical(scan, affine)
    spacing = tuple(float(v) for v in np.sqrt((affine[:3, :3] ** 2).sum(axis=0)))
    z, y, x = scan.shape
    path.parent.mkdir(parents=True, exist_ok=True)
    nifti.write(path, stored, Grid((z, y, x), spacing[::-1], affine, spacing), None)  # type: ignore[arg-type]


def wait_until_measured(served: Served) -> None:
    """Until all labels are: which of them are odd, and so the order of a queue, is known only then."""
    end = time.monotonic() + 60
    while served.json("/api/cases")["measured"] < 1:
        assert time.monotonic() < end
