"""What is written of a predicted scan: label maps in several formats, a picture, statistics."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from semiseg.data.plan import Plan
from semiseg.errors import ConfigError
from semiseg.io.file_kinds import ending, is_scan, is_written, label_map, probability_map, stem
from semiseg.io.grid import Grid
from semiseg.io.scans import RawChannel, write_label
from semiseg.prediction.inputs import Scan
from semiseg.prediction.settings import OutputFormat
from semiseg.prediction.statistics import Census
from semiseg.types import LabelArray, Spacing
from semiseg.words import printable, shortened

_ENDS: dict[OutputFormat, str] = {
    "nifti": ".nii.gz",
    "nrrd": ".nrrd",
    "mha": ".mha",
    "dicom-seg": "_seg.dcm",
    "dicom-labelmap": "_labelmap.dcm",
    "rtstruct": "_rtstruct.dcm",
}
DICOM_FORMATS: tuple[OutputFormat, ...] = ("dicom-seg", "dicom-labelmap", "rtstruct")
"""Which refer to a series, so that the scan must be one."""
STATISTICS = "statistics"

Picture = Callable[[RawChannel, LabelArray, Spacing, Census, Plan], bytes]
"""A PNG of the first channel and a label map `(Z, Y, X)`."""


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """What is asked for. formats: by default NIfTI, or what the name of a file says. picture: draws the preview, where
    one is asked for."""

    formats: tuple[OutputFormat, ...] = ()
    statistics: bool = False
    picture: Picture | None = None

    @property
    def in_folder(self) -> tuple[OutputFormat, ...]:
        """The formats of files in a folder."""
        return tuple(dict.fromkeys(self.formats)) or ("nifti",)

    @property
    def of_dicom(self) -> tuple[OutputFormat, ...]:
        """Those that refer to a series."""
        return tuple(one for one in self.in_folder if one in DICOM_FORMATS)

    @property
    def needs_scan(self) -> bool:
        """Whether the scan is looked at besides its labels."""
        return self.statistics or self.picture is not None


LABELS_ALONE = Outputs()


@dataclass(frozen=True)
class Targets:
    """The files of one scan. labels: by format; none where all are there already. probabilities, preview: None where
    not asked for."""

    labels: Mapping[OutputFormat, Path]
    probabilities: Path | None = None
    preview: Path | None = None

    @property
    def first(self) -> Path:
        """The label map that stands for all."""
        return next(iter(self.labels.values()))

    @property
    def all(self) -> list[Path]:
        return [*self.labels.values(), *(file for file in (self.probabilities, self.preview) if file)]

    def within(self, folder: Path) -> Targets:
        """Files of the same names in another folder."""
        probabilities, preview = (file and folder / file.name for file in (self.probabilities, self.preview))
        return Targets({one: folder / file.name for one, file in self.labels.items()}, probabilities, preview)

    def only(self, files: Collection[Path]) -> Targets:
        """Those of these files."""
        probabilities, preview = (file if file in files else None for file in (self.probabilities, self.preview))
        return Targets({one: file for one, file in self.labels.items() if file in files}, probabilities, preview)


def targets_in(folder: Path, id: str, outputs: Outputs, *, probabilities: bool) -> Targets:
    """Where the files of a scan go."""
    labels = {one: folder / f"{id}{_ENDS[one]}" for one in outputs.in_folder}
    voxels = next((file for file in labels.values() if is_written(file)), label_map(folder, id))
    return Targets(
        labels,
        probability_map(voxels) if probabilities else None,
        folder / f"{id}_preview.png" if outputs.picture else None,
    )


def all_targets_in(folder: Path, id: str) -> list[Path]:
    """Every file that may be there of a scan, whatever was asked for."""
    labels = [folder / f"{id}{end}" for end in _ENDS.values()]
    return [*labels, *(probability_map(file) for file in labels if is_written(file)), folder / f"{id}_preview.png"]


def targets_of_file(file: Path, outputs: Outputs, *, probabilities: bool) -> Targets:
    """Where the files of a scan go whose label map is to be `file`. Raises `ConfigError` where its name and the formats
    that are asked for contradict each other."""
    found = _format_of(file, outputs.formats)
    if len(outputs.formats) > 1 or outputs.formats not in ((), (found,)):
        raise ConfigError(
            f"--output {file}: is one file, and --format {' '.join(outputs.formats)} does not fit its name. "
            "Name a folder, or leave --format out."
        )
    base = file.with_name(stem(file) if is_written(file) else file.stem)
    maps = probability_map(file if is_written(file) else base.with_name(f"{base.name}.nii.gz"))
    return Targets(
        {found: file},
        maps if probabilities else None,
        base.with_name(f"{base.name}_preview.png") if outputs.picture else None,
    )


def _format_of(file: Path, asked: Sequence[OutputFormat]) -> OutputFormat:
    if is_written(file) and file.name.endswith(ending(file)):
        return {".nrrd": "nrrd", ".mha": "mha"}.get(ending(file), "nifti")  # type: ignore[return-value]
    if file.suffix == ".dcm":
        return next((one for one in asked if one in DICOM_FORMATS), "dicom-seg")
    raise ConfigError(f"--output {file}: end the name with .nii.gz, .nii, .nrrd, .mha or .dcm, in small letters.")


def statistics_stem(output: Path) -> Path:
    """Where statistics go, without `.csv` and `.json`: into the folder, or beside the file that was named."""
    if not is_output_file(output):
        return output / STATISTICS
    return output.with_name(f"{stem(output) if is_written(output) else output.stem}_{STATISTICS}")


def is_output_file(output: Path) -> bool:
    """Whether a name is that of one file rather than of a folder."""
    return is_scan(output) or output.suffix == ".dcm"


def check_formats(scans: Sequence[Scan], formats: Sequence[OutputFormat]) -> None:
    """Raise `ConfigError` where formats of DICOM are asked for that cannot be written: without their library, or of
    scans that are no series."""
    if not (wanted := [one for one in formats if one in DICOM_FORMATS]):
        return
    from semiseg.io.dicom.places import place_of

    for scan in scans:
        if place_of(scan.images[0]) is None:
            raise ConfigError(
                f"{printable(str(scan.images[0]))}: no DICOM series, which --format {' '.join(wanted)} would refer to. "
                "Name the folder of the series, or choose nifti, nrrd or mha."
            )
    if "rtstruct" in wanted:
        from semiseg.io.dicom.library import library

        library()
    if any(one != "rtstruct" for one in wanted):
        from semiseg.io.dicom.segmentation import require_highdicom

        require_highdicom()


def uncoded_text(organs: Sequence[str]) -> str:
    """The warning that names have no codes; empty where all have."""
    from semiseg.io.dicom.codes import coded

    unknown = [name for name in organs if not coded(name).known]
    if not unknown:
        return ""
    return (
        f"warning: no SNOMED code is known for {shortened(unknown)}: DICOM files call it 'tissue', beside its name. "
        "Names such as right_kidney are known."
    )


class Written(NamedTuple):
    """What became of label maps in DICOM's formats. empty: no organ was found, so that there is no file. new_study: the
    series does not say which study it is of."""

    empty: bool = False
    new_study: bool = False


def write_labels(
    targets: Targets, labels: LabelArray, grid: Grid, source: Path, organs: Mapping[int, str], model_hash: str
) -> Written:
    """Write a label map in all its formats. source: the scan's first image."""
    for one, file in targets.labels.items():
        if one not in DICOM_FORMATS:
            write_label(file, labels, grid, source)
    wanted = {one: file for one, file in targets.labels.items() if one in DICOM_FORMATS}
    if not wanted:
        return Written()
    from semiseg.io.dicom.derived import MadeBy, read_source
    from semiseg.io.dicom.places import series_of

    of = read_source(series_of(source))
    made_by, empty = MadeBy(model=model_hash), False
    for one, file in wanted.items():
        if one == "rtstruct":
            from semiseg.io.dicom.rtstruct import write_rtstruct

            empty = not write_rtstruct(file, labels, of, organs, made_by)
        else:
            from semiseg.io.dicom.segmentation import write_segmentation

            empty = not write_segmentation(file, labels, of, organs, made_by, labelmap=one == "dicom-labelmap")
    return Written(empty, not of.knows_its_study)
