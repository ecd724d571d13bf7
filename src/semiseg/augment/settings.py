"""What augmentation may do, and how often."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from semiseg.errors import ConfigError

TURNED_PROBABILITY = 0.5
"""That a sample is rotated, where scans lie in any way in a plane."""


@dataclass(frozen=True, kw_only=True)
class AugmentSettings:
    """Ranges and probabilities of augmentation; the defaults are nnU-Net's, which has no elastic deformation.

    Probabilities of the spatial part are per sample, those of the intensity part per sample and channel.
    Raises `ConfigError` for a probability outside [0, 1], a range that is empty, a factor that is not positive or
    nodes less than a voxel apart.
    """

    enabled: bool = True
    """Whether anything is augmented; `AugmentSettings.none()` switches all of it off."""
    coarse_axis: int | None = None
    """Axis (0 Z, 1 Y, 2 X) along which nothing is interpolated: rotation is about it only, and zoom, elastic
    deformation and low resolution leave it alone; the run sets it from the plan's anisotropic axis, and None means
    an isotropic plan."""

    rotation_probability: float = 0.2
    """Probability that a sample is rotated."""
    rotation_radians: tuple[float, float, float] = (math.pi / 6, math.pi / 6, math.pi / 6)
    """Largest angle about the Z, Y and X axis in either direction; 30 degrees, as a patient may lie in a
    scanner, and more where labelled scans are turned by more, unless given."""
    zoom_probability: float = 0.2
    """Probability that a sample is scaled."""
    zoom: tuple[float, float] = (0.7, 1.4)
    """Range of the size of the anatomy after scaling relative to before, the same along all axes."""
    elastic_probability: float = 0.5
    """Probability of an elastic deformation: random displacements of nodes, linear between them. Near the largest
    deviation neighbouring nodes may pass each other, and a few voxels in a hundred are folded."""
    elastic_deviation: tuple[float, float] = (0.0, 3.0)
    """Range of the standard deviation of a node's displacement along each axis, in voxels."""
    elastic_spacing: float = 8.0
    """Largest distance between neighbouring nodes, in voxels; they lie closer where the patch's edge asks for it."""
    mirror_axes: tuple[int, ...] | None = None
    """Axes (0 Z, 1 Y, 2 X) along which a sample is mirrored, each with probability 1/2; None is what the labelled scans
    show (the plan's). Left and right are exchanged in mirror pairs."""

    noise_probability: float = 0.1
    """Probability of additive Gaussian noise."""
    noise_deviation: tuple[float, float] = (0.0, 0.1)
    """Range of the noise's standard deviation in normalised intensity (nnU-Net calls it variance)."""
    blur_probability: float = 0.1
    """Probability of Gaussian blur: nnU-Net's 0.2 per sample times 0.5 per channel."""
    blur_sigma: tuple[float, float] = (0.5, 1.0)
    """Range of the blur's standard deviation in voxels."""
    brightness_probability: float = 0.15
    """Probability that intensities are multiplied by a factor. This one, those of contrast and gamma, and their ranges
    are nnU-Net's for intensities with a unit (CT); where there is none they are about twice as large, unless given."""
    brightness: tuple[float, float] = (0.75, 1.25)
    """Range of the brightness factor."""
    contrast_probability: float = 0.15
    """Probability that the distance of intensities from their mean is multiplied by a factor."""
    contrast: tuple[float, float] = (0.75, 1.25)
    """Range of the contrast factor; results are clipped to the range before."""
    low_resolution_probability: float = 0.125
    """Probability of a simulated low resolution: nnU-Net's 0.25 per sample times 0.5 per channel."""
    low_resolution: tuple[float, float] = (0.5, 1.0)
    """Range of the size to which each axis is reduced (nearest) before it is enlarged again (linear)."""
    gamma_probability: float = 0.3
    """Probability of a gamma curve on the intensities."""
    inverted_gamma_probability: float = 0.1
    """Probability of a gamma curve on the negated intensities, which acts on the bright end."""
    gamma: tuple[float, float] = (0.7, 1.5)
    """Range of the exponent of both gamma curves; mean and deviation are kept."""

    histogram_probability: float = 0.3
    """Probability that a labelled sample gets the histogram of another scan, labelled or not, by half on average; in
    channels that are normalised scan by scan, whose intensities have no unit."""

    weak_intensity: bool = False
    """Whether the teacher's weak view gets the changes of brightness and contrast; off, since a pseudo-label
    should be as good as the teacher can make it."""

    def __post_init__(self) -> None:
        for name in _PROBABILITIES:
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ConfigError(f"augment.{name} = {value} is no probability; choose a value from 0 to 1.")
        for name, lowest in _RANGES.items():
            low, high = getattr(self, name)
            if not lowest <= low <= high < math.inf:
                raise ConfigError(
                    f"augment.{name} = {(low, high)} is no range; give two numbers, the lower one first and "
                    f"not below {lowest:g}."
                )
        if not 1 <= self.elastic_spacing < math.inf:
            raise ConfigError(
                f"augment.elastic_spacing = {self.elastic_spacing} must be a distance of 1 voxel or more."
            )
        if not 0 < self.low_resolution[1] <= 1:
            raise ConfigError(f"augment.low_resolution = {self.low_resolution} must not go above 1.")
        if not all(0 <= angle <= math.pi for angle in self.rotation_radians):
            raise ConfigError(
                f"augment.rotation_radians = {self.rotation_radians} must be three angles from 0 to pi; "
                "30 degrees are 0.5236."
            )
        self._check_axes()

    def _check_axes(self) -> None:
        axes = self.mirror_axes or ()
        if not set(axes) <= {0, 1, 2} or len(set(axes)) != len(axes):
            raise ConfigError(
                f"augment.mirror_axes = {self.mirror_axes} must name axes once each: 0 (Z), 1 (Y), 2 (X)."
            )
        if self.coarse_axis not in (None, 0, 1, 2):
            raise ConfigError(
                f"augment.coarse_axis = {self.coarse_axis} is no axis; give 0 (Z), 1 (Y), 2 (X) or nothing."
            )

    def suited_to(
        self,
        coarse_axis: int | None,
        mirror_axes: tuple[int, ...],
        turn_degrees: tuple[float, float, float],
        *,
        has_unit: bool = True,
    ) -> AugmentSettings:
        """The settings with what the plan says filled in: the axis that is not interpolated along, those to mirror
        along, how far scans are turned, and wider changes of intensities that have no unit; but for those that are
        asked for otherwise."""
        usual, changes = AugmentSettings(), {} if has_unit else dict(_WITHOUT_UNIT)
        z, y, x = map(math.radians, turn_degrees)
        changes["rotation_radians"] = (z, y, x)
        turns = [angle for axis, angle in enumerate((z, y, x)) if coarse_axis in (None, axis)]
        if max(turns) > math.pi - 1e-6:
            changes["rotation_probability"] = TURNED_PROBABILITY
        asked_for = {name for name in changes if getattr(self, name) != getattr(usual, name)}
        return replace(
            self,
            **{name: value for name, value in changes.items() if name not in asked_for},
            coarse_axis=coarse_axis,
            mirror_axes=mirror_axes if self.mirror_axes is None else self.mirror_axes,
        )

    @classmethod
    def none(cls) -> AugmentSettings:
        """No augmentation at all: every view equals its input bit for bit."""
        return cls(enabled=False)

    def weak(self) -> AugmentSettings:
        """The settings of the teacher's weak view: at most brightness and contrast change the intensities."""
        kept = self.weak_intensity
        return replace(
            self,
            noise_probability=0.0,
            blur_probability=0.0,
            brightness_probability=self.brightness_probability if kept else 0.0,
            contrast_probability=self.contrast_probability if kept else 0.0,
            low_resolution_probability=0.0,
            gamma_probability=0.0,
            inverted_gamma_probability=0.0,
        )


_PROBABILITIES = (
    "rotation_probability",
    "zoom_probability",
    "elastic_probability",
    "noise_probability",
    "blur_probability",
    "brightness_probability",
    "contrast_probability",
    "low_resolution_probability",
    "gamma_probability",
    "inverted_gamma_probability",
    "histogram_probability",
)
_WITHOUT_UNIT: dict[str, Any] = {
    "brightness_probability": 0.3,
    "brightness": (0.6, 1.6),
    "contrast_probability": 0.3,
    "contrast": (0.6, 1.6),
    "gamma_probability": 0.5,
    "gamma": (0.5, 2.0),
}
"""Of scans whose intensities mean nothing by themselves (MRI): patients differ more than a few labelled ones show
(docs/lab/first_hour.md)."""
_RANGES = {
    "zoom": 0.1,
    "elastic_deviation": 0.0,
    "noise_deviation": 0.0,
    "blur_sigma": 0.01,
    "brightness": 0.01,
    "contrast": 0.01,
    "low_resolution": 0.1,
    "gamma": 0.01,
}
"""Ranges and the lowest value that each allows."""
