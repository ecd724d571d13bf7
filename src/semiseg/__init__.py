"""semiseg: a few labelled and very many unlabelled 3D scans in, a good segmenter and a fast predictor out.

The whole way in Python, as on the command line:

>>> import semiseg
>>> sorted(name for name in dir(semiseg) if not name.startswith("_"))  # doctest: +NORMALIZE_WHITESPACE
['RunSettings', 'SemisegError', 'check', 'compare', 'evaluate', 'evaluate_run', 'load_model', 'postprocess', 'predict',
 'predict_array', 'predict_test_cases', 'prepare', 'rank', 'report', 'run_all', 'train']
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from semiseg.errors import SemisegError
    from semiseg.improving import postprocess, rank
    from semiseg.predict_run import predict, predict_test_cases
    from semiseg.prediction.model import load_model
    from semiseg.prediction.predictor import predict_array
    from semiseg.prepare_run import prepare
    from semiseg.settings import RunSettings
    from semiseg.train_run import train
    from semiseg.workflows import (
        check,
        compare,
        evaluate,
        evaluate_run,
        report,
        run_all,
    )

# Threads that wait for each other are to sleep: torch's (libgomp) spin, and two programs on the same cores then take
# ten times as long as one. It is read when torch is loaded, so a program that loads torch first has to set it itself.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Nothing leaves the machine (docs/security.md). OpenVINO and NNCF report to their vendor through a package that they do
# without where it cannot be imported; ONNX Runtime reads the variable when it is loaded.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

_HOMES = {
    "RunSettings": "semiseg.settings",
    "SemisegError": "semiseg.errors",
    "load_model": "semiseg.prediction.model",
    "postprocess": "semiseg.improving",
    "rank": "semiseg.improving",
    "predict_array": "semiseg.prediction.predictor",
    "predict": "semiseg.predict_run",
    "predict_test_cases": "semiseg.predict_run",
    "prepare": "semiseg.prepare_run",
    "train": "semiseg.train_run",
} | dict.fromkeys(
    (
        "check",
        "compare",
        "evaluate",
        "evaluate_run",
        "report",
        "run_all",
    ),
    "semiseg.workflows",
)

__all__ = [
    "RunSettings",
    "SemisegError",
    "check",
    "compare",
    "evaluate",
    "evaluate_run",
    "load_model",
    "postprocess",
    "predict",
    "predict_array",
    "predict_test_cases",
    "prepare",
    "rank",
    "report",
    "run_all",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for, so that `semiseg --help` does not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'semiseg' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return list(__all__)
