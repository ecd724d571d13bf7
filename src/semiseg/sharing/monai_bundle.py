"""A model as a MONAI bundle: a TorchScript network and two files of JSON, which MONAI runs without semiseg.

Bundles are written and never read: a bundle's JSON is a program, which runs when it is parsed.
"""

from __future__ import annotations

import io
import warnings
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from semiseg.data.plan import ChannelNormalisation
from semiseg.errors import ConfigError, DataError
from semiseg.files import atomic_folder, read_json, write_json, write_text
from semiseg.ops.normalise import DARK_SHARE, SMALLEST_DEVIATION
from semiseg.prediction.engines.torch_engine import load_network
from semiseg.prediction.exchange import card_for_others
from semiseg.prediction.model import Model
from semiseg.prediction.settings import PredictSettings
from semiseg.prediction.window import Window, mirrored_logits
from semiseg.sharing.folder import scores_of
from semiseg.sharing.readme import readme

_MADE = ("configs", "docs", "models")
_MONAI = "1.6.1"
"""What the bundle was tried with."""
_AXES, _LABELS = "SAR", [["L", "R"], ["P", "A"], ["I", "S"]]
"""Canonical arrays are (Z, Y, X): to the head, to the front, to the right."""


def export_bundle(model: Model, output: Path) -> Path:
    """Write the bundle into the folder `output`; returns it. Raises `ConfigError` where something else is in its place.

    Its labels are ours where a scan has the plan's grid and tiles lie alike. Elsewhere they differ at borders: MONAI
    lays tiles otherwise and resamples by its own rules, and no cleaning of labels is done.
    """
    if output.exists() and not _is_bundle(output):
        raise ConfigError(f"{output}: is there already, and is no bundle of ours. Name a new folder.")
    with atomic_folder(output, made=_MADE) as temporary:
        for name in _MADE:
            (temporary / name).mkdir()
        (temporary / "models" / "model.ts").write_bytes(_torch_script(model))
        write_json(temporary / "configs" / "metadata.json", _metadata(model))
        write_json(temporary / "configs" / "inference.json", _inference(model))
        write_text(temporary / "docs" / "README.md", readme(model, scores_of(model)))
    return output


def _is_bundle(folder: Path) -> bool:
    try:
        return "semiseg" in read_json(folder / "configs" / "metadata.json")
    except (DataError, TypeError, NotADirectoryError):
        return False


class _Mirrored(nn.Module):
    """The mean over mirrored tiles, as prediction takes it."""

    def __init__(self, network: nn.Module, window: Window) -> None:
        super().__init__()
        self.network, self.window = network, window

    def forward(self, tiles: Tensor) -> Tensor:
        """Tiles `(N, C, D, H, W)` to logits `(N, K, D, H, W)`."""
        return mirrored_logits(tiles, self.network, torch.flip, self.window)


def _torch_script(model: Model) -> bytes:
    plan = model.plan
    window = Window(patch=plan.patch, mirror_axes=model.mirror_axes, labels=plan.labels)
    network = _Mirrored(load_network(model).requires_grad_(False), window).eval()
    file = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # TorchScript is old, and what MONAI reads
        trace: Any = torch.jit.trace  # has no types
        torch.jit.save(trace(network, torch.zeros(2, len(plan.channels), *plan.patch)), file)
    return _without_sources(file.getvalue())


