"""Settings of the learning method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from semiseg.errors import ConfigError

MethodName = Literal["supervised", "pseudo_label", "mpl", "mean_teacher", "cross_pseudo", "copy_paste", "pseudo_rounds"]
TeacherMode = Literal["train", "eval"]
_WARMUP: dict[str, float] = {"mpl": 0.5, "pseudo_label": 0.5, "pseudo_rounds": 0.3, "copy_paste": 0.25}
"""Share of the steps before unlabelled patches are learnt from; 0 for methods that are not named."""
_UNLABELLED_WEIGHT: dict[str, float] = {"mean_teacher": 0.2, "cross_pseudo": 1.5, "copy_paste": 0.5}
"""Of what is learnt from unlabelled patches, as published (0.1 for mean_teacher, beside half of cross-entropy + Dice).
1 for methods that are not named."""
_LEARNING_RATE = {"sgd": 0.1, "adamw": 0.003}
_WEIGHT_DECAY = {"sgd": 3e-5, "adamw": 0.01}

NOT_NEGATIVE = (
    "weight_decay",
    "gradient_clip",
    "finetune_rate",
    "restart_rate",
    "teacher_rate",
    "teacher_every",
    "label_scans",
    "student_supervised_weight",
    "feedback_ratio",
    "feedback_weight",
    "probe_rate",
    "unlabelled_weight",
    "uncertainty_passes",
)


LARGEST = 1e9
"""Of any factor, weight or number: what is larger is a slip of the keyboard, and overflows."""
_LABELS_BY_AVERAGE = ("mean_teacher", "copy_paste")
_SHARES = (
    "warmup_fraction",
    "finetune_fraction",
    "cutmix_fraction",
    "confidence_threshold",
    "ramp_fraction",
    "round_agreement",
)


@dataclass(frozen=True, kw_only=True)
class MethodSettings:
    """Section `[method]` of a run file."""

    name: MethodName = "pseudo_rounds"
    """supervised: labelled cases only. pseudo_rounds: pseudo-labels of whole scans in rounds (the default: decision
    0023). pseudo_label: a teacher and a student, without feedback. mpl: Meta Pseudo Labels. mean_teacher, cross_pseudo
    (CPS), copy_paste (BCP): published rivals, one file each."""
    feedback: Literal["scalar", "dense"] = "dense"
    """How mpl's teacher learns from the student: one number (the paper), or one value per voxel and class."""

    optimiser: Literal["sgd", "adamw"] = "sgd"
    """Of every network: SGD with Nesterov momentum (the paper), or AdamW (Loshchilov and Hutter 2019)."""
    learning_rate: float | None = None
    """At the start; None is 0.1 for SGD (0.01 in the paper, with its momentum) and 0.003 for AdamW."""
    momentum: float = 0.9
    """Nesterov momentum of SGD; 0.99 in the paper, too slow for a few thousand steps."""
    weight_decay: float | None = None
    """L2 penalty of SGD, or AdamW's decoupled decay; None is 3e-5 (the paper's protocol) and 0.01."""
    gradient_clip: float = 12.0
    """Largest norm of a network's gradient; 12 as in nnU-Net; 0 turns clipping off."""

    warmup_fraction: float | None = None
    """Share of all steps in which only the teacher trains, on labels; its pseudo-labels are noise before. None is 0.5,
    0.3 for pseudo_rounds, 0.25 for copy_paste (as published), and 0 for mean_teacher and cross_pseudo."""
    finetune_fraction: float = 0.0
    """Share of all steps, at the end, in which the student trains on labels only."""
    finetune_rate: float = 0.1
    """Learning rate of the fine-tuning as a fraction of `learning_rate`; it decays to zero within the phase."""
    restart_rate: float | None = None
    """If above 0, the warm-up decays to zero on its own and training starts anew at this fraction of `learning_rate`,
    so that the teacher labels with settled weights; 0 is one decay over both. None is 0 for pseudo_rounds, whose
    network goes on as it is, and 0.5 for others."""
    teacher_rate: float = 0.2
    """Learning rate of the teacher in the training phase as a fraction of the student's."""
    teacher_every: int | None = None
    """In the training phase the teacher moves every so many steps, by its labels and by feedback; 0 holds it still.
    None is 4 for mpl, and 0 for pseudo_label: without feedback nothing is gained by moving it."""
    student_start: Literal["auto", "teacher", "fresh"] = "auto"
    """The student's weights after the warm-up; auto copies the teacher where the sizes agree."""

    temperature: float = 0.5
    """Divides the teacher's logits before the softmax; below 1 sharpens the pseudo-label."""
    pseudo_label: Literal["soft", "hard"] = "soft"
    """What the student learns from. Dense feedback is exact for soft labels, straight-through for hard ones."""
    confidence_threshold: float = 0.0
    """Voxels whose largest pseudo-probability is lower do not count for the student; 0 counts all."""
    teacher_mode: TeacherMode = "eval"
    """Batch norm of the teacher's labelling pass: running statistics (eval), or those of the batch (train)."""
    label_scope: Literal["auto", "patch", "scan"] = "auto"
    """What the teacher of pseudo_label and pseudo_rounds labels: each augmented patch as it is drawn, or unlabelled
    scans once, whole, after the warm-up, with hard labels (`label_scans`). A patch by itself is labelled worse
    near its faces, the more so the smaller it is against the organs. auto is scan where nothing needs the teacher's
    probabilities or moves it. pseudo_rounds labels anew in every round; its filter is of voxels then.
    With scan, temperature, pseudo_label, teacher_mode and train.refresh_steps have no effect."""
    label_scans: int = 24
    """Where whole scans are labelled: so many at a time, drawn anew each time. 0 is all of them."""
    student_supervised_weight: float = 0.0
    """Weight of an additional loss of the student on the labelled batch, at the cost of one more pass."""
    student_dice: Literal["soft", "semimetric", "off"] = "semimetric"
    """The student's Dice on its pseudo-labelled batch, beside cross-entropy. soft: it enlarges organs whose labels are
    soft; semimetric: the form that does not (decision 0013); off."""
    cutmix_fraction: float = 1.0
    """Share of the student's patches that are mixed with a labelled patch and its label; 0 is off."""
    cutmix_ways: Literal["one", "both", "whole"] | None = None
    """whole: every second patch of the student is a labelled one, and none is cut, since where a patch lies is told by
    what is around it. one: unlabelled patches with a labelled box; both: every second one is a labelled one with an
    unlabelled box. Either way of two gives the student as many true voxels as pseudo-labelled ones. None is whole for
    pseudo_label, and both for mpl, in which all patches are to have their feedback."""
    ema_decay: float = 0.99
    """Decay a step of the averaged copies of teacher and student; the student's copy is evaluated; 0 is off."""

    unlabelled_weight: float | None = None
    """Of what the rivals learn from unlabelled patches; None is as published: 0.2 for mean_teacher, 1.5 for
    cross_pseudo, 0.5 for copy_paste, else 1. pseudo_label and mpl do not look at it."""
    ramp_fraction: float = 1.0
    """mean_teacher, cross_pseudo: share of the steps over which that weight rises, and the limit of uncertainty with
    it."""
    uncertainty_passes: int = 0
    """mean_teacher: passes on noisy images by which the teacher's uncertainty is judged (UA-MT has 8); 0 trusts it."""
    rounds: int = 5
    """pseudo_rounds: rounds after the warm-up, of one length; fewer and longer ones, where scans are so large that
    labelling some for each would take long beside the training."""
    round_agreement: float = 0.7
    """pseudo_rounds, where it labels patches: those count on which the last two teachers' labels have at least this
    mean Dice."""

    feedback_normalise: Literal["auto", "on", "off"] = "auto"
    """Scale the meta gradient to `feedback_ratio` of the supervised one; auto does so for dense feedback."""
    feedback_ratio: float = 0.2
    """Norm of the meta gradient divided by that of the supervised gradient, where normalised."""
    feedback_weight: float = 1.0
    """Weight of the meta term where it is not normalised."""
    probe: Literal["sgd", "real"] = "sgd"
    """The student's step across which feedback is measured: plain SGD, or its own optimiser's (the paper)."""
    probe_rate: float = 0.01
    """Learning rate of the plain SGD probe."""
    directional_derivative: Literal["auto", "forward", "central"] = "auto"
    """Exact forward-mode differentiation, or a central difference of two plain passes. auto is central on a CPU, where
    it costs less and is as good, and forward on a GPU, where differences need convolutions without TF32."""
    central_epsilon: float = 1e-2
    """Norm of the weights' displacement in a central difference."""
    baseline_decay: float = 0.99
    """Decay of the moving average that the scalar feedback is compared with."""

    def __post_init__(self) -> None:
        if self.name not in get_args(MethodName):
            raise ConfigError(f"method.name = {self.name!r}: choose one of {', '.join(get_args(MethodName))}.")
        for field in _SHARES:
            value = getattr(self, field)
            if value is not None and not 0 <= value <= 1:
                raise ConfigError(f"method.{field} = {value}: give a number from 0 to 1.")
        if self.warmup_share + self.finetune_fraction > 1:
            raise ConfigError("method.warmup_fraction + method.finetune_fraction exceed 1: lower one of them.")
        for field in ("momentum", "ema_decay", "baseline_decay"):
            if not 0 <= getattr(self, field) < 1:
                raise ConfigError(f"method.{field} = {getattr(self, field)}: give a number from 0 to below 1.")
        for field in ("learning_rate", "temperature", "central_epsilon"):
            value = getattr(self, field)
            if value is not None and value <= 0:
                raise ConfigError(f"method.{field} = {getattr(self, field)}: give a number above 0.")
        for field in NOT_NEGATIVE:
            value = getattr(self, field)
            if value is not None and not 0 <= value <= LARGEST:
                raise ConfigError(f"method.{field} = {value}: give 0 or more, and {LARGEST:g} at most.")
        if self.rounds < 1:
            raise ConfigError(f"method.rounds = {self.rounds}: give 1 or more.")
        for field in ("teacher_every", "teacher_rate"):
            if self.name == "mpl" and getattr(self, field) == 0:
                raise ConfigError(f'method.{field} = 0 holds the teacher still: with it choose name = "pseudo_label".')

        if self.name in _LABELS_BY_AVERAGE and not self.ema_decay:
            raise ConfigError(f"method.ema_decay = 0, but the teacher of {self.name} is the average: give 0.99, say.")

        if self.label_scope == "scan" and self._needs_patch_labels:
            raise ConfigError(
                f'method.label_scope = "scan" labels once, with hard labels, but {self._needs_patch_labels} needs '
                "labels of each patch: leave one of them out."
            )

        if self.optimiser == "adamw" and self.probe == "real":
            raise ConfigError('method.probe = "real" is derived for SGD: with optimiser = "adamw" choose "sgd".')

    @property
    def first_learning_rate(self) -> float:
        """`learning_rate`, or the optimiser's own."""
        return _LEARNING_RATE[self.optimiser] if self.learning_rate is None else self.learning_rate

    @property
    def used_weight_decay(self) -> float:
        """`weight_decay`, or the optimiser's own."""
        return _WEIGHT_DECAY[self.optimiser] if self.weight_decay is None else self.weight_decay

    @property
    def warmup_share(self) -> float:
        """`warmup_fraction`, or the method's own."""
        return _WARMUP.get(self.name, 0.0) if self.warmup_fraction is None else self.warmup_fraction

    @property
    def teacher_moves_every(self) -> int:
        """`teacher_every`, or the method's own."""
        if self.teacher_every is not None:
            return self.teacher_every
        return 4 if self.name == "mpl" else 0

    @property
    def used_cutmix_ways(self) -> str:
        """`cutmix_ways`, or the method's own."""
        return self.cutmix_ways or ("both" if self.name == "mpl" else "whole")

    @property
    def labels_whole_scans(self) -> bool:
        """Whether `label_scope` comes to scan."""
        labels = self.name in ("pseudo_label", "pseudo_rounds")
        return labels and self.label_scope != "patch" and not self._needs_patch_labels

    @property
    def _needs_patch_labels(self) -> str:
        """The setting by which a teacher must label each patch anew, or nothing."""
        if self.name == "mpl":
            return 'name = "mpl"'
        needs = {
            f"teacher_every = {self.teacher_every}": self.teacher_moves_every > 0,
            f"confidence_threshold = {self.confidence_threshold}": self.confidence_threshold > 0,
        }
        return next((setting for setting, given in needs.items() if given and self.name == "pseudo_label"), "")

    @property
    def used_restart_rate(self) -> float:
        """`restart_rate`, or the method's own."""
        if self.restart_rate is not None:
            return self.restart_rate
        return 0.0 if self.name == "pseudo_rounds" else 0.5

    @property
    def weight_of_unlabelled(self) -> float:
        """`unlabelled_weight`, or the method's own."""
        return _UNLABELLED_WEIGHT.get(self.name, 1.0) if self.unlabelled_weight is None else self.unlabelled_weight

    @property
    def uses_unlabelled(self) -> bool:
        return self.name != "supervised"

    def derivative_on(self, device_type: str) -> Literal["forward", "central"]:
        """`directional_derivative`, or what is best on "cpu", "cuda" or "mps"."""
        if self.directional_derivative != "auto":
            return self.directional_derivative
        return "central" if device_type == "cpu" else "forward"

    @property
    def normalises_feedback(self) -> bool:
        return self.feedback_normalise == "on" or (self.feedback_normalise == "auto" and self.feedback == "dense")
