"""What label maps say of how scans lie: mirror images and turns that could be scans, and pairs without names."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from semiseg.data.anatomy import (
    FEWEST_CASES,
    Anatomy,
    Organ,
    directions,
    measured_anatomy,
    organs_of,
    pairs_by_place,
    turn_degrees,
    varying_plane,
)
from semiseg.demo.phantom import phantom_case
from semiseg.geometry import Box
from semiseg.io.dataset import LabelScheme
from semiseg.io.flare22_labels import FLARE22_LABELS
from semiseg.randomness import Draw
from semiseg.types import DoubleArray, LabelArray, Spacing

PLAIN = LabelScheme(names={0: "background", 1: "liver", 2: "spleen", 3: "bladder", 4: "heart"})
UNNAMED = LabelScheme(names={0: "background", 1: "1", 2: "label_2", 3: "class 3", 4: "4"})
NUMBERS = count()


def body(*organs: tuple[int, tuple[int, int, int], tuple[int, int, int]]) -> LabelArray:
    """A label map of boxes: value, corner, size."""
    label = np.zeros((24, 24, 24), dtype=np.uint8)
    for value, (z, y, x), (deep, high, wide) in organs:
        label[z : z + deep, y : y + high, x : x + wide] = value
    return label


def patient(shift: int = 0) -> LabelArray:
    """Liver and spleen side by side, the bladder below, the heart in front."""
    return body(
        *((1, (14, 10, 2 + shift), (6, 6, 6)), (2, (14, 8 + shift, 16), (4, 4, 4)), (3, (2, 14, 10), (4, 4, 4))),
        (4, (14, 18, 3), (5, 5, 5)),
    )


def save(folder: Path, label: LabelArray, spacing_mm: Spacing = (1.0, 1.0, 1.0)) -> Path:
    path = folder / f"{next(NUMBERS)}.nii.gz"
    nib.save(nib.Nifti1Image(label.transpose(2, 1, 0), np.diag([*spacing_mm[::-1], 1.0])), path)
    return path


def found(folder: Path, labels: LabelScheme, maps: list[LabelArray], spacing_mm: Spacing = (1.0, 1.0, 1.0)) -> Anatomy:
    return measured_anatomy(labels, [save(folder, label, spacing_mm) for label in maps])


# Directions.


def test_where_organs_lie_alike_left_and_right_alone_change_places(tmp_path: Path) -> None:
    anatomy = found(tmp_path, PLAIN, [patient(shift) for shift in range(4)])
    assert (anatomy.mirror_axes, anatomy.turn_degrees) == ((2,), (30, 30, 30))
    (reason,) = anatomy.reasons
    assert reason == "Mirroring: left and right alone (axis X), since organs lie alike in all labelled scans."


def test_where_rows_and_columns_are_exchanged_in_some_their_plane_is_found(tmp_path: Path) -> None:
    maps = [patient(shift) if shift % 2 else patient(shift).transpose(0, 2, 1) for shift in range(6)]
    anatomy = found(tmp_path, PLAIN, maps)
    assert (anatomy.mirror_axes, anatomy.turn_degrees) == ((1, 2), (180, 30, 30))
    assert anatomy.reasons[-1].startswith("Mirroring: along Y and X, and turning about Z by any angle, since the dir")


@pytest.mark.parametrize(("axes", "plane", "about"), [((0, 1), (0, 1), 2), ((0, 2), (0, 2), 1), ((1, 2), (1, 2), 0)])
def test_the_plane_is_that_in_which_directions_differ(
    tmp_path: Path, axes: tuple[int, int], plane: tuple[int, int], about: int
) -> None:
    """Turned by no, one, two and three quarters."""
    maps = [np.ascontiguousarray(np.rot90(patient(), turns, axes)) for turns in (0, 1, 2, 3)]
    anatomy = found(tmp_path, PLAIN, maps)
    assert anatomy.mirror_axes == plane
    assert anatomy.turn_degrees == tuple(180 if axis == about else 30 for axis in range(3))


def test_a_few_degrees_are_no_other_way_to_lie(tmp_path: Path) -> None:
    """Directions between the centres differ by some 25 degrees here; 40 are one direction still."""
    maps = [
        body((1, (10, 10, 2), (5, 5, 5)), (2, (10, 10 + tilt, 16), (5, 5, 5)), (3, (2, 10, 9), (4, 4, 4)))
        for tilt in (-3, -1, 1, 3)
    ]
    assert found(tmp_path, PLAIN, maps).mirror_axes == (2,)


def test_of_too_few_scans_the_headers_are_believed(tmp_path: Path) -> None:
    maps = [patient(), patient().transpose(0, 2, 1)]
    assert len(maps) < FEWEST_CASES
    anatomy = found(tmp_path, PLAIN, maps)
    assert (anatomy.mirror_axes, anatomy.turn_degrees) == ((2,), (30, 30, 30))
    assert anatomy.reasons[-1].endswith("since the scans' headers are believed.")
    one_organ = LabelScheme(names={0: "background", 1: "liver"})
    assert found(tmp_path, one_organ, [patient()] * 5).reasons[-1].endswith("headers are believed.")


def test_organs_that_the_border_cuts_do_not_lie_otherwise(tmp_path: Path) -> None:
    """Scans of a part of the body: the centre of what is cut is not known along Z, and is along Y and X."""
    whole = body(
        *((1, (2, 10, 2), (20, 6, 6)), (2, (9, 8, 16), (6, 6, 6)), (3, (3, 17, 9), (18, 4, 4))),
        (4, (11, 2, 10), (3, 3, 3)),
    )
    parts = [whole[2:18], whole[8:22], whole[10:22], whole[2:14]]
    assert found(tmp_path, PLAIN, parts).turn_degrees == (30, 30, 30)
    uncut = [np.pad(part, ((1, 1), (0, 0), (0, 0))) for part in parts]  # the same, as if organs ended there
    assert max(found(tmp_path, PLAIN, uncut).turn_degrees) > 30
    turned = [part if n % 2 else part.transpose(0, 2, 1) for n, part in enumerate(parts)]
    assert found(tmp_path, PLAIN, turned).mirror_axes == (1, 2)


def test_where_no_plane_is_seen_whole_the_headers_are_believed(tmp_path: Path) -> None:
    """All scans are cut along Z and Y."""
    whole = body((1, (0, 0, 2), (24, 24, 4)), (2, (0, 0, 9), (24, 24, 4)), (3, (0, 0, 16), (24, 24, 4)))
    assert found(tmp_path, PLAIN, [whole] * 4).reasons[-1].endswith("headers are believed.")


@pytest.mark.parametrize("far", [2, 4])
def test_organs_that_lie_in_each_other_have_no_direction(far: int) -> None:
    """A lesion anywhere in its organ: the step between their centres says nothing of how a patient lies."""
    steps = [(0, 0, far), (0, far, 0), (far, 0, 0), (0, 0, -far)]
    scheme = LabelScheme(names={0: "background", 1: "organ", 2: "lesion"})
    maps = [body((1, (4, 4, 4), (16, 16, 16)), (2, (11 + z, 11 + y, 11 + x), (3, 3, 3))) for z, y, x in steps]
    assert directions([organs_of(label, (1.0, 1.0, 1.0), scheme) for label in maps], 2) == {}


def organ_at(centre_mm: DoubleArray, radius_mm: float = 10.0) -> Organ:
    return Organ(centre_mm, radius_mm, Box((0, 0, 0), (1, 1, 1)))


def lying(*degrees: float, wobble: float = 0.0) -> list[dict[int, Organ]]:
    """Patients of three organs in the plane of Z, turned about it. wobble: of the third organ's place alone, in mm."""
    found = []
    for number, angle in enumerate(np.radians(degrees)):
        turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
        places = np.array([[0, 0, 0], [0, 60, 30], [20, -40, 50]], dtype=float)
        places[2] += wobble * (-1) ** number
        found.append({value: organ_at(turn @ place) for value, place in enumerate(places, start=1)})
    return found


