"""Commands that use a model or look at what it gave: predict, evaluate, compare, export; measure and the demo."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from semiseg.commands.arguments import Computes, Quiet, WorksOnCases, say, show_scores
from semiseg.errors import ConfigError
from semiseg.prediction.settings import EngineName, OutputFormat, Precision, PredictSettings
from semiseg.words import counted, printable


@dataclass(frozen=True, kw_only=True)
class Predict(WorksOnCases):
    """Segment scans with a trained model, each in its own grid; finished ones are not done again."""

    model: tyro.conf.Positional[Path]
    """Model folder, or a run that was trained."""
    scans: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Scans, and folders of scans with their sub-folders (.nii.gz, .nrrd, .mha, and their like; channels as ID_0000,
    ID_0001); folders and zips of DICOM."""
    output: Path | None = None
    """Folder for ID.nii.gz and predictions.jsonl; of one scan also a file that is not there yet, such as seg.nii.gz."""
    unlabelled: Quiet = False
    """The run's own unlabelled scans, into RUN/pseudo_labels: what `semiseg view RUN` has a person judge."""
    ensemble: tuple[Path, ...] = ()
    """Further models of the same plan (other seeds, say), whose logits are averaged with the first's."""
    series: str = ""
    """Of DICOM, where a folder holds several series: UID, the id or a part of the description that `semiseg check`
    shows, or all."""
    resample: Quiet = False
    """Of DICOM: make series of tilted, missing or uneven slices regular, which are otherwise refused."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    engine: EngineName = "auto"
    """What computes on a CPU: by default the fastest that is installed and gives torch's labels."""
    precision: Precision = "auto"
    """Of the engine: by default the fastest that gives the labels of float32."""
    tile_batch: int = 1
    """Tiles computed together."""
    tile_step: float = PredictSettings.tile_step
    """Largest distance of neighbouring tiles as a share of the patch."""
    all_tiles: Quiet = False
    """Also compute tiles of a CT that hold nothing of the body."""
    max_memory: str = ""
    """What it may take, such as 4GB: planned before it begins, which it refuses where that does not suffice."""
    max_gpu_memory: str = ""
    """What may be in use on an NVIDIA GPU, by all programs together, such as 2048MiB."""
    compile: Quiet = False
    """Have torch.compile make the network for this machine first: for many scans on a GPU."""
    raw: Quiet = False
    """Do not clean the labels as `semiseg postprocess` chose for the model."""
    no_mirror: Quiet = False
    """Do not average over mirrored tiles: half of the time for each mirrored axis, and a little worse."""
    probabilities: Quiet = False
    """Also write class probabilities."""
    format: tuple[OutputFormat, ...] = ()
    """Of the label maps, one or several: nifti (the default), nrrd, mha; of DICOM series also dicom-seg, dicom-labelmap
    (fewer programs read it) and rtstruct. These carry the patient's name and number."""
    statistics: Quiet = False
    """Also write statistics.csv and .json: for each scan and organ the volume in ml, the mean value, and whether the
    scan's border cuts it."""
    preview: Quiet = False
    """Also write ID_preview.png, three planes of each scan with outlines."""
    quiet: Quiet = False
    """Print results and errors only."""

    def execute(self) -> int:
        from semiseg import predict_run
        from semiseg.data.reviews import PSEUDO_LABELS

        settings = PredictSettings(
            device=self.device,
            engine=self.engine,
            precision=self.precision,
            tile_batch=self.tile_batch,
            tile_step=self.tile_step,
            skip_air=not self.all_tiles,
            max_memory=self.max_memory,
            max_gpu_memory=self.max_gpu_memory,
            compile=self.compile,
            postprocess=not self.raw,
            mirror=not self.no_mirror,
            probabilities=self.probabilities,
        )
        if self.unlabelled:
            beside = self.probabilities or self.format or self.statistics or self.preview
            if self.scans or self.output or self.ensemble or beside or self.series or self.resample:
                raise ConfigError(
                    "--unlabelled: scans, folder and form are the run's. Leave scans, --output, --ensemble, --format, "
                    "--statistics, --preview, --probabilities, --series and --resample out."
                )
            output = self.model / PSEUDO_LABELS
            outcomes = predict_run.predict_unlabelled(self.model, settings=settings, quiet=self.quiet)
        elif self.output is None:
            raise ConfigError("name scans and --output FOLDER; or a run and --unlabelled.")
        else:
            output = self.output
            outcomes = predict_run.predict(
                self.model,
                self.scans,
                output,
                ensemble=self.ensemble,
                settings=settings,
                formats=self.format,
                statistics=self.statistics,
                preview=self.preview,
                series=self.series,
                resample=self.resample,
                quiet=self.quiet,
            )
        failed = [outcome for outcome in outcomes if outcome.error]
        reused = sum(outcome.reused for outcome in outcomes)
        before = f" ({reused} of them from before)" if reused else ""
        say(f"{counted(len(outcomes) - len(failed), 'scan')} in {output}{before}.", self.quiet)
        if self.unlabelled:
            say(f"Next: semiseg view {self.model}, which shows them and keeps what you decide.", self.quiet)
        for outcome in failed:
            print(printable(f"failed: {outcome.id}: {outcome.error}"), file=sys.stderr)
        return 1 if failed else 0


