"""What is unknown of a label map is ignored, and never background."""

from __future__ import annotations

import numpy as np

from semiseg.data.partial import from_masks, ignore_value, on_slices, over, with_unknown, without_organs
from semiseg.io.dataset import LabelScheme

IGNORE = 3


def label_map() -> np.ndarray:
    """Organ 1 in a box of 2 x 2 x 2 at (8, 8, 8), organ 2 beside it and far away."""
    label = np.zeros((20, 20, 20), dtype=np.uint8)
    label[8:10, 8:10, 8:10] = 1
    label[8:10, 8:10, 10:12] = 2
    label[0, 0, 0] = 2
    return label


def test_an_organ_that_was_set_aside_is_ignored_with_the_background_around_it() -> None:
    label = label_map()
    known = without_organs(label, {1}, IGNORE)
    assert not (known == 1).any()
    assert (known[label == 1] == IGNORE).all()
    around = np.zeros(label.shape, dtype=bool)
    around[6:12, 6:12, 6:12] = True  # as far on each side as the organ is large
    assert (known[around & (label == 0)] == IGNORE).all()
    assert (known[~around] == label[~around]).all()
    assert (known[label == 2] == 2).all()  # other organs stay, within it too


def test_where_a_map_has_none_of_an_unknown_organ_all_background_is_ignored() -> None:
    label = label_map()
    label[label == 1] = 0
    known = without_organs(label, {1}, IGNORE)
    assert set(np.unique(known)) == {2, IGNORE}
    assert ((known == 2) == (label == 2)).all()


def test_slices_alone_are_known() -> None:
    label = label_map()
    for axis in range(3):
        known = np.moveaxis(on_slices(label, axis, (8, 11), IGNORE), axis, 0)
        of_label = np.moveaxis(label, axis, 0)
        assert (known[[8, 11]] == of_label[[8, 11]]).all()
        assert (np.delete(known, [8, 11], axis=0) == IGNORE).all()


def test_a_corrected_slice_lies_over_an_accepted_label() -> None:
    below = label_map()
    corrected = np.full_like(below, 2)
    both = over(below, on_slices(corrected, 0, (8,), IGNORE), IGNORE)
    assert (both[8] == 2).all()
    assert (np.delete(both, 8, axis=0) == np.delete(below, 8, axis=0)).all()


def test_masks_become_a_map_and_what_two_of_them_claim_is_ignored() -> None:
    liver, spleen = np.zeros((2, 4, 4, 4), dtype=bool)
    liver[:2], spleen[1:3] = True, True
    labels = LabelScheme(names={0: "background", 1: "liver", 2: "spleen"}, ignore=IGNORE)
    both = from_masks({1: liver, 2: spleen}, labels)
    assert both[:, 0, 0].tolist() == [1, IGNORE, 2, 0]
    without = from_masks({1: liver}, labels)  # this one lacks a mask that others have
    assert without[:, 0, 0].tolist() == [1, 1, IGNORE, IGNORE]


def test_background_where_an_organ_is_unknown_is_open_unless_mirroring_would_take_it_for_a_known_one() -> None:
    names = {0: "background", 1: "liver", 2: "left kidney", 3: "right kidney"}
    labels = LabelScheme(names=names, mirror_pairs=((2, 3),))
    liver, left = np.zeros((2, 4, 4, 4), dtype=bool)
    liver[:1], left[1:2] = True, True
    unknown = with_unknown(labels, {2, 3})
    assert (unknown.ignore, unknown.unknown, unknown.open) == (4, (2, 3), 5)
    assert from_masks({1: liver}, unknown)[:, 0, 0].tolist() == [1, 5, 5, 5]
    half = with_unknown(labels, {3})
    assert (half.ignore, half.unknown, half.open) == (4, (), None)
    assert from_masks({1: liver, 2: left}, half)[:, 0, 0].tolist() == [1, 2, 4, 4]
    assert with_unknown(labels, ()).open is None


def test_the_ignore_value_is_the_datasets_or_the_first_free_one_whatever_the_type() -> None:
    names = {i: str(i) for i in range(300)}
    assert ignore_value(LabelScheme(names=names)) == 300
    assert ignore_value(LabelScheme(names={0: "background", 1: "a"}, ignore=9)) == 9
    assert (without_organs(np.ones((2, 2, 2), dtype=np.uint8), {1}, 300) == 300).all()
