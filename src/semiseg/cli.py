"""The command line: parse, call one workflow, print. Heavy imports wait until a command runs."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import tyro

from semiseg.errors import ConfigError, SemisegError
from semiseg.files import why_not_written
from semiseg.methods.settings import MethodName
from semiseg.predict.settings import EngineName, Precision, PredictSettings
from semiseg.processes import limit_threads, stop_with_starter
from semiseg.words import counted, printable

if TYPE_CHECKING:
    from semiseg.evaluate import Summary
    from semiseg.evaluate.label_efficiency import Study
    from semiseg.settings import RunSettings

Quiet = Annotated[bool, tyro.conf.FlagCreatePairsOff]


@dataclass(frozen=True, kw_only=True)
class _Computes:
    """What all commands that compute share."""

    threads: int = 0
    """CPU threads and processes; by default all cores, for training what a short trial shows to be fastest."""


@dataclass(frozen=True, kw_only=True)
class _RunArguments(_Computes):
    """What `prepare` and `run` share."""

    run: tyro.conf.Positional[Path]
    """Run folder, for example runs/first; everything is kept there, and the same command goes on."""
    recipe: Path | None = None
    """A TOML file of settings (recipes/flare22.toml has the plan of the published system)."""
    data: Path | None = None
    """Dataset folder; overrides the recipe's data.root."""
    minutes: float | None = None
    """How long training may take, an hour by default: the plan and the number of steps follow; overrides
    train.minutes."""
    labelled: int | None = None
    """Keep only so many labels and hide all others; overrides data.labelled."""
    modality: Literal["auto", "ct", "mr"] | None = None
    """What the scans are, where the channel's name and their values should not count; overrides data.modality."""
    method: MethodName | None = None
    """Learning method; overrides method.name."""
    set: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Any setting, as section.key=value, for example --set train.steps=100; can be repeated."""
    quiet: Quiet = False
    """Print results and errors only."""


@dataclass(frozen=True, kw_only=True)
class Check(_Computes):
    """Open every file of a dataset folder; say what is there, and what is wrong."""

    folder: tyro.conf.Positional[Path]
    """Dataset folder: nnU-Net, MSD, FLARE22, or images/ and labels/."""
    layout: Literal["auto", "nnunet", "msd", "flare22", "plain"] = "auto"
    """How the folder is laid out."""
    minutes: float | None = None
    """Also make the plan that so many minutes of training on this machine would get, and say why."""
    modality: Literal["auto", "ct", "mr"] = "auto"
    """What the scans are: by default as the channel is called, or by their values where it has no name."""

    def execute(self) -> int:
        from semiseg import workflows

        report = workflows.check(self.folder, layout=self.layout, modality=self.modality, minutes=self.minutes)
        return 0 if report.ok else 1


@dataclass(frozen=True, kw_only=True)
class Prepare(_RunArguments):
    """Make the plan of a run and bring all scans to network units."""

    def execute(self) -> int:
        from semiseg import workflows

        plan = workflows.prepare(self.run, _settings(self), quiet=self.quiet)
        _say(f"Prepared. Plan: {self.run}/plan.toml (patch {plan.patch}). Next: semiseg train {self.run}", self.quiet)
        return 0


@dataclass(frozen=True, kw_only=True)
class Train(_Computes):
    """Train a prepared run; a run that was cut off goes on."""

    run: tyro.conf.Positional[Path]
    """Run folder that `prepare` made."""
    minutes: float | None = None
    """How long it may take, in the place of what `prepare` was told; the plan stays."""
    quiet: Quiet = False
    """Print results and errors only."""

    def execute(self) -> int:
        from semiseg import workflows

        model = workflows.train(self.run, minutes=self.minutes, quiet=self.quiet)
        _say(f"Trained. Model: {model}. Next: semiseg predict {model} SCANS --output FOLDER", self.quiet)
        return 0


@dataclass(frozen=True, kw_only=True)
class Predict(_Computes):
    """Segment scans with a trained model, each in its own grid; finished ones are not done again."""

    model: tyro.conf.Positional[Path]
    """Model folder, or a run that was trained."""
    inputs: tyro.conf.Positional[tuple[Path, ...]]
    """Scans, and folders of scans with their sub-folders (.nii, .nii.gz; channels as ID_0000, ID_0001)."""
    output: Path
    """Folder for ID.nii.gz and predictions.jsonl; of one scan also a file that is not there yet, such as seg.nii.gz."""
    ensemble: tuple[Path, ...] = ()
    """Further models of the same plan (other seeds, say), whose logits are averaged with the first's."""
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
    quiet: Quiet = False
    """Print results and errors only."""

    def execute(self) -> int:
        from semiseg import workflows

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
        outcomes = workflows.predict(
            self.model, self.inputs, self.output, ensemble=self.ensemble, settings=settings, quiet=self.quiet
        )
        failed = [outcome for outcome in outcomes if outcome.error]
        reused = sum(outcome.reused for outcome in outcomes)
        before = f" ({reused} of them from before)" if reused else ""
        _say(f"{counted(len(outcomes) - len(failed), 'scan')} in {self.output}{before}.", self.quiet)
        for outcome in failed:
            print(printable(f"failed: {outcome.id}: {outcome.error}"), file=sys.stderr)
        return 1 if failed else 0


