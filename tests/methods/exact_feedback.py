"""The exact feedback by double backward, an oracle; `benchmarks/gradient_cosine.py` uses it, too.

It keeps the second-order graph of the student's step that `semiseg.methods.feedback` does without.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from semiseg.losses import CROSS_ENTROPY_DICE, Losses
from semiseg.methods.feedback import call_with
from semiseg.methods.optimiser import Parameters
from semiseg.models.layers import batch_statistics_only

Step = Callable[[Parameters, Parameters], Parameters]
"""From weights and their gradient to the weights after the student's step, differentiable in the gradient."""


def exact_labelled_loss(
    student: nn.Module,
    parameters: Parameters,
    images: Tensor,
    q: Tensor,
    weight: Tensor | None,
    labelled_images: Tensor,
    labels: Tensor,
    step: Step,
    losses: Losses = CROSS_ENTROPY_DICE,
) -> Tensor:
    """`J(theta+(q))` with its whole graph back to `q` (and to the teacher, if `q` has one).

    Shapes as in `semiseg.methods.feedback.dense_feedback`.
    """
    leaves = {name: value.detach().requires_grad_() for name, value in parameters.items()}
    with batch_statistics_only(student):
        loss = losses.pseudo(q, call_with(student, leaves, images), weight)
        values = torch.autograd.grad(loss, list(leaves.values()), create_graph=True)
        gradient = dict(zip(leaves, values, strict=True))
        return losses.labelled(labels, call_with(student, step(leaves, gradient), labelled_images), None)


def sgd_step(rate: float) -> Step:
    """The plain SGD step of the probe."""

    def step(parameters: Parameters, gradient: Parameters) -> Parameters:
        return {name: value - rate * gradient[name] for name, value in parameters.items()}

    return step
