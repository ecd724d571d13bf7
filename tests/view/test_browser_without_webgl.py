"""The pages in a Chromium without WebGL: the server draws the slices, and all but 3D is there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from test_browser import PLANES, orientations, slice_of
from test_orientation import SHAPE, body
from view_browser import Browser, browser, colourful, drawn, far, open_case, picture
from view_server import Served, channels, label_maps, serving


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser(webgl=False) as found:
        yield found
        assert found.asked <= {"127.0.0.1", "data", "blob"}
        assert found.said == []


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("data")
    with serving(orientations(folder / "data"), decisions=folder / "decisions.jsonl") as found:
        yield found


def settled(page) -> None:  # type: ignore[no-untyped-def]
    page.wait_for_timeout(50)
    page.wait_for_selector(".clip.loading", state="detached")


def test_there_is_no_webgl(chromium: Browser, served: Served) -> None:
    with chromium.page(served) as page:
        assert page.evaluate("() => document.createElement('canvas').getContext('webgl2')") is None


@pytest.mark.parametrize("case", ["LAS", "oblique"])
def test_three_planes_are_drawn_by_the_server(chromium: Browser, served: Served, case: str) -> None:
    with chromium.page(served) as page:
        open_case(page, case)
        assert page.query_selector("canvas") is None
        assert "WebGL2" in page.inner_text(".pane.third")
        page.keyboard.press("1")
        settled(page)
        for plane in PLANES:
            index = int(page.inner_text(f".pane[data-plane={plane}] .caption").split()[1]) - 1
            shown = picture(page, plane, *slice_of(plane))
            assert far(shown, drawn(served, case, shown, plane=plane, index=index, low=-160, high=240))[0] <= 2
            assert page.inner_text(f".pane[data-plane={plane}] .edge.left") == ("A" if plane == "sagittal" else "R")
        page.keyboard.press("1")
        settled(page)
        for plane in PLANES:
            shown = picture(page, plane, *slice_of(plane))
            rows, columns = np.argwhere(colourful(shown)).mean(axis=0)
            assert rows < shown.shape[0] / 2
            assert columns < shown.shape[1] / 2


def test_a_channel_of_small_values_is_drawn_in_its_own_window(chromium: Browser, tmp_path: Path) -> None:
    scan = np.abs(body(np.eye(4)))
    folder = channels(tmp_path / "data", T2=scan, ADC=(scan / 300_000).astype(np.float32))
    with serving(folder, decisions=tmp_path / "decisions.jsonl") as served, chromium.page(served) as page:
        open_case(page, "one")
        page.keyboard.press("2")  # the label away
        settled(page)
        first = picture(page, "axial", (80, 72), (1.0, 1.0))
        assert np.ptp(first) > 100
        page.keyboard.press("1")  # the other channel
        settled(page)
        assert far(picture(page, "axial", (80, 72), (1.0, 1.0)), first)[0] <= 2
        high = next(one["window"][1] for one in served.json("/api/cases/one")["layers"] if one["name"] == "scan_1")
        assert f"to {high:.5f}" in page.inner_text(".window small")


@pytest.mark.parametrize(
    ("spacing_mm", "together", "liver"),
    [((0.02, 0.02, 0.02), "0.00356 mm³", "0.00305 mm³"), ((2.0, 1.0, 1.0), "0.89 mL", "0.76 mL")],
)
def test_volumes_can_be_read_wherever_they_are_shown(
    chromium: Browser,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spacing_mm: tuple[float, float, float],
    together: str,
    liver: str,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    maps = label_maps(tmp_path / "maps", spacing_mm)
    with serving(maps, decisions=tmp_path / "decisions.jsonl") as served, chromium.page(served, "cases") as page:
        page.wait_for_selector(f".case-card[data-id=case_11] .facts-line:has-text('{together}')")
        page.keyboard.press("t")
        page.wait_for_selector(f"tr[data-id=case_11] td:text-is('{together}')")
        open_case(page, "case_11")
        page.wait_for_selector(f".organs td:text-is('{liver}')")
        page.keyboard.press("Shift+V")  # case_3, whose liver is as large, lacks an organ and is the first
        page.wait_for_selector(f".review-facts li:has-text('liver {liver}')")


def test_an_address_of_no_page_says_so(chromium: Browser, served: Served) -> None:
    with chromium.page(served, "case/LAS") as page:
        page.wait_for_selector("main:has-text('There is no page at this address: #/case/LAS.')")
        assert page.query_selector(".cases, nav [aria-current]") is None
        page.click("main a:text-is('Cases')")
        page.wait_for_selector(".case-card")
        assert page.evaluate("() => location.hash").startswith("#/cases")


def test_wheel_keys_and_clicks_move(chromium: Browser, served: Served) -> None:
    with chromium.page(served) as page:
        open_case(page, "RAS")

        def at(plane: str) -> int:
            return int(page.inner_text(f".pane[data-plane={plane}] .caption").split()[1])

        box = page.locator(".pane[data-plane=axial]").bounding_box()
        page.mouse.click(box["x"] + box["width"] / 2 - 2, box["y"] + box["height"] / 2 - 2)  # half a voxel
        page.wait_for_selector(f".pane[data-plane=coronal] .caption:has-text('Coronal {SHAPE[1] // 2 + 1} /')")
        assert at("sagittal") == SHAPE[2] // 2 + 1
        before = at("axial")
        page.mouse.wheel(0, -120)
        page.wait_for_selector(f".pane[data-plane=axial] .caption:has-text('Axial {before + 1} /')")
        page.keyboard.press("PageDown")
        page.wait_for_selector(f".pane[data-plane=axial] .caption:has-text('Axial {before - 9} /')")
        page.route("**/slice.png*", lambda route: route.abort())
        page.keyboard.press("w")
        page.wait_for_selector(".clip:has-text('This slice could not be drawn.')")
        page.wait_for_selector(".toast.bad")
        page.unroute("**/slice.png*")
        chromium.said[:] = [line for line in chromium.said if "ERR_FAILED" not in line]
        for _ in range(2):  # fills, and outlines again: the next wish is tried
            page.keyboard.press("o")
            settled(page)
        settled(page)
        shown = picture(page, "axial", *slice_of("axial"))
        index = at("axial") - 1
        mean, _ = far(
            shown, drawn(served, "RAS", shown, plane="axial", index=index, low=-30, high=150, layers="reference")
        )
        assert mean <= 3


def test_a_decision_stands_in_the_list(chromium: Browser, served: Served, tmp_path: Path) -> None:
    with chromium.page(served, "cases") as page:
        page.wait_for_selector(".case-card")
        page.keyboard.press("Enter")  # the first one
        page.wait_for_selector("[data-ready]")
        page.keyboard.press("s")
        page.wait_for_selector(".decision .badge.set_aside")
        page.keyboard.press("Backspace")
        page.wait_for_selector(".case-card .badge.set_aside")
        page.wait_for_selector(".case-card:focus")
        assert page.evaluate("() => document.activeElement.dataset.id") == "LAS", "where one left the list"
        page.keyboard.press("z")  # nothing is undone where Z is no key
        assert [row["decision"] for row in served.json("/api/cases")["rows"]] == ["set_aside", None, None, None]