@dataclass(frozen=True, kw_only=True)
class Evaluate(WorksOnCases):
    """Score predictions: DSC, NSD, HD95 and volumes per case and organ."""

    run: tyro.conf.Positional[Path | None] = None
    """A run: its predictions against its test labels. Or name the two folders below."""
    predictions: Path | None = None
    """Folder of predicted label maps."""
    references: Path | None = None
    """Folder of reference label maps of the same names, of DICOM SEG (ID.dcm or ID_seg.dcm), or of masks
    (ID/segmentations/liver.nii.gz)."""
    labels: Path | None = None
    """dataset.json or plan.toml that names the labels; by default 1..K without names (masks need it)."""
    rules: Literal["standard", "flare22"] | None = None
    """standard (the default), or flare22 to score as the challenge does."""
    tolerance_mm: float | None = None
    """Surface error in mm that NSD forgives; 1 by default."""
    patients: str | None = None
    """Where patients have several scans: a regular expression for the beginning of ids that names the patient, as
    data.patients. Intervals are over patients then."""
    output: Path | None = None
    """Where summary.json and summary.csv go; by default beside the predictions."""
    quiet: Quiet = False
    """Print results and errors only."""

    def execute(self) -> int:
        from semiseg import workflows
        from semiseg.data.patients import BIDS
        from semiseg.scoring import EvaluateSettings

        given = {name: value for name in ("rules", "tolerance_mm") if (value := getattr(self, name)) is not None}
        if self.run is not None:
            if given or self.predictions or self.references or self.labels or self.output or self.patients is not None:
                raise ConfigError(
                    f"{self.run}: a run is scored by its own run.toml and test labels. Leave the other flags out, or "
                    f"change its rules with `semiseg run {self.run} --set evaluate.tolerance_mm=2`."
                )
            show_scores(workflows.evaluate_run(self.run, quiet=self.quiet), self.quiet)
            return 0
        if self.predictions is None or self.references is None:
            raise ConfigError("name a run, or both --predictions FOLDER and --references FOLDER.")
        settings = EvaluateSettings(**given)
        summary = workflows.evaluate(
            self.predictions,
            self.references,
            self.labels,
            settings=settings,
            output=self.output,
            patients=BIDS if self.patients is None else self.patients,
            quiet=self.quiet,
        )
        show_scores(summary, self.quiet)
        return 0


