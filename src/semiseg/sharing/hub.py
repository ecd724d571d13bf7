"""Models to and from a model hub, by huggingface-hub: five files by name, and nothing else is ever sent or read."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from ipaddress import ip_address
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import psutil

from semiseg.errors import ConfigError, DataError, ModelError, SemisegError, SharingError
from semiseg.files import atomic_folder, hash_files, read_json, write_json, write_text
from semiseg.prediction.byte_sizes import show_bytes
from semiseg.prediction.exchange import is_export
from semiseg.prediction.model import GRAPH_FILE, POSTPROCESSING_FILE, Model, load_model
from semiseg.prediction.postprocessing import read_steps
from semiseg.sharing.folder import FORM, SHARED, export_folder, is_shared
from semiseg.sharing.readme import README, for_repository, is_as_made
from semiseg.words import printable

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_MOST_BYTES = {"weights.safetensors": 4 << 30}
_MOST_BYTES_OF_TEXT = 4 << 20
"""Larger files are not ours: our largest networks have some 400 MB, and a card some KB."""
_NEEDED = ("card.json", "plan.toml", "weights.safetensors")
_SECONDS = 60.0
_MOST_SAID = 200
_CHUNK = 1 << 20
_COMMIT = re.compile(r"[0-9a-f]{40}")
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9][\w./-]{0,199}", re.ASCII)


@dataclass(frozen=True)
class Pushed:
    """What a hub has now. revision: of the commit. kept_readme: the README there is a person's, and was left."""

    url: str
    revision: str
    private: bool
    kept_readme: bool


@dataclass(frozen=True)
class Pulled:
    """What was fetched. revision: of the commit, also where a branch was asked for."""

    folder: Path
    revision: str


def push(model: Model, repository: str, *, public: bool = False, license: str = "") -> Pushed:
    """Send a model, as `export_folder` writes it, to a repository, which is made where it is not there: private, but
    where `public`.

    Raises `ConfigError` without a login, for a name that is none, and where the repository is public and `public` was
    not said; `SharingError` where the hub cannot be reached or refuses.
    """
    if not _REPOSITORY.fullmatch(repository):
        raise ConfigError(f"{repository}: is no repository. Give OWNER/NAME.")
    api = _hub()
    if not _has_login():
        raise ConfigError("the hub does not know who you are: log in with `hf auth login`.")
    with TemporaryDirectory() as scratch:
        folder = model.folder
        if not is_shared(model):
            folder = export_folder(model, Path(scratch) / "model", license=license)
        elif license:
            raise ConfigError(f"--license: {folder / README} states it. Change it there.")
        return _push(api, folder, repository, public=public)


def _push(api: HfApi, folder: Path, repository: str, *, public: bool) -> Pushed:
    from huggingface_hub import CommitOperationAdd

    try:
        private = _is_private(api, repository)
    except _NotThereError:
        with _asking(repository):
            api.create_repo(repository, private=not public, exist_ok=True)
        private = _is_private(api, repository)
    if not private and not public:
        raise ConfigError(f"{repository}: can be read by everybody. Give --public if that is meant.")
    mine = (folder / README).read_text(encoding="utf-8")
    kept = is_as_made(mine) and _has_own_words(api, repository)
    contents: dict[str, str | bytes] = {
        name: str(folder / name) for name in SHARED if name != README and (folder / name).is_file()
    }
    if not kept:
        contents[README] = for_repository(mine, repository).encode()
    sizes = {n: len(c) if isinstance(c, bytes) else Path(c).stat().st_size for n, c in contents.items()}
    with _asking(repository):
        commit = api.create_commit(
            repository,
            [CommitOperationAdd(path_in_repo=name, path_or_fileobj=what) for name, what in contents.items()],
            commit_message=f"Model of semiseg {version('semiseg')}",
        )
    there = _listed(api, repository, commit.oid)
    if wrong := [name for name, size in sizes.items() if there.sizes.get(name) != size]:
        raise SharingError(f"{repository}: {wrong[0]} did not arrive whole. Does a .gitignore there name it?")
    return Pushed(f"{api.endpoint}/{repository}", there.commit, private, kept)


