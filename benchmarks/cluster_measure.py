"""What one scan costs a core and a disk, stage by stage: constants of `cluster_model.py`, from a real CT.

    python benchmarks/cluster_measure.py --data FOLDER          # writes benchmarks/cluster_measured.json
    python benchmarks/cluster_measure.py --curve --data FOLDER  # prepare, by one core and by two

Seconds are those that a core computed (`process_time`), by one thread, the median of three; other programs hardly
change them. The CT is ircad17, 512 x 512 x 119 voxels with labels of 7 organs, prepared for a grid of 2.5 x 1 x 1 mm.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from math import prod
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from semiseg.data.batches import BatchSource
from semiseg.data.check import check_dataset
from semiseg.data.fingerprint import compute_fingerprint
from semiseg.data.plan import ChannelNormalisation, NetworkPlan, Plan
from semiseg.data.prepare import prepare_case, prepare_cases
from semiseg.data.sampling import SamplingSettings
from semiseg.files import hash_files, write_json
from semiseg.io.dataset import Case
from semiseg.io.layouts import read_dataset
from semiseg.io.store import open_case, read_case_meta, write_labels
from semiseg.processes import processor_name, usable_cores
from semiseg.scoring import EvaluateSettings, evaluate_folder
from semiseg.training.scan_labels import scan_labels, scan_window
from semiseg.types import FloatArray

HERE = Path(__file__).parent
RESULT = HERE / "cluster_measured.json"
PATCH = (64, 160, 160)
REPEATS = 3
NETWORK = NetworkPlan(
    features=(32, 64, 128, 256, 512),
    kernels=((3, 3, 3),) * 5,
    strides=((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2)),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=HERE.parents[1] / "shared" / "data")
    parser.add_argument("--curve", action="store_true")
    parser.add_argument("--workers", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if arguments.workers:
            print(json.dumps(_prepared_a_second(folder, arguments.data, arguments.workers)))
        elif arguments.curve:
            _curve(arguments.data)
        else:
            found = _measured(folder, arguments.data)
            write_json(RESULT, {"machine": {"processor": processor_name(), "cores": usable_cores()}} | found)
            print(json.dumps(found, indent=1))


def _dataset(folder: Path, data: Path, unlabelled: int) -> Path:
    """The CT with labels, and copies of it without."""
    ct = data / "ct_whole"
    names = json.loads((ct / "ircad17_labels.json").read_text())["labels"]
    description = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0} | {name: int(value) for value, name in names.items()},
        "numTraining": 1,
        "file_ending": ".nii.gz",
    }
    for part in ("imagesTr", "labelsTr", "imagesUn"):
        (folder / part).mkdir(parents=True)
    write_json(folder / "dataset.json", description)
    shutil.copy(ct / "ircad17_0000.nii.gz", folder / "imagesTr" / "ircad17_0000.nii.gz")
    shutil.copy(ct / "ircad17_label.nii.gz", folder / "labelsTr" / "ircad17.nii.gz")
    for number in range(unlabelled):
        shutil.copy(ct / "ircad17_0000.nii.gz", folder / "imagesUn" / f"copy{number}_0000.nii.gz")
    return folder


def _plan(labels: Any) -> Plan:
    return Plan(
        dataset="made up",
        channels=("CT",),
        labels=labels,
        spacing_mm=(2.5, 1.0, 1.0),
        anisotropic_axis=None,
        patch=PATCH,
        batch=2,
        normalisation=(ChannelNormalisation(scheme="ct", low=-150.0, high=300.0, mean=70.0, deviation=90.0),),
        teacher=NETWORK,
        student=NETWORK,
    )


def _seconds(work: Callable[[], object], repeats: int = REPEATS) -> float:
    times = []
    for _ in range(repeats):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return median(times)


def _measured(folder: Path, data: Path) -> dict[str, Any]:
    dataset = read_dataset(_dataset(folder / "data", data, 1))
    plan = _plan(dataset.labels)
    labelled = next(case for case in dataset.cases if case.label)
    unlabelled = next(case for case in dataset.cases if not case.label)
    found: dict[str, Any] = {}

    sources = {"scan": unlabelled.images[0], "label": Path(str(labelled.label))}
    found["source_mb"] = sources["scan"].stat().st_size / 1e6
    found["hash_mb_a_second"] = found["source_mb"] / _seconds(lambda: hash_files([sources["scan"]]))
    for name, case in (("labelled", labelled), ("unlabelled", unlabelled)):
        alone = replace(dataset, cases=(case,))
        found[f"check_{name}"] = _seconds(lambda alone=alone: check_dataset(alone))  # type: ignore[misc]
    found["fingerprint_labelled"] = _seconds(lambda: compute_fingerprint(dataset, [labelled]))
    # Of an unlabelled scan the header is read alone; a hundred of them, since that is quick.
    many = [labelled, *[replace(unlabelled, id=f"{unlabelled.id}{n}") for n in range(100)]]
    extra = _seconds(lambda: compute_fingerprint(dataset, many)) - found["fingerprint_labelled"]
    found["fingerprint_unlabelled"] = extra / 100

    store, shared = folder / "store", folder / "shared"
    for place in (store, shared):
        place.mkdir()
    for name, case in (("labelled", labelled), ("unlabelled", unlabelled)):
        times = []
        for repeat in range(REPEATS):
            again = replace(case, id=f"{case.id}_{repeat}")
            before = _inodes(store, shared)
            times.append(_seconds(lambda again=again: prepare_case(again, plan, store, shared), 1))  # type: ignore[misc]
            if repeat == 0:
                found[f"inodes_{name}"] = _inodes(store, shared) - before
        found[f"prepare_{name}"] = median(times)
    stored = store / f"{unlabelled.id}_0"
    meta = read_case_meta(stored)
    own = meta.source_shape_zyx
    found["source_voxels"], found["grid_voxels"], found["grid"] = prod(own), prod(meta.shape_zyx), meta.shape_zyx
    found["stored_mb"] = _size(stored) / 1e6
    found["stored_labelled_mb"] = _size(store / f"{labelled.id}_0") / 1e6
    found["case_meta_ms"] = 1e3 * _seconds(lambda: [read_case_meta(stored) for _ in range(50)]) / 50
    found["case_meta_labelled_ms"] = (
        1e3 * _seconds(lambda: [read_case_meta(store / f"{labelled.id}_0") for _ in range(20)]) / 20
    )

    source = BatchSource(
        [store / f"{labelled.id}_0"],
        [stored],
        patch=PATCH,
        batch=2,
        seed=0,
        settings=SamplingSettings(cache_gb=0.0),
    )
    found["patch_read"] = _seconds(lambda: [source.unlabelled(step) for step in range(8)]) / 16
    found["patch_read_labelled"] = _seconds(lambda: [source.labelled(step) for step in range(8)]) / 16
    chunks = [-(-n // edge) + (n % edge != 1) for n, edge in zip(PATCH, (32, 64, 64), strict=True)]
    boxes = prod(-(-n // edge) for n, edge in zip(meta.shape_zyx, (32, 64, 64), strict=True))
    found["patch_chunks"] = min(prod(chunks), boxes)
    found["patch_mb"] = found["stored_mb"] * found["patch_chunks"] / boxes

    scan = open_case(stored)
    window = scan_window(scan, plan)
    found["labelled_tiles"] = len(_Blank.tiles(scan, plan, window))
    found["tile_voxels"] = prod(window.patch)
    labels: list[Any] = []
    found["label_scan"] = _seconds(lambda: labels.append(scan_labels(scan, _Blank(plan.labels.count), window)))
    labels[0][:] = 0
    write_labels(folder / "labels" / "one.b2nd", labels[0])
    label = open_case(store / f"{labelled.id}_0")
    write_labels(folder / "labels" / "two.b2nd", np.asarray(label.label[:]))
    found["label_map_mb"] = (folder / "labels" / "two.b2nd").stat().st_size / 1e6

    for name in ("predicted", "references"):
        (folder / name).mkdir()
        shutil.copy(sources["label"], folder / name / "ircad17.nii.gz")
    rules = EvaluateSettings()
    found["evaluate"] = _seconds(
        lambda: evaluate_folder(folder / "predicted", folder / "references", dataset.labels, settings=rules), 2
    )
    found["organs"] = len(dataset.labels.organs)
    return {name: value if isinstance(value, int | tuple) else round(value, 4) for name, value in found.items()}


class _Blank:
    """An engine that finds background everywhere, at no cost: what is left is reading, blending and the largest
    class."""

    name, precision = "blank", "float32"

    def __init__(self, classes: int) -> None:
        self._classes, self._logits = classes, np.zeros((0,), np.float32)

    def run(self, tiles: FloatArray) -> FloatArray:
        shape = (len(tiles), self._classes, *tiles.shape[2:])
        if self._logits.shape != shape:
            self._logits = np.zeros(shape, np.float32)
        return self._logits

    @classmethod
    def tiles(cls, case: Any, plan: Plan, window: Any) -> list[int]:
        """An entry for each tile that is computed."""
        found: list[int] = []

        class Counting(cls):  # type: ignore[valid-type,misc]
            def run(self, tiles: FloatArray) -> FloatArray:
                found.extend([1] * len(tiles))
                result: FloatArray = super().run(tiles)
                return result

        scan_labels(case, Counting(plan.labels.count), window)
        return found


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def _inodes(*trees: Path) -> int:
    """Files and folders below these, each counted once though it has two names."""
    return len({path.stat().st_ino for tree in trees for path in tree.rglob("*")})


def _curve(data: Path) -> None:
    """Scans that are prepared a second by one core and by all of them, each in a process that may use no others."""
    cores = sorted(os.sched_getaffinity(0))
    for _ in range(2):
        for count in range(1, len(cores) + 1):
            command = [sys.executable, __file__, "--data", str(data), "--workers", str(count)]
            own = set(cores[:count])
            done = subprocess.run(command, capture_output=True, text=True, preexec_fn=lambda own=own: _pin(own))  # type: ignore[misc]
            print(f"{count} cores: {done.stdout.strip() or done.stderr[-500:]}", flush=True)


def _pin(cores: set[int]) -> None:
    os.sched_setaffinity(0, cores)


def _prepared_a_second(folder: Path, data: Path, workers: int) -> dict[str, float]:
    dataset = read_dataset(_dataset(folder / "data", data, 5))
    cases: list[Case] = [case for case in dataset.cases if not case.label]
    began = time.perf_counter()
    results = prepare_cases(cases, _plan(dataset.labels), folder / "store", workers=workers)
    took = time.perf_counter() - began
    assert not [one.error for one in results if one.error]
    computed = sum(os.times()[:4])
    return {"scans_a_second": round(len(cases) / took, 4), "core_seconds_a_scan": round(computed / len(cases), 3)}


if __name__ == "__main__":
    main()
