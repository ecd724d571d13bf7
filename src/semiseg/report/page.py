"""The report page: a run folder in, `report.html` out, with everything embedded and no address in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from semiseg.errors import DataError
from semiseg.evaluate.statistics import Interval
from semiseg.evaluate.summary import METRICS, CaseScores, Metric, Summary, case_means
from semiseg.files import write_text
from semiseg.io.nifti import read_label, read_volume
from semiseg.report.figures import Curve, learning_curves, organ_colours, organ_plot, words
from semiseg.report.overlays import NEGATIVE_RGB, POSITIVE_RGB, Panel, case_panels, feedback_panels
from semiseg.report.run_data import RunData, read_run
from semiseg.types import LabelArray

METRIC_NAMES: dict[Metric, str] = {"dice": "Dice", "nsd": "NSD", "hd95_mm": "HD95"}
METHOD_NAMES = {
    "supervised": "supervised training",
    "pseudo_rounds": "pseudo-labels in rounds",
    "pseudo_label": "pseudo-labels without feedback",
    "mpl": "Meta Pseudo Labels",
}
MAX_FEEDBACK_CASES = 3
NOTHING = "–"


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One case with its panels, or with the reason why there are none.

    scores: name, colour and Dice of each organ, for the legend. limit: the end of the feedback scale.
    """

    title: str
    id: str
    mean: str = ""
    scores: tuple[tuple[str, str, str], ...] = ()
    panels: tuple[Panel, ...] = ()
    problem: str = ""
    limit: str = ""


def write_report(run: Path) -> Path:
    """Write `run/report.html` from the files of the run folder, and return its path.

    Parts that are not there yet (evaluation, feedback maps, validation) are said to be missing on the page.
    Raises `DataError` or `ConfigError` that names the file if a file of the run is damaged.
    """
    data = read_run(run)
    path = run / "report.html"
    write_text(path, render(data))
    return path


def render(data: RunData) -> str:
    """The page as HTML. Everything from files is escaped; only our own SVG is not."""
    template = load_template("template.html")
    colours = organ_colours(_organs(data))
    curves = learning_curves(data.metrics)
    return template.render(
        title=data.plan.dataset if data.plan else data.folder.resolve().name,
        run=data.folder.resolve().name,
        method=method_name(data),
        sentence=trained_on(data),
        facts=facts(data),
        summary=data.summary,
        metrics=[(metric, METRIC_NAMES[metric]) for metric in METRICS],
        curves=curves,
        curve_gaps=_curve_gaps(data, curves),
        organs=_organs(data),
        colours=colours,
        worst_hd95=_worst_hd95(data.summary),
        plots=_organ_plots(data.summary),
        cases=[(case, mean_dice(case)) for case in _ranked(data.summary)],
        pictures=_pictures(data, colours),
        feedback=_feedback_pictures(data, colours),
        feedback_expected=data.setting("method.name") == "mpl",
        negative=NEGATIVE_RGB,
        positive=POSITIVE_RGB,
        data=data,
    )


def load_template(name: str) -> Template:
    """A template of this package with our filters; names that it does not know are errors, not blanks."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"value": value, "range": interval, "words": words, "svg": Markup}
    environment.globals["style"] = _package_text("style.css")
    return environment.from_string(_package_text(name))


def _package_text(name: str) -> str:
    return files("semiseg.report").joinpath(name).read_text(encoding="utf-8")


def value(number: float | None, metric: str = "dice") -> str:
    """`0.851` for Dice and NSD, `3.1 mm` for HD95, a dash for None."""
    if number is None:
        return NOTHING
    return f"{number:.1f} mm" if metric == "hd95_mm" else f"{number:.3f}"


def interval(found: Interval, metric: str = "dice") -> str:
    """The interval's ends, `0.842–0.859`, or a dash."""
    if found["low"] is None or found["high"] is None:
        return NOTHING
    digits, unit = (1, " mm") if metric == "hd95_mm" else (3, "")
    return f"{found['low']:.{digits}f}–{found['high']:.{digits}f}{unit}"


