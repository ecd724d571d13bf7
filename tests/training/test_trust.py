"""Whether labels of unlabelled scans may be learnt from: by agreement, and by the sizes of organs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from semiseg.data.plan import Plan
from semiseg.io.dataset import LabelScheme
from semiseg.io.store import read_case_meta, write_case, write_labels
from semiseg.io.store_index import IndexedCases, index_of
from semiseg.training.scan_labels import label_file
from semiseg.training.trust import LEAST_AGREEMENT, VOLUME_RANGE, Found, looked_at, verdict

Store = Callable[..., Path]
SHAPE = (8, 8, 8)


def organs(liver: int, spleen: int) -> np.ndarray:
    """A label map with so many voxels of each, of 512."""
    flat = np.zeros(512, dtype=np.uint8)
    flat[:liver] = 1
    flat[512 - spleen :] = 2
    return flat.reshape(SHAPE)


@pytest.fixture
def found(store: Store, plan: Plan, tmp_path: Path) -> Callable[..., Found]:
    """What is found where labelled scans have these organs, and unlabelled ones are labelled so now and before."""

    def look(
        labelled: list[np.ndarray],
        now: list[np.ndarray],
        before: list[np.ndarray] | None = None,
        labels: LabelScheme = plan.labels,
    ) -> Found:
        known = [with_voxels(store(f"l{n}", label, label), label) for n, label in enumerate(labelled)]
        cases = [store(f"u{n}", label) for n, label in enumerate(now)]
        folders = [tmp_path / "now", tmp_path / "before"]
        for folder, maps in zip(folders, (now, before or now), strict=True):
            for n, label in enumerate(maps):
                write_labels(label_file(folder, f"u{n}"), label)
        return looked_at(cases, folders, replace(plan, labels=labels), IndexedCases(index_of(known), known))

    return look


def with_voxels(folder: Path, label: np.ndarray) -> Path:
    """The stored case, its description with the voxels of its classes."""
    meta = read_case_meta(folder)
    voxels = {int(value): int(count) for value, count in zip(*np.unique(label, return_counts=True), strict=True)}
    write_case(folder, image=label[None].astype(np.float32), label=label, meta=replace(meta, class_voxels=voxels))
    return folder


def test_agreement_is_the_mean_dice_of_scans(found: Callable[..., Found]) -> None:
    now = [organs(20, 10), organs(20, 10)]
    before = [organs(20, 10), organs(60, 10)]  # liver: 2 x 20 of 20 + 60
    result = found([organs(20, 10)], now, before)
    assert result.agreement == pytest.approx((1 + (0.5 + 1) / 2) / 2, abs=1e-12)
    assert result.implausible == ()


@pytest.mark.parametrize(
    ("spleens", "implausible"),
    [
        ([10, 10], ()),
        ([0, 0], ("spleen",)),
        ([0, 10], ()),  # half of the scans have it as labelled ones do
        ([0, 0, 10], ("spleen",)),
        ([4, 60], ()),  # up to three times smaller than the smallest, and larger than the largest
        ([3, 61], ("spleen",)),
    ],
)
def test_an_organ_that_most_scans_lack_or_have_in_other_sizes_is_implausible(
    found: Callable[..., Found], spleens: list[int], implausible: tuple[str, ...]
) -> None:
    """Labelled scans have spleens of 10 and 20 voxels."""
    assert VOLUME_RANGE == 3.0
    result = found([organs(20, 10), organs(20, 20)], [organs(20, spleen) for spleen in spleens])
    assert result.implausible == implausible


@pytest.mark.parametrize(
    ("labelled", "spleens", "implausible"),
    [
        ([10, 0], [0, 0], ()),  # half of the labelled scans lack it, so may these
        ([10, 10, 0], [0, 0, 0], ("spleen",)),  # most have it, and none of these: not found yet, a small tumour say
        ([10, 10, 0], [0, 0, 10], ()),
        ([10, 10, 0], [0, 0, 90], ("spleen",)),
    ],
)
def test_an_organ_that_some_labelled_scans_lack_may_be_missing_in_some(
    found: Callable[..., Found], labelled: list[int], spleens: list[int], implausible: tuple[str, ...]
) -> None:
    known = [organs(20, spleen) for spleen in labelled]
    assert found(known, [organs(20, spleen) for spleen in spleens]).implausible == implausible


def test_states_that_agree_and_find_what_labelled_scans_have_are_trusted() -> None:
    trusted, why = verdict(Found(LEAST_AGREEMENT, 1.0, (), 2))
    assert trusted
    assert (
        why == "unlabelled scans are learnt from: two states of the network agree by 0.900 (Dice) on unlabelled scans."
    )


def test_states_that_contradict_each_other_are_not() -> None:
    trusted, why = verdict(Found(LEAST_AGREEMENT - 0.01, 1.0, (), 2))
    assert not trusted
    assert why.startswith("nothing is learnt from unlabelled scans yet: two states of the network agree by 0.89")
    assert "0.9 is needed" in why


def test_agreement_is_not_rounded_up_to_what_is_needed() -> None:
    """0.8996 was shown as 0.90, and 0.9 as needed."""
    short = Found(LEAST_AGREEMENT - 0.0004, 1.0, (), 2)
    assert short.agreement_shown == 0.899
    assert "agree by 0.899 (Dice) on unlabelled scans, and 0.9 is needed" in verdict(short)[1]
    assert replace(short, agreement=LEAST_AGREEMENT).agreement_shown == LEAST_AGREEMENT


def test_organs_that_are_not_found_are_named_however_well_states_agree() -> None:
    """Two states that both find nothing agree, too."""
    trusted, why = verdict(Found(1.0, 1.0, ("liver", "spleen"), 3))
    assert not trusted
    assert "liver, spleen are not found" in why
    assert "since liver is not found" in verdict(Found(1.0, 1.0, ("liver",), 1))[1]
    assert "since 4 organs (a, b, c and others) are not found" in verdict(Found(1.0, 1.0, ("a", "b", "c", "d"), 7))[1]


def test_of_organs_that_are_not_found_nothing_is_learnt_where_the_others_are(found: Callable[..., Found]) -> None:
    """A tumour that no network finds yet is not to cost the liver its unlabelled scans."""
    result = found([organs(20, 10)], [organs(20, 0), organs(20, 0)], [organs(20, 2), organs(20, 0)])
    assert result.unknown == ("spleen",)
    assert result.agreement == result.best == 1, "by the others alone"
    trusted, why = verdict(result)
    assert trusted
    assert (
        "learnt from, without spleen, which is not found in them as in labelled ones: of the other organs two states"
        in why
    )
    assert not verdict(replace(result, agreement=0.5))[0]
    nothing = found([organs(20, 10)], [organs(0, 0)])
    assert (nothing.implausible, nothing.unknown, nothing.agreement) == (("liver", "spleen"), (), 0)


def test_scans_without_any_organ_do_not_count_where_a_labelled_one_has_none(found: Callable[..., Found]) -> None:
    """Two states that find nothing in a healthy scan agree on it; in one where there is something they do not."""
    tumours, healthy = organs(20, 10), organs(0, 0)
    result = found([tumours, healthy], [healthy, tumours, tumours, tumours])
    assert (result.agreement, result.best) == (1, 1)
    assert found([tumours, healthy], [healthy, tumours], [tumours, tumours]).agreement == 0.5
    assert not verdict(nothing := found([tumours, healthy], [healthy, healthy]))[0], "no scan tells"
    assert nothing.best == 1, "the next scans may"
    assert found([tumours, tumours], [healthy, tumours, tumours, tumours]).agreement == 0.75


def test_scans_with_nothing_but_an_organ_that_is_left_out_do_not_count(found: Callable[..., Found]) -> None:
    """Spleens are too large everywhere, so left out; of the liver, which a labelled scan lacks, both states may be
    right to find none in a scan."""
    labelled = [organs(20, 10), organs(20, 10), organs(0, 10)]
    result = found(labelled, [organs(0, 90), organs(20, 90)])
    assert result.unknown == ("spleen",)
    assert (result.agreement, result.best) == (1, 1)
    assert verdict(result)[0]
    everywhere = found([organs(20, 10)] * 2, [organs(0, 90), organs(20, 90)])
    assert (everywhere.unknown, everywhere.agreement) == (("spleen",), 0.5), "each labelled scan has a liver"


def test_where_nothing_is_found_no_agreement_is_named(found: Callable[..., Found]) -> None:
    labelled, nothing = [organs(20, 0), organs(0, 10)], organs(0, 0)
    for known in (labelled, [*labelled, nothing]):
        trusted, why = verdict(found(known, [nothing, nothing]))
        assert not trusted
        assert why == "nothing is learnt from unlabelled scans yet: no organ is found in those looked at."
    assert "agree by 0.000" in verdict(found(labelled, [organs(20, 0)], [organs(0, 10)]))[1]
    without_liver = found([*labelled, organs(0, 10)], [organs(0, 90)])
    assert verdict(without_liver) == (
        False,
        "nothing is learnt from unlabelled scans yet: no organ, spleen left aside, is found in those looked at.",
    )


def test_an_organ_whose_mirror_image_is_not_found_is_not_learnt(found: Callable[..., Found]) -> None:
    """Mirrored, the left kidney that nobody found shows what a right one is, and would be taught not to be one."""
    names = {0: "background", 1: "left kidney", 2: "right kidney", 3: "liver", 4: "spleen"}
    pairs = LabelScheme(names=names, mirror_pairs=((1, 2),))

    def scan(left: int, right: int = 10) -> np.ndarray:
        flat = np.zeros(512, dtype=np.uint8)
        flat[:left], flat[100 : 100 + right], flat[200:210], flat[300:310] = 1, 2, 3, 4
        return flat.reshape(SHAPE)

    result = found([scan(10)], [scan(0)], [scan(0, right=100)], pairs)
    assert result.implausible == ("left kidney",)
    assert result.unknown == ("left kidney", "right kidney")
    assert result.agreement == 1, "by what is learnt alone"
    trusted, why = verdict(result)
    assert trusted
    assert (
        "learnt from, without left kidney, which is not found in them as in labelled ones, and without its mirror "
        "image, right kidney: of the other organs two states" in why
    )
    alone = LabelScheme(names={0: "background", 1: "left kidney", 2: "right kidney"}, mirror_pairs=((1, 2),))
    kidneys = [np.where(scan(size) < 3, scan(size), 0).astype(np.uint8) for size in (10, 0)]
    result = found(kidneys[:1], kidneys[1:], labels=alone)
    assert (result.unknown, result.agreement) == ((), 1), "by the one that is found"
    trusted, why = verdict(result)
    assert not trusted
    assert why.endswith(
        "since left kidney is not found in them as in labelled ones, and without it nothing may be learnt of its "
        "mirror image, right kidney."
    )
