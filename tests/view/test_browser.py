"""The pages in a real Chromium with WebGL: what the canvas shows, keys, hostile names, and who is asked."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_orientation import MARK, ORIENTATIONS, SHAPE, body
from view_browser import Browser, browser, colourful, drawn, far, open_case, picture
from view_server import Served, channels, label_maps, save_label, save_scan, serving

from semiseg.decisions import read_decisions
from semiseg.geometry import canonical_affine

PLANES = {"axial": 0, "coronal": 1, "sagittal": 2}
HOSTILE = "<img src=x onerror=document.title='taken'>&amp;\"'"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser(webgl=True) as found:
        yield found
        assert found.asked <= {"127.0.0.1", "data", "blob"}, "pages ask nobody but their own server"
        assert found.said == []


def orientations(folder: Path) -> Path:
    """One body in files of four orientations, with the bright cube as its label."""
    for name in ("RAS", "LAS", "PIR", "oblique"):
        affine = np.eye(4)
        turned = ORIENTATIONS[name]
        affine[:3, :3] = turned * np.array([1.0, 1.0, 1.5])[np.abs(turned).argmax(axis=0)]  # from foot to head
        affine[:3, 3] = (-12.5, 7.25, 31.0)
        save_scan(folder / "imagesTr" / f"{name}_0000.nii.gz", body(affine), affine)
        if name == "PIR":  # the label's file has the axes in another order than the scan's
            affine = canonical_affine(affine, (SHAPE[1], SHAPE[0], SHAPE[2]))
        save_scan(folder / "labelsTr" / f"{name}.nii.gz", (body(affine) == 900).astype(np.uint8), affine)
    description = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "cube": 1}, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(description), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("data")
    with serving(orientations(folder / "data"), decisions=folder / "decisions.jsonl") as found:
        yield found


def slice_of(plane: str) -> tuple[tuple[int, int], tuple[float, float]]:
    """Shape and spacing of a displayed slice's rows and columns."""
    rest = [axis for axis in range(3) if axis != PLANES[plane]]
    spacing = (1.5, 1.0, 1.0)
    return (SHAPE[rest[0]], SHAPE[rest[1]]), (spacing[rest[0]], spacing[rest[1]])


@pytest.mark.parametrize("case", ["RAS", "LAS", "PIR", "oblique"])
def test_the_canvas_shows_the_scan(chromium: Browser, served: Served, case: str) -> None:
    """Against the slice that the server draws. Both are bilinear between the middles of voxels, but the server windows
    before it enlarges and the canvas after, so that they differ where the window cuts: within 2 grey levels in the
    mean, and by more than 16 in at most 2 % of the pixels. A slice or a voxel off, or mirrored, is ten times that."""
    with chromium.page(served) as page:
        open_case(page, case)
        page.keyboard.press("1")  # the label away
        at = {plane: int(page.inner_text(f".pane[data-plane={plane}] .caption").split()[1]) - 1 for plane in PLANES}
        for plane, index in at.items():
            shown = picture(page, plane, *slice_of(plane))
            expected = drawn(served, case, shown, plane=plane, index=index, low=-160, high=240)
            mean, share = far(shown, expected)
            assert mean <= 2, plane
            assert share <= 0.02, plane
            assert far(shown[:, ::-1], expected)[0] > 20, "the mirrored one is far from it"
            letters = [page.inner_text(f".pane[data-plane={plane}] .edge.{side}") for side in ("left", "top")]
            assert letters == {"axial": ["R", "A"], "coronal": ["R", "S"], "sagittal": ["A", "S"]}[plane]
        # The cube lies in the patient's right, front and head by the header: test_orientation.
        page.keyboard.press("1")
        for plane in PLANES:
            shown = picture(page, plane, *slice_of(plane))
            rows, columns = np.argwhere(colourful(shown)).mean(axis=0)
            assert rows < shown.shape[0] / 2
            assert columns < shown.shape[1] / 2


