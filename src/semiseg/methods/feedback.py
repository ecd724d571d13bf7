"""How the teacher learns what its pseudo-labels did to the student. Shapes: B, C, K, D H W as elsewhere.

Notation of docs/method.md: the student's weights `theta`, the labelled loss `J(theta+) = L(y_l, S(x_l; theta+))` after
one step `theta+ = theta - eta * A(g)`, `g = d/dtheta L_u(q, S(x_u; theta))`, `A` the optimiser's map of the gradient,
and `g+ = d/dtheta J` at `theta+`. By the chain rule, since `d g / d q` is the mixed second derivative of `L_u`:

    dJ/dq = -eta * d/de [ dL_u/dq (q, S(x_u; theta + e v)) ]  at e = 0,     v = A'(g)^T g+

which needs two plain passes (or one in forward mode, exact) and no second-order graph. Everything here works on copies
of the weights through functional calls: it measures, and leaves weights, buffers, `.grad` and random state untouched.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp

from semiseg.losses import SOFT_DICE, PseudoDice, pseudo_label_gradient, supervised_loss
from semiseg.methods.optimiser import Parameters, global_norm
from semiseg.models.unet import batch_statistics_only

CLIP_EPSILON = 1e-6
"""What `torch.nn.utils.clip_grad_norm_` adds to the norm that it divides by."""
NOT_TAUGHT = -100
"""In the teacher's hard labels: a voxel whose label the student was not taught."""


@dataclass(frozen=True)
class Probe:
    """A student step to measure across, without taking it.

    parameters: `theta+`. coefficient: `eta` with the optimiser's factor. gradient: `g` before clipping. clip: the
    largest norm, or 0 for none.
    """

    parameters: Parameters
    coefficient: float
    gradient: Parameters
    clip: float = 0.0

    def direction(self, g_plus: Parameters) -> Parameters:
        """`v = A'(g)^T g+`: for clipping at c, `(c/n)(I - g g^T / (|g| n)) g+` with `n = |g| + 1e-6` if |g| > c."""
        if self.clip <= 0:
            return g_plus
        norm = global_norm(self.gradient)
        shifted = norm + CLIP_EPSILON
        factor = (self.clip / shifted).clamp(max=1.0)
        if float(factor) == 1.0:
            return {name: factor * value for name, value in g_plus.items()}
        dot = torch.stack([(self.gradient[name] * value).sum() for name, value in g_plus.items()]).sum()
        along = dot / (norm * shifted)
        return {name: factor * (value - along * self.gradient[name]) for name, value in g_plus.items()}


def sgd_probe(parameters: Parameters, gradient: Parameters, rate: float) -> Probe:
    """A plain SGD step of its own rate: momentum would replay old pseudo-labels and credit the wrong ones."""
    moved = {name: (value - rate * gradient[name]).detach() for name, value in parameters.items()}
    return Probe(moved, rate, gradient)


def real_probe(
    parameters: Parameters,
    gradient: Parameters,
    momentum_buffers: Parameters,
    *,
    rate: float,
    momentum: float,
    weight_decay: float,
    clip: float = 0.0,
    nesterov: bool = True,
) -> Probe:
    """The step that `torch.optim.SGD` would take, without taking it.

    With `b' = mu b + c g + wd theta` (b' = c g + wd theta at the first step), plain momentum moves by `-rate b'` and
    Nesterov by `-rate (c g + wd theta + mu b')`, so `d theta+ / d(c g)` is `-rate` and `-rate (1 + mu)`.
    """
    factor = 1.0
    if clip > 0:
        factor = float((clip / (global_norm(gradient) + CLIP_EPSILON)).clamp(max=1.0))
    moved: Parameters = {}
    for name, value in parameters.items():
        update = factor * gradient[name] + weight_decay * value
        buffer = momentum * momentum_buffers[name] + update if name in momentum_buffers else update
        moved[name] = (value - rate * (update + momentum * buffer if nesterov else buffer)).detach()
    coefficient = rate * (1 + momentum) if nesterov else rate
    return Probe(moved, coefficient, gradient, clip)


