"""Figures: smoothing, colours, and limits."""

from __future__ import annotations

import numpy as np
import pytest

from semiseg.io.colours import ORGAN_COLOURS, organ_colours
from semiseg.reporting.figures import SERIES, learning_curves, running_mean, series_key


def test_a_running_mean_keeps_constants_and_is_the_mean_inside() -> None:
    # Sums of a convolution differ from the mean by rounding only.
    assert running_mean(np.full(9, 3.0), 4) == pytest.approx(np.full(9, 3.0))
    values = np.arange(20.0) ** 2
    assert running_mean(values, 5)[10] == pytest.approx(values[8:13].mean())
    assert running_mean(values, 1).tolist() == values.tolist()
    assert running_mean(values[:2], 5).shape == (2,)


def test_organs_have_colours_of_their_own_up_to_thirteen() -> None:
    colours = organ_colours([f"organ {n}" for n in range(14)])
    assert len(set(list(colours.values())[:13])) == 13
    assert colours["organ 13"] == ORGAN_COLOURS[0]


def test_only_what_was_logged_becomes_a_curve() -> None:
    rows = [{"step": n, "phase": "train", "labelled_loss": 1 / (n + 1)} for n in range(30)]
    assert [c.title for c in learning_curves(rows)] == ["Losses"]
    rows += [{"step": 30, "phase": "train", "feedback": 1e-9, "validation_dice": 0.5, "validation_dice/a": 0.4}]
    curves = learning_curves(rows)
    assert [c.title for c in curves] == ["Losses", "Feedback", "Validation Dice"]
    assert [label for _, label in curves[2].legend] == ["mean", "a"]
    assert learning_curves([]) == []


def test_warm_up_and_fine_tuning_are_named() -> None:
    rows = [
        {"step": n, "phase": phase, "labelled_loss": 1.0}
        for n, phase in enumerate(["warmup"] * 5 + ["train"] * 5 + ["finetune"] * 5)
    ]
    svg = learning_curves(rows)[0].svg
    assert ">warm-up<" in svg
    assert ">fine-tuning<" in svg
    assert "warm-up" not in learning_curves(rows[5:])[0].svg


def test_a_long_run_does_not_make_a_heavy_figure() -> None:
    rng = np.random.default_rng(0)
    rows = [{"step": n, "phase": "train", "labelled_loss": float(rng.random())} for n in range(20_000)]
    assert len(learning_curves(rows)[0].svg) < 100_000


def test_lines_of_one_colour_have_signs_of_their_own() -> None:
    keys = [series_key(n) for n in range(2 * len(SERIES))]
    assert len(set(keys)) == len(keys)
    assert keys[0] == ("series-1", "●")
    assert keys[len(SERIES)] == ("series-1", "■")
