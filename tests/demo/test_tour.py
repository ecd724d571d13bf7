"""The demo: the first thing that anybody runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from semiseg.demo.tour import ALONE, BOTH, START, DemoSize, demo_settings, going_on, run_demo
from semiseg.errors import ConfigError, DataError
from semiseg.files import read_jsonl
from semiseg.prediction.model import load_model
from semiseg.settings import read_settings
from semiseg.training.settled import read_settled

SIZE = DemoSize(labelled=1, unlabelled=1, test=1, shape_zyx=(24, 32, 32))


@pytest.mark.usefixtures("one_core")
def test_the_demo_leaves_both_runs_and_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "demo"
    page = run_demo(folder, steps=44, size=SIZE)
    assert page == folder / "report.html"
    assert "<title>Labels alone, All scans</title>" in page.read_text(encoding="utf-8")
    for name in (ALONE, BOTH):
        assert (folder / name / "report.html").is_file()
        assert (folder / name / "summary.json").is_file()
    steps = {name: read_jsonl(folder / name / "metrics.jsonl")[-1]["step"] for name in (START, ALONE, BOTH)}
    assert steps == {START: 33, ALONE: 11, BOTH: 10}  # of the same compute
    settled = {name: read_settled(folder / name) for name in (START, ALONE, BOTH)}
    started = load_model(folder / START).hash
    assert {name: one.weights for name, one in settled.items()} == {START: None, ALONE: started, BOTH: started}
    assert "weights from start, steps 11" in page.read_text(encoding="utf-8")
    methods = {name: read_settings(folder / name / "run.toml").method.name for name in (ALONE, BOTH)}
    assert methods == {ALONE: "supervised", BOTH: "pseudo_rounds"}
    printed = " ".join(capsys.readouterr().out.split())
    assert "1 scan with labels, 1 without, 1 to test on" in printed
    assert "All scans: 1 labelled cases, 10 steps from the weights of start, seed 0" in printed

    weights = folder / BOTH / "model" / "weights.safetensors"
    before = weights.read_bytes()
    stored = {path: path.stat().st_mtime_ns for path in folder.rglob("*.b2nd")}
    assert run_demo(folder, steps=44, size=SIZE, quiet=True) == page
    assert weights.read_bytes() == before
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.b2nd")} == stored
    assert capsys.readouterr().out == ""
    with pytest.raises(DataError, match="unlabelled"):
        run_demo(folder, steps=44, size=DemoSize(labelled=1, unlabelled=2, test=1, shape_zyx=(24, 32, 32)))


def test_the_demo_goes_by_steps(tmp_path: Path) -> None:
    """By minutes it would show something else on every machine."""
    assert demo_settings(tmp_path, seed=0, steps=7).train.steps == 7
    with pytest.raises(ConfigError, match=r"train\.steps = 0"):
        demo_settings(tmp_path, seed=0, steps=0)


def test_what_goes_on_differs_in_method_and_steps_alone(tmp_path: Path) -> None:
    start = demo_settings(tmp_path, seed=3, steps=3000)
    runs = going_on(start, tmp_path / START, steps=1000)
    assert (runs[ALONE].train.steps, runs[BOTH].train.steps) == (1000, 909)  # labels alone have a tenth more
    assert runs[ALONE].method.optimiser == runs[BOTH].method.optimiser
    same = replace(runs[BOTH], method=runs[ALONE].method, train=replace(runs[BOTH].train, steps=1000))
    assert same == runs[ALONE]
    assert runs[BOTH].method.parts.warmup == 0  # the network has learnt from labels before
