"""How long the server of the pages takes with many cases, and how much memory after many of the size of a CT.

    python benchmarks/view_2000_cases.py --folder /tmp/view-2000

Makes a dataset of 2,000 small cases with 13 organs and 100 of 512 x 512 x 119 voxels (one file by many names), serves
it by a process of its own, and asks as the pages do: lists in every order, decisions, the queue; then it opens the 100.
Times are the server's own (`Server-Timing`). Prints JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

from semiseg.io.flare22_labels import FLARE22_LABELS
from semiseg.io.grid import Grid
from semiseg.io.nifti import write
from semiseg.io.scans import write_label
from semiseg.types import AnyArray, Shape
from semiseg.view.table import FILTERS, SORTS

SMALL: Shape = (24, 40, 40)
LARGE: Shape = (119, 512, 512)
_SERVE = """
import sys
from pathlib import Path
from semiseg.view.command import serve
serve(Path(sys.argv[1]), browser=False)
"""


def grid(shape: Shape, spacing_mm: tuple[float, float, float]) -> Grid:
    return Grid(shape, spacing_mm, np.diag([*spacing_mm[::-1], 1.0]), spacing_mm[::-1])


def make_case(draw: np.random.Generator, shape: Shape) -> tuple[AnyArray, AnyArray]:
    """A noisy scan and 13 boxes in it, some of them missing, large or in two pieces."""
    label = np.zeros(shape, dtype=np.uint8)
    for organ in FLARE22_LABELS.organs:
        if draw.random() < 0.02:
            continue
        size = draw.uniform(0.08, 0.2, 3) * (2 if draw.random() < 0.02 else 1)
        start = draw.uniform(0, 1 - size)
        label[
            tuple(
                slice(int(a * n), max(int(a * n) + 1, int((a + s) * n)))
                for a, s, n in zip(start, size, shape, strict=True)
            )
        ] = organ
    scan = draw.normal(40, 30, shape).astype(np.int16) + 20 * label
    return scan.astype(np.int16), label


def make_dataset(folder: Path, small: int, large: int) -> None:
    """An nnU-Net folder; what is there is kept."""
    if (folder / "dataset.json").is_file():
        return
    draw = np.random.default_rng(0)
    for number in range(small):
        write_case(folder, f"case_{number:04}", *make_case(draw, SMALL), grid(SMALL, (3.0, 2.0, 2.0)))
    write_case(folder, "ct_000", *make_case(draw, LARGE), grid(LARGE, (2.5, 0.8, 0.8)))
    for number in range(1, large):
        for file in ("imagesTr/ct_{:03}_0000.nii.gz", "labelsTr/ct_{:03}.nii.gz"):
            os.link(folder / file.format(0), folder / file.format(number))
    description = {"channel_names": {"0": "CT"}, "labels": {name: v for v, name in FLARE22_LABELS.names.items()}}
    (folder / "dataset.json").write_text(json.dumps(description), encoding="utf-8")


def write_case(folder: Path, id: str, scan: AnyArray, label: AnyArray, where: Grid) -> None:
    (folder / "imagesTr").mkdir(parents=True, exist_ok=True)
    write(folder / "imagesTr" / f"{id}_0000.nii.gz", scan.transpose(), where, None)
    write_label(folder / "labelsTr" / f"{id}.nii.gz", label, where)


class Asked:
    """The server's milliseconds of each kind of request."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client
        self.found: dict[str, list[float]] = {}

    def ask(self, kind: str, method: str, path: str, **more: Any) -> httpx.Response:
        answer = self._client.request(method, path, **more)
        if answer.status_code != 200:
            raise RuntimeError(f"{path}: {answer.status_code} {answer.text[:200]}")
        self.found.setdefault(kind, []).append(float(answer.headers["server-timing"].partition("dur=")[2]))
        return answer

    def summary(self) -> dict[str, dict[str, float]]:
        return {
            kind: {
                "count": len(times),
                "median_ms": round(float(np.median(times)), 1),
                "p99_ms": round(float(np.percentile(times, 99)), 1),
                "largest_ms": round(max(times), 1),
            }
            for kind, times in self.found.items()
        }


