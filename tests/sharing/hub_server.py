"""A model hub in a thread: the part of its protocol that huggingface-hub speaks for models. It notes what is asked."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_a_secret_of_the_test"


@dataclass
class Repository:
    """Commits, the newest last, each with all of its files."""

    private: bool = True
    commits: list[dict[str, bytes]] = field(default_factory=lambda: [{}])

    def sha(self, index: int = -1) -> str:
        index %= len(self.commits)
        return hashlib.sha1(f"{index} {sorted(self.commits[index].items())}".encode()).hexdigest()

    def files(self, revision: str) -> dict[str, bytes] | None:
        if revision == "main":
            return self.commits[-1]
        return next((files for n, files in enumerate(self.commits) if self.sha(n) == revision), None)


@dataclass
class Hub:
    """What it holds and what it was asked. sizes: said of a file in the place of its own. moved: where a file is to be
    fetched from. ignored: files that it does not keep."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    uploads: dict[str, bytes] = field(default_factory=dict)
    asked: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)
    moved: dict[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    compressed: bool = False
    commit: str | None = None
    url: str = ""

    def paths(self) -> list[str]:
        return [path for _, path, _ in self.asked]

    def put(self, name: str, files: dict[str, bytes], *, private: bool = True) -> Repository:
        self.repositories[name] = Repository(private, [files])
        return self.repositories[name]


@contextmanager
def hub_server() -> Iterator[Hub]:
    hub = Hub()

    class Handler(_Handler):
        state = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    state: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer(b"")

    def do_PUT(self) -> None:
        self._answer(self._body())

    def do_POST(self) -> None:
        self._answer(self._body())

    def _body(self) -> bytes:
        if "content-length" in self.headers:
            return self.rfile.read(int(self.headers["content-length"]))
        parts = []
        while size := int(self.rfile.readline(), 16):  # in chunks
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _send(self, status: int, body: bytes | dict[str, Any] | list[Any] = b"", **headers: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _answer(self, body: bytes) -> None:
        address = urlsplit(self.path)
        path, query = unquote(address.path), parse_qs(address.query)
        self.state.asked.append((self.command, path, {k.lower(): v for k, v in self.headers.items()}))
        known = self.headers.get("authorization") == f"Bearer {TOKEN}"
        if path == "/broken":
            return self._send(500, {"error": "out of order"})
        if path == "/api/validate-yaml":
            return self._send(200, {"errors": [], "warnings": []})
        if path == "/api/repos/create":
            asked = json.loads(body)
            if not known:
                return self._send(401, {"error": "Invalid username or password."})
            name = f"{asked['organization']}/{asked['name']}"
            self.state.repositories[name] = Repository(asked.get("visibility") != "public")
            return self._send(200, {"url": f"{self.state.url}/{name}"})
        if match := re.fullmatch(r"/lfs/([0-9a-f]{64})", path):
            assert hashlib.sha256(body).hexdigest() == match[1]
            self.state.uploads[match[1]] = body
            return self._send(200, {})
        match = re.fullmatch(r"(?:/api/models)?/([^/]+/[^/]+?)(?:\.git)?(?:/([a-z-]+)/?(.*))?", path)
        name, verb, rest = (match[1], match[2] or "revision", match[3] or "main") if match else ("", "", "")
        repository = self.state.repositories.get(name)
        if repository is None or (repository.private and not known):
            return self._send(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        writes = verb in ("preupload", "commit", "info")
        if writes and not known:
            return self._send(403, {"error": "Forbidden"})
        handler = getattr(self, f"_{verb}")
        return handler(repository, name, rest, body, query)  # type: ignore[no-any-return]

    def _revision(self, repository: Repository, name: str, rest: str, _body: bytes, query: dict[str, Any]) -> None:
        files = repository.files(rest)
        if files is None:
            return self._send(404, {"error": "Invalid rev id"}, X_Error_Code="RevisionNotFound")
        sha = repository.sha() if rest == "main" else rest
        siblings = [
            {"rfilename": path, "size": self.state.sizes.get(path, len(data)), "blobId": "0" * 40}
            for path, data in files.items()
        ]
        info = {"id": name, "sha": self.state.commit or sha, "private": repository.private, "tags": []}
        return self._send(200, info | {"siblings": siblings if "blobs" in query else []})

    def _preupload(self, _repository: Repository, _name: str, _rest: str, body: bytes, _query: object) -> None:
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": file["path"] in self.state.ignored,
            }
            for file in json.loads(body)["files"]
        ]
        return self._send(200, {"files": files})

    def _info(self, _repository: Repository, _name: str, _rest: str, body: bytes, _query: object) -> None:
        objects = [
            one | {"actions": {"upload": {"href": f"{self.state.url}/lfs/{one['oid']}"}}}
            for one in json.loads(body)["objects"]
        ]
        return self._send(200, {"transfer": "basic", "objects": objects})

    def _commit(self, repository: Repository, name: str, _rest: str, body: bytes, _query: object) -> None:
        files = dict(repository.commits[-1])
        for line in body.splitlines():
            one = json.loads(line)
            value = one["value"]
            if one["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif one["key"] == "lfsFile":
                files[value["path"]] = self.state.uploads[value["oid"]]
            else:
                assert one["key"] == "header"
        repository.commits.append(files)
        url = f"{self.state.url}/{name}/commit/{repository.sha()}"
        return self._send(200, {"commitUrl": url, "commitOid": repository.sha()})

    def _resolve(self, repository: Repository, _name: str, rest: str, _body: bytes, _query: object) -> None:
        revision, _, path = rest.partition("/")
        files = repository.files(revision) or repository.commits[-1]
        if path in self.state.moved:
            return self._send(302, Location=self.state.moved[path])
        if path not in files:
            return self._send(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound")
        if self.state.compressed:
            return self._send(200, files[path], Content_Encoding="gzip")
        return self._send(200, files[path])
