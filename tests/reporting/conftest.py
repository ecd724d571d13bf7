"""A synthetic run folder with everything that the stages leave, on scans stored in LPS and RAS orientation."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from semiseg.data.plan import ChannelNormalisation, NetworkPlan, Plan, write_plan
from semiseg.files import write_json, write_jsonl, write_toml
from semiseg.io.dataset import LabelScheme

ORGANS = {1: "liver", 2: "right kidney", 3: "left kidney"}
SPACING_XYZ = (3.0, 3.0, 5.0)
SHAPE_ZYX = (24, 40, 48)


def body(seed: int, *, growth: float = 0.0) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """A phantom scan in HU and its labels, canonical `(Z, Y, X)`; `growth` shifts and swells the organs."""
    rng = np.random.default_rng(seed)
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE_ZYX), indexing="ij")

    def ellipsoid(centre: tuple[float, ...], radii: tuple[float, ...]) -> np.ndarray[Any, Any]:
        return sum(((a - c) / r) ** 2 for a, c, r in zip((z, y, x), centre, radii, strict=True)) < 1

    image = np.full(SHAPE_ZYX, -1000.0)
    image[ellipsoid((0, 0, 0), (1.4, 0.85, 0.92))] = -90
    image[ellipsoid((0, 0.02, 0), (1.4, 0.74, 0.82))] = 20
    image[ellipsoid((0, -0.5, 0), (2, 0.16, 0.12))] = 300
    label = np.zeros(SHAPE_ZYX, dtype=np.uint8)
    label[ellipsoid((0.3 + growth, 0.15, 0.4), (0.5 + growth, 0.42, 0.34 + growth))] = 1
    label[ellipsoid((-0.4, -0.32 - growth / 2, 0.42), (0.42, 0.16, 0.16))] = 2
    label[ellipsoid((-0.35, -0.32, -0.42 + growth), (0.42, 0.16 + growth / 2, 0.16))] = 3
    for value, hounsfield in ((1, 110), (2, 170), (3, 170)):
        image[label == value] = hounsfield
    return image + rng.normal(0, 14, SHAPE_ZYX), label


def save(path: Path, array_zyx: np.ndarray[Any, Any], *, lps: bool) -> None:
    """Store a canonical array in LPS or RAS orientation."""
    array = array_zyx.transpose(2, 1, 0)
    signs = (-1, -1, 1) if lps else (1, 1, 1)
    affine = np.diag([*(s * mm for s, mm in zip(signs, SPACING_XYZ, strict=True)), 1.0])
    if lps:
        array = array[::-1, ::-1]
        affine[:2, 3] = [(n - 1) * mm for n, mm in zip(array.shape[:2], SPACING_XYZ[:2], strict=True)]
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = array.astype(np.uint8 if array.dtype == np.uint8 else np.int16)
    nib.save(nib.Nifti1Image(stored, affine), path)


def dice(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def plan() -> Plan:
    strides = ((1, 1, 1), (2, 2, 2))

    def network(*features: int) -> NetworkPlan:
        return NetworkPlan(features=features, kernels=((3, 3, 3),) * 2, strides=strides)

    return Plan(
        dataset="Dataset900_Phantom",
        channels=("CT",),
        labels=LabelScheme(names={0: "background", **ORGANS}, mirror_pairs=((2, 3),)),
        spacing_mm=(5.0, 3.0, 3.0),
        anisotropic_axis=None,
        patch=(16, 32, 32),
        batch=2,
        normalisation=(ChannelNormalisation(scheme="ct", low=-100, high=250, mean=90, deviation=60),),
        teacher=network(32, 64),
        student=network(16, 32),
    )


def metrics_rows() -> list[dict[str, Any]]:
    rng = np.random.default_rng(7)
    rows: list[dict[str, Any]] = []
    for step in range(10, 1210, 10):
        phase = "warmup" if step <= 300 else "train" if step <= 1000 else "finetune"
        noise = float(rng.normal(0, 0.03))
        row = {"step": step, "phase": phase, "seconds": 0.5 * step, "learning_rate": 0.01}
        if phase != "finetune":
            row["labelled_loss"] = 0.35 + 1.2 * float(np.exp(-step / 260)) + noise
        if phase == "train":
            row["pseudo_loss"] = 0.3 + 0.8 * float(np.exp(-(step - 300) / 200)) + noise
            row["feedback"] = 0.02 * noise + 0.0004
        if phase == "finetune":
            row["student_labelled_loss"] = 0.3 + noise
        if step % 100 == 0:
            row["validation_dice"] = 0.9 - 0.7 * float(np.exp(-step / 300))
            row |= {
                f"validation_dice/{name}": row["validation_dice"] - 0.03 * n for n, name in enumerate(ORGANS.values())
            }
        rows.append(row)
    return rows


def interval(values: list[float]) -> dict[str, Any]:
    mean = float(np.mean(values))
    half = 1.96 * float(np.std(values)) / len(values) ** 0.5
    return {"mean": mean, "low": mean - half, "high": mean + half, "count": len(values)}


def build_run(folder: Path, *, cases: int = 7) -> Path:
    """Write a whole run below `folder` and return the run's own folder."""
    run, data = folder / "runs" / "phantom-mpl", folder / "data"
    scores, rows = [], []
    for n in range(cases):
        name = f"case_{n:02d}"
        image, reference = body(n)
        _, prediction = body(n, growth=0.015 * n)
        lps = n % 2 == 0
        paths = {
            "image": data / "imagesTs" / f"{name}_0000.nii.gz",
            "reference": data / "labelsTs" / f"{name}.nii.gz",
            "prediction": run / "predictions" / f"{name}.nii.gz",
        }
        for kind, array in (("image", image), ("reference", reference), ("prediction", prediction)):
            save(paths[kind], array, lps=lps)
        organs = {
            organ: {
                "dice": (score := dice(reference == value, prediction == value)),
                "nsd": score**0.5,
                "hd95_mm": 40 * (1 - score),
                "volume_ml": 1.0,
                "reference_volume_ml": 1.0,
            }
            for value, organ in ORGANS.items()
        }
        texts = {kind: str(path) for kind, path in paths.items()} | {"prediction": f"predictions/{name}.nii.gz"}
        scores.append({"id": name, **texts, "organs": organs})
        rows.append(
            {
                "id": name,
                "images": [str(paths["image"])],
                "label": str(paths["reference"]),
                "split": "test",
                "role": "test",
                "hash": "0",
            }
        )
    rows += [
        {
            "id": f"t{n}",
            "images": [],
            "label": None,
            "split": "train",
            "role": "labelled" if n < 4 else "unlabelled",
            "hash": "0",
        }
        for n in range(28)
    ]
    keys = ("dice", "nsd", "hd95_mm")
    per_organ = {o: {k: interval([c["organs"][o][k] for c in scores]) for k in keys} for o in ORGANS.values()}
    mean = {k: interval([float(np.mean([c["organs"][o][k] for o in ORGANS.values()])) for c in scores]) for k in keys}
    write_json(
        run / "summary.json",
        {
            "rules": "standard",
            "organs": {str(k): v for k, v in ORGANS.items()},
            "tolerance_mm": dict.fromkeys(ORGANS.values(), 2.0),
            "cases": scores,
            "per_organ": per_organ,
            "mean": mean,
        },
    )
    write_plan(run / "plan.toml", plan())
    write_toml(
        run / "run.toml",
        {
            "data": {"labelled": 4},
            "method": {"name": "mpl", "feedback": "dense"},
            "train": {"minutes": 10.0, "seed": 0},
        },
    )
    write_jsonl(run / "cases.jsonl", rows)
    write_jsonl(run / "metrics.jsonl", metrics_rows())
    write_jsonl(run / "predictions.jsonl", [{"id": c["id"], "seconds": 1.4} for c in scores])
    image, label = body(99)
    rng = np.random.default_rng(5)
    signed = rng.normal(0, 1e-6, SHAPE_ZYX)
    signed += 4e-6 * ((label == 1) ^ (body(99, growth=0.05)[1] == 1)) - 5e-6 * (label == 3)
    (run / "feedback").mkdir()
    np.savez(
        run / "feedback" / "t17.npz",
        image=image.astype(np.float32),
        pseudo_label=body(99, growth=0.03)[1],
        feedback=signed.astype(np.float32),
        spacing_mm=np.array([5.0, 3.0, 3.0]),
    )
    return run


@pytest.fixture(scope="session")
def built_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that no test may change."""
    return build_run(tmp_path_factory.mktemp("report"))


@pytest.fixture
def run_folder(built_run: Path, tmp_path: Path) -> Path:
    """A complete synthetic run of Meta Pseudo Labels with seven test cases, to be changed at will."""
    return Path(shutil.copytree(built_run, tmp_path / built_run.name))
