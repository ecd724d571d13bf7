"""From what a person sets and what the plan says to the ranges of augmentation."""

from __future__ import annotations

import math

import pytest

from semiseg.augment.settings import TURNED_PROBABILITY, Augmentation, AugmentSettings
from semiseg.errors import ConfigError

USUAL = (30.0, 30.0, 30.0)


@pytest.mark.parametrize(
    ("name", "value"),
    [("zoom", (1.4, 0.7)), ("zoom", (0.0, 1.0)), ("turn_degrees", (30.0, 181.0, 0.0)), ("mirror_axes", (0, 3))],
)
def test_a_wrong_value_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"augment\.{name}"):
        AugmentSettings(**{name: value})  # type: ignore[arg-type]


def test_the_weak_view_keeps_the_geometry_and_no_change_of_intensities() -> None:
    weak = Augmentation().weak()
    assert weak.noise_probability == weak.gamma_probability == weak.brightness_probability == 0
    assert weak.rotation_probability == Augmentation().rotation_probability > 0


def test_the_plan_fills_in_what_is_not_said() -> None:
    settings = AugmentSettings()
    upright = settings.suited_to(None, (2,), USUAL)
    assert (upright.mirror_axes, upright.coarse_axis) == ((2,), None)
    assert upright.rotation_radians == pytest.approx(Augmentation().rotation_radians)
    assert upright.rotation_probability == 0.2
    turned = settings.suited_to(0, (1, 2), (180.0, 30.0, 30.0))
    assert (turned.mirror_axes, turned.coarse_axis) == ((1, 2), 0)
    assert turned.rotation_radians == pytest.approx((math.pi, math.pi / 6, math.pi / 6))
    assert turned.rotation_probability == TURNED_PROBABILITY
    assert AugmentSettings(mirror_axes=()).suited_to(None, (1, 2), USUAL).mirror_axes == ()  # said: not at all


def test_what_is_said_comes_before_what_the_plan_says() -> None:
    said = AugmentSettings(turn_degrees=(10.0, 0.0, 0.0), zoom=(0.9, 1.1), elastic=False)
    found = said.suited_to(None, (), (180.0, 30.0, 30.0))
    assert found.rotation_radians == pytest.approx((math.radians(10), 0, 0))
    assert (found.rotation_probability, found.zoom, found.elastic_probability) == (0.2, (0.9, 1.1), 0.0)
    assert AugmentSettings(enabled=False).suited_to() == Augmentation.none()


def test_intensities_without_a_unit_are_changed_more() -> None:
    usual = AugmentSettings().suited_to(has_unit=True)
    assert usual.gamma == Augmentation().gamma
    wider = AugmentSettings().suited_to(has_unit=False)
    assert wider.gamma[0] < usual.gamma[0] < usual.gamma[1] < wider.gamma[1]
    assert wider.contrast_probability > usual.contrast_probability
    assert (wider.noise_probability, wider.zoom) == (usual.noise_probability, usual.zoom)


@pytest.mark.parametrize("has_unit", [True, False])
def test_intensities_may_stay_as_they_are(has_unit: bool) -> None:
    found = AugmentSettings(intensities=False).suited_to(has_unit=has_unit)
    assert found.gamma_probability == found.contrast_probability == found.histogram_probability == 0
    assert found.zoom_probability > 0
