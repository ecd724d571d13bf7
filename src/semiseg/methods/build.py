"""From plan and settings to a learning method with fresh networks."""

from __future__ import annotations

from typing import Any

import torch

from semiseg.data.plan import Plan
from semiseg.losses import CROSS_ENTROPY_DICE, partial_loss
from semiseg.methods.base import Method
from semiseg.methods.copy_paste import CopyPaste
from semiseg.methods.cross_pseudo import CrossPseudo
from semiseg.methods.learner import StudentMethod
from semiseg.methods.masked import Masked
from semiseg.methods.mean_teacher import MeanTeacher
from semiseg.methods.mpl import MetaPseudoLabels
from semiseg.methods.phases import Phases
from semiseg.methods.pseudo_label import PseudoLabel
from semiseg.methods.pseudo_rounds import PseudoRounds
from semiseg.methods.settings import (
    CopyPasteSettings,
    CrossPseudoSettings,
    MaskedSettings,
    MeanTeacherSettings,
    MethodSettings,
    MplSettings,
    PseudoLabelSettings,
    PseudoRoundsSettings,
    SupervisedSettings,
    add_settings,
)
from semiseg.methods.supervised import Supervised
from semiseg.models.build import build_network, compiled_passes, in_channels_last
from semiseg.models.layers import Network
from semiseg.randomness import Draw

_METHODS: dict[type[MethodSettings], type[StudentMethod[Any]]] = {
    SupervisedSettings: Supervised,
    PseudoRoundsSettings: PseudoRounds,
    MaskedSettings: Masked,
    PseudoLabelSettings: PseudoLabel,
    MplSettings: MetaPseudoLabels,
    MeanTeacherSettings: MeanTeacher,
    CrossPseudoSettings: CrossPseudo,
    CopyPasteSettings: CopyPaste,
}


def add_method(settings: type[MethodSettings], method: type[StudentMethod[Any]]) -> None:
    """Make a method of one's own known, in recipes and on the command line, by the name that its settings have
    (docs/extending.md)."""
    add_settings(settings)
    _METHODS[settings] = method


def build_method(
    plan: Plan,
    settings: MethodSettings,
    phases: Phases,
    *,
    seed: int,
    device: torch.device,
    autocast: torch.dtype | None = None,
    compiled: bool = False,
) -> Method:
    """The method that has these settings, on `device`. Weights depend on the seed and the plan alone. compiled: whether
    its passes in training are compiled."""

    def network(name: str) -> Network:
        built = build_network(
            plan.teacher if name == "teacher" else plan.student,
            channels=len(plan.channels),
            classes=plan.labels.count,
            seed=Draw(seed=seed).torch_seed(f"weights of the {name}"),
        )
        return in_channels_last(built.to(device))

    kind = _METHODS[type(settings)]
    networks = {name: network(name) for name in kind.learner_names}
    unknown = plan.labels.unknown
    losses = partial_loss(unknown) if unknown else CROSS_ENTROPY_DICE
    method = kind(networks, settings, phases, losses=losses, ignore=plan.labels.ignore, autocast=autocast)
    for learner in method.learners.values() if compiled else ():
        learner.forward = compiled_passes(learner.network)
    return method
