"""What 3D Slicer's client of MONAI Label waits for, on one CT: each request of the way from the list of organs to the
saved label, and the server's largest memory.

    python benchmarks/serve_client.py --scan CT.nii.gz --model RUN/model --rounds 3

Needs the client: pip install --no-deps monailabel==0.8.5. Prints JSON: for each request the seconds of all rounds.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import quote_plus
from urllib.request import urlretrieve

import psutil

from semiseg.io.scans import read_label, write_label

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it imports `cgi`, which Python has given up
    from monailabel.client.client import MONAILabelClient

_SERVE = "import sys; from semiseg.cli import main; main(sys.argv[1:])"


def one_round(model: Path, scan: Path, folder: Path) -> dict[str, float]:
    """Seconds of each request to a server of its own, and its memory in MB."""
    (folder / "scans").mkdir()
    (folder / "scans" / scan.name).symlink_to(scan.resolve())
    command = [sys.executable, "-c", _SERVE, "serve", str(model), "--data", str(folder / "scans")]
    server = subprocess.Popen([*command, "--output", str(folder / "review")], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        said = ""
        while "Stop with" not in said:
            said += server.stdout.readline()
        match = re.search(r"Slicer: (\S+)", said)
        assert match
        return _requests(match[1], folder) | {"server_mb": _largest_mb(server.pid)}
    finally:
        server.terminate()
        server.wait()


def _requests(address: str, folder: Path) -> dict[str, float]:
    client: Any = MONAILabelClient(address, tmpdir=str(folder))
    seconds: dict[str, float] = {}

    def timed(name: str, ask: Callable[..., Any], *given: Any, **named: Any) -> Any:
        start = time.perf_counter()
        answer = ask(*given, **named)
        seconds[name] = round(time.perf_counter() - start, 3)
        return answer

    info = timed("info", client.info)
    sample = timed("next", client.next_sample, "random", {})
    id, file = sample["id"], folder / sample["name"]
    timed("scan", urlretrieve, f"{address.rstrip('/')}/datastore/image?image={quote_plus(id)}", file)
    timed("infer", client.infer, "semiseg", id, {})
    timed("infer, made before", client.infer, "semiseg", id, {})
    original = timed("original label", client.download_label, id, "original")
    label, grid = read_label(Path(original))
    label[:, ::9, ::9] = 1
    write_label(folder / "mended.nii.gz", label, grid, file)
    params = {"label_info": [{"name": name, "idx": number} for number, name in enumerate(info["labels"], start=1)]}
    timed("save", client.save_label, id, str(folder / "mended.nii.gz"), params=params)
    return seconds


def _largest_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    found = re.search(r"VmHWM:\s+(\d+)", status)
    return round(int(found[1]) / 1024, 1) if found else round(psutil.Process(pid).memory_info().rss / 2**20, 1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scan", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    rounds = []
    for _ in range(arguments.rounds):
        with TemporaryDirectory() as place:
            rounds.append(one_round(arguments.model, arguments.scan, Path(place)))
    print(json.dumps({name: sorted(one[name] for one in rounds) for name in rounds[0]}, indent=1))
