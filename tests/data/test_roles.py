"""Who is labelled, unlabelled, held out and tested on."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from semiseg.data.roles import (
    FEWEST_TO_VALIDATE,
    DataSettings,
    RunCase,
    assign_roles,
    fold_parts,
    of_role,
    read_run_cases,
    with_hashes,
    write_run_cases,
)
from semiseg.errors import ConfigError, DataError
from semiseg.io.dataset import Case, Dataset, LabelScheme
from semiseg.io.layouts import read_dataset
from semiseg.io.scans import read_label, read_volume


def dataset(labelled: int = 10, unlabelled: int = 3, tests: int = 2, order: tuple[str, ...] = ()) -> Dataset:
    def case(name: str, *, labelled: bool, test: bool = False) -> Case:
        label = Path(f"labels/{name}.nii.gz") if labelled else None
        images = (Path(f"images/{name}_0000.nii.gz"),)
        return Case(id=name, images=images, label=label, split="test" if test else "train")

    cases = [case(f"l{i}", labelled=True) for i in range(labelled)]
    cases += [case(f"u{i}", labelled=False) for i in range(unlabelled)]
    cases += [case(f"t{i}", labelled=True, test=True) for i in range(tests)]
    labels = LabelScheme(names={0: "background", 1: "liver"})
    return Dataset(
        root=Path("data"),
        name="X",
        layout="nnunet",
        channels=("CT",),
        labels=labels,
        cases=tuple(cases),
        train_order=order,
    )


def roles(
    of: Dataset, settings: DataSettings | None = None, *, fraction: float | None = 0.0, seed: int = 0
) -> dict[str, str]:
    cases = assign_roles(of, settings or DataSettings(), validation_fraction=fraction, seed=seed)
    assert [case.id for case in cases] == [case.id for case in of.cases]
    return {case.id: case.role for case in cases}


def roles_of(of: Dataset, settings: DataSettings) -> dict[str, str]:
    """As `roles`, where cases may be left out."""
    return {case.id: case.role for case in assign_roles(of, settings, validation_fraction=0, seed=0)}


def ids(found: dict[str, str], role: str) -> list[str]:
    return [case for case, mine in found.items() if mine == role]


def test_without_a_budget_every_label_is_used() -> None:
    assert Counter(roles(dataset()).values()) == {"labelled": 10, "unlabelled": 3, "test": 2}


def test_a_budget_spends_labels_in_the_order_of_the_splits() -> None:
    order = ("l7", "u0", "l2", "gone", "l4")
    found = roles(dataset(order=order), DataSettings(labelled=2))
    assert ids(found, "labelled") == ["l2", "l7"]
    assert len(ids(found, "unlabelled")) == 11
    # Cases that the order does not name come after those that it does.
    assert ids(roles(dataset(order=order), DataSettings(labelled=5)), "labelled") == ["l0", "l1", "l2", "l4", "l7"]


def test_a_budget_hides_labels() -> None:
    cases = assign_roles(dataset(), DataSettings(labelled=2), validation_fraction=0, seed=0)
    assert all(case.label is None for case in of_role(cases, "unlabelled"))
    assert all(case.label for case in of_role(cases, "labelled", "test"))
    assert len(of_role(cases, "labelled", "test")) == 4
    assert all(Path(case.images[0]).is_absolute() for case in cases)


def test_a_label_seed_draws_other_cases_and_the_same_again() -> None:
    drawn = [tuple(ids(roles(dataset(), DataSettings(labelled=3, label_seed=s)), "labelled")) for s in (0, 0, 1, 2)]
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) > 1
    # A larger budget adds to a smaller one.
    more = ids(roles(dataset(), DataSettings(labelled=6, label_seed=0)), "labelled")
    assert set(drawn[0]) < set(more)
    # The order in which the folder lists the cases does not matter.
    turned = replace(dataset(), cases=dataset().cases[::-1])
    assert set(ids(roles(turned, DataSettings(labelled=3, label_seed=0)), "labelled")) == set(drawn[0])


@pytest.mark.parametrize("label_seed", [None, 0, 1])
def test_development_cases_take_the_place_of_the_test_cases(label_seed: int | None) -> None:
    order = tuple(f"l{i}" for i in (3, 1, 4, 0, 5, 9, 2, 6, 8, 7))
    settings = DataSettings(labelled=4, development=3, label_seed=label_seed)
    cases = assign_roles(dataset(order=order), settings, validation_fraction=0, seed=0)
    assert [case.id for case in of_role(cases, "test")] == ["l6", "l7", "l8"]
    assert all(case.label for case in of_role(cases, "test"))
    assert len(of_role(cases, "labelled")) == 4
    assert len(of_role(cases, "unlabelled")) == 3 + 3
    assert not any(case.id.startswith("t") for case in cases)


def test_a_list_says_which_labels_are_kept(tmp_path: Path) -> None:
    file = tmp_path / "labels.txt"
    file.write_text("# chosen by hand\nl7\n\n l2 \nl7\nl5\n")
    settings = DataSettings(label_list=str(file), development=2)
    assert ids(roles_of(dataset(), settings), "labelled") == ["l2", "l5", "l7"]
    assert ids(roles_of(dataset(), replace(settings, labelled=2)), "labelled") == ["l2", "l7"]  # in the list's order
    assert ids(roles_of(dataset(), settings), "test") == ["l8", "l9"]
    with pytest.raises(ConfigError, match=r"l7 is one of the 3 cases that data\.development holds back"):
        roles_of(dataset(), replace(settings, development=3))
    with pytest.raises(ConfigError, match=r"data\.label_list and data\.label_seed both say"):
        replace(settings, label_seed=1)
    file.write_text("# none\n")
    with pytest.raises(ConfigError, match="names no case"):
        roles_of(dataset(), settings)
    file.write_text("l7\nu1\n")
    with pytest.raises(ConfigError, match=r"data\.label_list = .*labels\.txt: u1 has no label"):
        roles_of(dataset(), settings)


def test_excluded_cases_are_not_learnt_from(tmp_path: Path) -> None:
    file = tmp_path / "exclude.txt"
    file.write_text("u1\nl3\nl0\n")
    found = roles_of(dataset(), DataSettings(labelled=2, exclude=str(file)))
    assert "u1" not in found
    assert "l3" not in found  # its label is hidden, so it is an unlabelled one
    assert "l0" not in found
    assert ids(found, "labelled") == ["l1", "l2"]  # the budget is spent on others
    chosen = tmp_path / "labels.txt"
    chosen.write_text("l0\nl1\n")
    with pytest.raises(ConfigError, match=r"labels\.txt: l0 is also in data\.exclude"):
        roles_of(dataset(), DataSettings(label_list=str(chosen), exclude=str(file)))
    file.write_text("\n".join(f"l{i}" for i in range(10)))
    with pytest.raises(ConfigError, match="names every labelled training case"):
        roles_of(dataset(), DataSettings(exclude=str(file)))
    file.write_text("nobody\n")
    with pytest.raises(ConfigError, match=r"data\.exclude = .*exclude\.txt: nobody is no training case of data"):
        roles_of(dataset(), DataSettings(exclude=str(file)))
    file.write_text("t0\n")
    with pytest.raises(ConfigError, match=r"t0 is a test case\. .* move its scan out of the data folder"):
        roles_of(dataset(), DataSettings(exclude=str(file)))
    with pytest.raises(ConfigError, match=r"data\.exclude = /no/where: cannot be read .* an id a line"):
        roles_of(dataset(), DataSettings(exclude="/no/where"))


def test_validation_cases_are_held_out_of_the_labelled() -> None:
    found = roles(dataset(labelled=24), fraction=0.25)
    assert Counter(found.values()) == {"labelled": 18, "validation": 6, "unlabelled": 3, "test": 2}
    assert roles(dataset(labelled=24), fraction=0.25) == found
    assert len({tuple(ids(roles(dataset(labelled=24), fraction=0.25, seed=s), "validation")) for s in range(4)}) > 1
    budget = roles(dataset(labelled=24), DataSettings(labelled=20), fraction=0.01)
    assert Counter(budget.values())["validation"] == 1
    assert set(ids(budget, "validation")) <= {f"l{i}" for i in range(20)}


def test_few_labels_are_not_given_away() -> None:
    """Of 20 a fifth is 4; of 19 even one would be missed more."""
    assert not ids(roles(dataset(labelled=FEWEST_TO_VALIDATE - 1), fraction=None), "validation")
    assert not ids(roles(dataset(labelled=24), DataSettings(labelled=4), fraction=None), "validation")
    assert len(ids(roles(dataset(labelled=FEWEST_TO_VALIDATE), fraction=None), "validation")) == FEWEST_TO_VALIDATE // 5
    assert len(ids(roles(dataset(labelled=8), fraction=0.25), "validation")) == 2  # asked for


def test_validation_never_takes_the_last_label() -> None:
    found = roles(dataset(labelled=FEWEST_TO_VALIDATE), fraction=0.99)
    assert len(ids(found, "labelled")) == 1


def test_what_cannot_be() -> None:
    with pytest.raises(ConfigError, match=r"data\.labelled = 11, but only 10"):
        roles(dataset(), DataSettings(labelled=11))
    with pytest.raises(DataError, match="no training case has a label"):
        roles(dataset(labelled=0))
    with pytest.raises(ConfigError, match=r"only 7 training cases have a label besides the 3 of data\.development"):
        roles(dataset(), DataSettings(labelled=8, development=3))
    for many in (10, 12, 99):
        with pytest.raises(ConfigError, match=rf"data\.development = {many} takes all of 10"):
            roles(dataset(), DataSettings(development=many))
    with pytest.raises(ConfigError, match=r"data\.development = -1"):
        DataSettings(development=-1)
    with pytest.raises(ConfigError, match=r"data\.labelled = 0"):
        DataSettings(labelled=0)


def test_cases_come_back_from_the_file(tmp_path: Path) -> None:
    cases = assign_roles(dataset(), DataSettings(labelled=2), validation_fraction=0, seed=0)
    cases = with_hashes(cases, {"l0": "abc", "u0": None})
    write_run_cases(tmp_path / "cases.jsonl", cases)
    read = read_run_cases(tmp_path / "cases.jsonl")
    assert read == cases
    assert (read[0].hash, read[1].hash) == ("abc", None)
    assert read[0].case().images == tuple(map(Path, cases[0].images))
    assert read[0].case().label == Path(str(cases[0].label))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", r"cases\.jsonl: missing or empty"),
        ('{"id": "a"}\n', r"cases\.jsonl, line 1: not a case"),
        ('{"id": "a", "images": ["a"], "label": null, "split": "train", "role": "king"}\n', "case .role = 'king'"),
        ('{"id": "a", "images": ["a"], "label": null, "split": "train", "role": "test", "x": 1}\n', "line 1: not a"),
        ('{"id": "../../victim", "images": [], "label": null, "split": "train", "role": "test"}\n', "no plain name"),
        (2 * '{"id": "a", "images": [], "label": null, "split": "train", "role": "test"}\n', "line 2: case a .* twice"),
    ],
)
def test_a_damaged_file_is_named_with_its_line(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "cases.jsonl").write_text(line)
    with pytest.raises(DataError, match=message):
        read_run_cases(tmp_path / "cases.jsonl")


def test_a_run_case_has_no_hash_before_preparation() -> None:
    assert RunCase(id="a", images=("a",), label=None, split="train", role="test").hash is None


def test_the_real_splits_set_the_order(real_data: Path) -> None:
    data = read_dataset(real_data / "Dataset004_Hippocampus")
    found = roles(data, DataSettings(labelled=4))
    assert set(ids(found, "labelled")) == set(data.train_order[:4])
    assert Counter(found.values()) == {"labelled": 4, "unlabelled": 156, "test": 40}


@pytest.mark.parametrize("folds", [2, 3, 5])
def test_folds_part_no_patient(folds: int) -> None:
    names = [f"P{patient:02}_{scan}" for patient in range(7) for scan in range(1 + patient % 3)]
    parts = fold_parts(names, folds, ".+(?=_)")
    assert sorted(case for part in parts for case in part) == names
    patients = [{case.split("_")[0] for case in part} for part in parts]
    assert sum(map(len, patients)) == 7  # none in two
    assert max(map(len, patients)) - min(map(len, patients)) <= 1


def test_held_back_scans_and_drawn_budgets_part_no_patient() -> None:
    names = [f"P{patient:02}_{scan}" for patient in range(12) for scan in "ab"]
    label = Path("label.nii.gz")
    cases = tuple(Case(id=name, images=(Path(f"{name}.nii.gz"),), label=label, split="train") for name in names)
    of = replace(dataset(), cases=cases)
    found = roles(of, DataSettings(patients=".+(?=_)"), fraction=0.25)
    held = ids(found, "validation")
    assert len(held) == 6
    assert {case[:3] for case in held}.isdisjoint(case[:3] for case in ids(found, "labelled"))
    drawn = ids(roles(of, DataSettings(patients=".+(?=_)", labelled=8, label_seed=1)), "labelled")
    assert (len(drawn), len({case[:3] for case in drawn})) == (8, 4)


def test_more_folds_than_patients_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"data.folds = 3, but the labelled cases are of 1 patient"):
        roles(dataset(), DataSettings(patients=".", folds=3, fold=0))


def test_links_to_files_without_an_ending_are_read_in_a_run_as_in_the_set(tmp_path: Path) -> None:
    """As DVC and git-annex keep files: the name is the link's, and the content is called by its hash."""
    root, cache = tmp_path / "set", tmp_path / "cache"
    cache.mkdir()
    for number, (folder, name) in enumerate([("images", "a"), ("labels", "a"), ("unlabelled", "b")]):
        (root / folder).mkdir(parents=True)
        nib.save(nib.Nifti1Image(np.ones((3, 4, 5), np.uint8), np.eye(4)), tmp_path / "scan.nii.gz")
        (tmp_path / "scan.nii.gz").rename(cache / f"ab12c{number}")
        (root / folder / f"{name}.nii.gz").symlink_to(cache / f"ab12c{number}")
    (root / "labels.json").write_text('{"liver": 1}')
    (tmp_path / "by_link").symlink_to(root)
    found = assign_roles(read_dataset(tmp_path / "by_link"), DataSettings(), validation_fraction=0, seed=0)
    assert [case.id for case in found] == ["a", "b"]
    for case in found:
        assert read_volume([Path(image) for image in case.images]).array.shape == (1, 5, 4, 3)
    assert found[0].label == str(root.resolve() / "labels" / "a.nii.gz")
    assert read_label(Path(found[0].label))[0].shape == (5, 4, 3)


def test_nothing_is_learnt_of_a_patient_who_scores_the_run() -> None:
    """P0 has an unlabelled scan, too, as a patient's other visit may be."""
    label = Path("label.nii.gz")

    def case(name: str, *, labelled: bool = True) -> Case:
        return Case(id=name, images=(Path(f"{name}.nii.gz"),), label=label if labelled else None, split="train")

    cases = [case(f"P{patient}_{scan}") for patient in range(4) for scan in "ab"]
    cases += [case(f"P{patient}_u", labelled=False) for patient in range(5)]
    of = replace(dataset(), cases=tuple(cases))
    for fold in range(4):
        found = roles_of(of, DataSettings(patients=".+(?=_)", folds=4, fold=fold))
        (scored,) = {name[:2] for name in ids(found, "test")}
        assert not [name for name, role in found.items() if name.startswith(scored) and role != "test"]
        assert len(ids(found, "unlabelled")) == 4
    found = roles_of(of, DataSettings(patients=".+(?=_)", development=3))
    assert ids(found, "test") == ["P2_a", "P2_b", "P3_a", "P3_b"]
    assert ids(found, "unlabelled") == ["P0_u", "P1_u", "P4_u"]