def pull(repository: str, output: Path | None = None, *, revision: str = "") -> Pulled:
    """Fetch a model into a folder, by default one of the repository's name; every hash of its card is checked.

    revision: a branch, a tag or a commit; by default the newest. Raises `ConfigError` where something else is in the
    place of the folder; `SharingError` where the hub cannot be reached, or has no model of ours there; `ModelError` for
    a file that its card does not describe.
    """
    if not _REPOSITORY.fullmatch(repository):
        raise ConfigError(f"{repository}: is no repository. Give OWNER/NAME.")
    if revision and not _REVISION.fullmatch(revision):
        raise ConfigError(f"--revision {revision}: is no branch, tag or commit.")
    output = output or Path(repository.partition("/")[2])
    if output.exists() and not is_export(output, (FORM,)):
        raise ConfigError(f"{output}: is there already, and is no model that was pulled. Name a folder with --output.")
    api = _hub()
    found = _listed(api, repository, revision)
    where = f"{repository} at {found.commit[:12]}"
    if missing := [name for name in _NEEDED if name not in found.sizes]:
        raise SharingError(f"{where}: holds no model of semiseg (no {missing[0]}).")
    with atomic_folder(output, made=(*SHARED, GRAPH_FILE)) as temporary:
        try:
            for name in _NEEDED:
                _download(api, repository, found, name, temporary)
            card = read_json(temporary / "card.json")
            cleans = isinstance(card, dict) and card.get("postprocessing_sha256") is not None
            for name in (*((POSTPROCESSING_FILE,) if cleans else ()), README):
                if name in found.sizes:
                    _download(api, repository, found, name, temporary)
            _finish(temporary, {"repository": repository, "revision": found.commit})
        except (ModelError, DataError, ConfigError) as error:
            raise ModelError(str(error).replace(str(temporary), where)) from None
    return Pulled(output, found.commit)


@dataclass(frozen=True)
class _Listed:
    """A commit of a repository, and of those of our files that are there the sizes."""

    commit: str
    sizes: dict[str, int]


def _listed(api: HfApi, repository: str, revision: str) -> _Listed:
    with _asking(repository):
        info = api.model_info(repository, revision=revision or None, files_metadata=True, timeout=_SECONDS)
        commit = str(info.sha)
    if not _COMMIT.fullmatch(commit):
        raise SharingError(f"{repository}: the hub names no commit.")
    sizes = {}
    for file in info.siblings or ():
        if file.rfilename not in SHARED:
            continue
        most = _MOST_BYTES.get(file.rfilename, _MOST_BYTES_OF_TEXT)
        if not isinstance(file.size, int) or not 0 <= file.size <= most:
            raise SharingError(f"{repository}: {file.rfilename} has {file.size} bytes, and at most {most} are fetched.")
        sizes[file.rfilename] = file.size
    return _Listed(commit, sizes)


def _download(api: HfApi, repository: str, found: _Listed, name: str, folder: Path) -> None:
    """Fetch one file of a commit, as many bytes as were said."""
    from huggingface_hub import get_session, hf_raise_for_status

    url = f"{api.endpoint}/{repository}/resolve/{found.commit}/{name}"  # no part of which needs quotes
    size, so_far = found.sizes[name], 0
    with (
        _asking(repository),
        get_session().stream("GET", url, headers=_headers(), timeout=_SECONDS) as answer,
        (folder / name).open("xb") as file,
    ):
        hf_raise_for_status(answer)
        if answer.headers.get("content-encoding", "identity") != "identity":
            raise SharingError(f"{repository}: {name} came compressed, which was not asked for.")
        for chunk in answer.iter_raw(_CHUNK):
            so_far += len(chunk)
            if so_far > size:
                break
            file.write(chunk)
    if so_far != size:
        raise SharingError(f"{repository}: {name} has not the {size} bytes that the hub says. Try again.")


