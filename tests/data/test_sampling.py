from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semiseg.data import sampling
from semiseg.data.sampling import (
    Patch,
    PredictedLocations,
    SamplingSettings,
    is_forced,
    labelled_patch,
    place_box,
    reviewed_cases,
    unlabelled_patch,
)
from semiseg.errors import ConfigError
from semiseg.geometry import Box
from semiseg.io.store import StoredCase
from semiseg.methods.pseudo_rounds import first_true
from semiseg.randomness import Draw
from semiseg.types import Shape

PATCH = (8, 8, 8)
SETTINGS = SamplingSettings()


def _case(
    name: str, shape: Shape = (20, 24, 6), classes: dict[int, tuple[Shape, ...]] | None = None, body: bool = True
) -> StoredCase:
    return StoredCase(
        id=name,
        shape_zyx=shape,
        spacing_mm=(1, 1, 1),
        source_shape_zyx=shape,
        source_spacing_mm=(1, 1, 1),
        hash="0",
        labelled=classes is not None,
        channels=1,
        class_voxels={},
        class_locations=classes or {},
        body_locations=((10, 12, 3),) if body else (),
    )


HOLDERS = {1: [0, 1], 2: [1]}
# Class 1 is in both cases, class 2 (a rare organ) only in one corner of the second.
LABELLED = [_case("a", classes={1: ((0, 0, 0), (10, 20, 3))}), _case("b", classes={1: ((5, 5, 5),), 2: ((19, 0, 1),)})]


def cases_by_class(cases: list[StoredCase]) -> dict[int, list[int]]:
    classes = sorted({value for case in cases for value in case.class_locations})
    return {value: [i for i, case in enumerate(cases) if value in case.class_locations] for value in classes}


def _labelled(step: int, sample: int, batch: int = 2, chosen: SamplingSettings = SETTINGS) -> Patch:
    return labelled_patch(LABELLED, HOLDERS, PATCH, Draw(0, step, sample), batch, chosen)


def _holds(box: Box, voxel: Shape) -> bool:
    return all(a <= v < b for a, v, b in zip(box.start, voxel, box.stop, strict=True))


@settings(max_examples=200)
@given(
    shape=st.tuples(*[st.integers(1, 30)] * 3),
    patch=st.tuples(*[st.integers(1, 20)] * 3),
    where=st.tuples(*[st.floats(0, 0.999)] * 3),
    seed=st.integers(0, 1000),
)
def test_boxes_hold_their_voxel_and_stay_with_the_volume(
    shape: Shape, patch: Shape, where: tuple[float, float, float], seed: int
) -> None:
    z, y, x = (int(w * n) for w, n in zip(where, shape, strict=True))
    box = place_box((z, y, x), shape, patch, np.random.Generator(np.random.Philox(seed)))
    assert box.shape == patch
    assert _holds(box, (z, y, x))
    for a, b, n, p in zip(box.start, box.stop, shape, patch, strict=True):
        if n >= p:
            assert a >= 0
            assert b <= n
        else:
            assert a <= 0
            assert b >= n


def test_without_jitter_small_volumes_are_centred_and_patches_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "JITTER", 0.0)
    box = place_box((10, 0, 0), (20, 20, 4), PATCH, np.random.Generator(np.random.Philox(0)))
    assert box.start == (6, 0, -2)


def test_same_key_same_patch_and_every_patch_inside() -> None:
    for step in range(20):
        patch = _labelled(step, step % 2)
        assert patch == _labelled(step, step % 2)
        assert patch.box.shape == PATCH
    assert len({_labelled(step, 0).box for step in range(20)}) > 10


@pytest.mark.parametrize(("fraction", "batch"), [(0.5, 2), (0.33, 2), (0.33, 8), (0.0, 3), (1.0, 3)])
def test_forced_share_is_met_in_any_run_of_samples(fraction: float, batch: int) -> None:
    forced = [is_forced(i, fraction) for i in range(50 * batch)]
    for length in (1, 7, 50):
        counts = np.convolve(forced, np.ones(length, dtype=int), mode="valid")
        assert (np.abs(counts - fraction * length) < 1 + 1e-9).all()


