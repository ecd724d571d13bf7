"""`semiseg serve` as a process: what it says, that it ends, and that it needs no torch to review."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import nibabel as nib
import numpy as np

CODE = "import sys; from semiseg.cli import main; main(sys.argv[1:])"


@contextmanager
def process(*arguments: object) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    command = [sys.executable, "-c", CODE, "serve", *map(str, arguments)]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert started.stdout is not None
        said = ""
        while "Stop with Ctrl-C." not in said:
            line = started.stdout.readline()
            assert line, started.communicate()[1]
            said += line
        address = re.search(r"3D Slicer: http://[\w.-]+:(\d+)(/t/[\w-]{43}/)\n", said)
        assert address, said
        with httpx.Client(base_url=f"http://127.0.0.1:{address[1]}{address[2]}", timeout=30) as client:
            yield started, client
    finally:
        started.kill()
        started.wait()
        for stream in (started.stdout, started.stderr):
            if stream:
                stream.close()


def patients(folder: Path) -> Path:
    """A dataset whose scans and labels name a patient wherever a header has room."""
    image = nib.Nifti1Image(np.zeros((8, 7, 6), dtype=np.int16), np.eye(4))
    for field in ("descrip", "aux_file", "db_name", "intent_name"):
        image.header[field] = "DOE^JANE"
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"DOE^JANE 1961-02-03"))
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
        nib.save(image, folder / name / "DOE_JANE.nii.gz")
    (folder / "labels.json").write_text('{"liver": 1}', encoding="utf-8")
    return folder


def test_nothing_of_a_patient_is_told(tmp_path: Path) -> None:
    """Neither printed, nor sent with what is said of scans; names of files are ids, which the client asks for."""
    with process("--review-only", "--data", patients(tmp_path / "data"), "--output", tmp_path / "review") as (
        one,
        client,
    ):
        for path in ("info/", "datastore/?output=all"):
            answer = client.get(path)
            assert answer.status_code == 200
            assert b"DOE^JANE" not in answer.content
        for method, path, status in (
            ("POST", "activelearning/random", 200),
            ("GET", "datastore/image?image=DOE_JANE", 200),
            ("GET", "datastore/label?label=DOE_JANE&tag=final", 404),
            ("PUT", "datastore/label?image=DOE_JANE", 400),
            ("POST", "infer/semiseg?image=DOE_JANE", 404),
            ("GET", "datastore/image?image=DOE^JANE", 404),
        ):
            assert client.request(method, path).status_code == status
        broken = {"label": ("DOE^JANE.nii.gz", b"broken")}
        said = client.put("datastore/label?image=DOE_JANE", files=broken)
        assert said.status_code == 422
        assert "DOE" not in said.text
        one.send_signal(signal.SIGINT)
        out, err = one.communicate(timeout=20)
        assert (one.returncode, out, err) == (0, "", "")
    kept = [path for path in (tmp_path / "review").rglob("*") if path.is_file()]
    assert not [path for path in kept if b"DOE^JANE" in path.read_bytes()]


def test_other_machines_are_let_in_with_a_warning_alone(tmp_path: Path) -> None:
    data = patients(tmp_path / "data")
    with process("--review-only", "--data", data, "--output", tmp_path / "review", "--host", "0.0.0.0") as (
        one,
        client,
    ):
        other = client.get("info/", headers={"Host": f"workstation.example:{client.base_url.port}"})
        assert other.status_code == 200  # by any name that the network has for it
        one.send_signal(signal.SIGINT)
        _, err = one.communicate(timeout=20)
        assert "warning: --host 0.0.0.0" in err
        assert "nothing is encrypted" in err


def test_a_review_needs_no_torch(tmp_path: Path) -> None:
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from rest_server import serving
from semiseg.serve.work import open_work
with serving(open_work(None, Path({str(patients(tmp_path / "data"))!r}), Path({str(tmp_path / "review")!r}))) as served:
    for path in ("info/", "datastore/?output=all", "datastore/image?image=DOE_JANE"):
        assert served.client.get(path).status_code == 200, path
    label = Path({str(tmp_path)!r}) / "data" / "labels" / "DOE_JANE.nii.gz"
    saved = served.client.put("datastore/label?image=DOE_JANE", files={{"label": label.open("rb")}})
    assert saved.json()["became"] == "accepted as it was", saved.text
print(sorted(name for name in ("torch", "openvino", "onnxruntime") if name in sys.modules))
"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert answer.stdout == "[]\n", answer.stderr