def test_window_overlay_and_slices_change_what_is_shown(chromium: Browser, served: Served) -> None:
    with chromium.page(served) as page:
        open_case(page, "LAS")
        shown = picture(page, "axial", *slice_of("axial"))
        assert colourful(shown).any()
        page.keyboard.down("h")
        hidden = picture(page, "axial", *slice_of("axial"))
        assert not colourful(hidden).any()
        page.keyboard.up("h")
        np.testing.assert_array_equal(picture(page, "axial", *slice_of("axial")), shown)
        page.keyboard.press("o")
        filled = picture(page, "axial", *slice_of("axial"))
        assert colourful(filled).sum() > 1.5 * colourful(shown).sum()
        page.keyboard.press("1")
        page.keyboard.press("w")
        index = int(page.inner_text(".pane[data-plane=axial] .caption").split()[1]) - 1
        other = picture(page, "axial", *slice_of("axial"))
        liver = {"plane": "axial", "low": -30, "high": 150}
        assert far(other, drawn(served, "LAS", other, index=index, **liver))[0] <= 2
        assert far(other, hidden)[0] > 10
        page.keyboard.press("ArrowUp")
        above = picture(page, "axial", *slice_of("axial"))
        assert far(above, drawn(served, "LAS", above, index=index + 1, **liver))[0] <= 2
        assert far(above, other)[0] > 0.5
        # The graphics card goes, and comes back.
        lost = "window.lost = it.getContext('webgl2').getExtension('WEBGL_lose_context')"
        page.locator("canvas.painted").evaluate(f"it => {{ {lost}; window.lost.loseContext() }}")
        page.wait_for_selector(".holder:has-text('The graphics card was taken away')")
        page.evaluate("() => window.lost.restoreContext()")
        page.wait_for_selector("[data-ready]")
        page.wait_for_selector("canvas.painted")
        # A click in one plane moves the others.
        box = page.locator(".pane[data-plane=axial]").bounding_box()
        page.mouse.click(box["x"] + box["width"] / 2 - 2, box["y"] + box["height"] / 2 - 2)  # half a voxel
        page.wait_for_selector(f".pane[data-plane=coronal] .caption:has-text('Coronal {SHAPE[1] // 2 + 1} /')")
        page.wait_for_selector(f".pane[data-plane=sagittal] .caption:has-text('Sagittal {SHAPE[2] // 2 + 1} /')")
        # Zoomed in, the slice does not move under a mouse that is held: what is pointed at stays so.
        for _ in range(4):
            page.keyboard.press("+")
        place = (box["x"] + box["width"] / 4, box["y"] + box["height"] / 4)
        page.mouse.move(*place)
        page.mouse.down()
        captions = []
        for step in (0, 1, 0):
            page.mouse.move(place[0] + step, place[1])
            page.wait_for_timeout(200)
            captions.append(page.inner_text(".pane[data-plane=sagittal] .caption"))
        page.mouse.up()
        assert captions[0] == captions[2]
        hair = page.locator(".pane[data-plane=axial] .hair.vertical").bounding_box()
        assert abs(hair["x"] - place[0]) < box["width"] / 20


def test_each_channel_is_shown_in_a_window_of_its_own(chromium: Browser, tmp_path: Path) -> None:
    scan = np.abs(body(np.eye(4)))
    folder = channels(tmp_path / "data", T2=scan, ADC=(20 * scan).astype(np.int16))
    with serving(folder, decisions=tmp_path / "decisions.jsonl") as served, chromium.page(served) as page:
        open_case(page, "one")
        page.keyboard.press("2")  # the label away

        def shown() -> str:
            return str(page.inner_text(".window small"))

        (low, high), (other_low, other_high) = (
            one["window"] for one in served.json("/api/cases/one")["layers"] if one["kind"] == "image"
        )
        texts = [f"{low:.0f} to {high:.0f}", f"{other_low:.0f} to {other_high:.0f}"]
        assert texts[0] in shown()
        first = picture(page, "axial", (80, 72), (1.0, 1.0))
        page.keyboard.press("1")  # the other channel, which is as dark
        page.wait_for_function("text => document.querySelector('.window small').innerText.includes(text)", arg=texts[1])
        page.wait_for_timeout(500)
        assert far(picture(page, "axial", (80, 72), (1.0, 1.0)), first)[0] <= 2
        box = page.locator(".pane[data-plane=axial]").bounding_box()
        page.mouse.move(box["x"] + 100, box["y"] + 100)
        page.mouse.down(button="right")
        page.mouse.move(box["x"] + 200, box["y"] + 150)
        page.mouse.up(button="right")
        dragged = shown()
        assert not any(text in dragged for text in texts)
        page.keyboard.press("1")
        assert texts[0] in shown()
        page.keyboard.press("1")
        assert shown() == dragged
        page.click("button.chip:has-text('as it opens')")
        assert texts[1] in shown()
        page.keyboard.press("w")
        assert f" to {20 * scan.max():.0f}" in shown(), "bright"


