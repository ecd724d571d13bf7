"""`results.json` of a study as it grows: what is known of its runs."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path

from semiseg.data.patients import BIDS
from semiseg.data.plan import read_plan
from semiseg.errors import DataError
from semiseg.files import file_lock
from semiseg.notices import notices_by_topic
from semiseg.processes import processor_name, usable_cores
from semiseg.rows import read_metrics
from semiseg.scoring.evaluator import TOLERANCE
from semiseg.scoring.study_results import Reference, Study, StudyRun, name_of, read_study, scores_of, write_study
from semiseg.scoring.summary import PAPER_METRICS, read_summary
from semiseg.study.settings import PlannedRun, StudySettings


class KnownResults:
    """results.json as it grows."""

    def __init__(self, path: Path, study: StudySettings, file: Path) -> None:
        self._path, self._methods, named = path, set(study.methods), study.reference
        self._study: Study = Study(
            name=file.stem,
            dataset="",
            machine={},
            minutes=study.minutes,
            baseline=study.baseline,
            ceiling=study.ceiling or None,
            reference=Reference(method=named.method, labelled=named.labelled) if named else None,
            organs=[],
            tolerance_mm={},
            test_cases=0,
            runs=[],
        )
        if path.exists():
            before = read_study(path)
            for name in ("dataset", "machine", "organs", "tolerance_mm", "test_cases", "runs"):
                self._study[name] = before[name]
            if study.recipe or before.get("patients") == BIDS:  # named by the recipe, or by nobody
                self._set_patients(before.get("patients"))
        self._set_patients(study.common.get("data.patients", self._study.get("patients")))

    def has(self, key: str) -> bool:
        """Whether a run is known."""
        return any(run["key"] == key for run in self._study["runs"])

    def keys(self, asked: dict[str, str]) -> tuple[list[str], list[str]]:
        """Of the runs that are known by one of these names, in their order; and the names of those that were made with
        other steps or minutes. asked: what each name has, as `StudyRun.asked`."""
        by_name = {name_of(run): run for run in self._study["runs"]}
        found = {name: by_name[name] for name in asked if name in by_name}
        others = [name for name, run in found.items() if run.get("asked", asked[name]) != asked[name]]
        return [run["key"] for name, run in found.items() if name not in others], others

    def add(self, row: StudyRun, folder: Path) -> None:
        """Add a run, in place of one with other settings; the file is written. What another process has added to it
        since is kept."""
        with file_lock(self._path.with_name(f".{self._path.name}.lock")):
            if self._path.exists():
                self._study["runs"] = read_study(self._path)["runs"]
            self._add(row, folder)

    def _add(self, row: StudyRun, folder: Path) -> None:
        summary = read_summary(folder / "summary.json")
        study = self._study
        study["dataset"] = read_plan(folder / "plan.toml").dataset
        study["machine"] = {"processor": processor_name(), "cores": str(usable_cores())}
        study["machine"] |= {name: version(name) for name in ("semiseg", "torch")}
        study["machine"]["python"] = platform.python_version()
        study["organs"] = list(summary["organs"].values())
        study["tolerance_mm"] = summary["tolerance_mm"]
        study["test_cases"] = len(summary["cases"])
        self._set_patients(summary.get("patients", study.get("patients")))
        study["runs"] = [run for run in study["runs"] if name_of(run) != name_of(row)]
        study["runs"].append(row)
        write_study(self._path, study)

    def _set_patients(self, pattern: str | None) -> None:
        if pattern:
            self._study["patients"] = pattern
        else:
            self._study.pop("patients", None)

    def study(self, keys: list[str]) -> Study:
        """What is known of these runs, in their order, and then another program's. Runs that are not made yet are left
        out, and those of methods that the study file had once."""
        by_key = {run["key"]: run for run in self._study["runs"]}
        study = self._study.copy()
        others = [run for run in self._study["runs"] if run["method"] not in self._methods and "asked" not in run]
        study["runs"] = [*(by_key[key] for key in keys if key in by_key), *others]
        for run in study["runs"]:
            self._check(run)
        return study

    def _check(self, run: StudyRun) -> None:
        organs = self._study["organs"]
        for case, found in run["cases"].items():
            if found.keys() != set(organs) or any(one.keys() != set(PAPER_METRICS) for one in found.values()):
                raise DataError(
                    f"{self._path}: {name_of(run)}: {case} has not {' and '.join(PAPER_METRICS)} of each organ "
                    f"({', '.join(organs)}). Mend this run's rows, or delete them to have it made anew."
                )


def row_of_run(asked: str, run: PlannedRun, folder: Path, key: str) -> StudyRun:
    """What is kept of a run that has scores. Its memory is not known to who has not started it."""
    summary = read_summary(folder / "summary.json")
    metrics = read_metrics(folder)
    if not metrics:
        raise DataError(f"{folder}: has scores and no metrics.jsonl. Delete this folder, and give the command again.")
    seconds = [float(row["seconds"]) for row in metrics if "seconds" in row]
    made = StudyRun(
        method=run.method,
        labelled=run.labelled,
        label_seed=run.subset_name,
        seed=run.seed,
        compute=run.compute,
        asked=asked,
        key=key,
        steps=int(metrics[-1]["step"]),
        minutes=round(seconds[-1] / 60, 2) if seconds else 0.0,
        peak_memory_mb=0.0,
        # A study's runs are not scored again one by one.
        notices={topic: text for topic, text in notices_by_topic(folder).items() if topic != TOLERANCE},
        cases=scores_of(summary),
    )
    if on_gpu := [float(line["gpu_peak_mb"]) for line in metrics if "gpu_peak_mb" in line]:
        made["gpu_peak_mb"] = max(on_gpu)
    return made
