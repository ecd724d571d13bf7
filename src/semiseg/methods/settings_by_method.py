"""Which methods use which setting of section `[method]`."""

from __future__ import annotations

_WITH_A_TEACHER = ("mpl", "pseudo_label")
ANY_STUDENT = ("supervised", *_WITH_A_TEACHER)
"""Methods that have no teacher, or one of its own size beside the student."""
_OF_FEEDBACK = (
    "feedback",
    "feedback_normalise",
    "feedback_ratio",
    "feedback_weight",
    "probe",
    "probe_rate",
    "directional_derivative",
    "central_epsilon",
    "baseline_decay",
)
_OF_A_TEACHER = (
    "teacher_rate",
    "teacher_every",
    "student_start",
    "temperature",
    "pseudo_label",
    "confidence_threshold",
    "student_supervised_weight",
    "student_dice",
    "cutmix_fraction",
    "cutmix_ways",
)
USED_BY: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(_OF_FEEDBACK, ("mpl",)),
    **dict.fromkeys(_OF_A_TEACHER, _WITH_A_TEACHER),
    **dict.fromkeys(("label_scope", "label_scans"), ("pseudo_label", "pseudo_rounds")),
    "teacher_mode": (*_WITH_A_TEACHER, "pseudo_rounds", "mean_teacher", "copy_paste"),
    "round_agreement": ("pseudo_rounds",),
    "rounds": ("pseudo_rounds",),
    "unlabelled_weight": ("pseudo_rounds", "mean_teacher", "cross_pseudo", "copy_paste"),
    "ramp_fraction": ("mean_teacher", "cross_pseudo"),
    "uncertainty_passes": ("mean_teacher",),
}
"""Methods by setting. All of them use what is not here."""


def others_that_use(key: str, method: str) -> tuple[str, ...]:
    """The methods that use the setting `section.key`, where this one does not; otherwise none."""
    section, _, name = key.partition(".")
    users = USED_BY.get(name, ()) if section == "method" else ()
    return () if method in users else users