@torch.no_grad()
def labelled_loss_at(
    student: nn.Module, parameters: Parameters, images: Tensor, labels: Tensor, ignore: int | None
) -> Tensor:
    """`J` at given weights: batch statistics of `images` alone, no running statistic moved, in float32.

    On a GPU not in TF32: scalar feedback is the small difference of two of these losses.
    """
    with batch_statistics_only(student), _without_tf32():
        return supervised_loss(labels, call_with(student, parameters, images), ignore=ignore)


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
    student: nn.Module, parameters: Parameters, images: Tensor, labels: Tensor, ignore: int | None
) -> tuple[Tensor, Parameters]:
    """`J` and `g+`, its gradient with respect to the given weights: batch statistics of `images` alone, no running
    statistic moved. In the caller's precision, autocast included."""
    leaves = {name: value.detach().requires_grad_() for name, value in parameters.items()}
    with batch_statistics_only(student), torch.enable_grad():
        logits = call_with(student, leaves, images)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        loss = supervised_loss(labels, logits, ignore=ignore)
        values = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    gradient = {
        name: torch.zeros_like(leaf) if value is None else value
        for (name, leaf), value in zip(leaves.items(), values, strict=True)
    }
    return loss.detach(), gradient


def dense_feedback(
    student: nn.Module,
    parameters: Parameters,
    images: Tensor,
    q: Tensor,
    weight: Tensor | None,
    probe: Probe,
    g_plus: Parameters,
    *,
    dice: PseudoDice = SOFT_DICE,
    derivative: Literal["forward", "central"] = "forward",
    epsilon: float = 1e-2,
) -> Tensor:
    """`dJ/dq` `(B, K, D, H, W)`: how the labelled loss after the probe changes with every pseudo-probability.

    parameters: the student's weights before the probe. images: exactly the student's batch. q, weight, dice:
    what the student was taught with, as in `pseudo_label_loss`. epsilon: norm of the weights' displacement of a central
    difference. A zero probe gives exactly zero.
    """
    direction = probe.direction(g_plus)

    def gradient_at(weights: Parameters) -> Tensor:
        return pseudo_label_gradient(q, call_with(student, weights, images), weight, dice)

    start = {name: value.detach() for name, value in parameters.items()}
    with torch.no_grad(), batch_statistics_only(student):
        if derivative == "forward":  # convolutions cost three of a plain pass: weights and maps both have tangents
            tangent = cast(Tensor, jvp(gradient_at, (start,), (direction,))[1])
            return -probe.coefficient * tangent
        length = float(global_norm(direction))
        if length == 0.0:
            return torch.zeros_like(q)
        step = epsilon / length
        with _without_tf32():
            ahead = gradient_at({name: value + step * direction[name] for name, value in start.items()})
            behind = gradient_at({name: value - step * direction[name] for name, value in start.items()})
        return -probe.coefficient * (ahead - behind) / (2 * step)


def scalar_feedback(before: Tensor, after: Tensor) -> Tensor:
    """`h`, positive where the pseudo-label lowered the labelled loss. (The paper prints the reverse; see method.md.)"""
    return before - after


def dense_teacher_term(feedback: Tensor, q: Tensor) -> Tensor:
    """`sum stop(dJ/dq) q(theta_T)`, whose gradient with respect to the teacher is `dJ/dtheta_T`."""
    return (feedback.detach() * q).sum()


def scalar_teacher_term(
    h: Tensor, baseline: float, log_q: Tensor, labels: Tensor, *, reduction: Literal["mean", "sum"] = "mean"
) -> Tensor:
    """`(h - baseline) CE(T(x_u), y)`: a label that helped is made more likely by minimising this.

    log_q: `(B, K, D, H, W)` log-probabilities at the temperature that gave the labels. labels: `(B, D, H, W)`.
    An unbiased estimate only for labels sampled from q, `reduction="sum"` and a baseline independent of them. Voxels of
    the value `NOT_TAUGHT` are left out: what the student did not learn says nothing of their labels.
    """
    cross_entropy = nn.functional.nll_loss(log_q, labels, ignore_index=NOT_TAUGHT, reduction="sum")
    if reduction == "mean":
        cross_entropy = cross_entropy / (labels != NOT_TAUGHT).sum().clamp_min(1)
    return (h.detach() - baseline) * cross_entropy


def call_with(network: nn.Module, parameters: Parameters, images: Tensor) -> Tensor:
    """The network's logits of `images` with other weights in the place of its own."""
    return cast(Tensor, functional_call(network, parameters, (images,)))
