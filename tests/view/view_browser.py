"""A real Chromium for the tests of the pages, with WebGL (by SwiftShader) or without, that notes what it asks for."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from view_server import TOKEN, Served

from semiseg.view.server import STATIC

_CALM = (
    "--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
_WEBGL = ("--use-angle=swiftshader", "--enable-unsafe-swiftshader")
_NO_WEBGL = ("--disable-gpu", "--disable-3d-apis")
PATIENCE_MS = 40_000
"""For a machine that does much else."""


def why_not() -> str:
    """Why no browser can be started here, or nothing."""
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return "playwright is not installed (pip install playwright)"
    if not chromium():
        return "there is no Chromium here (apt-get install chromium)"
    if not (STATIC / "index.html").is_file():
        return "the pages are not built (make pages, which needs Node 20)"
    return ""


def chromium() -> str | None:
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@dataclass
class Browser:
    """asked: the hosts of all requests. said: errors on the console, and of scripts."""

    driver: object
    asked: set[str] = field(default_factory=set)
    said: list[str] = field(default_factory=list)

    @contextmanager
    def page(self, served: Served, path: str = "", **options: object) -> Iterator[object]:
        """A page of 1280 x 720 of a server, let in by its token. path: behind `#/`."""
        context = self.driver.new_context(viewport={"width": 1280, "height": 720}, **options)  # type: ignore[attr-defined]
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.on(
            "request", lambda request: self.asked.add(urlsplit(request.url).hostname or urlsplit(request.url).scheme)
        )
        page.on("console", lambda line: self.said.append(line.text) if line.type == "error" else None)
        page.on("pageerror", lambda error: self.said.append(str(error)))
        try:
            page.goto(f"http://127.0.0.1:{served.port}/?token={TOKEN}")
            page.wait_for_selector("header.shell")
            if path:
                page.evaluate("path => { location.hash = path }", f"#/{path}")
            yield page
        finally:
            context.close()


@contextmanager
def browser(*, webgl: bool) -> Iterator[Browser]:
    if reason := why_not():
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        flags = [*_CALM, *(_WEBGL if webgl else _NO_WEBGL)]
        driver = play.chromium.launch(executable_path=chromium(), args=flags)
        try:
            found = Browser(driver)
            yield found
        finally:
            driver.close()


def open_case(page, case: str) -> None:  # type: ignore[no-untyped-def]
    page.evaluate("path => { location.hash = path }", f"#/cases/{case}")
    page.wait_for_selector(f"h1[title='{case}']")
    page.wait_for_selector("[data-ready]")


def picture(page, plane: str, shape: tuple[int, int], spacing: tuple[float, float]) -> NDArray[np.uint8]:  # type: ignore[no-untyped-def]
    """What a pane shows of its slice `(rows, columns, 3)`, without letters and the cross-hair. shape, spacing: of the
    slice's rows and columns; it fills the pane in one direction and is in its middle in the other."""
    pane = page.locator(f".pane[data-plane={plane}]")
    box = pane.bounding_box()
    high, wide = (n * mm for n, mm in zip(shape, spacing, strict=True))
    scale = min(box["width"] / wide, box["height"] / high)
    clip = {
        "x": round(box["x"] + (box["width"] - wide * scale) / 2) + 2,
        "y": round(box["y"] + (box["height"] - high * scale) / 2) + 2,
        "width": round(wide * scale) - 4,
        "height": round(high * scale) - 4,
    }
    page.evaluate("() => document.querySelectorAll('.pane *').forEach(it => { it.style.visibility = 'hidden' })")
    taken = page.screenshot(clip=clip)
    page.evaluate("() => document.querySelectorAll('.pane *').forEach(it => { it.style.visibility = '' })")
    return np.asarray(Image.open(io.BytesIO(taken)).convert("RGB"))


def drawn(served: Served, case: str, like: NDArray[np.uint8], **query: object) -> NDArray[np.uint8]:
    """The slice that the server draws, as large as what a page shows of it."""
    answer = served.get(f"/api/cases/{case}/slice.png", size=1024, **query)
    assert answer.status_code == 200, answer.text
    whole = Image.open(io.BytesIO(answer.content)).convert("RGB").resize((like.shape[1] + 4, like.shape[0] + 4))
    return np.asarray(whole)[2:-2, 2:-2]


def far(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> tuple[float, float]:
    """Mean difference of two pictures in grey levels, and the share of pixels that differ by more than 16."""
    distance = np.abs(one.astype(int) - other.astype(int)).max(axis=2)
    return float(distance.mean()), float((distance > 16).mean())


def colourful(picture: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Where a picture is no grey."""
    return np.asarray(np.ptp(picture.astype(int), axis=2) > 40)