@dataclass(frozen=True, kw_only=True)
class Compare(Computes):
    """Compare runs that were evaluated on the same test cases, the first as baseline."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Two or more run folders."""
    names: tuple[str, ...] = ()
    """Column titles of runs, for example "Labels alone" "All scans"."""
    page: Path | None = None
    """Write a page with the comparison to this HTML file, besides."""

    def execute(self) -> int:
        from semiseg import workflows

        if studies := [path for path in self.runs if path.suffix == ".toml"]:
            raise ConfigError(f"{studies[0]}: is no run. If it is a study file: semiseg study {studies[0]}")
        if len(self.runs) == 1:
            raise ConfigError(f"{self.runs[0]}: one run alone. Name two runs or more.")
        workflows.compare(self.runs, names=self.names, page=self.page)
        if self.page:
            print(self.page)
        return 0


@dataclass(frozen=True, kw_only=True)
class Export(Computes):
    """Write a trained model as a file that other programs read, or as a folder for others, with its card and plan."""

    model: tyro.conf.Positional[Path]
    """Model folder, or a run that was trained."""
    to: Literal["onnx", "openvino", "torch", "model", "monai"]
    """Form: an ONNX graph; OpenVINO's model.xml and model.bin; an exported torch program; the model itself, with a
    README, as `semiseg push` sends it; or a MONAI bundle."""
    output: Path
    """Folder for it."""
    license: str = ""
    """Of the model, by the hub's name, such as apache-2.0: for `--to model`. By default none is stated."""

    def execute(self) -> int:
        from semiseg.prediction.exchange import export_model
        from semiseg.prediction.model import load_model

        if self.license and self.to != "model":
            raise ConfigError(f"--license is stated by --to model, not by --to {self.to}.")
        model = load_model(self.model)
        if self.to == "model":
            from semiseg.sharing.folder import export_folder

            folder = export_folder(model, self.output, license=self.license)
            print(f"{folder}: the model, for others: weights, plan, card and README. Look at its README.md.")
            print(f"Next: semiseg push {folder} OWNER/NAME; or give the folder away, which predicts as it is:")
            print(f"semiseg predict {folder} SCANS --output LABELS")
        elif self.to == "monai":
            from semiseg.sharing.monai_bundle import export_bundle

            print(export_bundle(model, self.output))
        else:
            print(export_model(model, self.to, self.output))
        if model.poses and self.to != "model":
            ways = "; ".join(pose.name for pose in model.poses)
            print(
                f"`semiseg predict` also recognises scans that are stored in another orientation ({ways}). The "
                "exported network does not: turn such scans as the training scans lie before it sees them."
            )
        return 0


@dataclass(frozen=True, kw_only=True)
class Measure:
    """Run a command and measure it as the FLARE22 challenge does: time, memory, processor and GPU, every 0.1 s."""

    command: tyro.conf.Positional[tuple[str, ...]]
    """The command and its arguments, after `--`."""
    output: Path = Path("semiseg-measure")
    """Folder for samples.csv, summary.json and curves.png."""
    gpu: int = 0
    """Number of the NVIDIA GPU to sample; by default 0, the first."""
    quiet: Quiet = False
    """Do not print the figures."""

    def execute(self) -> int:
        from semiseg.measure.command import measure_command

        code, summary = measure_command(self.command, self.output, gpu=self.gpu)
        if not self.quiet:
            for name, value in summary.items():
                if name != "command" and value is not None:
                    print(f"{name:26} {value}")
        return code


@dataclass(frozen=True, kw_only=True)
class Demo(Computes):
    """The whole way on generated abdominal CTs: with labels alone, and by the default method, with all scans."""

    folder: tyro.conf.Positional[Path] = Path("semiseg-demo")
    """Where everything is kept."""
    seed: int = 0
    """Of the phantoms and the training; by default 0."""
    steps: int = 4000
    """Steps of the run on labels alone, shared ones included; the other run has fewer, for the same compute."""
    quiet: Quiet = False
    """Print results and errors only."""

    def execute(self) -> int:
        from semiseg.demo import tour

        tour.run_demo(self.folder, seed=self.seed, steps=self.steps, quiet=self.quiet)
        return 0
