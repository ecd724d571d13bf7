"""The report page: a run folder in, `report.html` out, with everything embedded and no address in it."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, FunctionLoader, StrictUndefined, Template
from markupsafe import Markup

from semiseg.data.roles import WITH_LABELS
from semiseg.files import write_text
from semiseg.io.colours import organ_colours
from semiseg.methods.settings import known_kind
from semiseg.reporting.figures import Curve, learning_curves, organ_plot, words
from semiseg.reporting.numbers import count, distance, duration, ends, interval, spread, value
from semiseg.reporting.overlays import NEGATIVE_RGB, POSITIVE_RGB
from semiseg.reporting.pictures import case_pictures, feedback_pictures, mean_dice, ranked
from semiseg.reporting.rounds import labelled_scans
from semiseg.reporting.run_data import RunData, read_run
from semiseg.reporting.scoring import banner, tolerance_sentences, worst_distance
from semiseg.scoring.statistics import is_range
from semiseg.scoring.summary import METRICS, Metric, Summary, pair_count

METRIC_NAMES: dict[Metric, str] = {"dice": "Dice", "nsd": "NSD", "hd95_mm": "HD95"}


def write_report(run: Path) -> Path:
    """Write `run/report.html` from the files of the run folder, and return its path.

    Parts that are not there yet (evaluation, feedback maps, validation) are said to be missing on the page.
    Raises `DataError` or `ConfigError` that names the file if a file of the run is damaged.
    """
    path = run / "report.html"
    write_text(path, _render(read_run(run)))
    return path


def _render(data: RunData) -> str:
    """The page as HTML. Everything from files is escaped; only our own SVG is not."""
    organs = list(data.label_values.values())
    curves = learning_curves(data.metrics)
    return load_template("template.html").render(
        title=data.plan.dataset if data.plan else data.folder.resolve().name,
        run=data.folder.resolve().name,
        method=method_name(data),
        sentence=trained_on(data),
        warnings=banner(data),
        facts=facts(data),
        summary=data.summary,
        scored="labelled scans, each predicted by the network that has not seen it," if data.folds else "test cases",
        scored_one="labelled scan" if data.folds else "test case",
        no_tests=bool(data.roles) and not data.roles.get("test"),
        few_cases=data.summary is not None and is_range(data.summary["mean"]["dice"]),
        pairs=pair_count(data.summary["cases"]) if data.summary else (0, 0),
        worst=worst_distance(data.summary),
        tolerance=tolerance_sentences(data),
        metrics=[(metric, METRIC_NAMES[metric]) for metric in METRICS],
        curves=curves,
        curve_gaps=_curve_gaps(data, curves),
        organs=organs,
        colours=organ_colours(organs),
        worst_hd95=_worst_hd95(data.summary),
        plots=_organ_plots(data.summary, organs),
        cases=[(case, mean_dice(case)) for case in ranked(data.summary)],
        pictures=case_pictures(data),
        rounds=data.rounds,
        found=list(dict.fromkeys(organ for row in data.rounds for organ in row["found"])),
        scans=labelled_scans(data),
        feedback=feedback_pictures(data),
        feedback_expected=data.setting("method.feedback") == "dense",
        negative=NEGATIVE_RGB,
        positive=POSITIVE_RGB,
        reasons=getattr(data.plan, "reasons", ()),
        again=_to_do_it_again(data),
        data=data,
    )


def _to_do_it_again(data: RunData) -> list[tuple[str, str, str | None]]:
    """Name, sentence and text of the files that a run was made from; settled.toml only where it is there."""
    settled = "What this machine made of it: steps, minutes, precision, threads."
    return [
        ("run.toml", "What was asked for: every setting, with the defaults.", data.run_text),
        *([("settled.toml", settled, data.settled_text)] if data.settled_text is not None else []),
        ("plan.toml", "What the data led to: spacing, patch and networks.", data.plan_text),
    ]


def load_template(name: str) -> Template:
    """A template of this package with our filters; names that it does not know are errors, not blanks."""
    environment = Environment(
        loader=FunctionLoader(_package_text),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"value": value, "range": interval, "ends": ends, "spread": spread}
    environment.filters |= {"distance": distance, "words": words, "svg": Markup}
    environment.tests["few"] = is_range
    environment.globals["style"] = _package_text("style.css")
    return environment.get_template(name)


def _package_text(name: str) -> str:
    return files("semiseg.reporting").joinpath(name).read_text(encoding="utf-8")


def method_name(data: RunData) -> str:
    """The method in words, with the kind of feedback where it has one."""
    name = data.setting("method.name")
    if name is None:
        return ""
    feedback = data.setting("method.feedback")
    kind = known_kind(str(name))
    text = kind.title if kind else words(str(name))
    return f"{text}, {feedback} feedback" if feedback else text


def trained_on(data: RunData) -> str:
    """One sentence: how many scans of which kind the run has learnt from and is measured on."""
    roles = data.roles
    if not roles:
        return "There is no list of cases in this run yet."
    refused = bool(data.rounds) and not any(row["trusted"] for row in data.rounds)
    kind = known_kind(str(data.setting("method.name")))
    alone = refused or (kind is not None and not kind.uses_unlabelled)
    used = (*WITH_LABELS, *(() if alone else ("unlabelled",)))
    named = {"taught": "labelled by its teacher"}
    if data.folds:
        labelled = count(roles.get("labelled", 0) + roles.get("validation", 0))
        return (
            f"{count(data.folds)} networks, each trained without one part of the {labelled} labelled scans. Each of "
            "them was predicted by the network that has not seen it: out of fold."
        )
    learnt = [f"{count(roles[role])} {named.get(role, role)}" for role in used if roles.get(role)]
    drawn = sum(row["scans"] for row in data.rounds)
    if "unlabelled" in used and 0 < drawn < roles.get("unlabelled", 0):
        learnt[-1] = f"at most {count(drawn)} of {count(roles['unlabelled'])} unlabelled"
    scans = "scan" if [roles.get(role) for role in used if roles.get(role)] == [1] else "scans"
    *others, last = learnt or ["no"]
    text = f"Trained on {', '.join(others)}{' and ' if others else ''}{last} {scans}"
    if aside := roles.get("set_aside"):
        text += f", with {count(aside)} set aside"
    if "unlabelled" not in used and (unused := roles.get("unlabelled")):
        text += f" ({count(unused)} unlabelled {'one' if unused == 1 else 'ones'} unused)"
    if watched := roles.get("validation"):
        text += f", watched on {count(watched)} validation case{'' if watched == 1 else 's'}"
    if not (measured := roles.get("test")):
        return f"{text}."
    what, were = ("case", "was") if measured == 1 else ("cases", "were")
    held_back = f"training {what} that {were} held back"
    if data.setting("data.fold") is not None:
        return f"{text}, measured on the {count(measured)} labelled {what} of fold {data.setting('data.fold')}."
    return f"{text}, measured on {count(measured)} {held_back if data.setting('data.development') else f'test {what}'}."


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
        teacher, student = _network(plan.teacher.features), _network(plan.student.features)
        if teacher == student:
            found.append(("Network", student))
        else:
            found += [("Teacher network", teacher), ("Student network", student)]
    if weights := data.setting("train.weights"):
        found.append(("Weights from", Path(str(weights)).name))
    if data.metrics:
        last = data.metrics[-1]
        found.append(("Steps", count(int(last["step"]))))
        if "seconds" in last:
            found.append(("Training time", duration(float(last["seconds"]))))
    if data.setting("train.steps") is None and (minutes := data.setting("train.minutes")):
        found.append(("Budget", duration(60 * float(minutes))))
    if (seed := data.setting("train.seed")) is not None:
        found.append(("Seed", str(seed)))
    seconds = [row["seconds"] for row in data.predictions if "seconds" in row]
    if seconds:
        found.append(("Prediction", f"{sum(seconds) / len(seconds):.1f} s a scan"))
    if data.summary:
        found.append(("Scoring rules", data.summary["rules"]))
        scored = len(data.summary["cases"])
        found.append(("Scored", f"{count(scored)} of {count(max(scored, data.roles.get('test', 0)))} cases"))
    return found


def _network(features: Sequence[int]) -> str:
    return f"{len(features)} levels, {features[0]}–{features[-1]} features"


def _curve_gaps(data: RunData, curves: Sequence[Curve]) -> list[str]:
    """Sentences about curves that one might look for in vain."""
    if data.folds:
        return [f"Each network has a page of its own: fold_0/report.html to fold_{data.folds - 1}/report.html."]
    if not data.metrics:
        return ["Nothing has been logged yet: metrics.jsonl is missing or empty."]
    if not any(curve.title == "Validation Dice" for curve in curves):
        return ["This run held no validation cases back, so there is no validation curve."]
    return []


def _worst_hd95(summary: Summary | None) -> float:
    """The length of a full HD95 bar: the largest upper end of an interval, in mm."""
    found = [organ["hd95_mm"] for organ in summary["per_organ"].values()] if summary else []
    return max((item["high"] or item["mean"] or 0.0 for item in found), default=0.0) or 1.0


def _organ_plots(summary: Summary | None, organs: Sequence[str]) -> list[tuple[str, str, str]]:
    if summary is None or not summary["cases"]:
        return []
    plots = {m: organ_plot(summary["cases"], organs, m, name_organs=m == METRICS[0]) for m in METRICS}
    return [(metric, METRIC_NAMES[metric], plot) for metric, plot in plots.items()]
