"""What a run folder holds, read tolerantly: a part that is not there yet is empty, a damaged one an error."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from semiseg.data.plan import Plan, read_plan
from semiseg.data.roles import read_run_cases
from semiseg.errors import DataError
from semiseg.files import read_toml
from semiseg.notices import read_notices
from semiseg.rows import RoundRow, read_metrics, read_predictions, read_rounds
from semiseg.scoring.summary import Summary, read_summary


@dataclass(frozen=True, kw_only=True)
class RunData:
    """A run folder in memory.

    settings: the resolved run.toml. roles: number of cases by role (labelled, taught, unlabelled, validation, test).
    failures: case id and reason of predictions that failed. missing: test cases without any score or failure.
    feedback: the feedback maps' files. run_text, settled_text, plan_text: the files as they are, or None. settled: what
    this machine made of the settings. notices: the warnings that stand. rounds: a row for each labelling of unlabelled
    scans; label_folders: of their labels, the newest first.
    """

    folder: Path
    settings: dict[str, Any]
    run_text: str | None
    settled: dict[str, Any]
    settled_text: str | None
    plan: Plan | None
    plan_text: str | None
    cases: list[dict[str, Any]]
    metrics: list[dict[str, Any]]
    predictions: list[dict[str, Any]]
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
        counts: dict[str, int] = {}
        for case in self.cases:
            role = str(case.get("role", "unknown"))
            counts[role] = counts.get(role, 0) + 1
        return counts

    @property
    def failures(self) -> list[tuple[str, str]]:
        """The last word on each case counts: one that failed and later succeeded is no failure."""
        last = {str(row.get("id", row.get("case", "unnamed"))): row.get("error") for row in self.predictions}
        return [(case, str(error)) for case, error in last.items() if error]

    @property
    def missing(self) -> list[str]:
        """Ids of test cases with neither a score nor a recorded failure; empty before the evaluation."""
        if self.summary is None or self.folds:
            return []
        known = {case["id"] for case in self.summary["cases"]} | {case for case, _ in self.failures}
        return [str(c["id"]) for c in self.cases if c.get("role") == "test" and str(c["id"]) not in known]

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
    run_toml, plan_toml, summary = folder / "run.toml", folder / "plan.toml", folder / "summary.json"
    settled, cases = folder / "settled.toml", folder / "cases.jsonl"
    return RunData(
        folder=folder,
        settings=read_toml(run_toml) if run_toml.exists() else {},
        run_text=_text(run_toml),
        settled=read_toml(settled) if settled.exists() else {},
        settled_text=_text(settled),
        plan=read_plan(plan_toml) if plan_toml.exists() else None,
        plan_text=_text(plan_toml),
        cases=[asdict(case) for case in read_run_cases(cases)] if cases.exists() else [],
        metrics=read_metrics(folder),
        predictions=[dict(row) for place in (folder / "predictions", folder) for row in read_predictions(place)],
        summary=read_summary(summary) if summary.exists() else None,
        feedback=tuple(sorted((folder / "feedback").glob("*.npz"))),
        notices=tuple(read_notices(folder)),
        rounds=read_rounds(folder),
        label_folders=tuple(sorted(_folders(folder / "scan_labels"), key=_changed, reverse=True)),
    )


def _folders(folder: Path) -> list[Path]:
    """Those below a folder that hold label maps."""
    return [path for path in folder.glob("[!.]*") if any(path.glob("*.b2nd"))]


def _changed(folder: Path) -> tuple[int, str]:
    return folder.stat().st_mtime_ns, folder.name


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.exists() else None
