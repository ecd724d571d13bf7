"""What a person wants to know when a run is done."""

from __future__ import annotations

from pathlib import Path

from semiseg.rows import read_metrics
from semiseg.scoring.summary import read_summary
from semiseg.words import counted, in_minutes


def closing_lines(run: Path) -> list[str]:
    """Five lines: scores, length, model, page, the next command."""
    rows = [row for row in read_metrics(run) if "seconds" in row]
    scores = "no test case has a label, so nothing is scored."
    if (run / "summary.json").exists():
        summary = read_summary(run / "summary.json")
        mean = summary["mean"]["dice"]["mean"]
        organs = sum(found["dice"]["mean"] is not None for found in summary["per_organ"].values())
        value = "undefined" if mean is None else f"{mean:.3f}"
        scores = f"mean Dice {value} of {counted(organs, 'organ')} in {counted(len(summary['cases']), 'test case')}."
    length = f"{rows[-1]['step']:,} steps in {in_minutes(round(rows[-1]['seconds'] / 60, 1))}." if rows else "unknown."
    return [
        f"Scores:  {scores}",
        f"Trained: {length}",
        f"Model:   {run / 'model'}",
        f"Page:    {run / 'report.html'} (open it in a browser)",
        f"Next:    semiseg predict {run} SCANS --output LABELS",
    ]