def test_scans_are_turned_as_far_as_the_labelled_ones_say() -> None:
    """Of n angles with deviation s the next lies within t * s * sqrt(1 + 1/n) in 95 % of draws: for four of them
    3.182 * s * 1.118 (Student's table), here of 20.66."""
    angles = turn_degrees(directions(lying(-24, -8, 8, 24), 2))
    assert angles == pytest.approx((3.1824 * 20.6559 * np.sqrt(1.25), 30, 30), rel=1e-3)
    assert turn_degrees(directions(lying(-3, -1, 1, 3), 2)) == (30, 30, 30)
    # The same mean deviation in more scans is known better.
    many = turn_degrees(directions(lying(*([-24, -8, 8, 24] * 4)), 2))
    assert 30 < many[0] < angles[0]
    assert turn_degrees({}) == (30, 30, 30)


def test_what_is_seen_of_turns_does_not_depend_on_the_organ_that_is_missing() -> None:
    cases = lying(-15, -5, 5, 15)
    del cases[0][3]
    assert turn_degrees(directions(cases, 2))[0] == pytest.approx(turn_degrees(directions(lying(-15, -5, 5, 15), 2))[0])


def test_organs_in_a_row_along_an_axis_say_nothing_of_turns_about_it() -> None:
    """Vertebrae, say: a millimetre to the side and the direction in the plane is another one."""
    generator = np.random.default_rng(0)
    cases = [
        {value: organ_at(np.array([30.0 * value, *generator.normal(0, 3, 2)])) for value in (1, 2, 3)} for _ in range(5)
    ]
    assert turn_degrees(directions(cases, 2)) == (30, 30, 30)


