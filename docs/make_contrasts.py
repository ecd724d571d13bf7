"""Draws what unlabelled scans gain: the default minus labels alone on each set that a study was made of, into
docs/assets/contrasts.svg, and prints the same as a table.

    python docs/make_contrasts.py
"""

from __future__ import annotations

import re
from pathlib import Path

from semiseg.reporting.figures import forest_plot
from semiseg.scoring.label_efficiency import MARGIN, points, verdict
from semiseg.scoring.study_results import read_study

DOCS = Path(__file__).resolve().parent
PICTURE = DOCS / "assets" / "contrasts.svg"
STUDIES = {
    "hippocampus_converged": "hippocampus",
    "head_neck_converged": "head and neck",
    "left_atrium_converged": "left atrium",
    "acdc_mixed_converged": "ACDC, all groups",
    "acdc_one_disease_converged": "ACDC, one disease",
}
COLOURS = {
    "ink": "#1d2733", "muted": "#5b6875", "line": "#d5dbe1", "shade": "#e8ecf0", "card": "#fff", "series-1": "#1f6fb2",
}  # fmt: skip
SPACES = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" style="background: #fff" '


def main() -> None:
    rows: list[tuple[str, float, float, float]] = []
    for name, title in STUDIES.items():
        file = DOCS / "benchmarks" / name / "results.json"
        if not file.is_file():
            continue
        for point in sorted(points(read_study(file)), key=lambda point: (point.labelled, point.compute)):
            both, alone = point.difference.get("dice"), point.over_cases
            if point.method != "default" or not (both and alone) or None in (both["mean"], both["low"], both["high"]):
                continue
            times = f", {point.compute:g} x" if name.endswith("converged") else ""
            # Of each patient of ACDC both phases are labelled.
            labelled = f"{point.labelled // 2} patients" if name.startswith("acdc") else f"{point.labelled} labels"
            what = f"{title}, {labelled}{times}"
            rows.append((what, both["mean"], both["low"], both["high"]))
            ends = [f"[{one['low']:+.4f}, {one['high']:+.4f}]" for one in (both, alone)]
            print(f"{what:42} {both['mean']:+.4f} {ends[0]}, over cases {ends[1]}: {verdict(both)}")
    svg = re.sub(r"var\(--([a-z0-9-]+)\)", lambda match: COLOURS[match[1]], forest_plot(rows, MARGIN))
    PICTURE.write_text(svg.replace("<svg ", SPACES, 1), encoding="utf-8")


if __name__ == "__main__":
    main()