def duration(seconds: float) -> str:
    """`45 s`, `9 min 58 s` or `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def count(number: int) -> str:
    """A whole number with narrow spaces between thousands."""
    return f"{number:,}".replace(",", "\u202f")


def method_name(data: RunData) -> str:
    """The method in words, with the kind of feedback where it has one."""
    name = data.setting("method.name")
    if name is None:
        return ""
    feedback = data.setting("method.feedback")
    text = METHOD_NAMES.get(str(name), words(str(name)))
    return f"{text}, {feedback} feedback" if name == "mpl" and feedback else text


def trained_on(data: RunData) -> str:
    """One sentence: how many scans of which kind the run has learnt from and is measured on."""
    roles = data.roles
    if not roles:
        return "There is no list of cases in this run yet."
    used = ("labelled", "taught", *(() if data.setting("method.name") == "supervised" else ("unlabelled",)))
    named = {"taught": "labelled by its teacher"}
    learnt = [f"{count(roles[role])} {named.get(role, role)}" for role in used if roles.get(role)]
    if "unlabelled" in used and 0 < data.drawn_scans < roles.get("unlabelled", 0):
        learnt[-1] = f"{count(data.drawn_scans)} of {count(roles['unlabelled'])} unlabelled"
    text = f"Trained on {' and '.join(learnt) or 'no'} scans"
    if "unlabelled" not in used and roles.get("unlabelled"):
        text += f" ({count(roles['unlabelled'])} unlabelled ones unused)"
    if roles.get("validation"):
        text += f", watched on {count(roles['validation'])} validation cases"
    measured = "training cases that were held back" if data.setting("data.development") else "test cases"
    return text + (f", measured on {count(roles['test'])} {measured}." if roles.get("test") else ".")


def facts(data: RunData) -> list[tuple[str, str]]:
    """Short name and value of everything worth knowing at a glance; what is unknown is left out."""
    found: list[tuple[str, str]] = []
    if data.plan:
        plan = data.plan
        found += [
            ("Channels", ", ".join(plan.channels)),
            ("Spacing", " × ".join(f"{mm:.3g}" for mm in plan.spacing_mm) + " mm"),
            ("Patch", " × ".join(map(str, plan.patch)) + f", {plan.batch} per batch"),
        ]
        networks = {name: _network(getattr(plan, name).features) for name in ("teacher", "student")}
        if networks["teacher"] == networks["student"]:
            found.append(("Network", networks["student"]))
        else:
            found += [(f"{name.capitalize()} network", text) for name, text in networks.items()]
    if data.metrics:
        last = data.metrics[-1]
        found.append(("Steps", count(int(last["step"]))))
        if isinstance(last.get("seconds"), int | float):
            found.append(("Training time", duration(float(last["seconds"]))))
    if budget := data.setting("train.budget_minutes"):
        found.append(("Budget", duration(60 * float(budget))))
    if (seed := data.setting("train.seed")) is not None:
        found.append(("Seed", str(seed)))
    seconds = [float(row["seconds"]) for row in data.predictions if isinstance(row.get("seconds"), int | float)]
    if seconds:
        found.append(("Prediction", f"{sum(seconds) / len(seconds):.1f} s a scan"))
    if data.summary:
        found.append(("Scoring rules", data.summary["rules"]))
    return found


def _network(features: Sequence[int]) -> str:
    return f"{len(features)} levels, {features[0]}–{features[-1]} features"


def _curve_gaps(data: RunData, curves: Sequence[Curve]) -> list[str]:
    """Sentences about curves that one might look for in vain."""
    if not data.metrics:
        return ["Nothing has been logged yet: metrics.jsonl is missing or empty."]
    if not any(curve.title == "Validation Dice" for curve in curves):
        return ["This run held no validation cases back, so there is no validation curve."]
    return []


def _organs(data: RunData) -> list[str]:
    if data.summary:
        return list(_scored(data.summary).values())
    return list(data.plan.labels.organs.values()) if data.plan else []


def _label_values(data: RunData) -> dict[int, str]:
    if data.summary:
        return _scored(data.summary)
    return data.plan.labels.organs if data.plan else {}


def _scored(summary: Summary) -> dict[int, str]:
    """The evaluated organs by label value, in order; JSON has text for keys."""
    return {value: summary["organs"][str(value)] for value in sorted(map(int, summary["organs"]))}


def _worst_hd95(summary: Summary | None) -> float:
    """The length of a full HD95 bar: the largest upper end of an interval, in mm."""
    found = [organ["hd95_mm"] for organ in summary["per_organ"].values()] if summary else []
    return max((item["high"] or item["mean"] or 0.0 for item in found), default=0.0) or 1.0


def _organ_plots(summary: Summary | None) -> list[tuple[str, str, str]]:
    if summary is None or not summary["cases"]:
        return []
    organs = list(_scored(summary).values())
    return [
        (
            metric,
            METRIC_NAMES[metric],
            organ_plot(summary["cases"], organs, metric, name_organs=metric == METRICS[0]),
        )
        for metric in METRICS
    ]


def _ranked(summary: Summary | None) -> list[CaseScores]:
    """The cases from the worst to the best mean Dice; those without any Dice come last."""
    return sorted(summary["cases"], key=_rank) if summary else []


def _rank(case: CaseScores) -> tuple[bool, float, str]:
    mean = mean_dice(case)
    return (mean is None, mean or 0.0, case["id"])


def mean_dice(case: CaseScores) -> float | None:
    """A case's mean Dice over the organs in which it is defined, or None."""
    return case_means([case], "dice")[0]


