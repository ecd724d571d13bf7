"""A prepared run, opened and trained to its end; longer, where it is asked for more."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from semiseg.data.plan import read_plan
from semiseg.data.roles import of_role, read_run_cases
from semiseg.errors import ConfigError
from semiseg.files import digest_of, write_text
from semiseg.planning import settle_machine
from semiseg.processes import asked_ranks, is_first_rank, ranks_here, warn_of_other_programs
from semiseg.rows import read_metrics
from semiseg.run_folder import alone_in, prepared_settings
from semiseg.settings import RunSettings, write_settings
from semiseg.training.settings import TrainSettings
from semiseg.training.settled import Settled, read_settled, write_settled
from semiseg.types import AnyPath
from semiseg.words import counted, in_minutes

if TYPE_CHECKING:  # only training waits for torch to load
    import torch

    from semiseg.training.session import Session


def train(run: AnyPath, *, minutes: float | None = None, quiet: bool = False) -> Path:
    """Train a prepared run to its last step and return its model folder; a run that was cut off goes on.

    minutes: in the place of those that it was prepared for, with the same plan; not once training has begun.
    """
    run = Path(run)
    settings = prepared_settings(run)
    if settings.data.folds and settings.data.fold is None:
        raise ConfigError(f"{run}: has folds, which `semiseg run {run}` trains.")
    with together(run, settings), ExitStack() as stack:
        from semiseg.world import first_alone

        first_alone(lambda: stack.enter_context(alone_in(run)))
        if minutes is not None and (settings.train.minutes, settings.train.steps) != (minutes, None):
            settings = first_alone(lambda: _for_other_minutes(run, settings, minutes))
        return _train(run, settings, quiet=quiet or not is_first_rank())


@contextmanager
def together(run: Path, settings: RunSettings) -> Iterator[None]:
    """Within, the processes that `torchrun` started train one network together; without it nothing is done.

    Raises `ConfigError` where a machine has fewer GPUs than ranks, and where not all of them are to train this run.
    """
    if asked_ranks() == 1:
        yield
        return
    from semiseg.prediction.device import choose_device
    from semiseg.world import joined, own_device

    with joined(own_device(choose_device(settings.train.device))):
        _refuse_other_runs(run, settings)
        yield


def _refuse_other_runs(run: Path, settings: RunSettings) -> None:
    """Two jobs whose processes met at one port would train one network of both."""
    from semiseg.world import gathered, rank

    own = (str(run.resolve()), digest_of(asdict(settings)))
    asked = gathered({f"{rank():06d}": own})
    if other := next((one for _, one in sorted(asked.items()) if one != asked["000000"]), None):
        first = asked["000000"][0]
        differ = f"{first} and {other[0]}" if first != other[0] else f"{first} with other settings"
        raise ConfigError(
            f"torchrun brought processes together that do not train one run: {differ}. Give each job an --rdzv-id and "
            "an --rdzv-endpoint of its own, as docs/cluster.md has them, and all of its machines the same command."
        )


def _for_other_minutes(run: Path, settings: RunSettings, minutes: float) -> RunSettings:
    if (run / "checkpoints").exists():
        raise ConfigError(
            f"{run}: training has begun for {in_minutes(settings.train.minutes)}. Leave --minutes out to go on, or use "
            "another run folder."
        )
    settings = replace(settings, train=replace(settings.train, minutes=minutes, steps=None))
    write_settings(run / "run.toml", settings)
    # What was laid down was for other minutes.
    write_settled(run, replace(read_settled(run), timeline=(), finished=False, compiled=None))
    return settings


@contextmanager
def lengthened(run: AnyPath, more: float) -> Iterator[RunSettings]:
    """Within: the run's settings after `lengthen`, by the first of the processes that `torchrun` started. Where what is
    done then fails or is stopped before it has made a step, the run is asked for what it was asked for before."""
    run = Path(run)
    files = {file: file.read_text() for file in (run / "run.toml", run / "settled.toml") if file.is_file()}
    with together(run, prepared_settings(run)):
        from semiseg.world import first_alone

        settings = first_alone(lambda: lengthen(run, more))
        rows = len(read_metrics(run))
        try:
            yield settings  # joined, since ranks that part cannot join again
        except BaseException:
            if is_first_rank() and len(read_metrics(run)) == rows:
                for file, text in files.items():
                    write_text(file, text)
            raise


def lengthen(run: AnyPath, more: float) -> RunSettings:
    """Ask a run that has ended for so many more minutes, or steps where it was asked for steps: it is trained on as if
    it had been asked for all of them, with the learning rate of that share of the run. Returns its settings now.

    Raises `ConfigError` for a run that has not ended, or that is one of folds.
    """
    run = Path(run)
    with alone_in(run):
        settings = prepared_settings(run)
        train, settled = settings.train, read_settled(run)
        before = train.minutes if train.steps is None else train.steps
        if settings.data.folds:
            raise ConfigError(f"{run}: folds are not trained on. Make a run for more minutes.")
        if not _has_ended(run, train, settled):
            raise ConfigError(f"--continue: training has not ended. `semiseg run {run}` goes on where it was cut off.")
        if not more > 0:
            raise ConfigError(f"--continue {more:g}: give a number above 0.")
        added = more if train.steps is None else max(1, round(more))
        pretrained, warmup = settings.method.pretrained, settings.method.parts.warmup
        begun = pretrained + (1 - pretrained) * warmup
        if before / (before + added) <= begun:
            parts = " and ".join(["pre-training"] * bool(pretrained) + ["warm-up"] * bool(warmup))
            raise ConfigError(
                f"--continue {more:g}: the run would fall back into its {parts}, the first {begun:g} of it. Give less "
                f"than {before / begun - before:g}, or make a new run that begins with --set train.weights={run}."
            )
        if train.steps is None:
            train = replace(train, minutes=round(train.minutes + added, 6))
        else:
            train = replace(train, steps=round(before + added))
        if settled.lengthened[-1:] != (before,):  # else this was begun, and cut off
            write_settled(run, replace(settled, lengthened=(*settled.lengthened, float(before))))
        settings = replace(settings, train=train)
        write_settings(run / "run.toml", settings)
    return settings


def _has_ended(run: Path, train: TrainSettings, settled: Settled) -> bool:
    """Whether all that a run was asked for is done."""
    if not (run / "model").exists():
        return False
    if train.steps is not None:
        return [row["step"] for row in read_metrics(run)][-1:] == [train.steps]
    return settled.finished and settled.minutes == train.minutes


def _train(run: Path, settings: RunSettings, *, quiet: bool) -> Path:
    from semiseg.training.session import torch_as_it_was, train_session

    with torch_as_it_was():
        settled, device = settle_machine(run, settings)
        session = open_session(run, settings, settled, device)
        if _may_be_compiled(session, settled):
            session = _compiled_or_not(session, quiet=quiet)
        if not quiet:
            if device.type == "cpu":
                warn_of_other_programs(print, threads=(settled.threads or 1) * ranks_here())
            print(_announcement(session, settled))
        train_session(session, quiet=quiet)
    return run / "model"


def _may_be_compiled(session: Session, settled: Settled) -> bool:
    """Whether it is still to be tried: on a GPU, by one rank, in a run that is long enough and has not begun."""
    from semiseg.training.trial import COMPILED_MINUTES

    begun = settled.timeline or (session.run / "checkpoints").exists()
    long_enough = session.train.steps is None and session.train.minutes >= COMPILED_MINUTES
    return (
        session.device.type == "cuda" and asked_ranks() == 1 and long_enough and not begun and settled.compiled is None
    )


def _compiled_or_not(session: Session, *, quiet: bool) -> Session:
    """Try whether compiled passes are faster, and keep what was found in `settled.toml`."""
    from semiseg.training.trial import compiling_pays

    if not quiet:
        print("Tries whether compiled training steps are faster on this GPU: a minute or two.")
    compiled = compiling_pays(session.plan, session.device, session.place.autocast)
    write_settled(session.run, replace(read_settled(session.run), compiled=compiled))
    return replace(session, compiled=compiled)


def _announcement(session: Session, settled: Settled) -> str:
    """What training is going to do."""
    train = session.train
    length = f"for {in_minutes(train.minutes)}" if train.steps is None else f"{counted(train.steps, 'step')}"
    alone = session.method.uses_unlabelled and not of_role(session.cases, "unlabelled")
    compiled = ", compiled steps" * session.compiled
    on = f"{settled.device} ({counted(settled.threads or 1, 'thread')}, {settled.precision}{compiled})"
    if asked_ranks() > 1:
        on = f"{counted(asked_ranks(), 'rank')}, each on {on}"
    return f"Trains {length} on {on}." + (" There are no unlabelled scans: it learns from labels alone." * alone)


def open_session(run: Path, settings: RunSettings, settled: Settled, device: torch.device) -> Session:
    """A prepared run, to be trained with these settings and what is settled of them."""
    from semiseg.training.session import Session

    tries_threads = settings.train.threads == 0
    settings = replace(
        settings,
        train=replace(
            settings.train, precision=settled.precision or "float32", threads=settled.threads or settings.train.threads
        ),
    )
    return Session(
        run=run,
        cases=read_run_cases(run / "cases.jsonl"),
        plan=read_plan(run / "plan.toml"),
        sampling=settings.sampling,
        augment=settings.augment,
        method=settings.method,
        train=settings.train,
        device=device,
        tries_threads=tries_threads,
        distils=bool(settings.data.teacher),
        patients=settings.data.patients,
        compiled=bool(settled.compiled) and device.type == "cuda" and asked_ranks() == 1,
    )
