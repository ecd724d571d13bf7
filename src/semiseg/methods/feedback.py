"""How the teacher learns what its pseudo-labels did to the student. Shapes: B, C, K, D H W as elsewhere.

Notation of docs/method.md: the student's weights `theta`, the labelled loss `J(theta+) = L(y_l, S(x_l; theta+))` after
one plain step `theta+ = theta - eta * g`, `g = d/dtheta L_u(q, S(x_u; theta))`, and `g+ = d/dtheta J` at `theta+`. By
the chain rule, since `d g / d q` is the mixed second derivative of `L_u`:

    dJ/dq = -eta * d/de [ dL_u/dq (q, S(x_u; theta + e g+)) ]  at e = 0

which needs two plain passes (or one in forward mode, exact) and no second-order graph. Everything here works on copies
of the weights through functional calls: it measures, and leaves weights, buffers, `.grad` and random state untouched.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp

from semiseg.losses import CROSS_ENTROPY_DICE, Losses
from semiseg.methods.optimiser import Parameters, global_norm, gradients_of
from semiseg.methods.pseudo_label import NOT_TAUGHT
from semiseg.models.layers import batch_statistics_only
from semiseg.world import share, total

EPSILON = 1e-2
"""Norm of the weights' displacement in a central difference."""


def sgd_probe(parameters: Parameters, gradient: Parameters, rate: float) -> Parameters:
    """`theta+`, the weights after a plain SGD step of its own rate, which is not taken."""
    return _moved(parameters, gradient, -rate)


@torch.no_grad()
def _moved(parameters: Parameters, direction: Parameters, by: float) -> Parameters:
    """The weights moved along a direction, all tensors in one call: a GPU has hundreds of them."""
    steps = torch._foreach_mul([direction[name] for name in parameters], by)
    return dict(zip(parameters, torch._foreach_add(list(parameters.values()), steps), strict=True))


@torch.no_grad()
def labelled_loss_at(
    student: nn.Module,
    parameters: Parameters,
    images: Tensor,
    labels: Tensor,
    ignore: int | None,
    losses: Losses = CROSS_ENTROPY_DICE,
) -> Tensor:
    """`J` at given weights: batch statistics of `images` alone, no running statistic moved, in float32.

    On a GPU not in TF32: scalar feedback is the small difference of two of these losses.
    """
    with batch_statistics_only(student), _without_tf32():
        return losses.labelled(labels, call_with(student, parameters, images), ignore)


@contextmanager
def _without_tf32() -> Iterator[None]:
    """Within: cuDNN's convolutions round as float32 does, not to the 10 bits of TF32 that it takes by default."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def labelled_gradient_at(
    student: nn.Module,
    parameters: Parameters,
    images: Tensor,
    labels: Tensor,
    ignore: int | None,
    losses: Losses = CROSS_ENTROPY_DICE,
) -> tuple[Tensor, Parameters]:
    """`J` and `g+`, its gradient with respect to the given weights: batch statistics of `images` alone, no running
    statistic moved. In the caller's precision, autocast included."""
    leaves = {name: value.detach().requires_grad_() for name, value in parameters.items()}
    with batch_statistics_only(student), torch.enable_grad():
        logits = call_with(student, leaves, images)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        loss = losses.labelled(labels, logits, ignore)
        return loss.detach(), gradients_of(loss, leaves)


def dense_feedback(
    student: nn.Module,
    parameters: Parameters,
    images: Tensor,
    q: Tensor,
    weight: Tensor | None,
    g_plus: Parameters,
    *,
    rate: float,
    losses: Losses = CROSS_ENTROPY_DICE,
    derivative: Literal["forward", "central"] | None = None,
) -> Tensor:
    """`dJ/dq` `(B, K, D, H, W)`: how the labelled loss after the probe changes with every pseudo-probability.

    parameters: the student's weights before the probe. images: exactly the student's batch. q, weight: what the student
    was taught with, as in `Losses.pseudo`. rate: of the probe. derivative: exact forward-mode differentiation, or a
    central difference of two plain passes; None is central on a CPU, where it costs less and is as good, and forward on
    a GPU, where differences need convolutions without TF32. A zero probe gives exactly zero.
    """
    derivative = derivative or ("central" if images.device.type == "cpu" else "forward")

    def gradient_at(weights: Parameters) -> Tensor:
        return losses.pseudo_gradient(q, call_with(student, weights, images), weight)

    start = {name: value.detach() for name, value in parameters.items()}
    with torch.no_grad(), batch_statistics_only(student):
        if derivative == "forward":  # convolutions cost three of a plain pass: weights and maps both have tangents
            tangent = cast(Tensor, jvp(gradient_at, (start,), (g_plus,))[1])
            return -rate * tangent
        length = float(global_norm(g_plus))
        if length == 0.0:
            return torch.zeros_like(q)
        step = EPSILON / length
        with _without_tf32():
            ahead, behind = (gradient_at(_moved(start, g_plus, by)) for by in (step, -step))
        return -rate * (ahead - behind) / (2 * step)


def scalar_feedback(before: Tensor, after: Tensor) -> Tensor:
    """`h`, positive where the pseudo-label lowered the labelled loss. (The paper prints the reverse; see method.md.)"""
    return before - after


def dense_teacher_term(feedback: Tensor, q: Tensor) -> Tensor:
    """`sum stop(dJ/dq) q(theta_T)`, whose gradient with respect to the teacher is `dJ/dtheta_T`."""
    return total((feedback.detach() * q).sum())


def scalar_teacher_term(
    h: Tensor, baseline: float | Tensor, log_q: Tensor, labels: Tensor, *, reduction: Literal["mean", "sum"] = "mean"
) -> Tensor:
    """`(h - baseline) CE(T(x_u), y)`: a label that helped is made more likely by minimising this.

    log_q: `(B, K, D, H, W)` log-probabilities at the temperature that gave the labels. labels: `(B, D, H, W)`.
    An unbiased estimate only for labels sampled from q, `reduction="sum"` and a baseline independent of them. Voxels of
    the value `NOT_TAUGHT` are left out: what the student did not learn says nothing of their labels.
    """
    cross_entropy = nn.functional.nll_loss(log_q, labels, ignore_index=NOT_TAUGHT, reduction="sum")
    taught = (labels != NOT_TAUGHT).sum()
    return (h.detach() - baseline) * (share(cross_entropy, taught) if reduction == "mean" else total(cross_entropy))


def call_with(network: nn.Module, parameters: Parameters, images: Tensor) -> Tensor:
    """The network's logits of `images` with other weights in the place of its own."""
    return cast(Tensor, functional_call(network, parameters, (images,)))