def chosen_cases(summary: Summary | None) -> list[tuple[str, CaseScores]]:
    """The worst, the median and the best case by mean Dice; fewer if there are fewer."""
    ranked = [case for case in _ranked(summary) if mean_dice(case) is not None]
    if len(ranked) < 3:
        return list(zip(("Worst case", "Best case") if len(ranked) == 2 else ("Only case",), ranked, strict=False))
    return [("Worst case", ranked[0]), ("Median case", ranked[len(ranked) // 2]), ("Best case", ranked[-1])]


def _pictures(data: RunData, colours: dict[str, str]) -> list[Picture]:
    return [_picture(data, title, case, colours) for title, case in chosen_cases(data.summary)]


def _picture(data: RunData, title: str, case: CaseScores, colours: dict[str, str]) -> Picture:
    scores = tuple((o, colours[o], value(m["dice"])) for o, m in case["organs"].items())
    try:
        panels, problem = _case_panels(data, case, colours), ""
    except DataError as error:
        panels, problem = (), f"This case cannot be drawn. {error}"
    mean = value(mean_dice(case))
    return Picture(title=title, id=case["id"], mean=mean, scores=scores, panels=panels, problem=problem)


def _case_panels(data: RunData, case: CaseScores, colours: dict[str, str]) -> tuple[Panel, ...]:
    prediction, grid = read_label(data.path(case["prediction"]))
    reference, reference_grid = read_label(data.path(case["reference"]))
    if difference := grid.difference(reference_grid):
        raise DataError(f"{case['prediction']} is not on the grid of {case['reference']}: {difference}.")
    image = _image(data, case, prediction)
    panels = case_panels(
        image,
        reference,
        prediction,
        grid.spacing_mm,
        organs=_label_values(data),
        colours=colours,
        ct=bool(data.plan and data.plan.normalisation[0].scheme == "ct"),
    )
    return tuple(panels)


def _image(data: RunData, case: CaseScores, like: LabelArray) -> Any:
    """The first channel of the scan, from summary.json or cases.jsonl; black if neither names one."""
    listed = next((row.get("images") or [] for row in data.cases if row.get("id") == case["id"]), [])
    path = case["image"] or next(iter(listed), None)
    if path is None:
        return np.zeros(like.shape, dtype=np.float32)
    image = read_volume([data.path(path)]).array[0]
    if image.shape != like.shape:
        raise DataError(f"{path} has shape {image.shape}, but its prediction {like.shape}.")
    return image


def _feedback_pictures(data: RunData, colours: dict[str, str]) -> list[Picture]:
    organs = {v: name for v, name in _label_values(data).items() if name in colours}
    return [_feedback_picture(path, organs, colours) for path in data.feedback[:MAX_FEEDBACK_CASES]]


def _feedback_picture(path: Path, organs: dict[int, str], colours: dict[str, str]) -> Picture:
    try:
        with np.load(path, allow_pickle=False) as archive:
            parts = {name: archive[name] for name in ("image", "pseudo_label", "feedback", "spacing_mm")}
    except (OSError, KeyError, ValueError, EOFError) as error:
        raise DataError(f"{path}: not a readable feedback map ({error}). Remove the file.") from None
    z, y, x = (float(mm) for mm in parts["spacing_mm"])
    panels, limit = feedback_panels(
        parts["image"], parts["pseudo_label"], parts["feedback"], (z, y, x), organs=organs, colours=colours
    )
    return Picture(title="Unlabelled scan", id=path.stem, panels=tuple(panels), limit=f"{limit:.1e}")
