"""PyMIC trained for some minutes by the configuration in a folder, and its predictions. Run by PyMIC's Python.

    .pymic/bin/python pymic_training.py FOLDER MINUTES

FOLDER holds `pymic.cfg`, whose iterations are a thousand: they are scaled to as many as the minutes give, by the time
of the first ones. Minutes are of one processor core, with validation, so that a busy machine changes little. What is
made goes into `model` and `predicted`. A network that is trained is not trained again. One that was cut off is: a
checkpoint of PyMIC has neither the teacher of UAMT nor what its learning rate waits for.
"""

from __future__ import annotations

import json
import sys
import time
from argparse import Namespace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

WARM, TIMED = 3, 8
"""Iterations that are not timed, and those that are."""
VALIDATIONS = 10
"""In a run."""
OF_A_THOUSAND = ("rampup_start", "rampup_end", "reducelronplateau_patience", "early_stop_patience")


class _WithoutCuda(ModuleType):
    """torch for PyMIC's agents, which ask for cuda:N whatever the machine has."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    @staticmethod
    def device(name: str) -> torch.device:
        return torch.device("cpu")


def main() -> None:
    folder, minutes = Path(sys.argv[1]).resolve(), float(sys.argv[2])
    _let_torchvision_load()
    from pymic.net.net2d.unet2d import UNet2D
    from pymic.net.net2d.unet2d_mcnet import MCNet2D
    from pymic.net.net3d.unet3d import UNet3D
    from pymic.net.net_dict_seg import SegNetDict
    from pymic.net_run import agent_seg
    from pymic.net_run.semi_sup import SSLMethodDict

    # 0.6.2 has them, and no longer lists them.
    SegNetDict |= {"UNet2D": UNet2D, "MCNet2D": MCNet2D, "UNet3D": UNet3D}
    if not torch.cuda.is_available():
        agent_seg.torch = _WithoutCuda("torch")
    torch.set_num_threads(1)
    facts_file = folder / "trained.json"
    config = _config(folder)
    agent_of = SSLMethodDict[config["semi_supervised_learning"]["method_name"]]
    if not facts_file.exists():
        an_iteration, a_validation = _seconds(agent_of, _config(folder))
        periods = 60 * minutes - VALIDATIONS * a_validation
        iterations = max(1, round(periods / an_iteration / VALIDATIONS)) * VALIDATIONS
        _scale(config, iterations)
        began = time.process_time()
        _logged(agent_of(config, "train")).run()
        facts = {
            "steps": iterations,
            "minutes": round((time.process_time() - began) / 60, 2),
            "patch": config["dataset"]["randomcrop_output_size"],
            "batch": config["dataset"]["train_batch_size"] + config["dataset"]["train_batch_size_unlab"],
        }
        facts_file.write_text(json.dumps(facts))
    agent_seg.SegmentationAgent(_config(folder), "test").run()


def _config(folder: Path) -> Any:
    from pymic.util.parse_config import parse_config, synchronize_config

    return synchronize_config(parse_config(Namespace(cfg=str(folder / "pymic.cfg"))))


def _scale(config: Any, iterations: int) -> None:
    """Set the length of the run, and what is given in thousandths of it."""
    training = config["training"]
    training |= {"iter_max": iterations, "iter_valid": iterations // VALIDATIONS, "iter_save": [iterations]}
    for section in (training, config["semi_supervised_learning"]):
        section |= {key: section[key] * iterations / 1000 for key in OF_A_THOUSAND if key in section}


def _logged(agent: Any) -> Any:
    """The agent with the losses that PyMIC logs: 0.6.2's CPS has them by network alone, and stops at the first log."""
    train = agent.training

    def training() -> Any:
        scalars = train()
        for name, parts in (("loss_sup", "loss_sup"), ("loss_reg", "loss_pse_sup")):
            if name not in scalars:
                scalars[name] = scalars[f"{parts}1"] + scalars[f"{parts}2"]
        return scalars

    agent.training = training
    return agent


def _seconds(agent_of: Any, config: Any) -> tuple[float, float]:
    """Processor time of an iteration and of a validation, by a short run that is thrown away."""
    config["training"] |= {"iter_valid": TIMED, "iter_max": TIMED, "iter_save": [10**9]}
    config["training"]["ckpt_dir"] += "_timed"
    Path(config["training"]["ckpt_dir"]).mkdir(exist_ok=True)
    agent = _logged(agent_of(config, "train"))
    train, validate = agent.training, agent.validation
    seconds = []

    def timed_training() -> Any:
        config["training"]["iter_valid"] = WARM
        train()
        config["training"]["iter_valid"] = TIMED
        began = time.process_time()
        scalars = train()
        seconds.append((time.process_time() - began) / TIMED)
        return scalars

    def timed_validation() -> Any:
        began = time.process_time()
        scalars = validate()
        seconds.append(time.process_time() - began)
        return scalars

    agent.training, agent.validation = timed_training, timed_validation
    agent.run()
    return seconds[0], seconds[1]


def _let_torchvision_load() -> None:
    """PyPI's torchvision is built for CUDA; beside PyTorch's build for CPUs it misses two operators, and PyMIC needs
    none of them."""
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for module in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[module]
        library: Any = torch.library
        library = library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT.append(library)


_KEPT: list[Any] = []


if __name__ == "__main__":
    main()
