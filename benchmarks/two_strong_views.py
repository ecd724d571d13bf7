"""Weak to strong consistency with two strong views, as a method of a study (UniMatch without its feature perturbation:
Yang et al., CVPR 2023, section 3.3; FixMatch has one view: Sohn et al., NeurIPS 2020).

    python benchmarks/two_strong_views.py study benchmarks/hippocampus_two_views.toml --data FOLDER \\
        --output runs/hippocampus_two_views --results docs/benchmarks/hippocampus_two_views

The average of the student labels the weak view of each unlabelled patch. Two strong views of it, with other changes of
intensity and other boxes pasted from the next patch, are to get these labels where they are surer than 0.95:

    L = 1/2 (L(labelled) + 1/2 L(view 1) + 1/2 L(view 2))

The changes of intensity of the second view are those of MR, whatever section [augment] says. Everything else of the
command line is as with `semiseg`. Shapes: B batch, C channels, K classes, D H W voxels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from semiseg.augment.cutmix import apply_cutmix, sample_boxes
from semiseg.augment.intensity import apply_intensity, sample_intensity
from semiseg.augment.settings import Augmentation
from semiseg.cli import main
from semiseg.methods.base import HIDDEN, Batch, UnlabelledBatch
from semiseg.methods.build import add_method
from semiseg.methods.learner import StudentMethod, label_images
from semiseg.methods.settings import RoundPhases, SemiSupervisedSettings
from semiseg.randomness import Draw

SURE = 0.95
"""Least probability of a label that is learnt, as published."""
BOX_EDGE = (0.14, 0.63)
"""Of a pasted box, relative to the patch's: 2 to 40 % of a slice, as published, are edges of these shares."""


@dataclass(frozen=True, kw_only=True)
class TwoViewsSettings(SemiSupervisedSettings):
    """Two strong views learn the labels of a weak one."""

    name: Literal["two_views"] = "two_views"
    phases: RoundPhases = field(default_factory=RoundPhases)
    """Warm-up as long as that of rounds, then consistency."""
    strong_views: int = 2
    """1 is FixMatch."""

    title: ClassVar[str] = "two strong views"


class TwoViews(StudentMethod[TwoViewsSettings]):
    """A student and its moving average, which labels."""

    pseudo_loss: ClassVar[str] = "pseudo_loss"

    def step(self, labelled: Batch, unlabelled: UnlabelledBatch | None, draw: Draw) -> dict[str, Tensor]:
        """As `Method.step`."""
        if unlabelled is None:
            return self.labelled_step(labelled)
        with torch.no_grad():
            sure, labels = label_images(self.student.settled, unlabelled.weak, self.autocast).softmax(1).max(1)
        labels = labels.masked_fill(sure < SURE, HIDDEN)
        # The first strong view is the run's own; the second one changes the weak view's intensities anew.
        channels = unlabelled.weak.shape[1]
        changes = sample_intensity(
            draw, len(labels), channels, Augmentation().without_unit(), purpose="second strong view"
        )
        strong = [unlabelled.strong, apply_intensity(unlabelled.weak, changes)][: self.settings.strong_views]
        views = [_pasted(images, labels, draw, f"boxes of view {i}") for i, images in enumerate(strong)]
        count = len(labelled.images)
        logits = self.student.logits(torch.cat([labelled.images, *(images for images, _ in views)]))
        loss = self.losses.labelled(labelled.labels, logits[:count], self.ignore)
        learnt = [
            self.losses.labelled(taught, part, HIDDEN)
            for (_, taught), part in zip(views, logits[count:].chunk(len(views)), strict=True)
        ]
        pseudo = torch.stack(learnt).mean()
        norm = self.student.step((loss + pseudo) / 2, self.learning_rate_factor)
        return {
            "labelled_loss": loss.detach(),
            "pseudo_loss": pseudo.detach(),
            "sure": (labels != HIDDEN).float().mean(),
            "gradient_norm": norm,
        }


def _pasted(images: Tensor, labels: Tensor, draw: Draw, purpose: str) -> tuple[Tensor, Tensor]:
    """Half of the patches `(B, C, D, H, W)`, and of their labels `(B, D, H, W)`, with a box of the next patch."""
    depth, height, width = labels.shape[1:]
    boxes = sample_boxes(draw, len(labels), (depth, height, width), BOX_EDGE, purpose)
    boxes[draw.generator(f"{purpose}, whether").random(len(labels)) < 0.5] = 0
    return (apply_cutmix(images, images.roll(1, 0), boxes)[0], apply_cutmix(labels, labels.roll(1, 0), boxes)[0])


add_method(TwoViewsSettings, TwoViews)

if __name__ == "__main__":
    main()
