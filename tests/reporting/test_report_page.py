"""The page: its sections, what is embedded, what is escaped, and what is said when a part is missing."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from semiseg.data.plan import read_plan, write_plan
from semiseg.errors import DataError
from semiseg.files import append_jsonl, read_json, read_jsonl, write_json, write_jsonl, write_text
from semiseg.notices import add_notice
from semiseg.reporting import write_report
from semiseg.reporting.numbers import count, duration, ends, interval, lengths, spread, value
from semiseg.reporting.pictures import chosen_cases

SECTIONS = ["headline", "learning", "organs", "overlays", "feedback", "reproducibility"]
HOSTILE = "<script>alert('x')</script> & \"quoted\" $x_1$"


class Page(HTMLParser):
    """Tags with their attributes, text, and whether every element that must be closed is closed in order."""

    VOID = frozenset({"meta", "input", "br", "link", "img", "image", "path", "use"})

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def count(self, tag: str, **attributes: str) -> int:
        return sum(t == tag and all(a.get(k) == v for k, v in attributes.items()) for t, a in self.tags)


def test_a_complete_run_has_every_section_and_picture(run_folder: Path) -> None:
    path = write_report(run_folder)
    page = Page(path)
    assert path == run_folder / "report.html"
    assert [a["id"] for t, a in page.tags if t == "section"] == SECTIONS
    assert "Dataset900_Phantom: Meta Pseudo Labels, dense feedback" in page.text
    assert "Trained on 4 labelled and 24 unlabelled scans, measured on 7 test cases." in page.text
    for words in ("Worst case case_06", "Median case case_03", "Best case case_00", "Unlabelled scan t17"):
        assert words in page.text
    # Four cases of three planes; the feedback's planes have a map over the grey picture.
    assert page.count("figure", **{"class": "panel"}) == 12
    assert page.count("image", **{"class": "map"}) == 3
    assert page.count("path", **{"class": "prediction"}) > 9
    assert "Scored 7 of 7 cases" in page.text
    assert "16–32 features" in page.text
    assert "32–64 features" in page.text


def test_the_numbers_of_the_summary_are_on_the_page(run_folder: Path) -> None:
    summary = read_json(run_folder / "summary.json")
    text = Page(write_report(run_folder)).text
    for intervals in (*summary["per_organ"].values(), summary["mean"]):
        assert f"{intervals['dice']['mean']:.3f}" in text
        assert f"{intervals['nsd']['low']:.3f}–{intervals['nsd']['high']:.3f}" in text
        assert f"{intervals['hd95_mm']['mean']:.1f}" in text
    worst = max(summary["per_organ"], key=lambda organ: summary["per_organ"][organ]["hd95_mm"]["mean"])
    assert f"HD95 of the worst organ {summary['per_organ'][worst]['hd95_mm']['mean']:.1f} mm {worst}, mean over" in text
    assert "in which both have the organ (21 of 21)" in text


def test_the_page_is_one_small_file_without_addresses(run_folder: Path) -> None:
    page = Page(write_report(run_folder))
    assert "://" not in page.source
    assert not re.search(r"(src|href)=\"(?!data:image/png;base64,|#)", page.source)
    assert not any(tag in ("script", "link", "iframe") for tag, _ in page.tags)
    assert re.findall(r"url\((?!#)", page.source) == []
    assert len(page.source) < 1_000_000


def test_placeholder_colours_all_become_variables(run_folder: Path) -> None:
    source = write_report(run_folder).read_text()
    svg = "".join(re.findall(r"<svg role=\"img\" aria-label=\"[A-Zdnh].*?</svg>", source, re.DOTALL))
    assert "var(--series-1)" in svg
    assert re.findall(r"#0[0-9]0[0-9]0[0-9]", svg) == []
    names = set(re.findall(r"var\(--([a-z0-9-]+)\)", source))
    assert names <= set(re.findall(r"--([a-z0-9-]+):", source))


def test_the_same_run_gives_the_same_page(run_folder: Path) -> None:
    first = write_report(run_folder).read_bytes()
    assert write_report(run_folder).read_bytes() == first


def test_hostile_names_are_text_only(run_folder: Path) -> None:
    summary = read_json(run_folder / "summary.json")
    summary["cases"][0]["id"] = HOSTILE
    old = "left kidney"
    summary["organs"]["3"] = HOSTILE
    summary["per_organ"][HOSTILE] = summary["per_organ"].pop(old)
    summary["tolerance_mm"][HOSTILE] = summary["tolerance_mm"].pop(old)
    for case in summary["cases"]:
        case["organs"][HOSTILE] = case["organs"].pop(old)
    write_json(run_folder / "summary.json", summary)
    append_jsonl(run_folder / "predictions.jsonl", {"id": HOSTILE, "error": f"{HOSTILE}.nii.gz: damaged."})
    append_jsonl(run_folder / "metrics.jsonl", {"step": 1300, "phase": "finetune", f"validation_dice/{HOSTILE}": 0.5})
    write_text(run_folder / "run.toml", f'# {HOSTILE}\n[method]\nname = "mpl"\n')
    page = Page(write_report(run_folder))
    assert page.count("script") == 0
    assert "<script" not in page.source
    assert HOSTILE in page.text
    assert HOSTILE.replace("_", " ") in page.text, "organs are shown with spaces"


@pytest.mark.parametrize(
    ("missing", "sentence"),
    [
        (["summary.json"], "This run has not been evaluated yet"),
        (["feedback/t17.npz"], "No feedback maps were kept for this run."),
        (["metrics.jsonl"], "Nothing has been logged yet"),
        (["cases.jsonl"], "There is no list of cases in this run yet."),
        (["plan.toml"], "plan.toml is not in the run folder."),
        (["predictions/case_06.nii.gz"], "This case cannot be drawn."),
    ],
)
def test_a_missing_part_is_said_in_a_sentence(run_folder: Path, missing: list[str], sentence: str) -> None:
    for name in missing:
        (run_folder / name).unlink()
    page = Page(write_report(run_folder))
    assert [a["id"] for t, a in page.tags if t == "section"] == SECTIONS
    assert sentence in page.text


def test_an_empty_run_folder_has_a_page(tmp_path: Path) -> None:
    page = Page(write_report(tmp_path))
    assert "has not been evaluated yet" in page.text


def test_a_run_without_validation_says_so(run_folder: Path) -> None:
    write_text(run_folder / "metrics.jsonl", '{"step": 10, "phase": "train", "seconds": 3.0, "labelled_loss": 1.0}\n')
    text = Page(write_report(run_folder)).text
    assert "This run held no validation cases back" in text
    assert "Losses" in text


def test_supervised_training_does_not_claim_the_unlabelled_scans(run_folder: Path) -> None:
    write_text(run_folder / "run.toml", '[method]\nname = "supervised"\n')
    text = Page(write_report(run_folder)).text
    assert "Trained on 4 labelled scans (24 unlabelled ones unused), measured on 7 test cases." in text


def test_a_run_without_test_cases_does_not_ask_for_scores(run_folder: Path) -> None:
    (run_folder / "summary.json").unlink()
    rows = [row for row in read_jsonl(run_folder / "cases.jsonl") if row["role"] != "test"]
    write_jsonl(run_folder / "cases.jsonl", rows)
    text = Page(write_report(run_folder)).text
    assert "No test case has a label, so there are no scores" in text
    assert "has been evaluated" not in text


def test_one_scan_is_no_scans(run_folder: Path) -> None:
    rows = {row["role"]: row for row in read_jsonl(run_folder / "cases.jsonl")}
    write_jsonl(run_folder / "cases.jsonl", rows.values())
    write_text(run_folder / "run.toml", '[method]\nname = "supervised"\n')
    text = Page(write_report(run_folder)).text
    assert "Trained on 1 labelled scan (1 unlabelled one unused), measured on 1 test case." in text


def test_cases_that_were_held_back_are_not_called_test_cases(run_folder: Path) -> None:
    write_text(run_folder / "run.toml", "[data]\ndevelopment = 7\n")
    assert "measured on 7 training cases that were held back." in Page(write_report(run_folder)).text


def test_scans_that_were_not_labelled_or_not_trusted_are_not_claimed(run_folder: Path) -> None:
    write_text(run_folder / "run.toml", '[method]\nname = "pseudo_rounds"\n')
    row = {
        "round": 1,
        "step": 10,
        "scans": 12,
        "agreement": 0.9,
        "found": {},
        "trusted": True,
        "why": "",
        "unknown": [],
        "poses": [],
        "lying": {},
    }
    write_jsonl(run_folder / "rounds.jsonl", [row])
    assert "Trained on 4 labelled and at most 12 of 24 unlabelled scans" in Page(write_report(run_folder)).text
    write_jsonl(run_folder / "rounds.jsonl", [row, row | {"round": 2, "scans": 12}])
    assert "Trained on 4 labelled and 24 unlabelled scans" in Page(write_report(run_folder)).text
    write_jsonl(run_folder / "rounds.jsonl", [row | {"trusted": False, "scans": 0}])
    assert "Trained on 4 labelled scans (24 unlabelled ones unused)" in Page(write_report(run_folder)).text


def test_headings_stand_only_for_what_the_method_has(run_folder: Path) -> None:
    write_text(run_folder / "run.toml", '[method]\nname = "supervised"\n')
    (run_folder / "feedback" / "t17.npz").unlink()
    page = Page(write_report(run_folder))
    assert [a["id"] for t, a in page.tags if t == "section"] == [s for s in SECTIONS if s != "feedback"]
    assert "What the student told the teacher" not in page.text


def test_notices_and_organs_that_were_never_found_stand_at_the_top(run_folder: Path) -> None:
    add_notice(run_folder, "steps", f"Only 135 training steps. {HOSTILE}")
    summary = read_json(run_folder / "summary.json")
    for case in summary["cases"]:
        case["organs"]["left kidney"]["dice"] = 0.0
    write_json(run_folder / "summary.json", summary)
    page = Page(write_report(run_folder))
    assert next(a["id"] for t, a in page.tags if t == "section") == "warnings"
    told = page.text.index(f"Only 135 training steps. {HOSTILE}")
    found = page.text.index("left kidney was never found: Dice 0 in all 7 scored cases that have it.")
    assert told < found < page.text.index("Mean Dice")
    assert page.count("script") == 0


def test_fewer_than_six_cases_have_a_range_and_no_interval(run_folder: Path) -> None:
    summary = read_json(run_folder / "summary.json")
    summary["cases"] = summary["cases"][:4]
    dice = [np.mean([organ["dice"] for organ in case["organs"].values()]) for case in summary["cases"]]
    for row in (*summary["per_organ"].values(), summary["mean"]):
        for found in row.values():
            found["count"] = 4
    summary["mean"]["dice"] |= {"low": min(dice), "high": max(dice)}
    write_json(run_folder / "summary.json", summary)
    page = Page(write_report(run_folder))
    assert f"range {min(dice):.3f}–{max(dice):.3f} of 4 cases, too few for an interval" in page.text
    assert "bootstrap" not in page.text
    assert "interval 0" not in page.text
    assert "<b style" not in page.source.split('id="overlays"')[0], "no whisker is drawn for a range"


def test_the_plan_is_explained_and_both_files_of_settings_are_there(run_folder: Path) -> None:
    write_text(run_folder / "settled.toml", "steps = 4321\n")
    plan = read_plan(run_folder / "plan.toml")
    write_plan(run_folder / "plan.toml", replace(plan, reasons=(f"Slices are 5 mm apart. {HOSTILE}",)))
    page = Page(write_report(run_folder))
    assert f"Why this plan Slices are 5 mm apart. {HOSTILE}" in page.text
    assert "steps = 4321" in page.text
    order = [page.text.index(name) for name in ("run.toml What was", "settled.toml What this", "plan.toml What the")]
    assert order == sorted(order)


def test_undefined_scores_are_dashes(run_folder: Path) -> None:
    summary = read_json(run_folder / "summary.json")
    nothing = {"mean": None, "low": None, "high": None, "count": 0}
    for case in summary["cases"]:
        case["organs"]["liver"] |= {"dice": None, "nsd": None, "hd95_mm": None}
    summary["per_organ"]["liver"] = dict.fromkeys(("dice", "nsd", "hd95_mm"), nothing)
    for score in summary["cases"][6]["organs"].values():
        score["dice"] = None
    write_json(run_folder / "summary.json", summary)
    text = Page(write_report(run_folder)).text
    assert "liver – – –" in text
    assert "Worst case case_05" in text, "a case without any Dice has no rank"


def test_failed_and_unscored_cases_are_listed(run_folder: Path) -> None:
    lost = {"id": "lost", "images": [], "label": None, "split": "test", "role": "test"}
    append_jsonl(run_folder / "cases.jsonl", lost)
    append_jsonl(run_folder / "predictions.jsonl", {"id": "torn", "error": "torn.nii.gz: truncated."})
    append_jsonl(run_folder / "predictions.jsonl", {"id": "mended", "error": "no space"})
    append_jsonl(run_folder / "predictions.jsonl", {"id": "mended", "seconds": 1.0})
    text = Page(write_report(run_folder)).text
    assert "torn failed: torn.nii.gz: truncated." in text
    assert "Not scored: lost" in text
    assert "mended" not in text


def test_a_prediction_on_another_grid_is_named_not_drawn(run_folder: Path) -> None:
    path = run_folder / "predictions" / "case_06.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), dtype=np.uint8), np.eye(4)), path)
    assert "is not on the grid of" in Page(write_report(run_folder)).text


def test_damage_is_an_error_that_names_the_file(run_folder: Path) -> None:
    (run_folder / "feedback" / "t17.npz").write_bytes(b"not a zip file")
    with pytest.raises(DataError, match=r"t17\.npz"):
        write_report(run_folder)
    write_text(run_folder / "summary.json", '{"rules": "standard"}')
    with pytest.raises(DataError, match=r"summary\.json"):
        write_report(run_folder)
    with pytest.raises(DataError, match="no such run folder"):
        write_report(run_folder / "nowhere")
    assert not (run_folder / "report.html").exists()


def test_fewer_than_three_cases_are_shown_once(run_folder: Path) -> None:
    summary = read_json(run_folder / "summary.json")
    summary["cases"] = summary["cases"][:2]
    assert [title for title, _ in chosen_cases(summary)] == ["Worst case", "Best case"]
    summary["cases"] = summary["cases"][:1]
    assert [title for title, _ in chosen_cases(summary)] == ["Only case"]
    assert chosen_cases(None) == []


def test_numbers_are_written_the_same_way_everywhere() -> None:
    assert [value(0.8515), value(1), value(None), value(3.14, "hd95_mm")] == ["0.852", "1.000", "–", "3.1 mm"]
    assert [lengths([5.0, 5.0]), lengths([2.5, 10.0, 5.0])] == ["5 mm", "2.5–10 mm"]
    found = {"mean": 0.85, "low": 0.8423, "high": 0.859, "count": 7}
    assert [ends(found), spread(found)] == ["0.842–0.859", "95\u202f% interval 0.842–0.859, 7 cases"]
    few = found | {"count": 2}
    assert [ends(few), spread(few)] == ["range 0.842–0.859", "range 0.842–0.859 of 2 cases, too few for an interval"]
    one = {"mean": 0.85, "low": None, "high": None, "count": 1}
    assert [ends(one), spread(one)] == ["", "1 case"]
    assert interval(found) == "0.842–0.859"
    assert interval(found | {"low": 3.0, "high": 4.26}, "hd95_mm") == "3.0–4.3 mm"
    assert interval(found | {"low": None}) == "–"
    assert [duration(s) for s in (44.6, 598, 3600, 7512)] == ["45 s", "9 min 58 s", "1 h 00 min", "2 h 05 min"]
    assert [count(n) for n in (7, 1200, 1234567)] == ["7", "1\u202f200", "1\u202f234\u202f567"]


def test_reports_are_made_without_torch() -> None:
    code = "import sys, semiseg.reporting; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