def test_the_organ_that_is_turned_most_is_left_out() -> None:
    """The fourth lies far away and turns three times as far: without it scans are turned as the others are."""
    cases = lying(-24, -8, 8, 24)
    alone = turn_degrees(directions(cases, 0))
    for case, angle in zip(cases, np.radians([-72, -24, 24, 72]), strict=True):
        case[4] = organ_at(np.array([0, 1000 * np.cos(angle), 1000 * np.sin(angle)]))
    assert turn_degrees(directions(cases, 0)) == alone
    assert 60 < alone[0] < 90


def test_one_organ_that_lies_anywhere_decides_nothing() -> None:
    """Three pairs of four organs agree, those of the fourth do not."""
    cases = lying(0, 0, 0, 0)
    for case, place in zip(cases, [(0, 90, 0), (0, -90, 0), (90, 0, 0), (-90, 0, 0)], strict=True):
        case[4] = organ_at(np.array(place, dtype=float))
    assert varying_plane(directions(cases, 2)) is None


def test_a_tumour_on_either_side_is_no_other_way_to_lie() -> None:
    """Mirrored scans are scans anyway. The same along Y is."""
    for axis, plane in ((2, None), (1, (1, 2))):
        cases = lying(0, 0, 0, 0)
        for number, case in enumerate(cases):
            del case[3]
            far = np.zeros(3)
            far[axis] = 90.0 * (-1) ** number
            case[2], case[4] = organ_at(0.9 * far), organ_at(far + 5.0, 80.0)
            case[1] = organ_at(np.zeros(3))
        pairs = directions(cases, 2)
        assert len(pairs) == 2
        assert (varying_plane(pairs) is None) == (plane is None)