@dataclass(frozen=True, kw_only=True)
class Evaluate(_Computes):
    """Score predictions: DSC, NSD, HD95 and volumes per case and organ."""

    run: tyro.conf.Positional[Path | None] = None
    """A run: its predictions against its test labels. Or name the two folders below."""
    predictions: Path | None = None
    """Folder of predicted label maps."""
    references: Path | None = None
    """Folder of reference label maps of the same names."""
    labels: Path | None = None
    """dataset.json or plan.toml that names the labels; by default 1..K without names."""
    rules: Literal["standard", "flare22"] | None = None
    """standard (the default), or flare22 to score as the challenge does."""
    tolerance_mm: float | None = None
    """Surface error in mm that NSD forgives; 1 by default."""
    output: Path | None = None
    """Where summary.json and summary.csv go; by default beside the predictions."""
    quiet: Quiet = False
    """Print results and errors only."""

    def execute(self) -> int:
        from semiseg import workflows
        from semiseg.evaluate import EvaluateSettings

        given = {name: value for name in ("rules", "tolerance_mm") if (value := getattr(self, name)) is not None}
        if self.run is not None:
            if given or self.predictions or self.references or self.labels or self.output:
                raise ConfigError(
                    f"{self.run}: a run is scored by its own run.toml and test labels. Leave the other flags out, or "
                    f"change its rules with `semiseg run {self.run} --set evaluate.tolerance_mm=2`."
                )
            _show_scores(workflows.evaluate_run(self.run, quiet=self.quiet), self.quiet)
            return 0
        if self.predictions is None or self.references is None:
            raise ConfigError("name a run, or both --predictions FOLDER and --references FOLDER.")
        settings = EvaluateSettings(**given)
        summary = workflows.evaluate(
            self.predictions, self.references, self.labels, settings=settings, output=self.output, quiet=self.quiet
        )
        _show_scores(summary, self.quiet)
        return 0


@dataclass(frozen=True, kw_only=True)
class Compare(_Computes):
    """Compare evaluated runs, the first as baseline; or make and compare the runs of a study file."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Two or more run folders, or one study file (.toml): methods by label budgets by seeds."""
    names: tuple[str, ...] = ()
    """Column titles of runs, for example Baseline "Baseline + MPL"."""
    page: Path | None = None
    """Write a page with the comparison of runs to this HTML file, besides."""
    data: Path | None = None
    """Dataset folder of a study."""
    output: Path | None = None
    """Folder for a study's runs and its page; by default runs/NAME."""
    results: Path | None = None
    """Folder for a study's small files (results.json, table.md, figures), which hold no scan; by default the output."""
    jobs: int = 1
    """Runs of a study at a time, which share the cores."""
    known: Quiet = False
    """Make no run of a study: print those that results.json has, and write their table and page."""
    baseline: str | None = None
    """With --known: the method that the others are compared with, in the place of the study's; nothing is written."""
    quiet: Quiet = False
    """Print results and errors only."""

    def execute(self) -> int:
        from semiseg import workflows

        studies = [path for path in self.runs if path.suffix == ".toml"]
        if studies and (len(self.runs) > 1 or self.names or self.page):
            raise ConfigError(f"{studies[0]}: a study file is compared alone; it names its methods and pages itself.")
        of_a_study = ("data", "output", "results", "known", "baseline")
        if not studies and (useless := [name for name in of_a_study if getattr(self, name)]):
            raise ConfigError(f"--{useless[0]} is for a study file (.toml), and these are runs. Leave it out.")
        if len(self.runs) != 1:
            workflows.compare(self.runs, names=self.names, page=self.page)
            if self.page:
                print(self.page)
            return 0
        (file,) = self.runs
        if file.suffix != ".toml":
            raise ConfigError(f"{file}: one run alone. Name two runs or more, or a study file (.toml).")
        from semiseg.study.outputs import print_study, write_pages, write_table
        from semiseg.study.runner import known_runs, made_runs

        output = self.output or Path("runs") / file.stem
        results = self.results or output

        def show(study: Study) -> None:
            print_study(study)
            print(write_pages(study, output, results))

        if self.baseline and not self.known:
            raise ConfigError(f"--baseline {self.baseline}: for what is known. Add --known, or change it in {file}.")
        if self.known:
            study = known_runs(file, results, baseline=self.baseline)
            if self.baseline:
                print_study(study)
                return 0
            write_table(study, results)
            show(study)
            return 0
        so_far: Study | None = None
        say = partial(_say, quiet=self.quiet)
        try:
            for so_far in made_runs(file, output, results, data=self.data, jobs=self.jobs, say=say):
                write_table(so_far, results)
        finally:  # a study that is stopped, or of which a run failed, is shown as far as it got
            if so_far:
                show(so_far)
        return 0


