"""Scans of one patient."""

from __future__ import annotations

import pytest

from semiseg.data.patients import BIDS, by_patient, patient_of, patients_in_both, untold_patients
from semiseg.data.roles import DataSettings
from semiseg.errors import ConfigError

LAST = ".+(?=_)"
TWO_EACH = [f"DCM_{patient:03}_{frame:02}" for patient in range(6) for frame in (1, 12)]


@pytest.mark.parametrize(
    ("id", "pattern", "patient"),
    [
        ("DCM_001_12", LAST, "DCM_001"),
        ("sub-007_ses-2_T1w", BIDS, "sub-007"),
        ("liver_12", BIDS, "liver_12"),
        ("liver", LAST, "liver"),
        ("liver_12", "", "liver_12"),
    ],
)
def test_a_patient_is_what_the_pattern_finds_at_the_beginning(id: str, pattern: str, patient: str) -> None:
    assert patient_of(id, pattern) == patient


def test_ids_are_kept_in_order_by_patient() -> None:
    assert by_patient(["b_2", "a_1", "b_1"], LAST) == {"b": ["b_2", "b_1"], "a": ["a_1"]}


@pytest.mark.parametrize("wrong", ["(", "a{99999999999999999999}"])
def test_a_pattern_that_is_none_is_refused(wrong: str) -> None:
    with pytest.raises(ConfigError, match=r"data.patients = '.+': no regular expression"):
        DataSettings(patients=wrong)


def test_a_patient_in_training_and_tests_is_named() -> None:
    assert "(DCM_001)" in patients_in_both(["DCM_001_12"], ["DCM_001_01", "DCM_002_01"], LAST)
    assert not patients_in_both(["DCM_001_12"], ["DCM_002_01"], LAST)
    assert not patients_in_both(["DCM_001_12"], ["DCM_001_01"], BIDS)


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        (TWO_EACH, True),
        ([f"case_{n:03}" for n in range(20)], False),  # one beginning: the name of the set
        ([f"site{n % 4}_{n:03}" for n in range(80)], False),  # twenty scans each are of a site, not of a patient
        ([f"P{n}" for n in range(20)], False),
        ([*TWO_EACH, *(f"P{n}" for n in range(20))], False),  # the rule of the few
    ],
)
def test_ids_that_look_like_patients_are_asked_about(ids: list[str], said: bool) -> None:
    text = untold_patients(ids, BIDS)
    assert bool(text) == said
    if said:
        assert "DCM_000_01, DCM_000_12" in text
        assert "data.patients=.+(?=[_-])" in text


def test_what_is_told_is_not_asked_about() -> None:
    assert not untold_patients(TWO_EACH, ".+(?=[_-])")
