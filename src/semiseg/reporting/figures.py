"""Learning curves and per-organ plots as inline SVG whose colours are the page's CSS variables.

Matplotlib draws with placeholder colours, each of which is replaced by `var(--name)`: one picture then serves
the light page, the dark page and the printed one.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from semiseg.scoring.summary import CaseScores, Metric, organ_values
from semiseg.types import DoubleArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, LINE, SHADE, PAGE = "#010101", "#020202", "#030303", "#040404", "#050505"
SERIES = tuple(f"#0600{n:02x}" for n in range(1, 8))
_VARIABLES = {INK: "ink", MUTED: "muted", LINE: "line", SHADE: "shade", PAGE: "card"} | {
    colour: f"series-{n}" for n, colour in enumerate(SERIES, start=1)
}

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "axes.axisbelow": True,
    "figure.facecolor": "none",
    "grid.color": LINE,
    "grid.linewidth": 0.8,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "lines.solid_capstyle": "round",
}

LOSSES = {
    "labelled scans": "labelled_loss",
    "student on pseudo-labels": "pseudo_loss",
    "student on labelled scans": "student_labelled_loss",
}
PHASES = {"pretrain": "pre-training", "warmup": "warm-up", "finetune": "fine-tuning"}
"""The phases that are shaded; the main phase `train` is not."""
_MAX_POINTS = 800


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A figure of the learning section: legend pairs CSS variables with labels; a wide one fills the row."""

    title: str
    note: str
    legend: tuple[tuple[str, str], ...]
    svg: str
    wide: bool = False


def words(name: str) -> str:
    """A name as it is shown: `right_kidney` reads better with a space."""
    return name.replace("_", " ")


def learning_curves(metrics: Sequence[dict[str, Any]]) -> list[Curve]:
    """Curves of losses, feedback and validation Dice over steps; those that were not logged, or are 0 throughout, are
    left out."""
    parts = [
        ("Losses", LOSSES, "Smoothed; the faint lines are the logged values."),
        ("Feedback", {"feedback": "feedback"}, "How strongly the student's result steers the teacher."),
        ("Validation Dice", _validation_keys(metrics), "On validation cases, which are never trained on."),
    ]
    found = [(title, lines, note) for title, keys, note in parts if (lines := _series(metrics, keys))]
    odd = len(found) % 2 == 1
    return [_curve(metrics, lines, title, note, wide=odd and n == 0) for n, (title, lines, note) in enumerate(found)]


def organ_plot(cases: Sequence[CaseScores], organs: Sequence[str], metric: Metric, *, name_organs: bool) -> str:
    """SVG of one metric: a row for each organ with a dot for each case, the median and the middle half.

    name_organs: whether the organs are written at the left (in a row of plots only the first needs them).
    """
    values = [[v for v in organ_values(cases, organ, metric) if v is not None] for organ in organs]
    with _figure(3.2 + 0.9 * name_organs, 0.55 + 0.42 * len(organs)) as figure:
        axes = figure.add_subplot()
        for row, found in enumerate(values):
            _strip(axes, row, np.array(found, dtype=np.float64))
        axes.set_ylim(len(organs) - 0.5, -0.5)
        axes.set_yticks(range(len(organs)), [words(o) for o in organs] if name_organs else [""] * len(organs))
        axes.tick_params(axis="y", labelcolor=INK)
        axes.grid(axis="x")
        axes.spines["left"].set_visible(False)
        axes.set_xlim(*_limits([v for found in values for v in found], metric))
        axes.locator_params("x", nbins=5)
        return _svg(figure, f"{metric} of every case, by organ")


EfficiencyLine = tuple[str, Sequence[tuple[float, float, float, float]]]
"""A method, and its points: labels or compute, mean, and the ends of its interval."""