def work(client: httpx.Client, cases: Sequence[str], digests: dict[str, str], seconds: float) -> dict[str, Any]:
    """Lists, the queue and decisions for so long, as a person who sorts and judges would ask for them."""
    asked = Asked(client)
    organs = ("", "liver", "spleen")
    queries = itertools.cycle(
        {"sort": sort, "descending": descending, "organ": organ} | ({"filter": wanted} if wanted else {})
        for sort in SORTS
        for descending in (0, 1)
        for organ in organs
        for wanted in (None, *FILTERS)
    )
    verdicts = itertools.cycle(("accept", "accept", "set_aside", "unsure", "accept"))
    places = itertools.cycle(cases)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        asked.ask("list", "GET", "/api/cases", params=next(queries))
        case = next(places)
        if case not in digests:
            digests[case] = asked.ask("case", "GET", f"/api/cases/{case}").json()["label_sha256"]
        body = {"case": case, "decision": next(verdicts), "label_sha256": digests[case], "seconds": 2.0}
        asked.ask("decision", "POST", "/api/decisions", json=body)
        asked.ask("queue", "GET", "/api/review", params={"order": "doubt"})
    return asked.summary()


def memory_mb(process: psutil.Process) -> dict[str, float]:
    status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    return {"now_mb": round(process.memory_info().rss / 1e6), "peak_mb": round(peak * 1024 / 1e6)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--opened", type=int, default=100)
    parser.add_argument(
        "--seconds", type=float, default=40.0, help="of lists and decisions, before and after measuring"
    )
    arguments = parser.parse_args()
    make_dataset(arguments.folder, arguments.cases, arguments.opened)
    (arguments.folder / "decisions.jsonl").unlink(missing_ok=True)
    environment = os.environ | {"XDG_CACHE_HOME": str(arguments.folder / f"cache-{time.time_ns()}")}
    started = subprocess.Popen(
        [sys.executable, "-c", _SERVE, str(arguments.folder)], stdout=subprocess.PIPE, text=True, env=environment
    )
    found: dict[str, Any] = {}
    try:
        assert started.stdout is not None
        began = time.monotonic()
        address, _, token = started.stdout.readline().removeprefix("Open ").strip().partition("/?token=")
        found["start_seconds"] = round(time.monotonic() - began, 2)
        process = psutil.Process(started.pid)
        with httpx.Client(base_url=address, timeout=120) as client:
            client.get("/", params={"token": token})
            found["memory_at_start"] = memory_mb(process)
            cases = [f"case_{number:04}" for number in range(arguments.cases)]
            digests: dict[str, str] = {}
            found["while_measuring"] = work(client, cases, digests, arguments.seconds)
            while client.get("/api/cases", params={"limit": 1}).json()["measured"] < 1:
                time.sleep(0.5)
            found["measured_after_seconds"] = round(time.monotonic() - began, 1)
            found["when_measured"] = work(client, cases[::-1], digests, arguments.seconds)
            found["memory_before_opening"] = memory_mb(process)
            opening = Asked(client)
            for number in range(arguments.opened):
                case = f"/api/cases/ct_{number:03}"
                layers = opening.ask("open a CT", "GET", case).json()["layers"]
                for layer in layers:
                    opening.ask(f"layer, {layer['kind']}, cold", "GET", layer["url"])
                for layer in layers:
                    opening.ask(f"layer, {layer['kind']}, again", "GET", layer["url"])
                opening.ask("strip, scan in memory", "GET", f"{case}/strip.png")
                opening.ask("strip, again", "GET", f"{case}/strip.png")
                opening.ask("slice", "GET", f"{case}/slice.png", params={"plane": "coronal", "index": number})
            found["opening"] = opening.summary()
            found["memory_after_opening"] = memory_mb(process)
    finally:
        started.terminate()
        started.wait()
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
