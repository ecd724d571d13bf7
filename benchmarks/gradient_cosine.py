"""How well each feedback points along the true teacher gradient, on a real network and real scans.

    python benchmarks/gradient_cosine.py --run RUN

The run must have been trained with unlabelled cases; its last checkpoint is the starting point. Then, for `--steps`
steps of training with dense feedback (without cut-mix, so that all labels are the teacher's), the teacher's meta
gradient of each rule is compared with the exact one (double backward through the student's probe step, soft labels).
Writes benchmarks/results/gradient_cosine.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from semiseg.files import write_json
from semiseg.losses import pseudo_label_loss
from semiseg.methods.base import Batch, UnlabelledBatch
from semiseg.methods.build import add_method
from semiseg.methods.feedback import (
    dense_feedback,
    dense_teacher_term,
    labelled_gradient_at,
    labelled_loss_at,
    scalar_feedback,
    scalar_teacher_term,
    sgd_probe,
)
from semiseg.methods.mpl import MetaPseudoLabels
from semiseg.methods.optimiser import Parameters, gradients_of
from semiseg.methods.phases import Phases
from semiseg.methods.pseudo_label import Lesson
from semiseg.methods.settings import MplSettings
from semiseg.models.layers import batch_statistics_only
from semiseg.randomness import Draw
from semiseg.settings import read_settings
from semiseg.train_run import open_session
from semiseg.training.checkpoint import load_latest
from semiseg.training.inputs import Feed
from semiseg.training.session import Session
from semiseg.training.settled import read_settled

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "methods"))
from exact_feedback import exact_labelled_loss, sgd_step

Gradients = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class UnmixedSettings(MplSettings):
    """Those of Meta Pseudo Labels."""


class Unmixed(MetaPseudoLabels):
    """Meta Pseudo Labels in which all labels are the teacher's."""

    def _mixed(self, lesson: Lesson, labelled: Batch, draw: Draw) -> Lesson:
        return lesson


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--threads", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    method, session = restored(arguments.run, arguments.steps)
    rows: list[dict[str, float]] = []
    baseline = 0.0
    data = session.open_data()
    feed = Feed(data, method, session.train, session.place)
    for step, labelled, unlabelled in feed.steps(0, arguments.steps, method.phases):
        assert unlabelled is not None
        found, h = all_gradients(method, labelled, unlabelled, baseline)
        baseline = 0.9 * baseline + 0.1 * h
        exact = found.pop("exact")
        rows.append({name: cosine(gradient, exact) for name, gradient in found.items()})
        print(step, " ".join(f"{name} {value:+.3f}" for name, value in rows[-1].items()), flush=True)
        method.step(labelled, unlabelled, Draw(seed=session.train.seed, step=step))
    result = {"run": arguments.run.name, "steps": len(rows), "torch": torch.__version__, "cosine": {}}
    for name in rows[0]:
        values = torch.tensor([row[name] for row in rows])
        result["cosine"][name] = {"mean": round(float(values.mean()), 4), "deviation": round(float(values.std()), 4)}
    write_json(Path(__file__).parent / "results" / "gradient_cosine.json", result)
    print(json.dumps(result, indent=1))


def restored(run: Path, steps: int) -> tuple[MetaPseudoLabels, Session]:
    """The method of a trained run at its last checkpoint, about to train `steps` steps with dense feedback."""
    add_method(UnmixedSettings, Unmixed)
    settings = read_settings(run / "run.toml")
    settled = replace(read_settled(run), precision="float32")
    session = open_session(
        run, replace(settings, method=UnmixedSettings(teacher_every=1)), settled, torch.device("cpu")
    )
    method = session.build(Phases.of_steps(0, steps, steps))
    checkpoint = load_latest(run / "checkpoints")
    assert checkpoint is not None
    assert isinstance(method, MetaPseudoLabels)
    numbers = {k.removeprefix("method/"): v for k, v in checkpoint.numbers.items() if k.startswith("method/")}
    method.load_state(checkpoint.tensors, {"baseline": 0.0} | numbers)  # which pseudo_label has none of
    method.phases = replace(method.phases, warmup_stop=-1)  # the student goes on as it is
    method.learning_rate_factor = 0.1
    return method, session


def all_gradients(
    method: MetaPseudoLabels, labelled: Batch, unlabelled: UnlabelledBatch, baseline: float
) -> tuple[dict[str, Gradients], float]:
    """The teacher's meta gradient by each rule, and the scalar feedback."""
    student, images = method.student.network, unlabelled.strong
    weights = method.teacher.optimiser.parameters
    rate = method.probe_rate
    start = {name: value.detach() for name, value in method.student.optimiser.parameters.items()}

    log_q = method.soft_labels(unlabelled.weak, method.teacher.network)
    q = log_q.exp()
    hard = q.detach().argmax(1)
    loss = exact_labelled_loss(student, start, images, q, None, labelled.images, labelled.labels, sgd_step(rate))
    found = {"exact": kept_gradients(loss, weights)}
    probe = probe_of(method, images, q.detach(), start)
    _, g_plus = labelled_gradient_at(student, probe, labelled.images, labelled.labels, None)
    kinds: dict[str, Literal["forward", "central"]] = {"dense": "forward", "dense_central": "central"}
    for name, kind in kinds.items():
        feedback = dense_feedback(student, start, images, q.detach(), None, g_plus, rate=rate, derivative=kind)
        found[name] = kept_gradients(dense_teacher_term(feedback, q), weights)
    before, after = (
        labelled_loss_at(student, weights_then, labelled.images, labelled.labels, None)
        for weights_then in (start, probe)
    )
    h = scalar_feedback(before, after)
    found["scalar"] = kept_gradients(scalar_teacher_term(h, 0.0, log_q, hard), weights)
    found["scalar_with_baseline"] = kept_gradients(scalar_teacher_term(h, baseline, log_q, hard), weights)
    found["scalar_as_printed"] = {name: -value for name, value in found["scalar"].items()}
    return found, float(h)


def probe_of(method: MetaPseudoLabels, images: Tensor, target: Tensor, start: Parameters) -> Parameters:
    """The student's plain SGD step on a target."""
    with batch_statistics_only(method.student.network):
        gradient = gradients_of(
            pseudo_label_loss(target, method.student.network(images)), method.student.optimiser.parameters
        )
    return sgd_probe(start, gradient, method.probe_rate)


def kept_gradients(loss: Tensor, weights: Parameters) -> Gradients:
    values = torch.autograd.grad(loss, list(weights.values()), retain_graph=True)
    return dict(zip(weights, values, strict=True))


def cosine(a: Gradients, b: Gradients) -> float:
    """Over all parameters together, in float64: the gradients are tiny."""
    x, y = (torch.cat([g.double().flatten() for g in gradients.values()]) for gradients in (a, b))
    return float(x @ y / (x.norm() * y.norm()).clamp_min(1e-300))


if __name__ == "__main__":
    main()
