"""The pages in a real Chromium, timed and compared with what the server draws, on a real CT and on phantoms.

python benchmarks/view_pages.py --data ../shared/data [--repeats 5] [--pictures FOLDER]

With WebGL (by SwiftShader, on the processor) and without: a 512 x 512 x 119 CT opened cold, one that was prefetched, a
slice, a window; each plane against the slice that the server draws. Then 30 phantoms reviewed by keyboard alone.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from semiseg.demo.dataset import write_phantom_dataset

CALM = ["--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS = {
    "WebGL by SwiftShader": ["--use-angle=swiftshader", "--enable-unsafe-swiftshader"],
    "no WebGL": ["--disable-gpu", "--disable-3d-apis"],
}
ORGANS = {"bone": 1, "liver": 2, "portal_vein": 3, "veins": 4, "artery": 5, "tumour_1": 6, "tumour_2": 7}
PRESSED = """async ([key, selector, name]) => {
  const before = selector && document.querySelector(selector)?.dataset[name];
  const began = performance.now();
  window.dispatchEvent(new KeyboardEvent("keydown", { key, code: key, bubbles: true }));
  window.dispatchEvent(new KeyboardEvent("keyup", { key, code: key, bubbles: true }));
  const frame = () => new Promise(requestAnimationFrame);
  while (selector && document.querySelector(selector)?.dataset[name] === before) await frame();
  await frame();
  await frame();
  const gl = document.querySelector("canvas.painted")?.getContext("webgl2");
  if (gl) gl.readPixels(0, 0, 1, 1, gl.RGBA, gl.UNSIGNED_BYTE, new Uint8Array(4));
  return performance.now() - began;
}"""
"""Milliseconds from a key to the frame after what it brings, of which the pixels are there."""


@contextmanager
def serving(folder: Path, work: Path) -> Iterator[str]:
    """The address with the token of a new server process."""
    command = [sys.executable, "-m", "semiseg", "view", str(folder), "--no-browser"]
    process = subprocess.Popen(
        [*command, "--decisions", str(work / "decisions.jsonl")],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        found = re.search(r"http://\S+", process.stdout.readline())
        assert found is not None
        yield found.group(0)
    finally:
        process.terminate()
        process.wait()


def real_ct(data: Path, folder: Path) -> Path:
    """The whole CT, five times over."""
    for number in range(5):
        for kind, source in (("imagesTr/ct_{}_0000.nii.gz", "0000"), ("labelsTr/ct_{}.nii.gz", "label")):
            path = folder / kind.format(number)
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(data / "ct_whole" / f"ircad17_{source}.nii.gz", path)
    described = {"channel_names": {"0": "CT"}, "labels": {"background": 0} | ORGANS, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(described), encoding="utf-8")
    return folder


def case_times(page: Page, address: str, repeats: int) -> dict[str, float]:
    """Seconds and milliseconds of one browser on the CT."""
    base = address.split("/?")[0]
    page.goto(address)
    page.wait_for_selector(".case-card")
    while not page.evaluate("() => [...document.querySelectorAll('.thumb img')].every(it => it.naturalWidth)"):
        page.wait_for_timeout(100)  # thumbnails: the server has read the first scan, and forgotten it since
    began = time.perf_counter()
    page.goto(f"{base}/#/cases/ct_0")
    page.wait_for_selector("[data-ready]")
    found = {"cold, s": time.perf_counter() - began}
    ahead = []
    for number in range(1, 4):
        if page.query_selector("canvas.painted"):
            page.wait_for_selector("[data-ahead]")
        began = time.perf_counter()
        page.keyboard.press("n")
        page.wait_for_selector(f"h1[title=ct_{number}]")
        page.wait_for_selector("[data-ready]")
        ahead.append(time.perf_counter() - began)
    found["the next one, fetched ahead, s"] = median(ahead)
    page.evaluate(PRESSED, ["ArrowUp", "", ""])
    for name, key in (("a slice, ms", "ArrowUp"), ("a window, ms", "w"), ("outline or fill, ms", "o")):
        found[name] = median(page.evaluate(PRESSED, [key, "", ""]) for _ in range(2 * repeats))
    return found


def time_beside_thumbnails(page: Page, address: str) -> dict[str, float]:
    """Seconds until the CT is there while the server makes thumbnails of five such CTs."""
    page.goto(address)
    page.wait_for_selector(".case-card")
    began = time.perf_counter()
    page.goto(f"{address.split('/?')[0]}/#/cases/ct_0")
    page.wait_for_selector("[data-ready]")
    return {"cold, beside thumbnails, s": time.perf_counter() - began}


def differences(page: Page, address: str) -> dict[str, float]:
    """Mean difference in grey levels of each plane from the slice that the server draws, without the label."""
    page.keyboard.press("1")
    page.evaluate("() => document.querySelectorAll('.pane *').forEach(it => { it.style.visibility = 'hidden' })")
    page.wait_for_timeout(3000)
    found = {}
    low, high = (float(v) for v in re.findall(r"-?\d+", page.inner_text(".window h2"))[:2])
    case = page.inner_text(".case-page h1")
    extent = {
        "axial": (512 * 0.74, 512 * 0.74),
        "coronal": (119 * 1.6, 512 * 0.74),
        "sagittal": (119 * 1.6, 512 * 0.74),
    }
    for plane, (tall, wide) in extent.items():
        box = page.locator(f".pane[data-plane={plane}]").bounding_box()
        assert box is not None
        scale = min(box["width"] / wide, box["height"] / tall)
        size = (round(wide * scale), round(tall * scale))
        corner = (box["x"] + (box["width"] - size[0]) / 2, box["y"] + (box["height"] - size[1]) / 2)
        taken = page.screenshot(
            clip={"x": corner[0] + 2, "y": corner[1] + 2, "width": size[0] - 4, "height": size[1] - 4}
        )
        shown = np.asarray(Image.open(io.BytesIO(taken)).convert("L")).astype(int)
        index = int(page.locator(f".pane[data-plane={plane}] .caption").text_content().split()[1]) - 1  # type: ignore[union-attr]
        query = f"plane={plane}&index={index}&low={low}&high={high}&size=1024"
        answer = page.request.get(f"{address.split('/?')[0]}/api/cases/{case}/slice.png?{query}")
        whole = Image.open(io.BytesIO(answer.body())).convert("L").resize((shown.shape[1] + 4, shown.shape[0] + 4))
        found[f"{plane}, grey levels"] = float(np.abs(shown - np.asarray(whole).astype(int)[2:-2, 2:-2]).mean())
    page.evaluate("() => document.querySelectorAll('.pane *').forEach(it => { it.style.visibility = '' })")
    return found


def review_times(page: Page, address: str, decisions: Path) -> dict[str, float]:
    """30 cases judged by keys alone."""
    page.goto(address)
    page.wait_for_selector("header.shell")
    page.keyboard.press("Shift+V")
    page.wait_for_selector(".review[data-at]")
    page.wait_for_timeout(3000)  # as long as a first look takes
    waits = []
    began = time.perf_counter()
    for number in range(30):
        key = "aaslu"[number % 5]
        waits.append(page.evaluate(PRESSED, [key, ".review", "at"]))
        page.wait_for_timeout(400)
    seconds = time.perf_counter() - began
    written = [json.loads(line) for line in decisions.read_text(encoding="utf-8").splitlines()]
    return {
        "decisions written": len(written),
        "key to the next strip, median, ms": median(waits),
        "key to the next strip, longest, ms": max(waits),
        "seconds a case": seconds / 30,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--pictures", type=Path, help="a folder for a picture of the CT in each browser")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, sync_playwright() as play:
        work = Path(name)
        ct = real_ct(given.data, work / "ct")
        phantoms = write_phantom_dataset(work / "phantoms", seed=0, labelled=36, unlabelled=1, test=1)
        for browser_name, flags in FLAGS.items():
            driver = play.chromium.launch(executable_path=shutil.which("chromium"), args=CALM + flags)
            asked: set[str | None] = set()

            def page_of(driver: Any = driver, asked: set[str | None] = asked) -> Page:
                page: Page = driver.new_page(viewport={"width": 1280, "height": 720})
                page.set_default_timeout(120_000)
                page.on("request", lambda request: asked.add(urlsplit(request.url).hostname))
                return page

            unseen = real_ct(given.data, work / f"unseen by {browser_name}")
            with serving(unseen, work) as address:
                beside = time_beside_thumbnails(page_of(), address)
            with serving(ct, work) as address:
                page = page_of()
                found = beside | case_times(page, address, given.repeats)
                if given.pictures:
                    given.pictures.mkdir(parents=True, exist_ok=True)
                    page.screenshot(path=given.pictures / f"ct_{browser_name.split()[0]}.png")
                found |= differences(page, address)
            (work / "decisions.jsonl").unlink(missing_ok=True)
            with serving(phantoms, work) as address:
                found |= review_times(page_of(), address, work / "decisions.jsonl")
            (work / "decisions.jsonl").unlink(missing_ok=True)
            driver.close()
            print(f"\n{browser_name}; asked: {', '.join(sorted(filter(None, asked)))}")
            for what, value in found.items():
                print(f"  {what:38} {value:8.2f}")


if __name__ == "__main__":
    main()
