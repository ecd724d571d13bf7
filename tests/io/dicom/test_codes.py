"""Codes of organs, against pydicom's copy of DICOM's context groups."""

from __future__ import annotations

import pytest

from semiseg.io.dicom.codes import _STRUCTURES, _WORDS, Code, coded
from semiseg.io.flare22_labels import FLARE22_LABELS

FLARE22 = {
    "liver": ("10200004", ""),
    "right_kidney": ("64033007", "Right"),
    "spleen": ("78961009", ""),
    "pancreas": ("15776009", ""),
    "aorta": ("15825003", ""),
    "inferior_vena_cava": ("64131007", ""),
    "right_adrenal_gland": ("23451007", "Right"),
    "left_adrenal_gland": ("23451007", "Left"),
    "gallbladder": ("28231008", ""),
    "oesophagus": ("32849002", ""),
    "stomach": ("69695003", ""),
    "duodenum": ("38848004", ""),
    "left_kidney": ("64033007", "Left"),
}


def test_flare22s_organs_have_their_codes() -> None:
    assert sorted(FLARE22) == sorted(FLARE22_LABELS.organs.values())
    for name, (value, side) in FLARE22.items():
        found = coded(name)
        assert found.known
        assert found.category == Code("91723000", "Anatomical Structure")
        assert found.kind.value == value
        assert [modifier.meaning for modifier in found.modifiers] == ([side] if side else [])


def test_codes_are_dicoms() -> None:
    """Each code has its meaning in the standard's tables, as pydicom carries them; the heart muscle as a whole is not
    in them (SNOMED CT 74281007)."""
    concepts = pytest.importorskip("pydicom.sr._concepts_dict").concepts["SCT"]
    standard: dict[str, set[str]] = {}
    for meanings in concepts.values():
        for value, (meaning, _) in meanings.items():
            standard.setdefault(value, set()).add(meaning.lower())
    used = [*_STRUCTURES.values(), *_WORDS.values(), coded("liver").category, coded("tumor").category]
    used += [coded("tumor").kind, coded("nobody knows").kind]
    for code in used:
        if code.value != "74281007":
            assert code.meaning.lower() in standard[code.value], code


@pytest.mark.parametrize(
    ("name", "meaning", "modifiers"),
    [
        ("Kidney-R", "Kidney", ["Right"]),
        ("KidneyLeft", "Kidney", ["Left"]),
        ("IVC", "Inferior vena cava", []),
        ("right adrenal", "Adrenal gland", ["Right"]),
        ("esophagus", "Esophagus", []),
        ("left_atrium", "Left atrium", []),
        ("right ventricle", "Right ventricle", []),
        ("myocardium", "Myocardium", []),
        ("left_parotid", "Parotid gland", ["Left"]),
        ("spinal_cord", "Spinal cord", []),
        ("brainstem", "Brain Stem", []),
        ("Brain Stem", "Brain Stem", []),
        ("anterior_hippocampus", "Hippocampus", ["Anterior"]),
        ("left hippocampus posterior", "Hippocampus", ["Left", "Posterior"]),
        ("portalvein", "Portal vein", []),
        ("venoussystem", "Vein", []),
        ("bone", "Bone", []),
        ("livertumor2", "Neoplasm", []),
    ],
)
def test_names_are_read_as_people_write_them(name: str, meaning: str, modifiers: list[str]) -> None:
    found = coded(name)
    assert found.known
    assert found.kind.meaning == meaning
    assert [modifier.meaning for modifier in found.modifiers] == modifiers


def test_a_tumour_lies_in_its_organ() -> None:
    found = coded("livertumor1")
    assert found.category.value == "49755003"
    assert found.region == Code("10200004", "Liver")
    assert coded("tumour").region is None


@pytest.mark.parametrize(
    "name", ["organ 7", "anterior", "left", "left_right_kidney", "kidneystone", "", "ÄÖ", "liver spleen"]
)
def test_what_is_not_known_is_some_tissue(name: str) -> None:
    found = coded(name)
    assert not found.known
    assert (found.category.value, found.kind.value, found.modifiers) == ("85756007", "85756007", ())