def test_forced_patches_hold_their_class_and_rare_classes_come_as_often() -> None:
    always = SamplingSettings(foreground_fraction=1.0)
    rare = 0
    for step in range(400):
        patch = _labelled(step, 0, 1, always)
        locations = LABELLED[patch.case].class_locations
        assert any(_holds(patch.box, voxel) for places in locations.values() for voxel in places)
        rare += any(_holds(patch.box, voxel) for voxel in locations.get(2, ()))
    # 4 standard deviations of 400 fair draws are 40.
    assert abs(rare - 200) < 40


def test_unforced_patches_reach_all_of_the_volume(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "JITTER", 0.0)
    never = SamplingSettings(foreground_fraction=0.0)
    patches = [_labelled(step, 0, 1, never) for step in range(400)]
    assert {p.box.start[0] for p in patches} == set(range(20 - 8 + 1))
    assert {p.box.start[2] for p in patches} == {-1}
    assert {p.case for p in patches} == {0, 1}


def test_labelled_cases_without_foreground_are_sampled_uniformly() -> None:
    cases = [_case("empty", classes={})]
    patch = labelled_patch(cases, {}, PATCH, Draw(0, 0, 1), 2, SETTINGS)
    assert patch.case == 0


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_every_unlabelled_case_is_seen_once_a_pass_in_changing_order(batch: int) -> None:
    cases = [_case(str(i)) for i in range(7)]
    seen = [
        unlabelled_patch(cases, {}, PATCH, Draw(0, step, sample), batch).case
        for step in range(42 // batch)
        for sample in range(batch)
    ]
    passes = [tuple(seen[i : i + 7]) for i in range(0, 42, 7)]
    assert all(sorted(order) == list(range(7)) for order in passes)
    assert len(set(passes)) > 1


def test_unlabelled_patches_mix_body_and_predictions() -> None:
    cases = [_case("u", shape=(40, 40, 40))]
    predicted: PredictedLocations = {"u": {0: [(39, 39, 39)], 1: [(1, 1, 1)], 2: [(1, 38, 1)], 3: []}}
    counts: Counter[str] = Counter()
    for step in range(400):
        box = unlabelled_patch(cases, predicted, PATCH, Draw(0, step), 1).box
        names = {(1, 1, 1): "first", (1, 38, 1): "second", (10, 12, 3): "body", (39, 39, 39): "background"}
        counts.update(name for voxel, name in names.items() if _holds(box, voxel))
    # Half on the body, the other half evenly on the two classes; 4 standard deviations are 40 and 35.
    assert counts["body"] == pytest.approx(200, abs=40)
    assert counts["first"] == pytest.approx(100, abs=35)
    assert counts["second"] == pytest.approx(100, abs=35)
    assert counts["background"] == 0


def test_unlabelled_case_without_body_is_sampled_uniformly() -> None:
    cases = [_case("u", shape=(20, 20, 20), body=False)]
    starts = {unlabelled_patch(cases, {}, PATCH, Draw(0, step), 1).box.start[0] for step in range(200)}
    assert starts == set(range(13))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("foreground_fraction", 1.1),
        ("cache_gb", -1),
    ],
)
def test_a_wrong_setting_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=name):
        SamplingSettings(**{name: value})


