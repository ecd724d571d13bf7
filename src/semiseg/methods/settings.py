"""Settings of the learning methods: one dataclass for each, told apart by `name`.

They are here, and not beside the methods' code, since reading a run file must not wait for torch. A method of your own
brings its dataclass along (docs/extending.md).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import ClassVar, Literal

from semiseg.errors import ConfigError
from semiseg.tables import flattened

LARGEST = 1e9
"""Of any factor, weight or number: what is larger is a slip of the keyboard, and overflows."""


@dataclass(frozen=True, kw_only=True)
class OptimiserSettings:
    """Table `[method.optimiser]`: SGD with Nesterov momentum, of every network."""

    learning_rate: float = 0.1
    """At the start; 0.01 in the paper, with its momentum."""
    momentum: float = 0.9
    """Nesterov momentum; 0.99 in the paper, too slow for a few thousand steps."""

    def __post_init__(self) -> None:
        if not 0 < self.learning_rate <= LARGEST:
            raise ConfigError(f"method.optimiser.learning_rate = {self.learning_rate}: give a number above 0.")
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"method.optimiser.momentum = {self.momentum}: give a number from 0 to below 1.")


@dataclass(frozen=True, kw_only=True)
class PhaseSettings:
    """Table `[method.phases]`: the parts of a run, as shares of it."""

    warmup: float = 0.0
    """Share of the run in which networks learn from labels alone; what they say of unlabelled scans is noise before."""
    finetune: float = 0.0
    """Share of the run, at its end, in which the student learns from labels alone."""
    restart_rate: float = 0.0
    """If above 0, the learning rate of the warm-up falls to zero on its own, and training starts anew at this fraction
    of the first rate, so that a teacher labels with settled weights. 0 is one fall over both."""

    def __post_init__(self) -> None:
        for name in ("warmup", "finetune"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"method.phases.{name} = {getattr(self, name)}: give a number from 0 to 1.")
        if self.warmup + self.finetune > 1:
            raise ConfigError("method.phases: warmup + finetune exceed 1. Lower one of them.")
        if not 0 <= self.restart_rate <= LARGEST:
            raise ConfigError(f"method.phases.restart_rate = {self.restart_rate}: give 0 or more.")


@dataclass(frozen=True, kw_only=True)
class PretrainedPhases(PhaseSettings):
    """Phases of methods that can begin with pre-training."""

    pretrain: float = 0.0
    """Share of the run, at its beginning, in which the network learns to fill in hidden blocks of unlabelled scans. The
    other shares are of the run after it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.pretrain < 1:
            raise ConfigError(f"method.phases.pretrain = {self.pretrain}: give a number from 0 to below 1.")


@dataclass(frozen=True, kw_only=True)
class MethodSettings:
    """What section `[method]` holds for every method."""

    name: str
    optimiser: OptimiserSettings = field(default_factory=OptimiserSettings)
    """Of every network."""

    title: ClassVar[str]
    """What a page calls the method."""
    uses_unlabelled: ClassVar[bool] = True
    needs_unlabelled: ClassVar[bool] = True
    """Whether a set without unlabelled scans is refused; otherwise it is learnt from with labels alone."""
    student_has_own_size: ClassVar[bool] = False
    """Whether `plan.student_base_features` may differ from `plan.base_features`."""

    @property
    def parts(self) -> PhaseSettings:
        """The phases; a method without any trains in one."""
        return PhaseSettings()

    @property
    def pretrained(self) -> float:
        """Share of the run that pre-training takes."""
        return self.parts.pretrain if isinstance(self.parts, PretrainedPhases) else 0.0


@dataclass(frozen=True, kw_only=True)
class SupervisedSettings(MethodSettings):
    """Labelled scans alone."""

    name: Literal["supervised"] = "supervised"

    title: ClassVar[str] = "supervised training"
    uses_unlabelled: ClassVar[bool] = False
    needs_unlabelled: ClassVar[bool] = False
    student_has_own_size: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class SemiSupervisedSettings(MethodSettings):
    """What methods have that learn from unlabelled scans."""

    phases: PhaseSettings = field(default_factory=PhaseSettings)
    """Warm-up, training, fine-tuning."""

    @property
    def parts(self) -> PhaseSettings:
        """As `MethodSettings.parts`."""
        return self.phases