@dataclass(frozen=True, kw_only=True)
class Report:
    """Write the page of a run: report.html."""

    run: tyro.conf.Positional[Path]
    """Run folder."""

    def execute(self) -> int:
        from semiseg import workflows

        print(workflows.report(self.run))
        return 0


@dataclass(frozen=True, kw_only=True)
class Run(_RunArguments):
    """The whole way: prepare, train, predict the test cases, evaluate, report; goes on where it was cut off."""

    def execute(self) -> int:
        from semiseg import workflows
        from semiseg.evaluate import read_summary

        workflows.run_all(self.run, _settings(self), quiet=self.quiet)
        if (self.run / "summary.json").exists():
            _show_scores(read_summary(self.run / "summary.json"), self.quiet)
        for line in workflows.closing_lines(self.run):
            _say(line, self.quiet)
        return 0


@dataclass(frozen=True, kw_only=True)
class Rank(_Computes):
    """Order a trained run's unlabelled scans by how doubtful their pseudo-labels are: what to look at or exclude."""

    run: tyro.conf.Positional[Path]
    """Run that was trained."""
    by: Literal["disagreement", "entropy", "random"] = "disagreement"
    """Of the run's two networks; the mean entropy of its labels; or random, the better choice of what to label next
    while labels are few."""
    against: Path | None = None
    """Disagreement with this run's model instead, such as that of the round before."""
    exclude_worst: float = 0.0
    """Also write exclude.txt with this share of the cases, for --set data.exclude=RUN/exclude.txt."""
    top: int = 20
    """How many are printed; ranking.csv has them all."""
    quiet: Quiet = False
    """Print results and errors only."""

    def execute(self) -> int:
        from semiseg import workflows

        order = workflows.rank(
            self.run, by=self.by, against=self.against, exclude_worst=self.exclude_worst, quiet=self.quiet
        )
        for place, doubt in enumerate(order[: self.top], start=1):
            print(
                f"{place:4} {doubt['id']:32} disagreement {doubt['disagreement']:.4f}  entropy {doubt['entropy']:.4f}  "
                f"{doubt['organs']} organs"
            )
        print(f"All {len(order)} are in {self.run}/ranking.csv.")
        return 0


@dataclass(frozen=True, kw_only=True)
class Postprocess(_Computes):
    """Choose on a run's validation cases which cleaning of labels helps: largest component, hole filling, by organ."""

    run: tyro.conf.Positional[Path]
    """Run that was trained with validation cases."""
    quiet: Quiet = False
    """Print results and errors only."""

    def execute(self) -> int:
        from semiseg import workflows

        chosen = workflows.postprocess(self.run, quiet=self.quiet)
        for organ, dice in chosen["dice"].items():
            steps = " + ".join(chosen["steps"].get(organ, ["as predicted"]))
            print(f"{organ:24} {steps}: Dice {dice[steps]:.4f} (as predicted {dice['as predicted']:.4f})")
        return 0


@dataclass(frozen=True, kw_only=True)
class Export(_Computes):
    """Write a trained model as a file that other programs read, with its card and plan."""

    model: tyro.conf.Positional[Path]
    """Model folder, or a run that was trained."""
    to: Literal["onnx", "openvino", "torch"]
    """Form: an ONNX graph, OpenVINO's model.xml and model.bin, or an exported torch program."""
    output: Path
    """Folder for it."""

    def execute(self) -> int:
        from semiseg.predict.exchange import export_model
        from semiseg.predict.model import load_model

        print(export_model(load_model(self.model), self.to, self.output))
        return 0


@dataclass(frozen=True, kw_only=True)
class Measure:
    """Run a command and measure it as the FLARE22 challenge does: time, memory, processor and GPU, every 0.1 s."""

    command: tyro.conf.Positional[tuple[str, ...]]
    """The command and its arguments, after `--`."""
    output: Path = Path("semiseg-measure")
    """Folder for samples.csv, summary.json and curves.png."""
    gpu: int = 0
    """Number of the NVIDIA GPU to sample."""
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
class Demo(_Computes):
    """The whole way on a generated abdominal CT phantom set, supervised and with Meta Pseudo Labels."""

    folder: tyro.conf.Positional[Path] = Path("semiseg-demo")
    """Where everything is kept."""
    seed: int = 0
    """Of the phantoms and the training."""
    steps: int | None = None
    """Training steps of each run; by default what a minute or two allow here."""
    quiet: Quiet = False
    """Print results and errors only."""

    def execute(self) -> int:
        from semiseg.demo import tour

        tour.run_demo(self.folder, seed=self.seed, steps=self.steps, quiet=self.quiet)
        return 0


