"""What a run folder holds, read tolerantly: a part that is not there yet is empty, a damaged one an error."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semiseg.data.plan import Plan, read_plan
from semiseg.data.roles import RunCase, read_run_cases
from semiseg.errors import DataError
from semiseg.files import read_toml
from semiseg.notices import read_notices
from semiseg.rows import PredictionRow, RoundRow, read_metrics, read_predictions, read_rounds
from semiseg.scoring.summary import Summary, read_summary


@dataclass(frozen=True, kw_only=True)
class RunData:
    """A run folder in memory.

    settings: the resolved run.toml. roles: number of cases by role (labelled, taught, unlabelled, validation, test).
    failures: case id and reason of predictions that failed. missing: test cases without any score or failure. feedback:
    the feedback maps' files. run_text, settled_text, plan_text: the files as they are, or None. notices: the warnings
    that stand. rounds: a row for each labelling of unlabelled scans; label_folders: of their labels, the newest first.
    """

    folder: Path
    settings: dict[str, Any]
    run_text: str | None
    settled_text: str | None
    plan: Plan | None
    plan_text: str | None
    cases: list[RunCase]
    metrics: list[dict[str, Any]]
    predictions: list[PredictionRow]
    summary: Summary | None
    feedback: tuple[Path, ...]
    notices: tuple[str, ...]
    rounds: list[RoundRow]
    label_folders: tuple[Path, ...]

    @property
    def folds(self) -> int:
        """How many networks this run is made of; 0 where it is one network, be it that of a fold."""
        return int(self.setting("data.folds") or 0) if self.setting("data.fold") is None else 0

    @property
    def roles(self) -> dict[str, int]:
        return Counter(case.role for case in self.cases)

    @property
    def failures(self) -> list[tuple[str, str]]:
        """The last word on each case counts: one that failed and later succeeded is no failure."""
        last = {row["id"]: row.get("error") for row in self.predictions}
        return [(case, error) for case, error in last.items() if error]

    @property
    def missing(self) -> list[str]:
        """Ids of test cases with neither a score nor a recorded failure; empty before the evaluation."""
        if self.summary is None or self.folds:
            return []
        known = {case["id"] for case in self.summary["cases"]} | {case for case, _ in self.failures}
        return [case.id for case in self.cases if case.role == "test" and case.id not in known]

    @property
    def label_values(self) -> dict[int, str]:
        """The organs that are shown, by label value and in its order: those that were scored, else the plan's."""
        if self.summary:
            return {value: self.summary["organs"][str(value)] for value in sorted(map(int, self.summary["organs"]))}
        return self.plan.labels.organs if self.plan else {}

    @property
    def is_ct(self) -> bool:
        return bool(self.plan and self.plan.normalisation[0].scheme == "ct")

    def setting(self, key: str) -> Any:
        """What run.toml has under a dotted key such as `"method.feedback"`, or None."""
        value: Any = self.settings
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return value

    def path(self, text: str) -> Path:
        """A path from a file of the run: absolute, or relative to the run folder or to the working folder."""
        inside = self.folder / text
        return inside if inside.exists() else Path(text)


def read_run(folder: Path) -> RunData:
    """Read a run folder. Raises `DataError` if there is no such folder, or if a file in it is damaged."""
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such run folder. Give the folder that `semiseg train` wrote.")
    plan, cases, summary = folder / "plan.toml", folder / "cases.jsonl", folder / "summary.json"
    settings, run_text = _toml(folder / "run.toml")
    labels = [path for path in (folder / "scan_labels").glob("[!.]*") if any(path.glob("*.b2nd"))]
    return RunData(
        folder=folder,
        settings=settings,
        run_text=run_text,
        settled_text=_toml(folder / "settled.toml")[1],
        plan=read_plan(plan) if plan.exists() else None,
        plan_text=_toml(plan)[1],
        cases=read_run_cases(cases) if cases.exists() else [],
        metrics=read_metrics(folder),
        predictions=[row for place in (folder / "predictions", folder) for row in read_predictions(place)],
        summary=read_summary(summary) if summary.exists() else None,
        feedback=tuple(sorted((folder / "feedback").glob("*.npz"))),
        notices=tuple(read_notices(folder)),
        rounds=read_rounds(folder),
        label_folders=tuple(sorted(labels, key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True)),
    )


def _toml(path: Path) -> tuple[dict[str, Any], str | None]:
    """What a file holds, and its text; nothing where it is not there."""
    return (read_toml(path), path.read_text(encoding="utf-8")) if path.exists() else ({}, None)
