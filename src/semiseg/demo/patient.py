"""Who lies in the scanner: build, pose, covered range, contrast phase and the HU of each tissue."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from semiseg.demo.shapes import Vector
from semiseg.geometry import triple
from semiseg.randomness import Draw

Phase = Literal["native", "arterial", "portal", "delayed"]
PHASES: tuple[Phase, ...] = ("native", "arterial", "portal", "delayed")
_PHASE_WEIGHTS = (0.15, 0.2, 0.5, 0.15)

# Typical HU in the native, arterial, portal and delayed phase; pairs of organs share a row, so left equals right.
_HU: dict[str, tuple[float, float, float, float]] = {
    "liver": (55, 65, 108, 88),
    "hepatic_veins": (42, 55, 150, 98),
    "portal_vein": (42, 75, 160, 100),
    "spleen": (48, 105, 118, 88),
    "kidney_cortex": (33, 165, 175, 135),
    "kidney_medulla": (30, 60, 150, 140),
    "kidney_sinus": (-40, -30, -20, 120),
    "pancreas": (40, 98, 92, 72),
    "aorta": (42, 290, 150, 98),
    "vena_cava": (40, 70, 135, 100),
    "adrenal": (24, 72, 68, 50),
    "bile": (9, 9, 10, 12),
    "oesophagus": (38, 55, 62, 56),
    "gut_wall": (38, 72, 78, 62),
    "muscle": (52, 58, 62, 60),
    "heart": (42, 220, 145, 100),
    "marrow": (180, 190, 200, 195),
    "cortical_bone": (520, 520, 530, 530),
    "disc": (75, 78, 80, 80),
    "spinal_canal": (22, 24, 26, 26),
    "fat": (-102, -102, -102, -102),
    "gas": (-900, -900, -900, -900),
    "lung": (-840, -835, -830, -835),
    "fluid": (12, 12, 14, 14),
}
_FIXED = frozenset({"bile", "disc", "spinal_canal", "fat", "gas", "lung", "fluid", "cortical_bone", "marrow"})


@dataclass(frozen=True, kw_only=True)
class Patient:
    """One draw of a person and a scan.

    scale: size of the frame along x, y, z against the nominal adult. fat_mm: thickness of the fat under the skin.
    turn_deg: pose about x, y, z. low_mm, high_mm: the range that the scan covers, from the level of the kidneys.
    hu: HU of each tissue in this scan. noise_hu: deviation of the image noise.
    """

    scale: Vector
    fat_mm: float
    turn_deg: Vector
    low_mm: float
    high_mm: float
    phase: Phase
    hu: dict[str, float]
    noise_hu: float


def draw_patient(draw: Draw) -> Patient:
    """Everything about a patient that is one number."""
    rng = draw.generator("patient")
    size = rng.normal(1.0, 0.05)
    scale = triple(float(np.clip(size * rng.normal(1.0, 0.04), 0.86, 1.14)) for _ in range(3))
    turn = triple(float(rng.normal(0, 3.0)) for _ in range(3))
    low, high = _covered_range(rng)
    phase = PHASES[rng.choice(len(PHASES), p=_PHASE_WEIGHTS)]
    return Patient(
        scale=scale,
        fat_mm=float(8 + 24 * rng.beta(1.6, 2.4)),
        turn_deg=turn,
        low_mm=low,
        high_mm=high,
        phase=phase,
        hu=_tissue_hu(phase, draw.generator("tissue")),
        noise_hu=float(rng.uniform(7, 18)),
    )


def _covered_range(rng: np.random.Generator) -> tuple[float, float]:
    """Two in five scans end within the organs, at one end: through the kidneys, or below the dome of the liver."""
    low, high = float(rng.uniform(-110, -75)), float(rng.uniform(112, 145))
    kind = rng.random()
    if kind < 0.2:
        low = float(rng.uniform(-45, -15))
    elif kind < 0.4:
        high = float(rng.uniform(62, 90))
    return low, high


def _tissue_hu(phase: Phase, rng: np.random.Generator) -> dict[str, float]:
    """The table's row, with the dose and timing of the contrast, a fatty liver in some, and a scatter per tissue."""
    now = PHASES.index(phase)
    later = now if phase == "native" else min(now + 1, len(PHASES) - 1)
    delay, dose, steatosis = rng.uniform(0, 0.3), rng.uniform(0.75, 1.2), rng.random()
    hu = {}
    for name, row in _HU.items():
        uptake = (1 - delay) * (row[now] - row[0]) + delay * (row[later] - row[0])
        hu[name] = row[0] + dose * uptake + (0.0 if name in _FIXED else rng.normal(0, 5))
    if steatosis < 0.2:
        hu["liver"] -= float(rng.uniform(15, 45))
    return hu
