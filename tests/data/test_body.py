"""Where the body is: in CTs with and without air around it, and to its thin ends."""

from __future__ import annotations

import numpy as np

from semiseg.data.body import body_locations, body_parts
from semiseg.io.scans import RawChannel

AIR, FAT, TISSUE, BONE = -1000, -100, 40, 350


def test_a_crop_without_air_is_body_all_over() -> None:
    """Otsu's threshold of it tells bone from tissue."""
    crop = np.full((20, 30, 30), TISSUE, dtype=np.float32)
    crop += np.random.default_rng(0).normal(0, 20, crop.shape).astype(np.float32)
    crop[:, 10:20, 10:20] = BONE
    crop[:, :3] = FAT
    assert body_parts(crop).all()


def test_air_around_a_body_is_left_out() -> None:
    scan = np.full((20, 40, 40), AIR, dtype=np.float32)
    scan[:, 10:30, 10:30] = TISSUE
    scan[:, 15:20, 15:20] = BONE
    assert np.array_equal(body_parts(scan), scan > AIR)


def test_thin_ends_are_among_the_places() -> None:
    """Labelled is what lies between the outermost places, and so many drawn by chance miss a thin end."""
    scan = np.full((90, 60, 60), AIR, dtype=np.int16)
    scan[10:60, 5:55, 5:55] = TISSUE
    scan[60:80, 28:32, 28:32] = TISSUE
    places = body_locations(
        RawChannel(scan, 1.0, 0.0), (180, 60, 60), ct=True, count=64, generator=np.random.default_rng(0)
    )
    assert len(places) == 64
    assert (np.min(places, axis=0) <= (21, 5, 5)).all()
    assert (np.max(places, axis=0) >= (158, 54, 54)).all()
