"""SNOMED CT codes of organs by their names: what a SEG says a segment is, and an RTSTRUCT a region.

Codes and meanings are those that DICOM's context groups use (PS3.16). A side is a modifier of its own, but for
structures of which each side is another organ (the heart's chambers).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import NamedTuple


class Code(NamedTuple):
    """A code of SNOMED CT, and what it means in words."""

    value: str
    meaning: str


@dataclass(frozen=True, kw_only=True)
class Coded:
    """What a segment is. modifiers: its side or part. region: the organ that a lesion lies in. known: whether its name
    is in the table; otherwise it is some tissue."""

    category: Code
    kind: Code
    modifiers: tuple[Code, ...] = ()
    region: Code | None = None
    known: bool = True


_STRUCTURE = Code("91723000", "Anatomical Structure")
_ABNORMAL = Code("49755003", "Morphologically Abnormal Structure")
_TISSUE = Code("85756007", "Tissue")
_NEOPLASM = Code("108369006", "Neoplasm")
_UNKNOWN = Coded(category=_TISSUE, kind=_TISSUE, known=False)

_WORDS = {
    "left": Code("7771000", "Left"),
    "right": Code("24028007", "Right"),
    "anterior": Code("255549009", "Anterior"),
    "posterior": Code("255551008", "Posterior"),
}
"""Of a name beside the organ's."""

_STRUCTURES: dict[tuple[str, ...], Code] = {
    # FLARE22
    ("liver",): Code("10200004", "Liver"),
    ("kidney",): Code("64033007", "Kidney"),
    ("spleen",): Code("78961009", "Spleen"),
    ("pancreas",): Code("15776009", "Pancreas"),
    ("aorta",): Code("15825003", "Aorta"),
    ("inferior vena cava", "ivc", "postcava"): Code("64131007", "Inferior vena cava"),
    ("adrenal gland", "adrenal", "suprarenal gland"): Code("23451007", "Adrenal gland"),
    ("gallbladder",): Code("28231008", "Gallbladder"),
    ("esophagus", "oesophagus"): Code("32849002", "Esophagus"),
    ("stomach",): Code("69695003", "Stomach"),
    ("duodenum",): Code("38848004", "Duodenum"),
    # head and neck
    ("brainstem",): Code("119238007", "Brain Stem"),
    ("spinal cord",): Code("2748008", "Spinal cord"),
    ("parotid gland", "parotid"): Code("45289007", "Parotid gland"),
    ("hippocampus",): Code("5366008", "Hippocampus"),
    ("brain",): Code("12738006", "Brain"),
    # the heart
    ("heart",): Code("80891009", "Heart"),
    ("left atrium",): Code("82471001", "Left atrium"),
    ("right atrium",): Code("73829009", "Right atrium"),
    ("left ventricle",): Code("87878005", "Left ventricle"),
    ("right ventricle",): Code("53085002", "Right ventricle"),
    ("myocardium",): Code("74281007", "Myocardium"),
    # further ones
    ("lung",): Code("39607008", "Lung"),
    ("bladder", "urinary bladder"): Code("89837001", "Bladder"),
    ("prostate",): Code("41216001", "Prostate"),
    ("colon",): Code("71854001", "Colon"),
    ("bone", "bones"): Code("272673000", "Bone"),
    ("artery", "arteries"): Code("51114001", "Artery"),
    ("vein", "veins", "venous system"): Code("29092000", "Vein"),
    ("portal vein",): Code("32764006", "Portal vein"),
    ("vessel", "vessels", "blood vessel"): Code("59820001", "Blood Vessel"),
}
_LESIONS = ("tumor", "tumour", "neoplasm")


def _key(name: str) -> str:
    return re.sub("[^a-z]", "", name)


_BY_KEY = {_key(name): code for names, code in _STRUCTURES.items() for name in names}


def coded(name: str) -> Coded:
    """What a label of this name is; some tissue where the name is not known.

    Letter case, spaces, underscores, hyphens and a number at the end do not matter: `right_kidney`, `Kidney-R` and
    `livertumor1` are known.
    """
    words = [_SHORT.get(word, word) for word in re.findall("[a-z]+", re.sub("(?<=[a-z])(?=[A-Z])", " ", name).lower())]
    whole = _of_organ(words)
    if whole:
        return whole
    beside = [word for word in words if word in _WORDS]
    rest = _of_organ([word for word in words if word not in _WORDS])
    if not rest or len(beside) > len(set(beside)) or {"left", "right"} <= set(beside):
        return _UNKNOWN
    return replace(rest, modifiers=tuple(_WORDS[word] for word in sorted(beside)))


_SHORT = {"l": "left", "r": "right"}


def _of_organ(words: list[str]) -> Coded | None:
    key = _key("".join(words))
    if code := _BY_KEY.get(key):
        return Coded(category=_STRUCTURE, kind=code)
    for lesion in _LESIONS:
        organ = key.removesuffix(lesion)
        if organ != key and (not organ or organ in _BY_KEY):
            return Coded(category=_ABNORMAL, kind=_NEOPLASM, region=_BY_KEY.get(organ))
    return None
