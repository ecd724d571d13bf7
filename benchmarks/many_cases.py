"""What a store of very many cases costs: how long a training session takes to open, in how much memory, and whether a
step or a `prepare` with nothing to do costs more than with few.

    python benchmarks/many_cases.py FOLDER [--cases 100000] [--few 100] [--labelled 1000] [--cache-gb 0]

Makes two prepared runs under FOLDER, of cases of 8 x 8 x 8 voxels in 13 classes, which are hard links to a few arrays
with a description each; those that are there are used again. Each measurement is in a process of its own.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any

import blosc2
import nibabel
import numpy as np

from semiseg.data.plan import ChannelNormalisation, NetworkPlan, Plan, read_plan, write_plan
from semiseg.data.prepare import _recipe, _stamps, write_recipe
from semiseg.data.roles import DataSettings, RunCase, write_run_cases
from semiseg.files import digest_of, hash_files, write_json, write_jsonl
from semiseg.io.layouts import read_dataset
from semiseg.io.store import STORE_FORMAT, StoredCase, _write_array
from semiseg.methods.settings import PseudoLabelSettings
from semiseg.run_folder import prepared_settings
from semiseg.settings import RunSettings, write_settings
from semiseg.training.settings import TrainSettings

EDGE, CLASSES, KINDS, PLACES = 8, 13, 8, 512
ID, HASH = "THE-ID", "THE-HASH"
LINKS = 30_000
"""To one file: some file systems allow 65,000."""
STEPS = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--few", type=int, default=100)
    parser.add_argument("--labelled", type=int, default=1_000, help="of the cases; a tenth of the few")
    parser.add_argument("--cache-gb", type=float, default=0.0)
    parser.add_argument("--measure", choices=sorted(MEASURES), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(MEASURES[arguments.measure](arguments.folder, arguments.cache_gb)))
        return
    few, many = arguments.folder / "few", arguments.folder / "many"
    for run, count, labelled in (
        (few, arguments.few, arguments.few // 10),
        (many, arguments.cases, arguments.labelled),
    ):
        if not (run / "cases.jsonl").exists():
            began = time.perf_counter()
            make(run, count, labelled)
            print(f"{run}: {count} cases made in {time.perf_counter() - began:.0f} s", flush=True)
    for name in MEASURES:
        for run in (few, many):
            command = [sys.executable, __file__, str(run), "--measure", name, "--cache-gb", str(arguments.cache_gb)]
            done = subprocess.run(command, capture_output=True, text=True)
            said = done.stdout.splitlines()[-1] if done.returncode == 0 else done.stderr[-2000:]
            print(f"{name:8} {run.name:5} {said}", flush=True)


def make(run: Path, count: int, labelled: int) -> None:
    """A prepared run of so many cases, of which so many are labelled, with a source file each."""
    generator = np.random.default_rng(0)
    data = run.parent / f"{run.name}-data"
    for folder in ("imagesTr", "labelsTr", "imagesUn"):
        (data / folder).mkdir(parents=True, exist_ok=True)
    names = {"background": 0} | {f"organ{n}": n for n in range(1, CLASSES + 1)}
    write_json(data / "dataset.json", {"name": "many", "labels": names, "channel_names": {"0": "CT"}})
    sources = [data / f".source{n}.nii.gz" for n in range(-(-count // LINKS))]
    label_source = data / ".label.nii.gz"
    for file in sources:
        file.write_bytes(gzip.compress(nifti(generator.normal(0, 100, (EDGE,) * 3).astype("<f4"))))
    one = (np.arange(EDGE**3) % (CLASSES + 1)).astype("<f4").reshape((EDGE,) * 3)
    label_source.write_bytes(gzip.compress(nifti(one)))
    cases = []
    for number in range(count):
        id, is_labelled = f"case_{number:06d}", number < labelled
        image = data / ("imagesTr" if is_labelled else "imagesUn") / f"{id}_0000.nii.gz"
        os.link(sources[number // LINKS], image)
        label = data / "labelsTr" / f"{id}.nii.gz" if is_labelled else None
        if label:
            os.link(label_source, label)
        cases.append(RunCase(
            id=id, images=(str(image.resolve()),), label=str(label.resolve()) if label else None, split="train",
            role="labelled" if is_labelled else "unlabelled", hash=f"{number:064x}",
        ))  # fmt: skip
    plan_like(run, data)
    stored = run / "store"
    arrays = run.parent / f"{run.name}-arrays"
    arrays.mkdir(parents=True, exist_ok=True)
    stored.mkdir(parents=True, exist_ok=True)
    sizes, digests = {}, {}
    for part in range(len(sources)):
        for kind in range(KINDS):
            array = arrays / f"image{part}-{kind}.b2nd"
            _write_array(array, generator.normal(0, 1, (1, EDGE, EDGE, EDGE)).astype(np.float32), blosc2.Codec.LZ4)
            sizes[array], digests[array] = array.stat().st_size, hash_files([array])
    label_file = arrays / "label.b2nd"
    _write_array(label_file, one.astype(np.uint8), blosc2.Codec.LZ4)
    sizes[label_file], digests[label_file] = label_file.stat().st_size, hash_files([label_file])
    voxels = [tuple(map(int, place)) for place in np.argwhere(one >= 0)]
    body = tuple(voxels[i] for i in generator.integers(0, len(voxels), PLACES))
    of_classes: dict[int, Any] = {
        v: tuple(voxels[i] for i in generator.integers(0, len(voxels), PLACES)) for v in range(1, CLASSES + 1)
    }
    general = StoredCase(
        id=ID, shape_zyx=(EDGE,) * 3, spacing_mm=(1.0,) * 3, source_shape_zyx=(EDGE,) * 3, source_spacing_mm=(1.0,) * 3,
        hash=HASH, labelled=False, channels=1, class_voxels={}, class_locations={}, body_locations=body,
        channel_quantiles=(tuple(n / 10 for n in range(10)),),
    )  # fmt: skip
    with_label = replace(
        general, labelled=True, class_voxels=dict.fromkeys(range(CLASSES + 1), 37), class_locations=of_classes
    )
    plan = read_plan(run / "plan.toml")
    recipe, rows = digest_of(_recipe(plan)), []
    texts = [json.dumps(json.loads(json.dumps(asdict(one))), sort_keys=True) for one in (general, with_label)]
    for number, case in enumerate(cases):
        place = stored / case.id
        place.mkdir()
        files = {"image.b2nd": arrays / f"image{number // LINKS}-{number % KINDS}.b2nd"}
        if case.label:
            files["label.b2nd"] = label_file
        for name, array in files.items():
            os.link(array, place / name)
        # As text, since all but two words of it is the same in all cases.
        text = texts[case.label is not None].replace(ID, case.id).replace(HASH, str(case.hash))
        content = {
            "format": STORE_FORMAT,
            "bytes": {name: sizes[file] for name, file in files.items()},
            "sha256": {name: digests[file] for name, file in files.items()},
            "case_sha256": hashlib.sha256(text.encode()).hexdigest(),
        }
        (place / "case.json").write_text(f'{json.dumps(content)[:-1]}, "case": {text}}}\n')
        stamps = _stamps(case.case(), stored)
        rows.append({"id": case.id, "recipe": recipe, "hash": case.hash, "stamps": stamps})
    write_recipe(stored, plan)
    write_jsonl(stored / "seen.jsonl", rows)
    write_run_cases(run / "cases.jsonl", cases)


def nifti(values: Any) -> bytes:
    return bytes(nibabel.Nifti1Image(values, np.eye(4)).to_bytes())  # type: ignore[no-untyped-call]


def plan_like(run: Path, data: Path) -> None:
    """The settings and the plan of a run, made from a few of the cases."""
    run.mkdir(parents=True, exist_ok=True)
    dataset = read_dataset(data)
    network = NetworkPlan(features=(4, 8), kernels=((3, 3, 3),) * 2, strides=((1, 1, 1), (2, 2, 2)))
    plan = Plan(
        dataset="many", channels=("CT",), labels=dataset.labels, spacing_mm=(1.0, 1.0, 1.0), anisotropic_axis=None,
        patch=(EDGE,) * 3, batch=2, teacher=network, student=network,
        normalisation=(ChannelNormalisation(scheme="ct", low=-100.0, high=200.0, mean=50.0, deviation=75.0),),
    )  # fmt: skip
    write_plan(run / "plan.toml", plan)
    settings = RunSettings(
        data=DataSettings(root=str(data.resolve())),
        method=PseudoLabelSettings(label_scope="patch"),
        train=TrainSettings(steps=20, device="cpu", threads=1, precision="float32", validation_fraction=0.0),
    )
    write_settings(run / "run.toml", settings)


def session_of(run: Path, cache_gb: float) -> Any:
    import torch

    from semiseg.train_run import open_session
    from semiseg.training.settled import Settled

    settings = prepared_settings(run)
    settings = replace(settings, sampling=replace(settings.sampling, cache_gb=cache_gb))
    return open_session(run, settings, Settled(threads=1, precision="float32"), torch.device("cpu"))


def opening(run: Path, cache_gb: float) -> dict[str, Any]:
    """Seconds (on the clock, and of the processor) until it is known who is in the run, and until the first batch; and
    what that takes of memory beside torch's."""
    import torch  # noqa: F401

    import semiseg.training.session  # noqa: F401

    before, watch = peak_mb(), Watch()
    session = session_of(run, cache_gb)
    listed = watch.read()
    data = session.open_data()
    next(data.source.iterate(0, 1))
    return {
        "cases": len(data.labelled) + len(data.unlabelled), "listed_s": listed, "first_batch_s": watch.read(),
        "before_mb": before, "peak_mb": peak_mb(),
    }  # fmt: skip