def test_accepted_cases_have_a_share_of_their_own() -> None:
    own = [_case(f"own{i}", classes={1: ((5, 5, 5),)}) for i in range(2)]
    accepted = [_case(f"accepted{i}", classes={1: ((5, 5, 5),), 2: ((10, 20, 3),)}) for i in range(18)]
    cases, ids = [*own, *accepted], {case.id for case in accepted}

    def drawn(share: float, among: list[StoredCase]) -> list[Patch]:
        chosen = SamplingSettings(accepted_share=share)
        reviewed = reviewed_cases(among, ids, chosen)
        holders = cases_by_class(among)
        return [
            labelled_patch(among, holders, PATCH, Draw(0, s, i), 2, chosen, reviewed)
            for s in range(500)
            for i in (0, 1)
        ]

    patches = drawn(0.5, cases)
    assert all(
        (one.case >= 2) + (two.case >= 2) == 1 for one, two in zip(patches[::2], patches[1::2], strict=True)
    )  # one in each batch
    # Forced ones, the second of each batch, are as often own as accepted, but for chance: five standard deviations.
    assert Counter(patch.case >= 2 for patch in patches[1::2])[True] == pytest.approx(250, abs=56)
    # Fewer than their share are drawn as often as others: one of three is a third.
    few = Counter(patch.case for patch in drawn(0.5, cases[:3]))
    assert [few[i] for i in range(3)] == pytest.approx([333] * 3, abs=60)
    assert all(patch.case < 2 for patch in drawn(0.0, cases))
    # Organs that only accepted cases hold are still drawn from them.
    assert sum(_holds(patch.box, (10, 20, 3)) for patch in drawn(0.5, cases) if patch.case >= 2) > 100


@pytest.mark.parametrize("batch", range(2, 9))
@pytest.mark.parametrize("share", [0.5, 0.25, 0.1])
def test_rounds_learn_from_their_share_of_accepted_cases_and_of_organs(batch: int, share: float) -> None:
    """Of the samples whose true labels a round keeps. Both shares are drawn for every so many samples, so they must not
    fall on the others."""
    own, accepted = [[_case(f"{name}{i}", classes={1: ((5, 5, 5),)}) for i in range(9)] for name in ("own", "accepted")]
    cases, chosen = [*own, *accepted], SamplingSettings(accepted_share=share)
    reviewed = reviewed_cases(cases, {case.id for case in accepted}, chosen)
    holders, kept = cases_by_class(cases), []
    for step in range(400):
        for sample in range(first_true(step, batch), batch, 2):
            patch = labelled_patch(cases, holders, PATCH, Draw(0, step, sample), batch, chosen, reviewed)
            kept.append((patch.case >= 9, is_forced(step * batch + sample, chosen.foreground_fraction)))
    accepted_on_organ = np.mean([one for one, on_organ in kept if on_organ])
    # By lot: five standard deviations of 400 samples, and of 200 with an organ.
    assert np.mean(kept, axis=0) == pytest.approx([share, 0.5], abs=0.125)
    assert accepted_on_organ == pytest.approx(share, abs=0.18)


def test_patches_of_labels_that_are_mostly_ignored_lie_on_a_class() -> None:
    sparse = replace(_case("sparse", (60, 60, 60), {1: ((50, 50, 50),)}), class_voxels={0: 10, 1: 5, 9: 1000})
    whole = replace(_case("whole", (60, 60, 60), {1: ((50, 50, 50),)}), class_voxels={0: 1000, 1: 5, 9: 10})
    empty = replace(_case("empty", (60, 60, 60), {}), class_voxels={0: 10, 9: 1000})
    cases, chosen = [sparse, whole, empty], SamplingSettings(foreground_fraction=0)
    reviewed = reviewed_cases(cases, (), chosen)
    drawn = [labelled_patch(cases, cases_by_class(cases), PATCH, Draw(0, s, 0), 1, chosen, reviewed) for s in range(90)]
    assert {patch.case for patch in drawn} == {0, 1, 2}
    assert all(_holds(patch.box, (50, 50, 50)) for patch in drawn if patch.case == 0)
    assert not all(_holds(patch.box, (50, 50, 50)) for patch in drawn if patch.case == 1)


def test_without_accepted_cases_patches_are_those_of_labelled_ones() -> None:
    reviewed = reviewed_cases(LABELLED, (), SETTINGS)
    for step in range(50):
        draw = Draw(0, step, step % 2)
        plain = labelled_patch(LABELLED, cases_by_class(LABELLED), PATCH, draw, 2, SETTINGS)
        assert labelled_patch(LABELLED, cases_by_class(LABELLED), PATCH, draw, 2, SETTINGS, reviewed) == plain