def _without_sources(program: bytes) -> bytes:
    """The program without the table of the source lines that it was made from, which has paths of this machine."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(program)) as whole, zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as kept:
        for entry in whole.infolist():
            if not entry.filename.endswith(".debug_pkl"):
                kept.writestr(entry, whole.read(entry))
    return out.getvalue()


def _metadata(model: Model) -> dict[str, Any]:
    plan = model.plan
    organs = {str(value): _plain(name) for value, name in plan.labels.names.items()}
    channels = [_plain(name) for name in plan.channels]
    shape = list(plan.patch)
    image = {
        "type": "image",
        "format": "hounsfield" if plan.normalisation[0].scheme == "ct" else "magnitude",
        "modality": channels[0],
        "num_channels": len(channels),
        "spatial_shape": shape,
        "dtype": "float32",
        "value_range": [],
        "is_patch_data": True,
        "channel_def": {str(index): name for index, name in enumerate(channels)},
    }
    labels = {
        "type": "image",
        "format": "segmentation",
        "num_channels": len(organs),
        "spatial_shape": shape,
        "dtype": "float32",
        "value_range": [],
        "is_patch_data": True,
        "channel_def": organs,
    }
    return {
        "version": "1.0.0",
        "changelog": {"1.0.0": f"exported by semiseg {version('semiseg')}"},
        "monai_version": _MONAI,
        "pytorch_version": torch.__version__.partition("+")[0],
        "numpy_version": np.__version__,
        "required_packages_version": {"nibabel": version("nibabel"), "scipy": version("scipy")},
        "name": f"Segmentation of {plan.labels.count - 1} structures",
        "task": "Segmentation in 3D",
        "description": "A network that semiseg trained; logits are the mean over mirrored tiles.",
        "intended_use": "Research. Not a medical device; have a qualified person check every result.",
        "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": labels}},
        "semiseg": {"model_hash": model.hash, "labelled_cases": card_for_others(model)["labelled_cases"]},
    }


def _plain(name: str) -> str:
    """A name without the signs by which MONAI takes a text for a program, a reference or a macro."""
    return name.translate(dict.fromkeys(map(ord, "$@%"), "_"))


def _inference(model: Model) -> dict[str, Any]:
    plan = model.plan
    return {
        "imports": ["$import glob", "$import os", "$import monai", "$import numpy as np", "$import torch"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/scans'",
        "output_dir": "$@bundle_root + '/labels'",
        # of several channels a list of files for each scan
        "datalist": "$sorted(glob.glob(os.path.join(@dataset_dir, '*.nii*')))",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "network_def": "$torch.jit.load(@bundle_root + '/models/model.ts', map_location=@device)",
        "network": "$@network_def.eval()",
        "bright": (
            f"$lambda v: v[v > (lambda q: q[0] + {DARK_SHARE!r} * (q[1] - q[0]))(np.percentile(v, (0.5, 99.5)))]"
        ),
        "moments": f"$lambda v: (float(np.mean(v)), max(float(np.std(v)), {SMALLEST_DEVIATION!r}))",
        "channels": f"$[{', '.join(map(_channel, plan.normalisation))}]",
        "limits": (
            "$lambda x: [torch.tensor(v, dtype=torch.float32).reshape(-1, 1, 1, 1) for v in "
            "zip(*[numbers(c) for numbers, c in zip(@channels, np.asarray(x, dtype=np.float64))])]"
        ),
        "normalise": "$lambda x: (lambda low, high, mean, deviation: "
        "(x.clamp(min=low, max=high) - mean) / deviation)(*@limits(x))",
        # to the plan's spacing as we do: as many whole voxels as fit best, whose outer edges are the scan's
        "spacing": list(plan.spacing_mm),
        "size": (
            "$lambda x: [max(1, round(n * float(mm) / new)) for n, mm, new in zip(x.shape[1:], x.pixdim, @spacing)]"
        ),
        "resample": (
            "$lambda x: (lambda size: monai.transforms.SpatialResample(mode=3, padding_mode='nearest')("
            "x, dst_affine=x.affine.numpy().dot(monai.transforms.utils.scale_affine(x.shape[1:], size)), "
            "spatial_size=size))(@size(x))"
        ),
        "without_channels": "$lambda x: (x.meta.update(original_channel_dim=float('nan')), x)[1]",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", "keys": "image", "ensure_channel_first": True},
                {"_target_": "CopyItemsd", "keys": "image", "names": "scan"},
                {"_target_": "Orientationd", "keys": "image", "axcodes": _AXES, "labels": _LABELS},
                {"_target_": "Lambdad", "keys": "image", "func": "@normalise"},
                {"_target_": "Lambdad", "keys": "image", "func": "@resample"},
                {"_target_": "EnsureTyped", "keys": "image", "dtype": "$torch.float32"},
            ],
        },
        "dataset": {
            "_target_": "Dataset",
            "data": "$[{'image': scan} for scan in @datalist]",
            "transform": "@preprocessing",
        },
        "inferer": {
            "_target_": "SlidingWindowInferer",
            "roi_size": list(plan.patch),
            "sw_batch_size": 1,
            "overlap": round(1 - PredictSettings.tile_step, 6),
            "mode": "gaussian",
            "padding_mode": "replicate",
            "cache_roi_weight_map": True,
        },
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {
                    "_target_": "ResampleToMatchd",
                    "keys": "pred",
                    "key_dst": "scan",
                    "mode": "bilinear",
                    "padding_mode": "border",
                },
                {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
                # MONAI 1.6.1 takes the map for a flat one where the scan had channels
                {"_target_": "Lambdad", "keys": "pred", "func": "@without_channels"},
                {
                    "_target_": "SaveImaged",
                    "keys": "pred",
                    "meta_keys": None,
                    "output_dir": "@output_dir",
                    "output_postfix": "",
                    "separate_folder": False,
                    "output_dtype": f"$np.{'uint8' if plan.labels.count <= 256 else 'uint16'}",
                    "resample": False,
                },
            ],
        },
        "predict": (
            "$lambda case: @postprocessing(case | "
            "{'pred': @inferer(case['image'][None].to(@device), @network)[0].cpu()})"
        ),
        "run": ["$[@predict(case) and None for case in @dataset]"],
    }


def _channel(normalisation: ChannelNormalisation) -> str:
    """An expression: a channel to the smallest and the largest value that counts, mean and deviation."""
    if normalisation.scheme == "ct":
        deviation = max(normalisation.deviation, SMALLEST_DEVIATION)
        numbers = (normalisation.low, normalisation.high, normalisation.mean, deviation)
        return f"lambda c: ({', '.join(repr(float(number)) for number in numbers)})"
    return "lambda c: (-np.inf, np.inf, *@moments(@bright(c)))"
