"""What a dataset folder holds, whatever its layout: cases, labels and channels."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from semiseg.geometry import LEFT_RIGHT_AXIS

Split = Literal["train", "test"]
Remark = tuple[Literal["warning", "note"], Path, str]
"""What a person should look at or know of, though nothing is left out for it: how grave, which file, and a sentence."""


def unusable_id(id: str) -> str | None:
    """Why an id cannot be the name of a file and stand in a table, as the rest of a sentence with the remedy; None
    where it can."""
    if not id or id.startswith(".") or "/" in id or "\\" in id:
        return "its id would be no plain name of a file. Rename it."
    if not id.isprintable():
        return "its name has characters that cannot be printed. Rename it."
    return None


@dataclass(frozen=True, kw_only=True)
class Case:
    """One patient's scan.

    images: one 3D file per channel (or one 4D file that holds all channels). label: its label map, or None for an
    unlabelled case. split: `test` cases are measured on, never trained on.
    """

    id: str
    images: tuple[Path, ...]
    label: Path | None
    split: Split = "train"


@dataclass(frozen=True, kw_only=True)
class LabelScheme:
    """The classes of a dataset.

    names: value in the label map to name; 0 is the background; values are 0, 1, ..., K-1 without gaps. ignore: value
    of voxels that nobody labelled, or None. unknown: organs that some label maps do not know; `open` is the value of
    what is background there, or one of them. mirror_pairs: pairs of classes that mirroring left-right exchanges.
    mirror_axis: the axis (0 Z, 1 Y, 2 X) along which it does: X in canonical orientation, another one where the
    headers are wrong (measured by `semiseg.data.laterality`).
    """

    names: dict[int, str]
    ignore: int | None = None
    unknown: tuple[int, ...] = ()
    mirror_pairs: tuple[tuple[int, int], ...] = ()
    mirror_axis: int = LEFT_RIGHT_AXIS

    @property
    def count(self) -> int:
        """Number of classes with the background, K."""
        return len(self.names)

    @property
    def organs(self) -> dict[int, str]:
        """The classes without the background."""
        return {value: name for value, name in self.names.items() if value != 0}

    @property
    def open(self) -> int | None:
        """The value of voxels that are background or one of the unknown organs, the one above `ignore`; None where no
        organ is unknown."""
        return self.ignore + 1 if self.unknown and self.ignore is not None else None

    def permutation(self) -> list[int]:
        """Class k of a mirrored scan is class `permutation()[k]` of the scan."""
        order = list(range(self.count))
        for a, b in self.mirror_pairs:
            order[a], order[b] = b, a
        return order


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A folder of scans, read by `semiseg.io.layouts.read_dataset`.

    layout: `nnunet`, `msd`, `flare22`, `plain` or `masks`. channels: names in order, such as `("CT",)`. train_order:
    ids of training cases in the order in which a label budget spends labels (`splits.json`), or empty. problems: what
    the layout itself shows to be wrong without opening a scan (a label that exists for no image), as `(file, text)`.
    remarks: what is usable and yet to be looked at.
    """

    root: Path
    name: str
    layout: str
    channels: tuple[str, ...]
    labels: LabelScheme
    cases: tuple[Case, ...]
    train_order: tuple[str, ...] = ()
    problems: tuple[tuple[Path, str], ...] = field(default=())
    remarks: tuple[Remark, ...] = field(default=())
