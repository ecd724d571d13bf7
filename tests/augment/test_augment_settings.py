from __future__ import annotations

import math

import pytest

from semiseg.augment.settings import TURNED_PROBABILITY, AugmentSettings
from semiseg.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("noise_probability", 1.5),
        ("zoom", (1.4, 0.7)),
        ("elastic_deviation", (3.0, 1.0)),
        ("elastic_spacing", 0.5),
        ("gamma", (0.0, 1.0)),
        ("low_resolution", (0.5, 1.5)),
        ("rotation_radians", (30.0, 30.0, 30.0)),
        ("mirror_axes", (0, 3)),
        ("coarse_axis", 3),
    ],
)
def test_a_wrong_value_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"augment\.{name}"):
        AugmentSettings(**{name: value})


def test_weak_settings_keep_the_geometry() -> None:
    settings = AugmentSettings(weak_intensity=True)
    weak = settings.weak()
    assert weak.brightness_probability == settings.brightness_probability
    assert weak.noise_probability == weak.gamma_probability == 0
    assert weak.rotation_probability == settings.rotation_probability
    assert AugmentSettings().weak().brightness_probability == 0


USUAL = (30.0, 30.0, 30.0)


def test_the_plan_fills_in_what_is_not_said() -> None:
    settings = AugmentSettings(rotation_probability=0.2)
    upright = settings.suited_to(None, (2,), USUAL)
    assert (upright.mirror_axes, upright.coarse_axis) == ((2,), None)
    assert upright.rotation_radians == pytest.approx(settings.rotation_radians)
    assert upright.rotation_probability == 0.2
    turned = settings.suited_to(0, (1, 2), (180.0, 30.0, 30.0))
    assert (turned.mirror_axes, turned.coarse_axis) == ((1, 2), 0)
    assert turned.rotation_radians == pytest.approx((math.pi, math.pi / 6, math.pi / 6))
    assert turned.rotation_probability == TURNED_PROBABILITY
    assert AugmentSettings(mirror_axes=()).suited_to(None, (1, 2), USUAL).mirror_axes == ()  # said: not at all


def test_intensities_without_a_unit_are_changed_more_unless_it_is_said_how() -> None:
    usual = AugmentSettings()
    assert usual.suited_to(None, (), USUAL, has_unit=True).gamma == usual.gamma
    wider = usual.suited_to(None, (), USUAL, has_unit=False)
    assert wider.gamma[0] < usual.gamma[0] < usual.gamma[1] < wider.gamma[1]
    assert wider.contrast_probability > usual.contrast_probability
    assert (wider.noise_probability, wider.zoom) == (usual.noise_probability, usual.zoom)
    said = AugmentSettings(gamma=(0.9, 1.1), brightness_probability=0.0)
    given = said.suited_to(None, (), USUAL, has_unit=False)
    assert (given.gamma, given.brightness_probability) == ((0.9, 1.1), 0.0)
    assert given.brightness == wider.brightness
