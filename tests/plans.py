"""A plan of two made-up organs, for tests that need one."""

from __future__ import annotations

from semiseg.data.plan import ChannelNormalisation, NetworkPlan, Plan
from semiseg.io.dataset import LabelScheme

NETWORK = NetworkPlan(features=(3, 4), kernels=((3, 3, 3),) * 2, strides=((1, 1, 1), (2, 2, 2)))
PLAN = Plan(
    dataset="made up",
    channels=("MRI",),
    labels=LabelScheme(names={0: "background", 1: "a", 2: "b"}),
    spacing_mm=(1.0, 1.0, 1.0),
    anisotropic_axis=None,
    patch=(8, 8, 8),
    batch=2,
    normalisation=(ChannelNormalisation(scheme="zscore"),),
    teacher=NETWORK,
    student=NETWORK,
)