_COMMANDS: dict[str, Callable[..., Any]] = {
    "check": Check,
    "prepare": Prepare,
    "train": Train,
    "predict": Predict,
    "evaluate": Evaluate,
    "compare": Compare,
    "report": Report,
    "run": Run,
    "rank": Rank,
    "postprocess": Postprocess,
    "export": Export,
    "measure": Measure,
    "demo": Demo,
}


def _settings(arguments: _RunArguments) -> RunSettings:
    """The recipe with the flags on top; an existing run is its own recipe where none is named."""
    from semiseg.config import load_settings, without_effect

    given = {
        # A JSON string is a TOML string: a folder's name may hold quotes or look like a number.
        "data.root": None if arguments.data is None else json.dumps(str(arguments.data.resolve()), ensure_ascii=False),
        "data.labelled": arguments.labelled,
        "train.minutes": arguments.minutes,
        "train.threads": arguments.threads or None,
        "data.modality": arguments.modality,
        "method.name": arguments.method,
    }
    flags = [f"{key}={value}" for key, value in given.items() if value is not None]
    recipe, existing = arguments.recipe, arguments.run / "run.toml"
    if recipe is None and existing.exists():
        recipe = existing
    settings = load_settings(recipe, [*flags, *arguments.set])
    steps = next((given for given in arguments.set if given.partition("=")[0].strip() == "train.steps"), None)
    if arguments.minutes is not None and steps:
        raise ConfigError(f"--minutes and --set {steps} both say how long training is. Leave one of them out.")
    if arguments.minutes is not None:
        # TOML has no null: steps that a recipe gives would be taken in the place of these minutes.
        settings = replace(settings, train=replace(settings.train, steps=None))
    for sentence in without_effect(settings, arguments.set):
        print(f"semiseg: {sentence}", file=sys.stderr)
    return settings


def _show_scores(summary: Summary, quiet: bool) -> None:
    """Results are printed by quiet commands too; otherwise the workflow has printed them."""
    if quiet:
        from semiseg.evaluate import print_summary

        print_summary(summary)


def _say(text: str, quiet: bool) -> None:
    if not quiet:
        print(text)


def _print_error(kind: str, text: str) -> None:
    print(f"semiseg: {kind}: {printable(text)}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `semiseg`; exits with 0, 1 (problems found) or 2 (an error that the user can mend).

    arguments: instead of the process's own.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show ends nothing
    given = sys.argv[1:] if arguments is None else arguments
    if list(given) == ["--version"]:
        print(f"semiseg {version('semiseg')}")
        sys.exit(0)
    with _stopped_by_sigterm():
        stop_with_starter()
        code = run_command(partial(_execute, given))
    sys.exit(code)


def _execute(arguments: Sequence[str]) -> int:
    command: Any = tyro.extras.subcommand_cli_from_dict(
        _COMMANDS,
        prog="semiseg",
        args=arguments,
        description="A few labelled and very many unlabelled 3D scans in, a good segmenter out.",
    )
    if threads := getattr(command, "threads", 0):
        if threads < 0:
            raise ConfigError(f"--threads {threads}: give 1 or more.")
        limit_threads(threads)
    return int(command.execute())


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """Within: SIGTERM, as batch systems send it, stops as Ctrl-C does."""

    def stop(_number: int, _frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run_command(execute: Callable[[], int]) -> int:
    """Run a command; an error of the user's making, or a file that cannot be read or written, is one message on stderr
    and exit code 2. Who reads the output may stop before its end (`| head`): that is 1, as where rich prints."""
    try:
        code = execute()
        if sys.stdout is not None:  # closed by who started us
            sys.stdout.flush()
    except BrokenPipeError as error:
        if not _output_fails(error):
            raise
        return 1
    except SemisegError as error:
        _print_error("settings" if isinstance(error, ConfigError) else "error", str(error))
        return 2
    except OSError as error:
        if error.filename is None:
            if not _output_fails(error):
                raise
            _print_error("error", f"the output cannot be written ({error.strerror}). What was made before is kept.")
            return 2
        _print_error("error", why_not_written(error))
        return 2
    except KeyboardInterrupt:
        print("semiseg: stopped. The same command goes on from the last checkpoint.", file=sys.stderr)
        return 130
    return code


def _output_fails(error: OSError) -> bool:
    """Whether stdout is what an error is of, and no other file or pipe; then what is left in it goes nowhere, so that
    Python's end says nothing."""
    try:
        os.write(sys.stdout.fileno(), b"\n")
    except OSError as own:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return own.errno == error.errno
    return False
