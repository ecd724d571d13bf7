from __future__ import annotations

import pytest

from semiseg.augment.settings import AugmentSettings
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