def test_organs_turn_in_3d(chromium: Browser, served: Served) -> None:
    with chromium.page(served) as page:
        page.set_viewport_size({"width": 700, "height": 420})  # every pixel is a ray, on the processor
        taken = []
        for case in ("RAS", "PIR", "oblique"):
            open_case(page, case)
            if case == "RAS":
                page.click("button.chip:has-text('3D')")
            page.wait_for_selector("[data-third]")
            canvas = page.locator(".pane.third canvas")
            taken.append(np.asarray(Image.open(io.BytesIO(canvas.screenshot())).convert("RGB")))
            assert colourful(taken[-1]).any()
        assert far(taken[0], taken[1])[0] < 1, "the same label in a file of another order of axes"
        page.keyboard.press("x")  # and back to the planes, whose canvas is as it was
        assert colourful(picture(page, "axial", *slice_of("axial"))).any()


def test_a_label_is_judged_as_it_is_shown_and_not_as_it_was(chromium: Browser, tmp_path: Path) -> None:
    folder = channels(tmp_path / "data", T2=body(np.eye(4)))
    save_scan(folder / "imagesTs" / "two_0000.nii.gz", body(np.eye(4)), np.eye(4))  # a case without a label
    label, other = np.zeros((2, *SHAPE), dtype=np.uint8)
    label[:, 20:30, 20:30] = other[:, 20:60, 20:50] = 1
    save_scan(folder / "labelsTr" / "one.nii.gz", label, np.eye(4))
    with serving(folder, decisions=tmp_path / "decisions.jsonl") as served, chromium.page(served) as page:
        size = (80, 72), (1.0, 1.0)
        open_case(page, "two")  # which does not decide what is shown of the next
        open_case(page, "one")
        before = colourful(picture(page, "axial", *size)).sum()
        assert before
        save_scan(folder / "labelsTr" / "one.nii.gz", other, np.eye(4))
        page.keyboard.press("a")
        page.wait_for_selector(".toast.bad:has-text('The label has changed')")
        page.wait_for_timeout(1500)
        assert colourful(picture(page, "axial", *size)).sum() > 2 * before
        page.keyboard.press("a")
        page.wait_for_selector(".decision .badge.accept")
    chromium.said[:] = [line for line in chromium.said if "409" not in line]


@pytest.fixture
def maps(tmp_path: Path) -> Path:
    folder = label_maps(tmp_path / "maps")
    label = np.zeros((12, 20, 24), dtype=np.uint8)
    label[2:8, 3:11, 4:12] = 1
    save_label(folder / f"{HOSTILE}.nii.gz", label)
    return folder