def efficiency_plot(lines: Sequence[EfficiencyLine], ceiling: float | None, *, name: str, over: str) -> str:
    """SVG of a metric against what methods were given: for each method (how much, mean, low, high), and the ceiling.

    over: what is given, such as "labelled scans", on a logarithmic axis. Methods stand side by side at each amount, so
    that their intervals can be read.
    """
    amounts = sorted({amount for _, found in lines for amount, *_ in found})
    with _figure(5.4, 3.6) as figure:
        axes = figure.add_subplot()
        for n, (_, found) in enumerate(lines):
            colour, (marker, _) = SERIES[n % len(SERIES)], _marker(n)
            shift = 2 ** (0.32 * ((n + 0.5) / len(lines) - 0.5))
            x = np.array([amount for amount, *_ in found]) * shift
            mean, low, high = (np.array([row[i] for row in found]) for i in (1, 2, 3))
            axes.vlines(x, low, high, color=colour, linewidth=1.2, alpha=0.7)
            axes.plot(x, mean, color=colour, linewidth=1.6, marker=marker, markersize=5)
        if ceiling is not None:
            axes.axhline(ceiling, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        axes.set_xscale("log", base=2)
        axes.set_xticks(amounts, [f"{amount:g}" for amount in amounts])
        axes.minorticks_off()
        axes.margins(x=0.08)
        axes.grid(axis="y")
        axes.set_xlabel(over)
        return _svg(figure, f"{name} by {over}")


def forest_plot(rows: Sequence[tuple[str, float, float, float]], margin: float) -> str:
    """SVG of differences in Dice with their intervals: (what, mean, low, high) a row, zero, and the margin within which
    methods are level."""
    with _figure(11.2, 0.9 + 0.34 * len(rows)) as figure:
        axes = figure.add_subplot()
        axes.axvspan(-margin, margin, color=SHADE, linewidth=0, zorder=0)
        axes.axvline(0, color=MUTED, linewidth=1)
        for row, (_, mean, low, high) in enumerate(rows):
            axes.hlines(row, low, high, color=SERIES[0], linewidth=1.6)
            axes.plot([mean], [row], color=SERIES[0], marker="s", markersize=6)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_yticks(range(len(rows)), [words(name) for name, *_ in rows])
        axes.tick_params(axis="y", labelcolor=INK)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x")
        axes.set_xlabel("difference in Dice")
        return _svg(figure, "Differences in Dice with their intervals")


def series_key(number: int) -> tuple[str, str]:
    """The CSS variable and the sign of the n-th line of `efficiency_plot`."""
    return _VARIABLES[SERIES[number % len(SERIES)]], _marker(number)[1]


_MARKERS = (("o", "●"), ("s", "■"), ("^", "▲"), ("D", "◆"), ("v", "▼"), ("p", "⬟"))
"""Where colours begin anew, signs differ: matplotlib's, and as text."""


def _marker(number: int) -> tuple[str, str]:
    return _MARKERS[number // len(SERIES) % len(_MARKERS)]


def _limits(values: Sequence[float], metric: str) -> tuple[float, float]:
    """The axis of a metric: HD95 from 0; Dice and NSD up to 1, from the tenth below the lowest value."""
    if metric == "hd95_mm":
        return -0.02 * max(values, default=1.0), 1.05 * max([*values, 1.0])
    low = np.floor(10 * min(values, default=0.0) - 0.3) / 10
    return max(-0.02, float(low)), 1.01


def _strip(axes: Axes, row: int, values: DoubleArray) -> None:
    """Dots spread by the golden ratio (no two alike, the same at each drawing), the quartiles, the median."""
    if not values.size:
        return
    spread = (np.arange(values.size) * 0.618034) % 1 - 0.5
    axes.scatter(values, row + 0.36 * spread, s=20, color=SERIES[0], alpha=0.6, linewidths=0, zorder=3)
    lower, median, upper = np.percentile(values, (25, 50, 75))
    axes.plot([lower, upper], [row, row], color=SERIES[0], alpha=0.25, linewidth=13, solid_capstyle="butt", zorder=2)
    axes.plot([median, median], [row - 0.3, row + 0.3], color=INK, linewidth=2, zorder=4)


def _validation_keys(metrics: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Label to key: the mean first, then as many organs as there are colours left."""
    prefix = "validation_dice/"
    organs = dict.fromkeys(key for row in metrics for key in row if key.startswith(prefix))
    named = {words(key.removeprefix(prefix)): key for key in list(organs)[: len(SERIES) - 1]}
    return {"mean": "validation_dice"} | named


def _series(metrics: Sequence[dict[str, Any]], keys: dict[str, str]) -> list[tuple[str, DoubleArray, DoubleArray]]:
    """(label, steps, values) of each key that was logged at least once."""
    lines = []
    for label, key in keys.items():
        points = [(row["step"], row[key]) for row in metrics if isinstance(row.get(key), int | float)]
        if points:
            steps, values = np.array(points, dtype=np.float64).T
            lines.append((label, steps, values))
    return lines if any(values.any() for _, _, values in lines) else []


def _curve(
    metrics: Sequence[dict[str, Any]],
    lines: Sequence[tuple[str, DoubleArray, DoubleArray]],
    title: str,
    note: str,
    *,
    wide: bool,
) -> Curve:
    smooth = title != "Validation Dice"
    with _figure(11.2 if wide else 5.4, 3.0) as figure:
        axes = figure.add_subplot()
        for colour, (_, steps, values) in zip(SERIES, lines, strict=False):
            width = max(1, len(values) // 25) if smooth else 1
            if width > 1:
                axes.plot(*_thin(steps, values), color=colour, alpha=0.25, linewidth=0.9)
            marker = "" if smooth and len(values) > 1 else "o"
            smoothed = running_mean(values, width)
            axes.plot(*_thin(steps, smoothed), color=colour, linewidth=2, marker=marker, markersize=4)
        _shade_phases(axes, metrics)
        axes.grid(axis="y")
        axes.set_xlabel("step")
        axes.locator_params("x", nbins=6, integer=True)
        axes.locator_params("y", nbins=5)
        axes.margins(x=0.01)
        svg = _svg(figure, f"{title} over steps")
    legend = tuple((_VARIABLES[colour], label) for colour, (label, _, _) in zip(SERIES, lines, strict=False))
    return Curve(title=title, note=note, legend=legend if len(lines) > 1 else (), svg=svg, wide=wide)


def _shade_phases(axes: Axes, metrics: Sequence[dict[str, Any]]) -> None:
    for phase, name in PHASES.items():
        steps = [row["step"] for row in metrics if row.get("phase") == phase]
        if not steps or len(metrics) < 2:
            continue
        start, stop = min(steps), max(steps)
        axes.axvspan(start, stop, color=SHADE, linewidth=0, zorder=0)
        where: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "xytext": (0, 5), "textcoords": "offset points"}
        axes.annotate(name, ((start + stop) / 2, 1), **where, ha="center", va="bottom", fontsize=9, color=MUTED)


def running_mean(values: DoubleArray, width: int) -> DoubleArray:
    """Mean over the `width` values around each value; over fewer at the ends, which nothing pulls to zero."""
    kernel = np.ones(min(width, len(values)))
    total = np.convolve(values, kernel, mode="same")
    return np.asarray(total / np.convolve(np.ones_like(values), kernel, mode="same"), dtype=np.float64)


def _thin(steps: DoubleArray, values: DoubleArray) -> tuple[DoubleArray, DoubleArray]:
    """Every n-th point, so that a long run does not make a heavy page."""
    every = -(-len(steps) // _MAX_POINTS)
    return steps[::every], values[::every]


@contextmanager
def _figure(width: float, height: float) -> Iterator[Figure]:
    """An empty figure of so many inches, in the page's style. Matplotlib is loaded here: most commands draw nothing."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        yield Figure(figsize=(width, height), layout="constrained")


def _svg(figure: Figure, description: str) -> str:
    """The figure as an SVG element for HTML: no XML prologue, no addresses, colours as CSS variables."""
    import matplotlib as mpl

    stream = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with mpl.rc_context({"svg.hashsalt": description}), warnings.catch_warnings():
        # The page's font writes the text, so that a letter that matplotlib's own font lacks does no harm.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        figure.savefig(stream, format="svg", metadata=nothing, transparent=True)
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :]
    head, body = svg.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', head)
    svg = f'<svg role="img" aria-label="{description}" {box[0] if box else ""}>{body}'
    for colour, name in _VARIABLES.items():
        svg = svg.replace(colour, f"var(--{name})")
    return svg