def reading(run: Path, cache_gb: float) -> dict[str, Any]:
    """Milliseconds of a batch of 2 + 2 patches, of which each is of another case."""
    source = session_of(run, cache_gb).open_data().source
    source.labelled(0), source.unlabelled(0)
    took: dict[str, list[float]] = {"labelled_ms": [], "unlabelled_ms": []}
    for step in range(1, STEPS + 1):
        for name, read in (("labelled_ms", source.labelled), ("unlabelled_ms", source.unlabelled)):
            began = time.perf_counter()
            read(step)
            took[name].append(1e3 * (time.perf_counter() - began))
    return {name: round(median(values), 3) for name, values in took.items()} | {
        f"most_{name}": round(max(values), 1) for name, values in took.items()
    }


def preparing(run: Path, cache_gb: float) -> dict[str, Any]:
    """`semiseg prepare RUN` where all is done: seconds, and the files that it opened, by kind."""
    from semiseg.prepare_run import prepare

    opened: list[str] = []

    def note(event: str, values: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(values[0], str | os.PathLike):
            opened.append(os.fspath(values[0]))

    prepare(run, prepared_settings(run), quiet=True)  # the index is made, if it is missing
    sys.addaudithook(note)
    watch = Watch()
    prepare(run, prepared_settings(run), quiet=True)
    seconds = watch.read()
    kinds = {kind: sum(kind in name for name in opened) for kind in (".b2nd", ".nii", "case.json")}
    return {"seconds": seconds, **{f"opened {kind}": n for kind, n in kinds.items()}, "peak_mb": peak_mb()}


def peak_mb() -> int:
    """Of this process, not of that which started it, as `getrusage` would have it."""
    return (
        int(next(line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line).split()[1])
        // 1024
    )


class Watch:
    """Seconds on the clock, and of the processor, since it was made."""

    def __init__(self) -> None:
        self._began = time.perf_counter(), time.process_time()

    def read(self) -> list[float]:
        return [
            round(now - then, 2)
            for now, then in zip((time.perf_counter(), time.process_time()), self._began, strict=True)
        ]


MEASURES: dict[str, Callable[[Path, float], dict[str, Any]]] = {
    "prepare": preparing,
    "open": opening,
    "read": reading,
}

if __name__ == "__main__":
    main()
