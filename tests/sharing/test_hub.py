"""A model goes to a hub and comes back: a real server of this machine, which also has repositories that mean harm."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("huggingface_hub")

from hub_server import TOKEN, Hub, hub_server

from semiseg.prediction.engines.opening import open_engine
from semiseg.prediction.model import load_model
from semiseg.sharing.folder import SHARED, export_folder
from semiseg.sharing.readme import is_as_made

Command = Callable[..., Any]
NAME = "clinic/organs"
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),  # of how the client sends a large file
]


@pytest.fixture
def files(run: Path, tmp_path: Path) -> dict[str, bytes]:
    """A model as a hub has it."""
    folder = export_folder(load_model(run), tmp_path / "shared")
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def refused(answer: Any, *parts: str) -> None:
    assert answer.code == 2, answer
    assert "Traceback" not in answer.err
    for part in parts:
        assert part in answer.err, answer.err


def nothing_is_left(folder: Path, output: Path) -> None:
    """Neither a model nor a part of one."""
    assert not output.exists()
    assert [name.name for name in folder.iterdir() if name.name.startswith(".tmp")] == []


def test_a_model_comes_back_as_it_was(hub: Hub, run: Path, semiseg_command: Command, tmp_path: Path) -> None:
    pushed = semiseg_command("push", run, NAME)
    assert pushed.code == 0, pushed.err
    repository = hub.repositories[NAME]
    assert repository.private
    assert set(repository.commits[-1]) == set(SHARED)
    assert pushed.out.splitlines()[-1] == f"semiseg pull {NAME} --revision {repository.sha()}"
    assert f"semiseg pull {NAME}\nsemiseg predict organs " in repository.commits[-1]["README.md"].decode()
    pulled = semiseg_command("pull", NAME, "--output", tmp_path / "back")
    assert pulled.code == 0, pulled.err
    assert pulled.out.splitlines()[0] == f"{tmp_path / 'back'}: {NAME} --revision {repository.sha()}"
    before, after = load_model(run), load_model(tmp_path / "back")
    assert after.hash == before.hash
    assert after.card["source"] == {"repository": NAME, "revision": repository.sha()}
    tile = np.random.default_rng(0).standard_normal((1, 2, 8, 8, 12)).astype(np.float32)
    for engine in ("torch", "onnx"):  # the graph was made of the weights again
        np.testing.assert_allclose(
            open_engine(after, engine).run(tile), open_engine(before, engine).run(tile), atol=1e-5
        )


def test_what_is_pulled_or_exported_is_pushed_as_it_is(
    hub: Hub, run: Path, semiseg_command: Command, tmp_path: Path
) -> None:
    assert semiseg_command("export", run, "--to", "model", "--output", tmp_path / "out").code == 0
    readme = tmp_path / "out" / "README.md"
    readme.write_text(readme.read_text().replace("## Use", "## Our own words, for OWNER/NAME"))
    assert semiseg_command("push", tmp_path / "out", NAME).code == 0
    assert b"## Our own words, for clinic/organs" in hub.repositories[NAME].commits[-1]["README.md"]
    assert semiseg_command("pull", NAME, "--output", tmp_path / "back").code == 0
    assert semiseg_command("push", tmp_path / "back", "clinic/again").code == 0
    again, first = hub.repositories["clinic/again"].commits[-1], hub.repositories[NAME].commits[-1]
    assert set(again) == set(SHARED)
    assert again["weights.safetensors"] == first["weights.safetensors"]


def test_a_readme_that_a_person_changed_on_the_hub_stays(hub: Hub, run: Path, semiseg_command: Command) -> None:
    assert semiseg_command("push", run, NAME).code == 0
    made = hub.repositories[NAME].commits[-1]["README.md"]
    assert is_as_made(made.decode())
    hub.repositories[NAME].commits.append(hub.repositories[NAME].commits[-1] | {"README.md": made + b"\nMine.\n"})
    answer = semiseg_command("push", run, NAME)
    assert answer.code == 0
    assert "The README there was changed by hand, and is left" in answer.out
    assert hub.repositories[NAME].commits[-1]["README.md"].endswith(b"Mine.\n")


def test_nobody_publishes_without_saying_so(hub: Hub, run: Path, semiseg_command: Command) -> None:
    assert semiseg_command("push", run, NAME, "--public").code == 0
    assert not hub.repositories[NAME].private
    commits = len(hub.repositories[NAME].commits)
    refused(semiseg_command("push", run, NAME), "can be read by everybody. Give --public")
    assert len(hub.repositories[NAME].commits) == commits


def test_a_file_that_the_hub_does_not_keep_is_noticed(hub: Hub, run: Path, semiseg_command: Command) -> None:
    hub.ignored = ("plan.toml",)
    refused(semiseg_command("push", run, NAME), "plan.toml did not arrive whole")


def test_the_token_is_the_hubs_login_and_is_not_shown(
    hub: Hub, run: Path, semiseg_command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    answers = [semiseg_command("push", run, NAME), semiseg_command("pull", NAME, "--output", tmp_path / "back")]
    assert [answer.code for answer in answers] == [0, 0]
    assert {headers.get("authorization") for _, path, headers in hub.asked if "/lfs/" not in path} == {
        f"Bearer {TOKEN}"
    }
    monkeypatch.setenv("HF_TOKEN", "hf_another_secret")
    answers += [semiseg_command("push", run, NAME), semiseg_command("pull", NAME, "--output", tmp_path / "none")]
    assert [answer.code for answer in answers[2:]] == [2, 2]
    refused(answers[3], "is not there, or not for you")
    assert not [answer for answer in answers if "secret" in answer.out + answer.err]
    kept = [file for file in tmp_path.rglob("*") if file.is_file() and b"secret" in file.read_bytes()]
    assert kept == []


def test_without_a_login_nothing_is_sent(
    hub: Hub, run: Path, semiseg_command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
    refused(semiseg_command("push", run, NAME), "hf auth login")
    assert hub.asked == []


def test_a_login_is_not_sent_in_the_clear(
    hub: Hub, semiseg_command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://mirror.example")
    refused(semiseg_command("pull", NAME, "--output", tmp_path / "out"), "is not https")


def test_other_files_are_neither_asked_for_nor_written(
    hub: Hub, files: dict[str, bytes], semiseg_command: Command, tmp_path: Path
) -> None:
    """A pickle, a program, names that lead out of the folder, a graph that may name other files."""
    more = ["pytorch_model.bin", "weights.pt", "run.py", "../../escaped.json", "/etc/escaped.json", "network.onnx"]
    hub.put(NAME, files | {name: pickle.dumps(print) for name in more})
    before = set(tmp_path.rglob("*"))
    assert semiseg_command("pull", NAME, "--output", tmp_path / "out").code == 0
    fetched = [path.rpartition("/")[2] for path in hub.paths() if "/resolve/" in path]
    assert sorted(fetched) == sorted(SHARED)
    made = {str(path.relative_to(tmp_path)) for path in set(tmp_path.rglob("*")) - before}
    assert made == {"out", "out/network.onnx", *(f"out/{name}" for name in SHARED)}
    assert (tmp_path / "out" / "network.onnx").read_bytes() != pickle.dumps(print)
    assert not any(path.is_symlink() for path in tmp_path.rglob("*"))


def changed_card(files: dict[str, bytes], **changes: object) -> dict[str, bytes]:
    return files | {"card.json": json.dumps(json.loads(files["card.json"]) | changes).encode()}


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda f: changed_card(f, weights_sha256="0" * 64), ["weights.safetensors: missing, or not the file that"]),
        (lambda f: changed_card(f, plan_sha256="0" * 64), ["plan.toml: missing, or not the file that card.json"]),
        (lambda f: changed_card(f, postprocessing_sha256="0" * 64), ["postprocessing.json: missing, or not the file"]),
        (lambda f: f | {"plan.toml": b"../../../etc/passwd"}, ["not valid TOML"]),  # what a link is on a hub
        (lambda f: f | {"card.json": b"[" * 100_000}, ["not valid JSON"]),
        (lambda f: f | {"card.json": b"[]"}, ["not a card of format"]),
        (lambda f: {"config.json": b"{}"}, ["holds no model of semiseg (no card.json)"]),
        (lambda f: with_weights(f, pickle.dumps(print)), ["weights.safetensors: cannot be read"]),
        (lambda f: with_weights(f, (1 << 60).to_bytes(8, "little") + b"{}"), ["weights.safetensors: cannot be read"]),
        (lambda f: with_plan(f, b"patch = [\n    8,", b"patch = [\n    80000,"), ["plan.toml: patch must be"]),
        (
            lambda f: with_plan(f, b"8,\n    8,\n    12,", b"4096,\n    4096,\n    4096,"),
            ["a tile of (4096, 4096, 4096)"],
        ),
        (lambda f: with_plan(f, b"    4,\n    6,", b"    4,\n    7,"), ["does not fit plan.toml"]),
        (lambda f: with_plan(f, b"    4,\n    6,", b"    8192,\n    8192,"), ["does not fit plan.toml"]),
    ],
)
def test_a_repository_that_does_not_fit_its_card_leaves_nothing(
    change: Callable[[dict[str, bytes]], dict[str, bytes]],
    parts: list[str],
    hub: Hub,
    files: dict[str, bytes],
    semiseg_command: Command,
    tmp_path: Path,
) -> None:
    hub.put(NAME, change(files))
    answer = semiseg_command("pull", NAME, "--output", tmp_path / "out")
    refused(answer, *parts, f"{NAME} at ")
    assert str(tmp_path) not in answer.err
    nothing_is_left(tmp_path, tmp_path / "out")


def with_weights(files: dict[str, bytes], weights: bytes) -> dict[str, bytes]:
    """A card that describes them, as who means harm would write."""
    return changed_card(files | {"weights.safetensors": weights}, weights_sha256=hash_of(weights))


def with_plan(files: dict[str, bytes], old: bytes, new: bytes) -> dict[str, bytes]:
    plan = files["plan.toml"].replace(old, new)
    assert plan != files["plan.toml"]
    return changed_card(files | {"plan.toml": plan}, plan_sha256=hash_of(plan))


def hash_of(data: bytes) -> str:
    """As `hash_files` makes it."""
    return hashlib.sha256(hashlib.sha256(data).digest()).hexdigest()


@pytest.mark.parametrize("name", ["weights.safetensors", "card.json", "README.md"])
def test_a_huge_file_is_not_fetched(
    name: str, hub: Hub, files: dict[str, bytes], semiseg_command: Command, tmp_path: Path
) -> None:
    hub.put(NAME, files)
    hub.sizes[name] = 1 << 40
    refused(semiseg_command("pull", NAME, "--output", tmp_path / "out"), f"{name} has {1 << 40} bytes, and at most")
    assert not [path for path in hub.paths() if "/resolve/" in path]
    nothing_is_left(tmp_path, tmp_path / "out")


@pytest.mark.parametrize("said", [100, 10_000_000])
def test_no_more_than_was_said_is_read(
    said: int, hub: Hub, files: dict[str, bytes], semiseg_command: Command, tmp_path: Path
) -> None:
    hub.put(NAME, files)
    hub.sizes["weights.safetensors"] = said
    refused(semiseg_command("pull", NAME, "--output", tmp_path / "out"), f"has not the {said} bytes")
    nothing_is_left(tmp_path, tmp_path / "out")


def test_what_would_unpack_is_refused(
    hub: Hub, files: dict[str, bytes], semiseg_command: Command, tmp_path: Path
) -> None:
    hub.put(NAME, files | {"card.json": gzip.compress(bytes(1 << 20))})
    hub.compressed = True
    refused(semiseg_command("pull", NAME, "--output", tmp_path / "out"), "card.json came compressed")


def test_another_host_gets_no_login(
    hub: Hub, files: dict[str, bytes], semiseg_command: Command, tmp_path: Path
) -> None:
    """Large files lie with another host at times, to which the hub sends on."""
    hub.put(NAME, files)
    with hub_server() as other:
        other.put("cdn/files", files, private=False)
        hub.moved["weights.safetensors"] = f"{other.url}/cdn/files/resolve/main/weights.safetensors"
        assert semiseg_command("pull", NAME, "--output", tmp_path / "out").code == 0
        assert [headers.get("authorization") for _, _, headers in other.asked] == [None]
    hub.moved["weights.safetensors"] = f"{hub.url}/no/where/resolve/main/weights.safetensors"
    refused(semiseg_command("pull", NAME, "--output", tmp_path / "again"), "is not there, or not for you")
    hub.moved["weights.safetensors"] = f"{hub.url}/broken"
    refused(semiseg_command("pull", NAME, "--output", tmp_path / "again"), f"{NAME}: the hub refuses (500")
    hub.moved["weights.safetensors"] = "file:///etc/passwd"
    answer = semiseg_command("pull", NAME, "--output", tmp_path / "again")
    refused(answer, "the hub cannot be reached (UnsupportedProtocol)")
    nothing_is_left(tmp_path, tmp_path / "again")


def test_a_revision_is_a_commit_even_where_the_hub_names_none(
    hub: Hub, files: dict[str, bytes], semiseg_command: Command, tmp_path: Path
) -> None:
    hub.put(NAME, files)
    hub.commit = "main\x1b[2J"
    refused(semiseg_command("pull", NAME, "--output", tmp_path / "out"), "the hub names no commit")


def test_an_older_revision(hub: Hub, files: dict[str, bytes], semiseg_command: Command, tmp_path: Path) -> None:
    repository = hub.put(NAME, files)
    first = repository.sha()
    repository.commits.append({"README.md": b"nothing else"})
    refused(semiseg_command("pull", NAME, "--output", tmp_path / "new"), "holds no model of semiseg")
    answer = semiseg_command("pull", NAME, "--output", tmp_path / "old", "--revision", first, "--quiet")
    assert (answer.code, answer.out) == (0, f"{tmp_path / 'old'}: {NAME} --revision {first}\n")
    refused(semiseg_command("pull", NAME, "--output", tmp_path / "x", "--revision", "f" * 40), "no such revision")


@pytest.mark.parametrize("name", ["organs", "a/b/c", "../x", "a/..", "a/b?x=1", "https://a/b", "-x/y", "a/b\n"])
def test_a_repository_has_an_owner_and_a_name(
    name: str, hub: Hub, run: Path, semiseg_command: Command, tmp_path: Path
) -> None:
    for answer in (semiseg_command("push", run, "--", name), semiseg_command("pull", "--", name)):
        refused(answer, "Give OWNER/NAME.")
    refused(semiseg_command("pull", "a/b", "--revision", "../x"), "is no branch, tag or commit")
    assert hub.asked == []


def test_what_is_in_the_way_stays(hub: Hub, files: dict[str, bytes], semiseg_command: Command, tmp_path: Path) -> None:
    hub.put(NAME, files)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    refused(semiseg_command("pull", NAME, "--output", tmp_path / "mine"), "is there already")
    assert semiseg_command("pull", NAME, "--output", tmp_path / "out").code == 0
    (tmp_path / "out" / "notes.txt").write_text("mine")
    assert semiseg_command("pull", NAME, "--output", tmp_path / "out").code == 0  # the newest takes its place
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


def test_without_the_library(
    run: Path, semiseg_command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("semiseg.sharing.hub.find_spec", lambda name: None)
    refused(semiseg_command("push", run, NAME), "pip install '.[share]'")
    refused(semiseg_command("pull", NAME), "pip install '.[share]'")


def test_a_hub_that_is_not_there(
    semiseg_command: Command, monkeypatch: pytest.MonkeyPatch, hub: Hub, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    refused(semiseg_command("pull", NAME, "--output", tmp_path / "out"), "the hub cannot be reached (ConnectError)")


def test_as_a_person_calls_it(run: Path, tmp_path: Path) -> None:
    """In processes, by the client's own variables, with a home of its own: what it asks for, and what it leaves."""
    home = tmp_path / "home"
    home.mkdir()
    with hub_server() as hub:
        known = ("PATH", "PYTHONPATH", "OMP_NUM_THREADS", "XDG_CACHE_HOME")
        environment = {key: os.environ[key] for key in known if key in os.environ}
        environment |= {"HOME": str(home), "HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HOME": str(home / "hf")}
        for words in (["push", str(run), NAME, "--quiet"], ["pull", NAME]):
            done = subprocess.run(
                [sys.executable, "-m", "semiseg", *words],
                env=environment,
                cwd=tmp_path,
                capture_output=True,
                text=True,
                check=False,
            )
            assert (done.returncode, done.stderr) == (0, ""), done
        allowed = {"validate-yaml", "repos", "models", "lfs", NAME.partition("/")[0]}
        assert {path.split("/")[2 if path.startswith("/api/") else 1] for path in hub.paths()} <= allowed
        assert not [agent for _, _, h in hub.asked if "agent/" in (agent := h.get("user-agent", ""))]
    assert load_model(tmp_path / "organs").hash == load_model(run).hash
    assert [str(file) for file in home.rglob("*") if file.is_file()] == []
    shutil.rmtree(tmp_path / "organs")
