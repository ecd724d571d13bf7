"""Settings that are newer than some runs and studies, and what they have to be for all to be as it was before them."""

AS_BEFORE = {
    "augment.elastic_probability": 0.0,
    "method.cutmix_ways": "both",
    "method.label_scope": "patch",
    "sampling.reach_outside": False,
}
"""By `section.key`, where that is not the default: settings that are not here came with one that changes nothing."""
