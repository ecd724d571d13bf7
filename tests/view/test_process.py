"""The server as a process: killed while it is used, started anew, without torch."""

from __future__ import annotations

import random
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import nibabel as nib
import numpy as np

from semiseg.decisions import of_organ, read_decisions, standing

PROCESS = Path(__file__).with_name("view_process.py")


@contextmanager
def process(folder: Path, cache: Path) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    cache.mkdir(exist_ok=True)
    started = subprocess.Popen(
        [sys.executable, PROCESS, folder, cache], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert started.stdout is not None
        line = started.stdout.readline()
        address = re.fullmatch(r"Open (http://127\.0\.0\.1:\d+)/\?token=([\w-]{43})\n", line)
        assert address, line
        with httpx.Client(base_url=address[1], timeout=30) as client:
            assert client.get("/", params={"token": address[2]}).status_code == 303
            yield started, client
    finally:
        started.kill()
        started.wait()
        for stream in (started.stdout, started.stderr):
            if stream:
                stream.close()


def test_no_acknowledged_decision_is_lost_when_the_server_is_killed(label_folder: Path, tmp_path: Path) -> None:
    """200 decisions and undos by a script, and kill -9 at three of them, some milliseconds after the request was sent:
    what was acknowledged is in the file in order, and at most the one that was under way besides."""
    draw = random.Random(5)
    acknowledged: list[int] = []
    kills = sorted(draw.sample(range(20, 180), 3))
    done, uncertain = 0, 0
    while done < 200:
        with process(label_folder, tmp_path / "cache") as (started, client):
            digests = {
                f"case_{number}": client.get(f"/api/cases/case_{number}").json()["label_sha256"] for number in range(12)
            }
            before = len(read_decisions(label_folder / "decisions.jsonl"))
            assert before in (len(acknowledged), len(acknowledged) + uncertain)
            acknowledged += [-1] * (before - len(acknowledged))
            uncertain = 0
            while done < 200:
                done += 1
                case = f"case_{draw.randrange(12)}"
                undo = draw.random() < 0.1
                body = {
                    "case": case,
                    "organ": draw.choice([None, "liver", "spleen"]),
                    "decision": draw.choice(["accept", "set_aside", "label", "unsure"]),
                    "label_sha256": digests[case],
                    "seconds": 1.0,
                }
                request = client.build_request(
                    "POST", "/api/decisions/undo" if undo else "/api/decisions", json={} if undo else body
                )
                if kills and done == kills[0]:
                    kills.pop(0)
                    killed_while_asked(client, request, started, draw.uniform(0, 0.004))
                    uncertain = 1
                    break
                answer = client.send(request)
                if undo and answer.status_code == 409:
                    continue
                assert answer.status_code == 200
                acknowledged.append(answer.json()["number"])
    lines = read_decisions(label_folder / "decisions.jsonl")
    assert len(acknowledged) <= len(lines) <= len(acknowledged) + uncertain
    assert [line["number"] for line in lines] == list(range(1, len(lines) + 1))
    # An undo answers with the line that it took back; the others with their own number.
    for number, (said, line) in enumerate(zip(acknowledged, lines, strict=False), start=1):
        assert said in (-1, number) or (line["decision"] == "undo" and line["undoes"] == said)
    with process(label_folder, tmp_path / "cache") as (_, client):
        shown = {row["id"]: row["decision"] for row in client.get("/api/cases").json()["rows"]}
    stand = standing(lines)
    for case, decision in shown.items():
        found = {line["decision"] if (line := of_organ(stand, case, organ)) else None for organ in ("liver", "spleen")}
        assert decision == (None if None in found else found.pop() if len(found) == 1 else "mixed")


def killed_while_asked(
    client: httpx.Client, request: httpx.Request, started: subprocess.Popen[str], wait: float
) -> None:
    """Kill the server so many seconds after it was asked: before, while or after it writes."""
    timer = threading.Timer(wait, started.kill)
    timer.start()
    with suppress(httpx.TransportError):
        client.send(request)
    timer.join()
    started.wait()


def test_pages_are_served_without_torch(run: Path) -> None:
    """By a process of its own: every kind of answer, and no torch in its memory."""
    code = f"""
import sys
sys.path.insert(0, {str(PROCESS.parent)!r})
from pathlib import Path
from view_server import serving
with serving(Path({str(run)!r})) as served:
    case = served.json("/api/cases", role="unlabelled")["rows"][0]["id"]
    served.decide(case, "accept")
    for path in ("/api/info", "/api/run", "/api/review", f"/api/cases/{{case}}", f"/api/cases/{{case}}/strip.png",
                 f"/api/cases/{{case}}/thumbnail.png", f"/api/cases/{{case}}/layers/scan.nii"):
        assert served.get(path).status_code == 200, path
print(sorted(name for name in ("torch", "openvino", "onnxruntime") if name in sys.modules))
"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert answer.stdout == "[]\n", answer.stderr


def test_ctrl_c_ends_it(label_folder: Path, tmp_path: Path) -> None:
    with process(label_folder, tmp_path / "cache") as (started, client):
        assert client.get("/api/info").status_code == 200
        started.send_signal(signal.SIGINT)
        assert started.wait(timeout=20) == 0


def test_it_ends_quietly_while_it_works(label_folder: Path, tmp_path: Path) -> None:
    with process(label_folder, tmp_path / "cache") as (started, client):
        port, cookies = client.base_url.port, "; ".join(f"{name}={value}" for name, value in client.cookies.items())
        with socket.create_connection(("127.0.0.1", port or 0)) as other:  # asks, and does not read
            for number in range(12):
                asked = f"GET /api/cases/case_{number}/strip.png HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
                other.sendall(f"{asked}Cookie: {cookies}\r\n\r\n".encode())
            started.send_signal(signal.SIGINT)
            _, err = started.communicate(timeout=30)
    assert (started.returncode, err) == (0, "")


def test_nothing_of_a_patient_is_told(tmp_path: Path) -> None:
    """What headers hold besides the geometry is neither sent nor printed, nor are requests logged."""
    image = nib.Nifti1Image(np.zeros((8, 7, 6), dtype=np.int16), np.eye(4))
    for field in ("descrip", "aux_file", "db_name", "intent_name"):
        image.header[field] = "DOE^JANE"
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"DOE^JANE 1961-02-03"))
    for folder in ("images", "labels"):
        (tmp_path / "data" / folder).mkdir(parents=True)
        nib.save(image, tmp_path / "data" / folder / "case_1.nii.gz")
    (tmp_path / "data" / "labels.json").write_text('{"liver": 1}', encoding="utf-8")
    with process(tmp_path / "data", tmp_path / "cache") as (started, client):
        for path in ("/api/info", "/api/cases", "/api/cases/case_1", "/api/review", "/api/cases/case_1/strip.png"):
            assert b"DOE" not in client.get(path).content
        for layer in client.get("/api/cases/case_1").json()["layers"]:
            sent = client.get(layer["url"])
            assert sent.status_code == 200
            assert b"DOE" not in sent.content
        assert client.get("/api/cases/nobody").status_code == 404
        started.send_signal(signal.SIGINT)
        out, err = started.communicate(timeout=20)
    assert "DOE" not in out
    assert err == ""
