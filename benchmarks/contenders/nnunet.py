"""nnU-Net v2 set up without a training folder: its own plans, preprocessor, sliding window and export, our network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from semiseg.data.plan import Plan
from semiseg.prediction.engines.torch_engine import load_network
from semiseg.prediction.model import load_model

_RESAMPLING = {"is_seg": False, "order_z": 0, "force_separate_z": None}


def plans_manager(plan: Plan) -> Any:
    """nnU-Net's plan that says what ours says."""
    channel = plan.normalisation[0]
    statistics = {
        "percentile_00_5": channel.low,
        "percentile_99_5": channel.high,
        "mean": channel.mean,
        "std": channel.deviation,
    }
    function = "resample_data_or_seg_to_shape"
    configuration = {
        "data_identifier": "benchmark",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": list(plan.patch),
        # Asked for, and not used: the network is ours.
        "architecture": {"network_class_name": "", "arch_kwargs": {}, "_kw_requires_import": []},
        "spacing": list(plan.spacing_mm),
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": function,
        "resampling_fn_data_kwargs": _RESAMPLING | {"order": 3},
        "resampling_fn_seg": function,
        "resampling_fn_seg_kwargs": _RESAMPLING | {"order": 1, "is_seg": True},
        "resampling_fn_probabilities": function,
        "resampling_fn_probabilities_kwargs": _RESAMPLING | {"order": 1},
    }
    return PlansManager(
        {
            "dataset_name": "benchmark",
            "plans_name": "benchmark",
            "image_reader_writer": "NibabelIO",
            "transpose_forward": [0, 1, 2],
            "transpose_backward": [0, 1, 2],
            "foreground_intensity_properties_per_channel": {"0": statistics},
            "label_manager": "LabelManager",
            "configurations": {"3d_fullres": configuration},
        }
    )


def dataset_json(plan: Plan) -> dict[str, Any]:
    """nnU-Net's description of the data set."""
    labels = {name: value for value, name in plan.labels.names.items()}
    return {"channel_names": {"0": "CT"}, "labels": labels, "file_ending": ".nii.gz"}


def predictor(model_folder: Path, device: str = "cpu") -> Any:
    """nnU-Net's predictor with the network and weights of one of our models, without mirroring."""
    model = load_model(model_folder)
    network = load_network(model)
    made = nnUNetPredictor(use_mirroring=False, device=torch.device(device), allow_tqdm=False)
    manager = plans_manager(model.plan)
    made.manual_initialization(
        network,
        manager,
        manager.get_configuration("3d_fullres"),
        [network.state_dict()],
        dataset_json(model.plan),
        "nnUNetTrainer",
        None,
    )
    return made
