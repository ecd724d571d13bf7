"""The label list, the channel list and the mirror pairs that a dataset's JSON files declare."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from semiseg.errors import DataError, UnsupportedError
from semiseg.io.dataset import LabelScheme

IGNORE = "ignore"
MOST_CLASSES = 1000
"""A network computes as many numbers for every voxel. Larger label values are a damaged or a strange file."""
_SIDE = re.compile(r"(?<![a-z])(?:(?P<word>left|right)|(?P<letter>[lr]))(?![a-z])", re.IGNORECASE)
_NO_MIRROR_IMAGE = re.compile(r"atri|auric|append|coronary|liver|hepatic|(?<!lateral_)ventric", re.IGNORECASE)


def parse_labels(value: object, file: Path) -> LabelScheme:
    """The classes without mirror pairs, from `{"liver": 1}` (nnU-Net v2) or `{"1": "liver"}` (nnU-Net v1, MSD).

    A missing background is added as 0. The name `ignore` marks voxels that nobody labelled.
    Raises `UnsupportedError` for regions, `DataError` for gaps, twice used values, and an ignore label below others.
    """
    by_value = _value_to_name(_mapping(value, file, "labels"), file)
    if len(by_value) > MOST_CLASSES or max(by_value, default=0) > MOST_CLASSES:
        raise DataError(
            f"{file}: labels: {len(by_value)} classes with values up to {max(by_value)}; values may go up to "
            f"{MOST_CLASSES}. Renumber the classes from 0 on, in this file and in the label maps."
        )
    ignore = next((number for number, name in by_value.items() if name.lower() == IGNORE), None)
    names = {number: name for number, name in sorted(by_value.items()) if number != ignore}
    names = {0: "background"} | names
    if ignore is not None and ignore <= max(names):
        raise DataError(
            f"{file}: labels: the ignore label is {ignore}, but it must be above all others, which end at {max(names)}."
        )
    top = max(names) if ignore is None else ignore
    gaps = sorted(set(range(top + 1)) - set(names) - {ignore})
    if gaps:
        shown = ", ".join(map(str, gaps[:5])) + (", ..." if len(gaps) > 5 else "")
        raise DataError(
            f"{file}: labels: nothing is named {shown}; values must run from 0 without gaps. Name or renumber."
        )
    if len(names) < 2:
        raise DataError(f"{file}: labels: there is no class beside the background. Name at least one.")
    return LabelScheme(names=names, ignore=ignore)


def _value_to_name(labels: Mapping[str, Any], file: Path) -> dict[int, str]:
    """Label value to name from either direction of the mapping."""
    by_value: dict[int, str] = {}
    used: set[str] = set()
    keys_are_values = all(_whole(key) is not None and isinstance(name, str) for key, name in labels.items())
    for key, entry in labels.items():
        if isinstance(entry, list | tuple):
            raise UnsupportedError(
                f"{file}: labels: {key} is a region ({', '.join(map(str, entry))}); region-based training is not "
                "supported. Give every class one value of its own."
            )
        name, number = (entry, _whole(key)) if keys_are_values else (key, _whole(entry))
        if number is None:
            raise DataError(f"{file}: labels: {key!r}: {entry!r} is no pair of a name and a whole number from 0 up.")
        if number in by_value or name in used:
            raise DataError(f"{file}: labels: {name!r} = {number} is given twice. Give each class one name and value.")
        by_value[number] = _printable(name, file, "labels")
        used.add(name)
    return by_value


def _whole(value: object) -> int | None:
    """A label value: a whole number from 0 up, as a number or as digits."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value if value >= 0 else None
    return int(value) if isinstance(value, str) and re.fullmatch("[0-9]{1,9}", value) else None


def _printable(name: object, file: Path, key: str) -> str:
    """A name that may stand in tables; raises `DataError` for what cannot be printed."""
    if not isinstance(name, str) or not name.strip() or not name.isprintable():
        raise DataError(f"{file}: {key}: {name!r} is no name that can be printed. Write letters and digits.")
    return name


def parse_channels(value: object, file: Path, key: str) -> tuple[str, ...]:
    """Channel names in order, from `{"0": "CT"}` or `["CT"]`."""
    if isinstance(value, list):
        value = {str(index): name for index, name in enumerate(value)}
    channels = _mapping(value, file, key)
    expected = [str(index) for index in range(len(channels))]
    if not channels or sorted(channels, key=str) != sorted(expected):
        raise DataError(f'{file}: {key}: channels are numbered {list(channels)}; number them "0", "1", ... in order.')
    return tuple(_printable(str(channels[index]), file, key) for index in expected)


def _mapping(value: object, file: Path, key: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{file}: {key} must be a JSON object with one entry each, not {type(value).__name__}.")
    return value


def declared_pairs(value: object, names: Mapping[int, str], where: str) -> tuple[tuple[int, int], ...]:
    """Mirror pairs as label values, from pairs of class names. `where` begins the message of a `DataError`."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise DataError(f'{where}: mirror_pairs must be a list such as [["left_kidney", "right_kidney"]].')
    numbers = {name: number for number, name in names.items() if number != 0}
    pairs: list[tuple[int, int]] = []
    for pair in value:
        known = isinstance(pair, list | tuple) and all(isinstance(name, str) and name in numbers for name in pair)
        if not known or len(pair) != 2:
            raise DataError(f"{where}: mirror_pairs: {pair!r} is no pair of the classes {', '.join(numbers)}.")
        first, second = numbers[pair[0]], numbers[pair[1]]
        if first == second or any({first, second} & set(other) for other in pairs):
            raise DataError(f"{where}: mirror_pairs: a class of {pair!r} is used twice. Put each class in one pair.")
        pairs.append((min(first, second), max(first, second)))
    return tuple(sorted(pairs))


def automatic_pairs(names: Mapping[int, str]) -> tuple[tuple[int, int], ...]:
    """Classes whose names differ only by left and right, as label values.

    Parts of the heart and of the liver are left out: left and right name different organs there, not mirror images.
    """
    pairs = []
    by_name = {re.sub(r"[\s_\-]+", "_", name.strip().lower()): number for number, name in names.items()}
    for name, number in by_name.items():
        partner = by_name.get(_other_side(name), number)
        if number < partner and not _NO_MIRROR_IMAGE.search(name):
            pairs.append((number, partner))
    return tuple(sorted(pairs))


def _other_side(name: str) -> str:
    exchange = {"left": "right", "right": "left", "l": "r", "r": "l"}
    return _SIDE.sub(lambda match: exchange[match.group().lower()], name)


def unknown_names(names: Iterable[int]) -> dict[int, str]:
    """`class_1`, `class_2`, ... up to the highest value found, with the background."""
    return {0: "background"} | {value: f"class_{value}" for value in range(1, max(names, default=0) + 1)}
