"""Who is let in, and what is refused: by a real server, asked by whoever."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator

import numpy as np
import pytest
from view_server import TOKEN, Served, label_maps, save_label, serving

from semiseg.decisions import read_decisions
from semiseg.view import deciding
from semiseg.view.command import bound_socket


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = label_maps(tmp_path_factory.mktemp("guarded") / "labels")
    for name in HOSTILE:
        save_label(folder / f"{name}.nii.gz", np.ones((4, 5, 6), dtype=np.uint8))
    with serving(folder) as found:
        yield found


HOSTILE = ("<img src=x onerror=alert(1)>&\"'", "x..%2f..%2fetc", "a b?c#d;e=1")


def ask(served: Served, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, dict[str, str], bytes]:
    """A request as it is written, with the cookie where none is given."""
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=10)
    try:
        connection.putrequest(method, path, skip_host="Host" in headers)
        headers.setdefault("Cookie", f"semiseg-{served.port}={TOKEN}")
        if body:
            headers.setdefault("Content-Length", str(len(body)))
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value)
        connection.endheaders(body or None)
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def decision(served: Served) -> bytes:
    digest = served.json("/api/cases/case_1")["label_sha256"]
    return json.dumps({"case": "case_1", "decision": "accept", "label_sha256": digest}).encode()


JSON = {"Content_Type": "application/json"}


def test_the_token_is_exchanged_for_a_cookie_that_scripts_cannot_read(served: Served) -> None:
    status, headers, _ = ask(served, "GET", f"/?token={TOKEN}", Cookie="")
    assert (status, headers["location"]) == (303, "/")
    cookie = headers["set-cookie"].lower()
    assert cookie.startswith(f"semiseg-{served.port}={TOKEN}")
    assert "httponly" in cookie
    assert "samesite=lax" in cookie


@pytest.mark.parametrize(
    "path", ["/", "/api/info", "/api/cases", "/static/app.js", "/report", "/?token=guess", "/api/no"]
)
@pytest.mark.parametrize("cookie", ["", "semiseg=" + TOKEN, "semiseg-{port}=guess", "semiseg-{port}="])
def test_without_the_token_nothing_is_told(served: Served, path: str, cookie: str) -> None:
    status, _, body = ask(served, "GET", path, Cookie=cookie.format(port=served.port))
    assert status == 403
    assert b"case_" not in body
    assert "error" in json.loads(body)


def test_a_browser_without_the_token_gets_a_sentence(served: Served) -> None:
    status, headers, body = ask(served, "GET", "/", Cookie="", Accept="text/html,application/xml;q=0.9,*/*;q=0.8")
    assert status == 403
    assert headers["content-type"].startswith("text/html")
    assert b"<p>Open the address that was printed at the start" in body


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:{port}", "127.0.0.1.evil", "localhost.evil:{port}", "localhost:1:evil", ""],
)
def test_a_foreign_host_is_refused(served: Served, host: str) -> None:
    """DNS rebinding: a name of someone else that leads to 127.0.0.1."""
    status, _, body = ask(served, "GET", "/api/cases", Host=host.format(port=served.port))
    assert status in (400, 421)
    assert b"case_" not in body


def test_both_names_of_this_machine_are_served(served: Served) -> None:
    for port in (served.port, 9000):  # ssh -L 9000:127.0.0.1:PORT
        for host in (f"127.0.0.1:{port}", f"localhost:{port}"):
            assert ask(served, "GET", "/api/info", Host=host)[0] == 200
            given = JSON | {"Host": host, "Origin": f"http://{host}", "Sec_Fetch_Site": "same-origin"}
            assert ask(served, "POST", "/api/decisions", decision(served), **given)[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "https://127.0.0.1:{port}"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
        {"Content_Type": "text/plain"},
        {"Content_Type": "application/x-www-form-urlencoded"},
    ],
)
@pytest.mark.parametrize("path", ["/api/decisions", "/api/decisions/undo", "/api/export"])
def test_a_page_of_another_site_changes_nothing(served: Served, path: str, headers: dict[str, str]) -> None:
    given = JSON | {name: value.format(port=served.port) for name, value in headers.items()}
    before = len(read_decisions(served.pages.source.decisions))
    status, _, _ = ask(served, "POST", path, decision(served), **given)
    assert status in (403, 415)
    assert len(read_decisions(served.pages.source.decisions)) == before


def test_the_own_page_may_decide(served: Served) -> None:
    given = JSON | {"Origin": f"http://127.0.0.1:{served.port}", "Sec_Fetch_Site": "same-origin"}
    before = len(read_decisions(served.pages.source.decisions))
    assert ask(served, "POST", "/api/decisions", decision(served), **given)[0] == 200
    assert len(read_decisions(served.pages.source.decisions)) == before + 1


@pytest.mark.parametrize(
    "path",
    [
        "/api/cases/../../../etc/passwd",
        "/api/cases/..%2f..%2f..%2fetc%2fpasswd",
        "/api/cases/%2e%2e",
        "/api/cases/..%5c..",
        "/api/cases/case_1/layers/..%2f..%2fcase_2.nii",
        "/api/cases/case_1/layers/../../labels.json",
        "/api/cases/case_1%00/thumbnail.png",
        "/static/../server.py",
        "/static/..%2fserver.py",
        "/static/%2e%2e/guard.py",
        "/api/cases//etc/passwd/thumbnail.png",
    ],
)
def test_no_id_and_no_name_leads_to_another_file(served: Served, path: str) -> None:
    status, headers, body = ask(served, "GET", path)
    assert status in (400, 404)
    assert b"root:" not in body
    assert b"import" not in body
    assert headers["content-type"].startswith(("application/json", "text/plain"))


@pytest.mark.parametrize("id", ["../case_1", "case_1/..", "/etc/passwd", 7, None, ["case_1"], {"id": 1}])
def test_ids_of_bodies_are_looked_up(served: Served, id: object) -> None:
    assert served.post("/api/decisions", case=id, decision="accept", label_sha256="").status_code == 404
    assert served.post("/api/export", cases=[id]).status_code == 404


def test_hostile_names_come_as_data(served: Served) -> None:
    """What a page makes of them is tested in a browser; the server never sends them as HTML."""
    answer = served.get("/api/cases", search="onerror")
    assert [row["id"] for row in answer.json()["rows"]] == [HOSTILE[0]]
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-content-type-options"] == "nosniff"
    for name in HOSTILE:
        status, _, body = ask(served, "GET", "/api/cases/" + "".join(f"%{byte:02x}" for byte in name.encode()))
        opened = json.loads(body)
        assert (status, opened["id"]) == (200, name)
        for layer in opened["layers"]:
            assert not set(layer["url"].replace("?v=", "")) & set("<>\"'& ?#")
            assert ask(served, "GET", layer["url"])[0] == 200


def test_every_answer_says_what_a_page_may_load(served: Served) -> None:
    for method, path in (("GET", "/"), ("GET", "/api/info"), ("GET", "/no"), ("POST", "/api/info")):
        _, headers, _ = ask(served, method, path)
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'self';")
        assert "http:" not in policy
        assert "*" not in policy
        assert "frame-ancestors 'self'" in policy
        assert headers["referrer-policy"] == "no-referrer"
    assert "script-src 'none'" in ask(served, "GET", "/report")[1]["content-security-policy"]


def test_too_large_a_body_is_refused(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    large = b'{"case": "' + b"a" * (1 << 20) + b'"}'
    assert ask(served, "POST", "/api/decisions", large, **JSON)[0] == 413
    monkeypatch.setattr(deciding, "MOST_UPLOAD_BYTES", 10_000)
    form = {"case": "case_1"}
    files = {"label": ("label.nii", b"a" * 20_000)}
    assert served.client.post("/api/corrections", data=form, files=files).status_code == 413
    pieces = (b"a" * 5_000 for _ in range(4))  # without a length
    head = {"Content-Type": "multipart/form-data; boundary=b", "Transfer-Encoding": "chunked"}
    start = b'--b\r\nContent-Disposition: form-data; name="label"; filename="x"\r\n\r\n'
    answer = served.client.post("/api/corrections", content=(part for part in (start, *pieces)), headers=head)
    assert answer.status_code == 413
    assert not (served.pages.source.folder / "corrections").exists()


def test_what_is_no_json_object_is_refused(served: Served) -> None:
    for body in (b"", b"[]", b"{", b"\xff", b"[" * 100_000):
        status, _, _ = ask(served, "POST", "/api/decisions", body or b" ", **JSON)
        assert status in (400, 404)


@pytest.mark.parametrize(
    "query",
    ["sort=size", "filter=x", "organ=heart", "limit=a", "offset=1.5", "limit=99999999999999"],
)
def test_what_is_not_known_is_named(served: Served, query: str) -> None:
    answer = served.client.get(f"/api/cases?{query}")
    assert answer.status_code == 400
    assert query.partition("=")[0] in answer.json()["error"]


def test_it_listens_on_this_machine_alone() -> None:
    listening = bound_socket(0)
    try:
        assert listening.getsockname()[0] == "127.0.0.1"
        others = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)} - {"127.0.0.1"}
        for address in others:
            with socket.socket() as other:
                other.settimeout(1)
                assert other.connect_ex((address, listening.getsockname()[1])) != 0
    finally:
        listening.close()