@dataclass(frozen=True, kw_only=True)
class RoundPhases(PretrainedPhases):
    """Phases of pseudo_rounds."""

    warmup: float = 0.3


@dataclass(frozen=True, kw_only=True)
class PseudoRoundsSettings(SemiSupervisedSettings):
    """Pseudo-labels of whole scans in rounds: the default (decision 0024). The last fifth of a run learns from labels
    alone, whatever `phases.finetune` says."""

    name: Literal["pseudo_rounds"] = "pseudo_rounds"
    phases: RoundPhases = field(default_factory=RoundPhases)
    """Warm-up, training, fine-tuning."""
    rounds: int = 5
    """Rounds after the warm-up, of one length; fewer and longer ones, where scans are so large that labelling some for
    each would take long beside the training."""
    label_scans: int = 24
    """Unlabelled scans that are labelled in a round. Rounds take turns through the scans. 0 is all of them."""

    title: ClassVar[str] = "pseudo-labels in rounds"
    needs_unlabelled: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ConfigError(f"method.rounds = {self.rounds}: give 1 or more.")
        _refuse_negative(self, "label_scans")


@dataclass(frozen=True, kw_only=True)
class MaskedPhases(PretrainedPhases):
    """Phases of masked."""

    pretrain: float = 0.5


@dataclass(frozen=True, kw_only=True)
class MaskedSettings(SemiSupervisedSettings):
    """Self-supervised pre-training on unlabelled scans, then labels alone: no pseudo-labels."""

    name: Literal["masked"] = "masked"
    phases: MaskedPhases = field(default_factory=MaskedPhases)
    """Pre-training, then labels."""

    title: ClassVar[str] = "pre-training by hidden blocks"


@dataclass(frozen=True, kw_only=True)
class TeacherPhases(PhaseSettings):
    """Phases of a teacher and its student."""

    warmup: float = 0.5
    restart_rate: float = 0.5


@dataclass(frozen=True, kw_only=True)
class PseudoLabelSettings(SemiSupervisedSettings):
    """A teacher that labels unlabelled scans once, whole, and a student that learns from them. No feedback."""

    name: Literal["pseudo_label"] = "pseudo_label"
    phases: TeacherPhases = field(default_factory=TeacherPhases)
    """Warm-up, training, fine-tuning."""
    label_scans: int = 24
    """Unlabelled scans that the teacher labels. 0 is all of them."""
    label_scope: Literal["scan", "patch"] = "scan"
    """What the teacher labels: whole scans once, with hard labels; or each augmented patch as it is drawn, softly. A
    patch by itself is labelled worse near its faces, the more so the smaller it is against the organs."""

    title: ClassVar[str] = "pseudo-labels without feedback"
    student_has_own_size: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _refuse_negative(self, "label_scans")


@dataclass(frozen=True, kw_only=True)
class MplSettings(SemiSupervisedSettings):
    """Meta Pseudo Labels: the teacher learns from what its labels do to the student."""

    name: Literal["mpl"] = "mpl"
    phases: TeacherPhases = field(default_factory=TeacherPhases)
    """Warm-up, training, fine-tuning."""
    feedback: Literal["scalar", "dense"] = "dense"
    """How the teacher learns from the student: by one number (the paper), or one value for each voxel and class."""
    feedback_ratio: float = 0.2
    """Norm of the gradient by dense feedback, divided by that of the teacher's supervised gradient."""
    teacher_rate: float = 0.2
    """Learning rate of the teacher in the training phase as a fraction of the student's; 1 in the paper."""
    teacher_every: int = 4
    """The teacher moves every so many steps; in each in the paper."""

    title: ClassVar[str] = "Meta Pseudo Labels"
    student_has_own_size: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _refuse_negative(self, "feedback_ratio")
        for name in ("teacher_rate", "teacher_every"):
            if not 0 < getattr(self, name) <= LARGEST:
                raise ConfigError(
                    f"method.{name} = {getattr(self, name)}: give a number above 0. A teacher that stands still is "
                    'name = "pseudo_label".'
                )


