"""Pre-training by hidden blocks: what is hidden, the loss against its formula, and what is handed over."""

from __future__ import annotations

from typing import Any

import method_runs
import pytest
import torch
from method_runs import copied, resumed
from networks import TINY, tiny_unet
from torch import Tensor, nn

from semiseg.errors import ConfigError
from semiseg.methods.base import UnlabelledBatch
from semiseg.methods.masked import Masked
from semiseg.methods.phases import Phases
from semiseg.methods.pretraining import HIDDEN_SHARE, PretrainedMethod, hidden_voxels, reconstruction_loss
from semiseg.methods.pseudo_rounds import PseudoRounds
from semiseg.methods.settings import MaskedPhases, OptimiserSettings, RoundPhases, method_settings
from semiseg.methods.timeline import Timeline
from semiseg.randomness import Draw

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS, PRETRAINED = 20, 8
SLOW = OptimiserSettings(learning_rate=0.01)
CPU = torch.device("cpu")


def built(kind: type[PretrainedMethod[Any]] = Masked, pretrain: float = PRETRAINED / STEPS) -> PretrainedMethod[Any]:
    phases = MaskedPhases(pretrain=pretrain) if kind is Masked else RoundPhases(pretrain=pretrain, warmup=0.25)
    settings = method_settings("masked" if kind is Masked else "pseudo_rounds", phases=phases, optimiser=SLOW)
    return kind({"student": tiny_unet(1, torch.float32)}, settings, Phases.of(settings, Timeline.of_steps(STEPS)))


def test_three_quarters_of_the_blocks_are_hidden_whole() -> None:
    shape, block = (6, 9, 8), (2, 4, 4)  # 3 x 3 x 2 blocks, the second axis' last ones cut off
    hidden = hidden_voxels(Draw(seed=3, step=5), 2, shape, block, CPU)
    assert hidden.shape == (2, 1, *shape)
    corners = hidden[:, :, ::2, ::4, ::4]
    assert corners.sum(dim=(1, 2, 3, 4)).tolist() == [round(HIDDEN_SHARE * 18)] * 2
    blocks = corners.repeat_interleave(2, 2).repeat_interleave(4, 3).repeat_interleave(4, 4)[..., :9, :8]
    assert torch.equal(hidden, blocks)
    assert not torch.equal(hidden[0], hidden[1])


def test_what_is_hidden_depends_on_the_sample_alone() -> None:
    """So ranks hide in their part of a batch what one process hides."""
    both = hidden_voxels(Draw(seed=3, step=5), 2, (8, 8, 8), (2, 2, 2), CPU)
    second = hidden_voxels(Draw(seed=3, step=5, sample=1), 1, (8, 8, 8), (2, 2, 2), CPU)
    assert torch.equal(both[1:], second)


def test_only_hidden_voxels_count() -> None:
    images, filled = torch.randn((2, 2, 3, 4, 5, 6), generator=torch.Generator().manual_seed(1))
    hidden = torch.rand((2, 1, 4, 5, 6), generator=torch.Generator().manual_seed(2)) < 0.5
    squares = [
        float((filled[b, c, z, y, x] - images[b, c, z, y, x]) ** 2)
        for b, _, z, y, x in hidden.nonzero().tolist()
        for c in range(3)
    ]
    expected = sum(squares) / len(squares)
    assert float(reconstruction_loss(images, filled, hidden)) == pytest.approx(expected, rel=1e-5)  # of float32 sums


@pytest.mark.parametrize("kind", [Masked, PseudoRounds])
def test_it_fills_in_first_and_hands_all_but_the_last_layer_over(kind: type[PretrainedMethod[Any]]) -> None:
    trained = built(kind)
    before = copied(trained.networks["student"])
    rows = method_runs.rows(trained, 0, PRETRAINED)
    assert all(set(row) == {"reconstruction_loss", "gradient_norm"} for row in rows)
    assert all(torch.equal(value, before[name]) for name, value in copied(trained.networks["student"]).items())
    assert trained.judged(PRETRAINED - 1).loss == "reconstruction_loss"
    assert trained.judged(PRETRAINED).loss == "labelled_loss"
    filler = copied(trained.networks["pretrained_average"])
    trained.learning_rate_factor = 0.0  # as it is in the first step after it
    row = method_runs.run(trained, PRETRAINED, PRETRAINED + 1)
    assert "labelled_loss" in row
    parameters = {name for name, _ in trained.networks["student"].named_parameters()}
    after = copied(trained.networks["student"])
    for name in parameters:
        assert torch.equal(after[name], before[name] if name.startswith("head.") else filler[name]), name
    assert not torch.equal(after["encoder.0.0.weight"], before["encoder.0.0.weight"])


def test_it_learns_to_fill_in() -> None:
    """Patches of one value each: what is hidden is what is seen."""
    trained = built(pretrain=0.95)
    trained.phases = Phases.of(trained.settings, Timeline.of_steps(2000))
    losses: list[Tensor] = []
    for step in range(100):
        patches = torch.tensor([1.0, -1.0]).view(2, 1, 1, 1, 1).expand(2, 1, 8, 8, 8).contiguous()
        batch, _ = method_runs.batches(step)
        same = UnlabelledBatch(patches, patches)
        losses.append(trained.step(batch, same, Draw(seed=4, step=step))["reconstruction_loss"])
    assert float(losses[0]) == pytest.approx(1.0)  # the last layer begins with zeros
    assert float(sum(losses[-20:])) < 0.2 * 20


@pytest.mark.parametrize("kind", [Masked, PseudoRounds])
@pytest.mark.parametrize("cut", [3, PRETRAINED, PRETRAINED + 2, 16])
def test_a_resumed_run_goes_on_exactly(kind: type[PretrainedMethod[Any]], cut: int) -> None:
    resumed(lambda: built(kind), cut, STEPS)


def test_rounds_come_after_it_and_their_shares_are_of_the_rest() -> None:
    trained = built(PseudoRounds)
    assert trained.phases.shares == pytest.approx((0.4 + 0.6 * 0.25, 1.0))
    assert trained.labelling_steps[0] >= trained.phases.warmup_stop > trained.phases.pretrain_stop == PRETRAINED
    assert [trained.needs_unlabelled(step) for step in (0, PRETRAINED - 1, PRETRAINED)] == [True, True, False]
    assert trained.scan_labellers(0) == ()


def test_without_it_nothing_is_added() -> None:
    assert set(built(PseudoRounds, pretrain=0.0).networks) == {
        "student",
        "student_average",
        "teacher",
        "teacher_before",
    }


def test_a_network_without_a_last_layer_of_that_name_is_refused() -> None:
    settings = method_settings("masked", optimiser=SLOW)
    network = tiny_unet(1, torch.float32)
    network.head = nn.Identity()
    with pytest.raises(ConfigError, match=f"network {TINY.kind!r} has no last layer"):
        Masked({"student": network}, settings, Phases.of(settings, Timeline.of_steps(STEPS)))