def test_a_review_by_keyboard_alone(
    chromium: Browser, maps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with serving(maps, decisions=tmp_path / "decisions.jsonl") as served, chromium.page(served) as page:
        page.keyboard.press("Shift+V")
        seen = []

        def shown(after: str = "") -> str:
            page.wait_for_selector(".review[data-shown]")
            while (id := page.get_attribute(".review", "data-shown")) == after:
                page.wait_for_timeout(20)
            seen.append(id)
            return str(id)

        last = shown()
        for key in ("a", "s", "l", "u", "a"):
            page.keyboard.press(key)
            last = shown(last)
        page.keyboard.press("z")  # the fifth is seen again
        assert shown(last) == seen[4]
        page.keyboard.press("s")
        shown(seen[4])
        page.keyboard.press("n")
        last = shown(seen[-1])
        page.click(".buttons.big .unsure")
        shown(last)
        for key in ("Space", "Enter"):  # which press no button that was clicked
            page.keyboard.press(key)
        page.wait_for_selector("[data-ready]")  # Enter opened the case
        held: list[Any] = []
        page.route("**/api/decisions", lambda route: held.append(route))
        page.keyboard.press("u")
        while not held:
            page.wait_for_timeout(20)
        ask = "() => !dispatchEvent(new Event('beforeunload', {cancelable: true}))"
        assert page.evaluate(ask), "a decision is not written yet"
        held[0].continue_()
        page.wait_for_selector(".decision .badge.unsure")
        assert not page.evaluate(ask)
        page.keyboard.press("?")
        assert page.is_visible("dialog.help")
        page.keyboard.press("Escape")
        lines = read_decisions(tmp_path / "decisions.jsonl")
        made = [(line["case"], line["decision"]) for line in lines]
        assert made[:-1] == [*zip(seen[:5], ("accept", "set_aside", "label", "unsure", "accept"), strict=True),
                        (seen[4], "undo"), (seen[4], "set_aside"), (last, "unsure")]  # fmt: skip
        assert {line["reviewer"] for line in lines} == {"ann"}


def test_a_review_says_most_doubtful_only_where_doubts_are_known(
    chromium: Browser, run: Path, maps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    ids = sorted(path.name.removesuffix(".nii.gz") for path in (run / "pseudo_labels").iterdir())
    ranked = f"id,entropy,disagreement,organs,organ_voxels\n{ids[1]},0.1,0.2,2,9\n"
    (run / "ranking.csv").write_text(ranked, encoding="utf-8")
    (run / "doubt").mkdir()
    (run / "report.html").unlink(missing_ok=True)
    means = {plane: [0.0, 1.0] for plane in PLANES}
    (run / "doubt" / f"{ids[1]}.json").write_text(json.dumps(means), encoding="utf-8")
    with serving(run) as served, chromium.page(served, "review") as page:
        for key, id, caption in (
            ("", ids[1], "most doubtful"),
            (".", ids[1], "longest outlines"),  # of one organ
            (",", ids[1], "most doubtful"),
            ("n", ids[0], "longest outlines"),
        ):
            if key:
                page.keyboard.press(key)
            page.wait_for_selector(f".review[data-shown='{id}'] .letters .caption:text-is('{caption}')")
        page.keyboard.press("?")
        page.wait_for_selector("dialog.help:has-text('Most doubtful first, at random, each fifth by doubt in turn')")
        # What a run that goes on has made meanwhile is there without loading the page again.
        assert page.is_hidden("nav a[data-page=report]")
        (run / "report.html").write_text("<p>made meanwhile", encoding="utf-8")
        page.evaluate("location.hash = '#/cases'")
        page.wait_for_selector("nav a[data-page=report]")
    with serving(maps, decisions=tmp_path / "decisions.jsonl") as served, chromium.page(served, "review") as page:
        page.wait_for_selector(".letters .caption:text-is('longest outlines')")
        page.keyboard.press("?")
        page.wait_for_selector("dialog.help:has-text('Odd ones first, at random, each fifth by oddness in turn')")
        assert "doubt" not in page.inner_text("body").lower()


def test_a_name_that_is_meant_to_hurt_stays_a_name(
    chromium: Browser, maps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with serving(maps, decisions=tmp_path / "decisions.jsonl") as served, chromium.page(served, "cases") as page:
        page.wait_for_selector(".case-card")
        assert HOSTILE in [it.inner_text() for it in page.query_selector_all(".case-card .id")]
        page.keyboard.press("/")
        page.keyboard.type("<img")
        page.wait_for_selector("text=1 case")
        page.keyboard.press("Enter")
        page.keyboard.press("Enter")
        page.wait_for_selector("[data-ready]")
        assert page.inner_text(".case-page h1") == HOSTILE
        page.keyboard.press("a")
        page.wait_for_selector(".decision .badge.accept")
        page.keyboard.press("Backspace")
        page.wait_for_selector(".case-card")
        assert page.query_selector("img[src='x'], img[onerror]") is None
        assert "taken" not in page.title()
        assert [line["case"] for line in read_decisions(tmp_path / "decisions.jsonl")] == [HOSTILE]


def test_the_mark_is_where_these_tests_think() -> None:
    assert [place > n / 2 for place, n in zip(MARK, SHAPE, strict=True)] == [True, True, True]
