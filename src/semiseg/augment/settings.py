"""What augmentation may do, and how often: what a person sets, and the ranges and probabilities that follow from it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from semiseg.errors import ConfigError

TURNED_PROBABILITY = 0.5
"""That a sample is rotated, where scans lie in any way in a plane."""


@dataclass(frozen=True, kw_only=True)
class AugmentSettings:
    """Section `[augment]` of a run file. What is not set follows from the scans."""

    enabled: bool = True
    """Whether anything is augmented."""
    mirror_axes: tuple[int, ...] | None = None
    """Axes (0 Z, 1 Y, 2 X) along which a sample is mirrored, each with probability 1/2. Not set: what the labelled
    scans show (the plan's). Left and right are exchanged in mirror pairs."""
    turn_degrees: tuple[float, float, float] | None = None
    """Largest angles about the Z, Y and X axis, in either direction. Not set: what the labelled scans show (the
    plan's)."""
    zoom: tuple[float, float] = (0.7, 1.4)
    """Range of the size of the anatomy after scaling relative to before, the same along all axes."""
    elastic: bool = True
    """Whether half of the samples are deformed."""
    intensities: bool = True
    """Whether noise, blur, resolution, brightness, contrast and histograms are changed: as in nnU-Net, and about twice
    as much where intensities have no unit (MRI)."""

    def __post_init__(self) -> None:
        low, high = self.zoom
        if not 0.1 <= low <= high < math.inf:
            raise ConfigError(f"augment.zoom = {self.zoom} is no range; give two numbers from 0.1 on, the lower first.")
        if self.turn_degrees is not None and not all(0 <= angle <= 180 for angle in self.turn_degrees):
            raise ConfigError(f"augment.turn_degrees = {self.turn_degrees} must be three angles from 0 to 180.")
        axes = self.mirror_axes or ()
        if not set(axes) <= {0, 1, 2} or len(set(axes)) != len(axes):
            raise ConfigError(
                f"augment.mirror_axes = {self.mirror_axes} must name axes once each: 0 (Z), 1 (Y), 2 (X)."
            )

    def suited_to(
        self,
        coarse_axis: int | None = None,
        mirror_axes: tuple[int, ...] = (),
        turn_degrees: tuple[float, float, float] = (30.0, 30.0, 30.0),
        *,
        has_unit: bool = True,
    ) -> Augmentation:
        """The augmentation of a run, with what the plan says where nothing is asked for: the axis that is not
        interpolated along, those to mirror along, how far scans are turned, and wider changes of intensities that have
        no unit."""
        if not self.enabled:
            return Augmentation.none()
        z, y, x = map(math.radians, self.turn_degrees or turn_degrees)
        turns = [angle for axis, angle in enumerate((z, y, x)) if coarse_axis in (None, axis)]
        found = Augmentation(
            coarse_axis=coarse_axis,
            mirror_axes=mirror_axes if self.mirror_axes is None else self.mirror_axes,
            rotation_radians=(z, y, x),
            rotation_probability=TURNED_PROBABILITY if max(turns) > math.pi - 1e-6 else 0.2,
            zoom=self.zoom,
            elastic_probability=0.5 if self.elastic else 0.0,
        )
        if not self.intensities:
            return replace(found.weak(), histogram_probability=0.0)
        return found if has_unit else found.without_unit()


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Ranges and probabilities of augmentation; the defaults are nnU-Net's, which has no elastic deformation.

    Probabilities of the spatial part are per sample, those of the intensity part per sample and channel.
    Raises `ValueError` for a probability outside [0, 1], a range that is empty, a factor that is not positive or
    nodes less than a voxel apart.
    """

    enabled: bool = True
    """Whether anything is augmented; `Augmentation.none()` switches all of it off."""
    coarse_axis: int | None = None
    """Axis (0 Z, 1 Y, 2 X) along which nothing is interpolated: rotation is about it only, and zoom, elastic
    deformation and low resolution leave it alone; None means an isotropic plan."""

    rotation_probability: float = 0.2
    """Probability that a sample is rotated."""
    rotation_radians: tuple[float, float, float] = (math.pi / 6, math.pi / 6, math.pi / 6)
    """Largest angle about the Z, Y and X axis in either direction; 30 degrees, as a patient may lie in a scanner."""
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
    mirror_axes: tuple[int, ...] = ()
    """Axes (0 Z, 1 Y, 2 X) along which a sample is mirrored, each with probability 1/2. Left and right are exchanged in
    mirror pairs."""

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
    are nnU-Net's for intensities with a unit (CT)."""
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

    @classmethod
    def none(cls) -> Augmentation:
        """No augmentation at all: every view equals its input bit for bit."""
        return cls(enabled=False)

    def weak(self) -> Augmentation:
        """That of the teacher's weak view: no change of intensities, since a pseudo-label should be as good as the
        teacher can make it."""
        return replace(
            self,
            noise_probability=0.0,
            blur_probability=0.0,
            brightness_probability=0.0,
            contrast_probability=0.0,
            low_resolution_probability=0.0,
            gamma_probability=0.0,
            inverted_gamma_probability=0.0,
        )

    def without_unit(self) -> Augmentation:
        """That of scans whose intensities mean nothing by themselves (MRI): patients differ more than a few labelled
        ones show (docs/lab/first_hour.md)."""
        return replace(
            self,
            brightness_probability=0.3,
            brightness=(0.6, 1.6),
            contrast_probability=0.3,
            contrast=(0.6, 1.6),
            gamma_probability=0.5,
            gamma=(0.5, 2.0),
        )