@dataclass(frozen=True, kw_only=True)
class _WeightedSettings(SemiSupervisedSettings):
    unlabelled_weight: float = 1.0
    """Weight of what is learnt from unlabelled patches, as published by default."""

    def __post_init__(self) -> None:
        _refuse_negative(self, "unlabelled_weight")


@dataclass(frozen=True, kw_only=True)
class MeanTeacherSettings(_WeightedSettings):
    """Mean Teacher, and its uncertainty-aware form (UA-MT)."""

    name: Literal["mean_teacher"] = "mean_teacher"
    unlabelled_weight: float = 0.2
    """Weight of the consistency at its full height, where the ramp ends (0.1 as published, beside half of the
    supervised loss)."""
    uncertainty_passes: int = 0
    """Passes on noisy images by which the teacher's uncertainty is judged (UA-MT has 8); 0 trusts it everywhere."""

    title: ClassVar[str] = "Mean Teacher"

    def __post_init__(self) -> None:
        super().__post_init__()
        _refuse_negative(self, "uncertainty_passes")


@dataclass(frozen=True, kw_only=True)
class CrossPseudoSettings(_WeightedSettings):
    """Cross pseudo supervision (CPS)."""

    name: Literal["cross_pseudo"] = "cross_pseudo"
    unlabelled_weight: float = 1.5

    title: ClassVar[str] = "cross pseudo supervision"


@dataclass(frozen=True, kw_only=True)
class CopyPastePhases(PhaseSettings):
    """Phases of copy_paste."""

    warmup: float = 0.25
    restart_rate: float = 0.5


@dataclass(frozen=True, kw_only=True)
class CopyPasteSettings(_WeightedSettings):
    """Bidirectional copy-paste (BCP)."""

    name: Literal["copy_paste"] = "copy_paste"
    phases: CopyPastePhases = field(default_factory=CopyPastePhases)
    """Warm-up, training, fine-tuning."""
    unlabelled_weight: float = 0.5

    title: ClassVar[str] = "bidirectional copy-paste"


def _refuse_negative(settings: MethodSettings, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        if not 0 <= value <= LARGEST:
            raise ConfigError(f"method.{name} = {value}: give 0 or more, and {LARGEST:g} at most.")


DEFAULT = "pseudo_rounds"
_KINDS: dict[str, type[MethodSettings]] = {}


def add_settings(kind: type[MethodSettings]) -> None:
    """Make a method known by the name that its settings have by default."""
    name = next(one for one in fields(kind) if one.name == "name").default
    _KINDS[str(name)] = kind


for _kind in (
    SupervisedSettings,
    PseudoRoundsSettings,
    MaskedSettings,
    PseudoLabelSettings,
    MplSettings,
    MeanTeacherSettings,
    CrossPseudoSettings,
    CopyPasteSettings,
):
    add_settings(_kind)


def method_names() -> tuple[str, ...]:
    """The names of all methods."""
    return tuple(_KINDS)


def settings_kind(name: object = DEFAULT) -> type[MethodSettings]:
    """The dataclass of a method's settings; raises `ConfigError` that lists the names."""
    if not isinstance(name, str) or name not in _KINDS:
        raise ConfigError(f"method.name = {name!r}: choose one of {', '.join(_KINDS)}.")
    return _KINDS[name]


def known_kind(name: str) -> type[MethodSettings] | None:
    """The dataclass of a method's settings; None where no method has that name here."""
    return _KINDS.get(name)


def method_settings(name: str = DEFAULT, **given: object) -> MethodSettings:
    """The settings of a method with these in the place of its defaults."""
    return settings_kind(name)(**given)  # type: ignore[arg-type]


def methods_with(path: str) -> list[str]:
    """The methods whose settings have a key such as `rounds` or `phases.warmup`."""
    return [name for name, kind in _KINDS.items() if path in flattened(asdict(kind(name=name)))]
