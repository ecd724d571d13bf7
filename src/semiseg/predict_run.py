"""Scans predicted with a trained model: the engine is chosen, memory is planned, and every scan is tried."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from semiseg.cases import by_cluster
from semiseg.console import bar
from semiseg.data.remarks import print_alike
from semiseg.data.reviews import PSEUDO_LABELS
from semiseg.data.roles import of_role, read_run_cases
from semiseg.errors import ConfigError, DataError
from semiseg.prediction.attempt import Outcome
from semiseg.prediction.engine_choice import choose_engine
from semiseg.prediction.engines.base import Engine
from semiseg.prediction.ensemble import EnsembleEngine, joined
from semiseg.prediction.foreign import foreign_text
from semiseg.prediction.inputs import Scan, find_scans
from semiseg.prediction.memory import check_budget
from semiseg.prediction.model import Model, load_model
from semiseg.prediction.outputs import (
    LABELS_ALONE,
    Outputs,
    Picture,
    check_formats,
    is_output_file,
    uncoded_text,
)
from semiseg.prediction.scans import check_output_file, predict_scan_to, predict_scans
from semiseg.prediction.settings import OutputFormat, PredictSettings
from semiseg.processes import workers
from semiseg.run_folder import fold_runs, prepared_settings, trained_models
from semiseg.types import AnyPath
from semiseg.words import shortened


def predict(
    model: AnyPath | Model,
    inputs: AnyPath | Sequence[AnyPath],
    output: AnyPath,
    *,
    ensemble: AnyPath | Sequence[AnyPath] = (),
    settings: PredictSettings | None = None,
    formats: Sequence[OutputFormat] = (),
    statistics: bool = False,
    preview: bool = False,
    series: str = "",
    resample: bool = False,
    quiet: bool = False,
) -> list[Outcome]:
    """Predict scans (files and folders with their sub-folders) into the folder `output`, each in its own grid; a bad
    scan does not stop the rest. One scan may also go into a file, `output="seg.nii.gz"`, which must not be there yet.

    formats: of the label maps, by default NIfTI; those of DICOM (`dicom-seg`, `dicom-labelmap`, `rtstruct`) are for
    scans that are series of DICOM. statistics: also volumes and means, as CSV and JSON. preview: also a picture a scan.

    What becomes of each is in its outcome: `.error` says why there is no file at `.output`. ensemble: further models of
    the same plan, whose logits are averaged with the first's. A run with folds is the average of its folds. series,
    resample: which series of DICOM are scans, as in `find_scans`.
    """
    settings, output = settings or PredictSettings(), Path(output)
    paths = [Path(path) for path in ([inputs] if isinstance(inputs, str | Path) else inputs)]
    say = None if quiet else partial(print, file=sys.stderr)
    scans = find_scans(paths, output=output, series=series, resample=resample, say=say)
    outputs = Outputs(formats=tuple(formats), statistics=statistics, picture=_picture() if preview else None)
    if is_output_file(output):
        if len(scans) > 1:
            raise ConfigError(
                f"--output {output}: names one file, but there are {len(scans)} scans to predict. Name a folder."
            )
        outputs = replace(outputs, formats=tuple(check_output_file(output, settings, outputs).labels))
    members = [Path(folder) for folder in ([ensemble] if isinstance(ensemble, str | Path) else ensemble)]
    folder = model.folder if isinstance(model, Model) else Path(model)
    first, *others = [
        one for given in (folder, *members) for one in (trained_models(given) if fold_runs(given) else [given])
    ]
    outcomes = predict_into(first, scans, output, settings, outputs=outputs, ensemble=others, quiet=quiet)
    if not quiet:
        doubts = [(Path(outcome.id), doubt) for outcome in outcomes for doubt in outcome.doubts]
        print_alike("warning", doubts, named="")
    return outcomes


def _picture() -> Picture:
    from semiseg.reporting.preview import preview_png

    return preview_png


def predict_test_cases(run: AnyPath, *, quiet: bool = False) -> list[Outcome]:
    """Predict the test cases of a run into `run/predictions`."""
    run = Path(run)
    settings = prepared_settings(run).predict
    cases = of_role(read_run_cases(run / "cases.jsonl"), "test")
    scans = [Scan(case.id, tuple(map(Path, case.images))) for case in cases]
    first, *others = trained_models(run)
    return predict_into(first, scans, run / "predictions", settings, ensemble=others, quiet=quiet)


def predict_unlabelled(run: AnyPath, *, settings: PredictSettings | None = None, quiet: bool = False) -> list[Outcome]:
    """Label the unlabelled scans of a run, and those whose label was set aside, into `run/pseudo_labels`: what a review
    judges. settings: those of the run by default.

    Raises `DataError` where the run has neither, or no model yet.
    """
    run = Path(run)
    settings = settings or prepared_settings(run).predict
    cases = of_role(read_run_cases(run / "cases.jsonl"), "unlabelled", "set_aside")
    if not cases:
        raise DataError(f"{run}/cases.jsonl: no unlabelled case, so there is nothing to label.")
    scans = [Scan(case.id, tuple(map(Path, case.images))) for case in cases]
    first, *others = trained_models(run)
    return predict_into(first, scans, run / PSEUDO_LABELS, settings, ensemble=others, quiet=quiet)


def predict_into(
    model: Path,
    scans: Sequence[Scan],
    output: Path,
    settings: PredictSettings,
    *,
    outputs: Outputs = LABELS_ALONE,
    ensemble: Sequence[Path] = (),
    quiet: bool,
) -> list[Outcome]:
    """Predict with the average of models; says what was chosen."""
    check_formats(scans, outputs.of_dicom)
    loaded, engine = _opened((model, *ensemble), scans, output, settings, lambda text: None if quiet else print(text))
    if outputs.of_dicom and not quiet and (text := uncoded_text(list(loaded.plan.labels.organs.values()))):
        print(text, file=sys.stderr)
    side_by_side = workers(1)
    if side_by_side > 1 and settings.max_gpu_memory:
        raise ConfigError("max_gpu_memory is kept to by one process: leave out --workers or --max-gpu-memory.")
    room_for_two = True
    if settings.max_memory:
        side = 1 if by_cluster() else side_by_side
        room_for_two = check_budget(scans, loaded, engine, settings, outputs=outputs, workers=side)
    with bar("predicting", quiet) as advance:
        if is_output_file(output):
            outcomes = [predict_scan_to(scans[0], loaded, engine, output, settings, outputs)]
        else:
            advance(0, len(scans), "")
            outcomes = predict_scans(
                scans,
                loaded,
                engine,
                output,
                settings,
                outputs=outputs,
                workers=side_by_side,
                gpus=_gpus(engine, settings) if side_by_side > 1 else (),
                overlapping=room_for_two,
                progress=advance,
            )
    if not quiet:
        for outcome in outcomes:
            print(*outcome.notes, sep="\n", end="\n" * bool(outcome.notes), file=sys.stderr)
    if not quiet and (foreign := [outcome.id for outcome in outcomes if outcome.foreign]):
        print(foreign_text(foreign, loaded.plan), file=sys.stderr)
    for pose in () if quiet else dict.fromkeys(outcome.pose for outcome in outcomes if outcome.pose):
        lying = [outcome.id for outcome in outcomes if outcome.pose == pose]
        print(
            f"Scans that do not lie as the labelled ones do: {len(lying)} of {len(outcomes)}, read with {pose} "
            f"({shortened(lying)}).",
            file=sys.stderr,
        )
    return outcomes


def _gpus(engine: Engine, settings: PredictSettings) -> list[str]:
    """The GPUs that several processes share, where they predict on one."""
    if "torch" not in engine.name:
        return []
    from semiseg.prediction.device import gpus_to_share

    return gpus_to_share(settings.device)


def _opened(
    models: Sequence[Path], scans: Sequence[Scan], output: Path, settings: PredictSettings, say: Callable[[str], None]
) -> tuple[Model, Engine]:
    """The model, or the average of several, and what computes it."""
    members = [load_model(folder) for folder in models]
    engines = [choose_engine(member, scans, output, settings, say=say) for member in members]
    return (joined(members), EnsembleEngine(engines)) if len(members) > 1 else (members[0], engines[0])


class OnRequest:
    """A model folder or a run that waits for scans: what a server predicts with, one scan at a time."""

    def __init__(
        self,
        model: Path,
        scans: Sequence[Scan],
        folder: Path,
        *,
        settings: PredictSettings,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        """scans: those that may be asked for, some of which the engine is checked on. folder: for what comes of them.
        say: told of what takes time. Raises as `predict`."""
        models = trained_models(model) if (model / "run.toml").is_file() else [model]
        self._settings = replace(settings, probabilities=False)
        self._model, self._engine = _opened(models, scans, folder / PSEUDO_LABELS, self._settings, say)
        self.hash = self._model.hash

    def __call__(self, scan: Scan, output: Path) -> Path:
        """The label map of a scan in a folder, made now unless the same was made before. Raises `DataError` where there
        can be none."""
        if self._settings.max_memory:
            check_budget([scan], self._model, self._engine, self._settings, workers=1)
        (outcome,) = predict_scans([scan], self._model, self._engine, output, self._settings)
        if outcome.error:
            raise DataError(outcome.error.replace(str(scan.images[0]), "The scan"))
        return outcome.output
