"""The README of a shared model, with the front matter that a model hub reads."""

from __future__ import annotations

import hashlib
import html
import json
import re

from semiseg.data.plan import Plan
from semiseg.prediction.model import Model
from semiseg.scoring.statistics import Interval
from semiseg.scoring.summary import Summary
from semiseg.words import counted

README = "README.md"
NO_REPOSITORY = "OWNER/NAME"
"""Stands in the README until a model is pushed."""
_SIGNATURE = re.compile(r"<!-- semiseg ([0-9a-f]{64}) -->\n")
_LICENSE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,49}")


def readme(model: Model, scores: Summary | None, *, license: str = "") -> str:
    """The text. scores: of the run's test cases by this very model, of which means alone are shown. license: the hub's
    name of one, such as apache-2.0; without it none is stated."""
    plan, card = model.plan, model.card
    organs = [_text(name) for name in plan.labels.organs.values()]
    shown = ", ".join(organs[:3]) + (f" and {len(organs) - 3} more" if len(organs) > 3 else "")
    folder = NO_REPOSITORY.partition("/")[2]
    parts = [
        _front_matter(plan, license),
        f"# {shown} in 3D {_text(_scans(plan))}",
        f"A 3D segmentation model for semiseg, made by method "
        f"`{_text(str(card.get('method', 'unknown')))}`. {_text(str(card.get('intended_use', '')))}".strip(),
        "## Use",
        f"```sh\nsemiseg pull {NO_REPOSITORY}\nsemiseg predict {folder} SCANS --output LABELS\n```",
        "## What it segments",
        "\n".join(
            [
                "| value in the label map | structure |",
                "|---|---|",
                *(f"| {value} | {_text(name)} |" for value, name in sorted(plan.labels.organs.items())),
            ]
        ),
        "## How well",
        _score_table(scores) if scores else "No scores are known of this model. Measure it on scans of your own.",
        "## What it expects",
        _expectations(plan),
        "## What it learnt from",
        _training(model),
        "## License",
        f"{license}."
        if license
        else "None is stated. Whoever shares the model chooses one: `license:` in the head of this file.",
    ]
    return signed("\n\n".join(parts) + "\n")


def signed(text: str) -> str:
    """The text with a last line by which it is known whether a person changed it."""
    return f"{text}\n<!-- semiseg {hashlib.sha256(text.encode()).hexdigest()} -->\n"


def is_as_made(text: str) -> bool:
    """Whether it is what `signed` gave."""
    body, newline, last = text.rstrip("\n").rpartition("\n")
    return bool(newline) and bool(_SIGNATURE.fullmatch(last + "\n")) and signed(body) == text


def for_repository(text: str, repository: str) -> str:
    """The text with the repository's name where there was none."""
    made = is_as_made(text)
    body = text.rstrip("\n").rpartition("\n")[0] if made else text
    name = NO_REPOSITORY.partition("/")[2]
    body = body.replace(NO_REPOSITORY, repository)
    body = body.replace(f"semiseg predict {name} ", f"semiseg predict {repository.partition('/')[2]} ")
    return signed(body) if made else body


def is_license(name: str) -> bool:
    """Whether it could be the hub's name of a license."""
    return bool(_LICENSE.fullmatch(name))


def _front_matter(plan: Plan, license: str) -> str:
    tags = ["semiseg", "medical", "3d", *(["ct"] if _is_ct(plan) else [])]
    lines = [f"license: {license}"] if license else []
    lines += ["library_name: semiseg", "pipeline_tag: image-segmentation", "tags:"]
    return "\n".join(["---", *lines, *(f"- {json.dumps(tag)}" for tag in tags), "---"])


def _is_ct(plan: Plan) -> bool:
    return any(channel.scheme == "ct" for channel in plan.normalisation)


def _scans(plan: Plan) -> str:
    return ", ".join(plan.channels) if any(plan.channels) else "scans"


def _score_table(scores: Summary) -> str:
    lines = [
        f"On {counted(len(scores['cases']), 'test case')} that it did not learn from, by the rules "
        f"`{scores['rules']}`. In brackets: the 95 % interval of the mean over cases, or the range below six cases. "
        "NSD is by the tolerance beside it.",
        "",
        "| structure | Dice | NSD | tolerance (mm) | cases |",
        "|---|---|---|---|---|",
    ]
    for organ, found in scores["per_organ"].items():
        tolerance = scores["tolerance_mm"][organ]
        lines.append(
            f"| {_text(organ)} | {_interval(found['dice'])} | {_interval(found['nsd'])} | {tolerance:g} | "
            f"{found['dice']['count']} |"
        )
    mean = scores["mean"]
    lines.append(f"| **mean** | {_interval(mean['dice'])} | {_interval(mean['nsd'])} | | {mean['dice']['count']} |")
    return "\n".join(lines)


def _interval(value: Interval) -> str:
    if value["mean"] is None:
        return "–"
    if value["low"] is None or value["high"] is None:
        return f"{value['mean']:.3f}"
    return f"{value['mean']:.3f} ({value['low']:.3f} to {value['high']:.3f})"


def _expectations(plan: Plan) -> str:
    z, y, x = plan.spacing_mm
    rows = []
    for channel, normalisation in zip(plan.channels, plan.normalisation, strict=True):
        how = "CT in Hounsfield units" if normalisation.scheme == "ct" else "normalised scan by scan, as MR is"
        rows.append(f"- channel `{_text(channel)}`: {how}")
    return "\n".join(
        [
            *rows,
            f"- voxels of any size: they are resampled to {x:.4g} × {y:.4g} × {z:.4g} mm (left to right, back to "
            "front, foot to head), and the labels back to the scan",
            f"- tiles of {plan.patch[2]} × {plan.patch[1]} × {plan.patch[0]} voxels are computed at a time",
        ]
    )


def _training(model: Model) -> str:
    card = model.card
    numbers = {
        "labelled": len(card["labelled_cases"]) if isinstance(card.get("labelled_cases"), list) else None,
        **{name: card.get(f"{name}_cases") for name in ("corrected", "accepted", "taught", "unlabelled")},
    }
    if card.get("method") == "supervised":  # which has them, and does not look at them
        del numbers["unlabelled"]
    scans = [f"{number} {name}" for name, number in numbers.items() if isinstance(number, int) and number]
    said = f"Scans of the dataset `{_text(model.plan.dataset)}`: {', '.join(scans) or 'number unknown'}."
    if isinstance(steps := card.get("steps"), int):
        said += f" {counted(steps, 'step')}."
    return f"{said} Ids of cases are in `card.json` as hashes that nobody can read without a key."


def _text(name: str) -> str:
    """A name that somebody chose, as text in a table of Markdown."""
    shown = "".join(c if c.isprintable() else " " for c in name)
    return re.sub(r"([\\`*\[\]|])", r"\\\1", html.escape(shown, quote=False))
