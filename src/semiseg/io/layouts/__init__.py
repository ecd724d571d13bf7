"""Which cases a folder holds: nnU-Net raw, MSD, FLARE22, a plain pair of folders, or masks, by one function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from semiseg.errors import ConfigError, DataError, UnsupportedError
from semiseg.io.dataset import Case, Dataset, LabelScheme
from semiseg.io.file_kinds import ENDINGS_TEXT, TO_NIFTI, holds_dicom, is_read, scan_files, stem, visible, what_it_holds
from semiseg.io.label_scheme import automatic_pairs, declared_pairs
from semiseg.io.layouts.flare22 import is_flare22, read_flare22
from semiseg.io.layouts.folders import CHANNEL, TRAINING, Found, read_object, train_order, unique_cases
from semiseg.io.layouts.masks import is_masks, read_masks
from semiseg.io.layouts.msd import read_msd
from semiseg.io.layouts.nnunet import read_nnunet
from semiseg.io.layouts.plain import IMAGES, LABELS, read_plain
from semiseg.io.layouts.series import ONLY, SeriesChoice, is_place
from semiseg.io.modality import Modality, name_channels
from semiseg.io.scans import read_grid

READERS: dict[str, Callable[[Path, SeriesChoice], Found]] = {
    "nnunet": read_nnunet,
    "msd": read_msd,
    "flare22": read_flare22,
    "plain": read_plain,
    "masks": read_masks,
}
_MAKE_ONE = (
    "Bring scans and label maps into images/ and labels/ under equal names (links suffice), or list them where they "
    'lie in a dataset.json: {"channel_names": {"0": "CT"}, "labels": {"liver": 1}, "training": [{"image": '
    '"1/scan.nii.gz", "label": "1/label.nii.gz"}, {"image": "2/scan.nii.gz"}]}, with yours.'
)
_LOOKED_FOR = (
    "nnunet (imagesTr/ID_0000.nii.gz and dataset.json), msd (a dataset.json that lists its training files), "
    "flare22 (FLARE22_Tr_0001_0000.nii.gz in any sub-folder), plain (images/ and labels/), masks (ID/ct.nii.gz and "
    "ID/segmentations/liver.nii.gz)"
)


def read_dataset(
    root: Path,
    *,
    layout: str = "auto",
    mirror_pairs: Sequence[tuple[str, str]] | None = None,
    modality: Modality = "auto",
    choice: SeriesChoice = ONLY,
) -> Dataset:
    """What the folder holds. Few voxels are read: those that tell CT from MR, and by the plain layout whole labels to
    count classes that nobody named.

    layout: `auto` looks; or `nnunet`, `msd`, `flare22`, `plain`, `masks`. mirror_pairs: names of classes that are each
    other's mirror image; None takes the dataset's own `mirror_pairs`, or pairs names that differ by left and right.
    modality: `ct` or `mr`, where names and values do not count. choice: which series of DICOM are scans. An image
    without a label is an unlabelled case; what cannot be used is left out and listed in `Dataset.problems`.

    Raises `DataError` where no layout fits or no scan is found, `UnsupportedError` for regions, 2D and other formats.
    """
    if layout != "auto" and layout not in READERS:
        raise ConfigError(f"layout = {layout!r} is not known. Choose auto, {', '.join(READERS)}.")
    refuse_no_folder(root)
    layout = detect_layout(root) if layout == "auto" else layout
    found = READERS[layout](root, choice)
    problems = list(found.problems)
    cases = unique_cases(found.cases, problems)
    if not cases:
        reasons = f" First problem: {problems[0][0]}: {problems[0][1]}" if problems else ""
        raise DataError(f"{root}: read as {layout}, but it holds no usable scan ({ENDINGS_TEXT}, or DICOM).{reasons}")
    _refuse_flat(cases)
    training = [case for case in cases if case.split == "train"] or cases
    channels, of_channels = name_channels(found.channels, training, root, modality)
    return Dataset(
        root=root,
        name=found.name,
        layout=layout,
        channels=channels,
        labels=_with_pairs(found, mirror_pairs, root),
        cases=cases,
        train_order=train_order(root, cases, problems),
        problems=tuple(problems),
        remarks=(*of_channels, *found.remarks),
    )


def is_heap(root: Path) -> bool:
    """Whether a path names DICOM, and no dataset."""
    if not root.is_dir():
        return root.is_file() and is_place(root)
    try:
        detect_layout(root)
    except DataError:
        return holds_dicom(root)
    return False


def refuse_no_folder(root: Path) -> None:
    """Raise `DataError` where there is no folder of a dataset."""
    if not root.is_dir():
        raise DataError(f"{root}: {'is a file. Name the folder' if root.exists() else 'there is no such folder'}.")


def _layout_of(root: Path) -> str:
    """The name of the layout; empty for a folder that has none."""
    if (root / "dataset.json").is_file():
        names = [stem(file) for file in scan_files(root / TRAINING)]
        numbered = bool(names) and all(CHANNEL.fullmatch(name) for name in names)
        # nnU-Net 1 lists its training files too, by names without the channel number: then the list names no file.
        listed = _lists_files(root)
        if listed or ((root / TRAINING).is_dir() and not numbered and "training" in read_object(root / "dataset.json")):
            return "msd"
        if (root / TRAINING).is_dir():
            return "nnunet"
    if is_flare22(root):
        return "flare22"
    if (root / IMAGES).is_dir() and (root / LABELS).is_dir():
        return "plain"
    return "masks" if is_masks(root) else ""


def detect_layout(root: Path) -> str:
    """The name of the layout; raises `DataError` that says what was looked for and what is there."""
    if layout := _layout_of(root):
        return layout
    if (root / TRAINING).is_dir() and not (root / "dataset.json").exists():
        raise DataError(
            f"{root}: has {TRAINING}, but no dataset.json, which names channels and labels. Write "
            f'{root / "dataset.json"}: {{"channel_names": {{"0": "CT"}}, "labels": {{"background": 0, "liver": 1}}, '
            '"file_ending": ".nii.gz"}, with yours.'
        )
    entries = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in root.iterdir())
    there = ", ".join(entries[:12]) + (", ..." if len(entries) > 12 else "") if entries else "nothing"
    holds = what_it_holds(root)
    below = next((entry for entry in visible(root) if entry.is_dir() and _layout_of(entry)), None)
    unread = f" If {below} is the data set, name that folder." if below else f" {_MAKE_ONE}"
    if holds and not is_read(holds):
        unread = f" It holds {holds}. {TO_NIFTI}"
    if "DICOM" in holds:
        unread = f" It holds {holds}: put each scan into images/ (a folder of its own), and its label into labels/."
    raise DataError(f"{root}: no known layout. Looked for {_LOOKED_FOR}; found {there}.{unread}")


def _lists_files(root: Path) -> bool:
    """Whether dataset.json has a list of training files whose first one exists under that name."""
    training = read_object(root / "dataset.json").get("training")
    if not isinstance(training, list) or not training or not isinstance(training[0], dict):
        return False
    return any((root / str(entry.get("image"))).is_file() for entry in training if isinstance(entry, dict))


def _with_pairs(found: Found, mirror_pairs: Sequence[tuple[str, str]] | None, root: Path) -> LabelScheme:
    scheme = found.labels
    if mirror_pairs is not None:
        return replace(scheme, mirror_pairs=declared_pairs(mirror_pairs, scheme.names, "settings"))
    if found.pairs is not None:
        pairs = declared_pairs(found.pairs, scheme.names, str(root / "dataset.json"))
        return replace(scheme, mirror_pairs=pairs)
    return scheme if scheme.mirror_pairs else replace(scheme, mirror_pairs=automatic_pairs(scheme.names))


def _refuse_flat(cases: Sequence[Case]) -> None:
    """Raise `UnsupportedError` if the first readable scans all have an axis of one voxel."""
    shapes = []
    for case in cases[:3]:
        try:
            shapes.append(read_grid(case.images[0]).shape_zyx)
        except DataError:
            continue  # the check names it
    if shapes and all(min(shape) == 1 for shape in shapes):
        raise UnsupportedError(
            f"{cases[0].images[0]}: the scan is 2D (shape (Z, Y, X) {shapes[0]}). semiseg segments 3D scans only."
        )
