"""From plan and settings to a learning method with fresh networks."""

from __future__ import annotations

from collections.abc import Callable

import torch

from semiseg.data.plan import NetworkPlan, Plan
from semiseg.methods.base import Method
from semiseg.methods.copy_paste import CopyPaste
from semiseg.methods.cross_pseudo import CrossPseudo
from semiseg.methods.mean_teacher import MeanTeacher
from semiseg.methods.mpl import MetaPseudoLabels
from semiseg.methods.phases import Phases
from semiseg.methods.pseudo_rounds import PseudoRounds
from semiseg.methods.settings import MethodSettings
from semiseg.methods.supervised import Supervised
from semiseg.models.unet import UNet3d, build_unet, in_channels_last
from semiseg.randomness import Draw


def build_method(
    plan: Plan,
    settings: MethodSettings,
    phases: Phases,
    *,
    seed: int,
    device: torch.device,
    autocast: torch.dtype | None = None,
) -> Method:
    """The method that `settings.name` asks for, on `device`. Weights depend on the seed and the plan alone."""
    ignore = plan.labels.ignore

    def network(role: str, sizes: NetworkPlan) -> UNet3d:
        built = build_unet(
            sizes,
            channels=len(plan.channels),
            classes=plan.labels.count,
            seed=Draw(seed=seed).torch_seed(f"weights of the {role}"),
        )
        return in_channels_last(built.to(device))

    student = network("student", plan.student)
    if settings.name == "cross_pseudo":
        partner = network("partner", plan.student)
        return CrossPseudo(student, partner, settings, phases, ignore=ignore, autocast=autocast)
    if alone := _ONE_NETWORK.get(settings.name):
        return alone(student, settings, phases, ignore=ignore, autocast=autocast)
    teacher = network("teacher", plan.teacher)
    return MetaPseudoLabels(teacher, student, settings, phases, ignore=ignore, autocast=autocast)


_ONE_NETWORK: dict[str, Callable[..., Method]] = {
    "supervised": Supervised,
    "mean_teacher": MeanTeacher,
    "copy_paste": CopyPaste,
    "pseudo_rounds": PseudoRounds,
}
"""Methods of one network, which learns from labels alone or teaches itself, by an earlier state or an average."""