def _finish(folder: Path, source: dict[str, str]) -> None:
    """Check what was fetched, make the graph for other engines of the weights, and note where it came from."""
    from semiseg.models.build import onnx_graph
    from semiseg.prediction.engines.torch_engine import load_network

    model = load_model(folder)
    extra = folder / POSTPROCESSING_FILE
    if (expected := model.card.get("postprocessing_sha256")) is not None:
        if not extra.is_file() or hash_files([extra]) != expected:
            raise ModelError(f"{extra}: missing, or not the file that card.json describes.")
        read_steps(folder, model.plan.labels.organs)
    patch, sizes, labels = model.plan.patch, model.sizes, model.plan.labels
    taken = 4 * prod(patch) * (len(model.plan.channels) + 4 * sizes.features[0] + labels.count)
    if taken > (free := psutil.virtual_memory().available):
        raise ModelError(
            f"{folder / 'plan.toml'}: a tile of {patch} voxels takes {show_bytes(taken)}, and {show_bytes(free)} are "
            "free here."
        )
    (folder / GRAPH_FILE).write_bytes(onnx_graph(load_network(model), model.plan.patch))
    made = {"graph_sha256": hash_files([folder / GRAPH_FILE]), "form": FORM, "source": source}
    write_json(folder / "card.json", model.card | made)
    if not (folder / README).is_file():
        write_text(folder / README, "")


def _headers() -> dict[str, str]:
    """Of a request for a file: the hub's login, which the client leaves out where it is sent on to another host."""
    from huggingface_hub.utils._headers import build_hf_headers

    return build_hf_headers(library_name="semiseg", library_version=version("semiseg")) | {
        "accept-encoding": "identity"
    }


def _has_login() -> bool:
    from huggingface_hub import get_token

    return get_token() is not None


def _is_private(api: HfApi, repository: str) -> bool:
    with _asking(repository):
        return api.model_info(repository, timeout=_SECONDS).private is True


def _has_own_words(api: HfApi, repository: str) -> bool:
    """Whether a person wrote or changed the README that the hub has."""
    found = _listed(api, repository, "")
    if README not in found.sizes:
        return False
    with TemporaryDirectory() as scratch:
        _download(api, repository, found, README, Path(scratch))
        text = (Path(scratch) / README).read_text(encoding="utf-8", errors="replace")
    return not is_as_made(text)


def _hub() -> HfApi:
    """The hub's client, with its own login and no telemetry."""
    if find_spec("huggingface_hub") is None:
        raise ConfigError("sharing needs huggingface-hub, which is not installed: pip install '.[share]'")
    # Read when the library is imported. Files go by HTTP alone: one way, which is tested, and without a second cache.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_XET", "1")
    from huggingface_hub import HfApi
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    api = HfApi(library_name="semiseg", library_version=version("semiseg"))
    address = urlsplit(api.endpoint)
    if address.scheme != "https" and not _is_this_machine(address.hostname or ""):
        raise ConfigError(f"HF_ENDPOINT = {api.endpoint}: is not https, so that others could read your login.")
    return api


def _is_this_machine(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


class _NotThereError(SharingError):
    """The repository is not there, or not for this login."""


@contextmanager
def _asking(repository: str) -> Iterator[None]:
    """Within: whatever the hub's client raises becomes a sentence. Addresses are left out of it: they may hold keys."""
    from httpx2 import HTTPError
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except SemisegError:
        raise
    except GatedRepoError:
        raise SharingError(f"{repository}: its owner has to let you in. Ask on the hub's page.") from None
    except RepositoryNotFoundError:
        raise _NotThereError(
            f"{repository}: is not there, or not for you. If it is private: `hf auth login`."
        ) from None
    except RevisionNotFoundError:
        raise SharingError(f"{repository}: has no such revision.") from None
    except HfHubHTTPError as error:
        status, said = error.response.status_code, printable(error.server_message or "")[:_MOST_SAID]
        remedy = " Log in with `hf auth login`, by a token that may write." if status in (401, 403) else ""
        raise SharingError(f"{repository}: the hub refuses ({status}{': ' * bool(said)}{said}).{remedy}") from None
    except OfflineModeIsEnabled:
        raise SharingError(f"{repository}: HF_HUB_OFFLINE is set, so that the hub is not asked.") from None
    except HTTPError as error:
        raise SharingError(f"{repository}: the hub cannot be reached ({type(error).__name__}).") from None
    except OSError as error:
        if error.errno is not None:  # of the disk
            raise
        raise SharingError(f"{repository}: the hub's client fails ({type(error).__name__}).") from None
    except Exception as error:  # noqa: BLE001  # whatever a server makes the client stumble over
        raise SharingError(f"{repository}: the hub answers something else ({type(error).__name__}).") from None
