"""Which scans are of one patient. They are not parted between training and what scores it, and intervals are over
patients."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from semiseg.errors import ConfigError
from semiseg.words import shortened

BIDS = "sub-[A-Za-z0-9]+"
"""How ids of the Brain Imaging Data Structure begin."""
_UP_TO_THE_LAST_PART = ".+(?=[_-])"
_FEWEST, _MOST_SCANS = 4, 10
"""Ids that begin alike are taken for a patient's where there are so many such beginnings, none of more scans."""


def patient_of(id: str, pattern: str) -> str:
    """The part of an id that the pattern matches at its beginning; the id itself where it matches nothing."""
    found = re.match(pattern, id) if pattern else None
    return (found and found[0]) or id


def by_patient(ids: Iterable[str], pattern: str) -> dict[str, list[str]]:
    """The ids of each patient, both in their order."""
    patients: dict[str, list[str]] = {}
    for id in ids:
        patients.setdefault(patient_of(id, pattern), []).append(id)
    return patients


def refuse_wrong_pattern(pattern: str) -> None:
    """Raise `ConfigError` for what is no regular expression."""
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ConfigError(
            f"data.patients = {pattern!r}: no regular expression ({error}). Give one that fits the part of an id that "
            f"names the patient, {_UP_TO_THE_LAST_PART!r} for P01_1 and P01_2, say."
        ) from None


def patients_in_both(tests: Sequence[str], training: Sequence[str], pattern: str) -> str:
    """A sentence where a patient is trained and tested on, else nothing."""
    both = by_patient(tests, pattern).keys() & by_patient(training, pattern).keys()
    if not both:
        return ""
    return (
        f"scans of one patient are trained and tested on ({shortened(sorted(both))}), so scores flatter. Move all of a "
        "patient's scans to one side; or if they are of several patients, mend data.patients."
    )


def untold_patients(ids: Sequence[str], pattern: str) -> str:
    """A sentence where ids look as if patients had several scans each, and the pattern does not say so; else
    nothing."""
    if len(by_patient(ids, pattern)) < len(ids):
        return ""
    parts = Counter(patient_of(id, _UP_TO_THE_LAST_PART) for id in ids)
    several = [name for name, count in parts.items() if count > 1]
    alike = sum(parts[name] for name in several)
    if len(several) < _FEWEST or max(parts.values()) > _MOST_SCANS or alike < len(ids) / 2:
        return ""
    scans = [id for id in ids if patient_of(id, _UP_TO_THE_LAST_PART) == several[0]]
    return (
        f"ids begin alike ({shortened(scans)}). If such scans are of one patient, add "
        f"--set 'data.patients={_UP_TO_THE_LAST_PART}' to `semiseg run`, before training begins: then folds and "
        "held-back scans part no patient, and intervals are over patients."
    )