def test_organs_are_found_among_many() -> None:
    """In their own boxes, which overlap, as the whole map shows them."""
    label = np.random.default_rng(0).integers(0, 60, (9, 20, 21)).astype(np.uint8)
    label[:, :, 0] = label[:, -1] = 0
    label[label == 7] = 255  # no organ
    organs = organs_of(label, (3.0, 2.0, 1.0), LabelScheme(names={n: f"organ {n}" for n in range(60)}))
    assert organs.keys() == {*range(1, 60)} - {7}
    for value, organ in organs.items():
        voxels = np.argwhere(label == value)
        assert organ.centre_mm.tolist() == (voxels.mean(axis=0) * (3, 2, 1)).tolist()
        assert (organ.box.start, organ.box.stop) == (tuple(voxels.min(axis=0)), tuple(voxels.max(axis=0) + 1))
        sides = zip(range(3), organ.box.start, organ.box.stop, label.shape, strict=True)
        assert organ.cut == tuple(axis for axis, low, high, size in sides if low == 0 or high == size)


def test_directions_are_in_millimetres(tmp_path: Path) -> None:
    organs = organs_of(patient(), (5.0, 2.0, 1.0), PLAIN)
    assert organs[1].centre_mm == pytest.approx([5 * 16.5, 2 * 12.5, 4.5])
    assert organs[1].radius_mm == pytest.approx((3 * 216 * 10 / (4 * np.pi)) ** (1 / 3))
    specks = body((1, (0, 0, 0), (1, 3, 3)), (2, (5, 5, 5), (1, 2, 5)))
    assert organs_of(specks, (1.0, 1.0, 1.0), PLAIN).keys() == {2}  # nine voxels are no organ, ten are


def test_files_that_cannot_be_read_are_passed_over(tmp_path: Path) -> None:
    files = [save(tmp_path, patient(shift)) for shift in range(3)]
    (tmp_path / "bad.nii.gz").write_bytes(b"no labels")
    assert measured_anatomy(PLAIN, [tmp_path / "bad.nii.gz", *files]) == measured_anatomy(PLAIN, files)
    assert measured_anatomy(PLAIN, []).mirror_axes == (2,)


def test_phantoms_lie_as_patients_lie(tmp_path: Path) -> None:
    """And those whose rows and columns are exchanged, as in some challenges, are noticed."""
    spacing = (8.0, 6.0, 6.0)
    maps = [phantom_case(Draw(seed), shape_zyx=(40, 64, 64), spacing_mm=spacing)[1] for seed in range(4)]
    anatomy = found(tmp_path, FLARE22_LABELS, maps, spacing)
    assert (anatomy.mirror_axes, anatomy.turn_degrees) == ((2,), (30, 30, 30))
    assert anatomy.labels == FLARE22_LABELS
    exchanged = [label if n % 2 else label.transpose(0, 2, 1) for n, label in enumerate(maps)]
    assert FLARE22_LABELS.mirror_pairs
    anatomy = found(tmp_path, FLARE22_LABELS, exchanged, spacing)
    assert (anatomy.mirror_axes, anatomy.turn_degrees) == ((2,), (180, 30, 30))
    one_sided = replace(FLARE22_LABELS, mirror_pairs=())
    assert found(tmp_path, one_sided, exchanged, spacing).mirror_axes == (1, 2)


def test_left_and_right_organs_of_turned_scans_change_places_along_their_axis_alone(tmp_path: Path) -> None:
    """Mirrored along both axes of the plane a scan is turned half around, and its left organ is its left one still."""
    scheme = replace(PLAIN, mirror_pairs=((1, 2),))
    turned = [np.ascontiguousarray(np.rot90(patient(), turns, (1, 2))) for turns in (0, 1, 2, 3, 0)]
    anatomy = found(tmp_path, scheme, turned)
    assert anatomy.labels.mirror_axis == 2
    assert (anatomy.mirror_axes, anatomy.turn_degrees) == ((2,), (180, 30, 30))
    assert anatomy.reasons[-1] == (
        "Mirroring: left and right alone (axis X), and turning about Z by any angle, since the directions between "
        "organs differ from scan to scan in the plane of Y and X."
    )
    # In another plane nothing comes from left to right.
    rolled = [np.ascontiguousarray(np.rot90(patient(), turns, (0, 1))) for turns in (0, 1, 2, 3, 0)]
    assert found(tmp_path, scheme, rolled).mirror_axes == (0, 1)


# Pairs.


def two_kidneys(shift: int = 0, axis: int = 2, lean: int = 0) -> LabelArray:
    """Two organs of one odd shape and its mirror image, and one in the middle. lean: how far the second one lies off
    the line along the axis."""
    half = np.zeros((24, 24, 12), dtype=np.uint8)
    half[8:14, 8:14, 2 + shift : 6 + shift] = 1
    half[8:11, 8:14, 6 + shift : 8 + shift] = 1
    other = np.roll(half[:, :, ::-1], lean, axis=1) * 2
    label = np.concatenate([half, other], axis=2)
    label[2:6, 14:18, 9:15] = 3
    return np.ascontiguousarray(np.moveaxis(label, 2, axis))


def test_pairs_that_have_no_names_are_found_by_place_and_shape(tmp_path: Path) -> None:
    anatomy = found(tmp_path, UNNAMED, [two_kidneys(shift) for shift in range(3)])
    assert (anatomy.labels.mirror_pairs, anatomy.labels.mirror_axis) == (((1, 2),), 2)
    assert anatomy.reasons[0] == "Mirror pairs: 1 with label_2, by their places and shapes."
    assert anatomy.mirror_axes == (2,)


def test_they_tell_the_axis_of_left_and_right(tmp_path: Path) -> None:
    anatomy = found(tmp_path, UNNAMED, [two_kidneys(shift, axis=1) for shift in range(3)])
    assert (anatomy.labels.mirror_pairs, anatomy.labels.mirror_axis) == (((1, 2),), 1)
    assert anatomy.mirror_axes == (1,)


def test_organs_with_names_are_pairs_by_their_names_alone(tmp_path: Path) -> None:
    """Whoever named them and none left or right has said that there is no pair."""
    anatomy = found(tmp_path, PLAIN, [two_kidneys(shift) for shift in range(3)])
    assert anatomy.labels.mirror_pairs == ()
    named = replace(UNNAMED, mirror_pairs=((1, 3),))
    assert found(tmp_path, named, [two_kidneys(shift) for shift in range(3)]).labels.mirror_pairs == ((1, 3),)


@pytest.mark.parametrize(
    "maps",
    [
        [patient(shift) for shift in range(3)],  # one-sided organs of other sizes
        [two_kidneys(lean=7)] * 3,  # as alike, but not side by side
        [two_kidneys()],  # one scan alone
        [two_kidneys(), patient(), patient()],  # not in most
    ],
    ids=["one-sided", "not side by side", "one scan", "in one of three"],
)
def test_what_is_no_pair_is_not_made_one(tmp_path: Path, maps: list[LabelArray]) -> None:
    anatomy = found(tmp_path, UNNAMED, maps)
    assert anatomy.labels.mirror_pairs == ()
    assert anatomy.reasons[0].startswith("Mirror pairs: none found")


def test_organs_of_one_size_and_another_shape_are_no_pair() -> None:
    """A plate and a rod."""
    maps = [body((1, (4, 4, 2), (12, 12, 2)), (2, (11, 2, 12), (2, 12, 12))) for _ in range(3)]
    cases = [organs_of(label, (1.0, 1.0, 1.0), UNNAMED) for label in maps]
    read = [(label, (1.0, 1.0, 1.0)) for label in maps]
    assert pairs_by_place(read, cases, UNNAMED, 2) == ()


def test_an_organ_is_in_one_pair_at_most() -> None:
    """Four alike in a row along X."""
    scheme = LabelScheme(names={0: "background", **{n: str(n) for n in range(1, 5)}})
    label = body(*((n, (10, 10, 6 * n - 5), (3, 3, 3)) for n in range(1, 5)))
    cases = [organs_of(label, (1.0, 1.0, 1.0), scheme)] * 2
    pairs = pairs_by_place([(label, (1.0, 1.0, 1.0))] * 2, cases, scheme, 2)
    members = [value for pair in pairs for value in pair]
    assert len(members) == len(set(members)) == 4
