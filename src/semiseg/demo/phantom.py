"""One generated abdominal CT with its thirteen organs, from one key of random numbers."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter

from semiseg.demo.background import (
    CAVITY_CENTRE,
    paint_body,
    paint_bowel,
    paint_chest,
    paint_muscles,
    paint_skeleton,
    paint_table,
)
from semiseg.demo.canvas import Canvas
from semiseg.demo.organs import paint_organs
from semiseg.demo.patient import Patient, draw_patient
from semiseg.demo.shapes import rotation
from semiseg.errors import ConfigError
from semiseg.geometry import triple
from semiseg.ops.operators import zoom_operator
from semiseg.randomness import Draw
from semiseg.types import FloatArray, LabelArray, Shape, Spacing

_AIR_HU = -1000.0
_LOWEST_HU, _HIGHEST_HU = -1024.0, 1500.0
_BEND_MM = 4.5
_BEND_LENGTH_MM = 70.0


def phantom_case(draw: Draw, *, shape_zyx: Shape, spacing_mm: Spacing) -> tuple[FloatArray, LabelArray]:
    """A CT in HU, float32 `(Z, Y, X)` of whole numbers, and its label map, uint8, both in canonical orientation.

    draw: key of the patient; the same key on a finer grid is the same patient. shape_zyx, spacing_mm: the grid, whose
    middle lies in the middle of the covered range (`draw_grid` draws one that fits).
    """
    if min(shape_zyx) < 8 or min(spacing_mm) <= 0:
        raise ConfigError(
            f"a phantom needs 8 voxels along each axis and positive spacings, not {shape_zyx} of {spacing_mm} mm. "
            "Take a larger grid."
        )
    patient = draw_patient(draw)
    world = _grid_points(patient, shape_zyx, spacing_mm)
    points = _patient_points(world, patient, draw, spacing_mm)
    canvas = Canvas(
        points=points,
        voxel_mm=float(np.mean(spacing_mm)),
        image=np.full(shape_zyx, _AIR_HU, dtype=np.float32),
        label=np.zeros(shape_zyx, dtype=np.uint8),
    )
    paint_body(canvas, patient)
    paint_muscles(canvas, patient, draw)
    paint_bowel(canvas, patient, draw)
    paint_chest(canvas, patient, draw)
    paint_skeleton(canvas, patient, draw)
    paint_organs(canvas, patient, draw)
    paint_table(canvas, patient, world)
    image = _add_noise(canvas.image, patient, draw)
    return np.rint(np.clip(image, _LOWEST_HU, _HIGHEST_HU)).astype(np.float32), canvas.label


def draw_grid(draw: Draw, *, spacing_mm: Spacing, shape_zyx: Shape | None = None) -> tuple[Shape, Spacing]:
    """A grid as a scanner would choose it: in plane the field of view fits the patient, along z the covered range.

    spacing_mm: nominal voxel size, from which each scan's own differs by up to a sixth. shape_zyx: if given, exactly
    this many voxels, with spacings that cover the same field of view.
    """
    patient = draw_patient(draw)
    rng = draw.generator("grid")
    field = np.array(
        [
            (patient.high_mm - patient.low_mm) * patient.scale[2],
            2 * (125 + patient.fat_mm) * patient.scale[1] * rng.uniform(1.0, 1.1),
            2 * (158 + patient.fat_mm) * patient.scale[0] * rng.uniform(1.0, 1.1),
        ]
    )
    if shape_zyx is None:
        spacing = np.array(spacing_mm) * [rng.uniform(0.9, 1.1), *[rng.uniform(0.88, 1.0)] * 2]
        counts = np.maximum(8, np.rint(field / spacing)).astype(int)
    else:
        counts, spacing = np.array(shape_zyx), field / np.array(shape_zyx)
    return triple(map(int, counts)), triple(round(float(mm), 3) for mm in spacing)


def _grid_points(patient: Patient, shape_zyx: Shape, spacing_mm: Spacing) -> FloatArray:
    """`(3, Z, Y, X)` x, y, z in mm of the voxel centres; 0 is the middle of the spine at the level of the kidneys."""
    middle = ((patient.low_mm + patient.high_mm) / 2 * patient.scale[2], CAVITY_CENTRE[1] - 10, 0.0)
    axes = [
        (np.arange(count) - (count - 1) / 2) * step + centre
        for count, step, centre in zip(shape_zyx, spacing_mm, middle, strict=True)
    ]
    z, y, x = np.meshgrid(*axes, indexing="ij")
    return np.stack([x, y, z]).astype(np.float32)


def _patient_points(world: FloatArray, patient: Patient, draw: Draw, spacing_mm: Spacing) -> FloatArray:
    """The place of each voxel in the nominal body: pose and size undone, and a smooth bend added."""
    turned = np.tensordot(rotation(patient.turn_deg).astype(np.float32), world, axes=1)
    points = turned / np.array(patient.scale, dtype=np.float32).reshape(3, 1, 1, 1)
    rng = draw.generator("bend")
    shape = world.shape[1:]
    for axis in range(3):
        points[axis] += _BEND_MM * _smooth_field(rng, shape, spacing_mm, _BEND_LENGTH_MM)
    return points


def _smooth_field(rng: np.random.Generator, shape: Shape, spacing_mm: Spacing, length_mm: float) -> FloatArray:
    """A random field of unit deviation that varies over about `length_mm`: a coarse lattice, cubically interpolated."""
    lattice = [max(4, round(n * s / length_mm) + 1) for n, s in zip(shape, spacing_mm, strict=True)]
    field = rng.standard_normal(lattice).astype(np.float32)
    for count, nodes in zip(shape, lattice, strict=True):
        spline = zoom_operator(nodes, count, order=3).astype(np.float32)
        field = np.tensordot(field, spline, axes=(0, 1))  # the next axis comes to the front
    return np.asarray(field, dtype=np.float32)


def _add_noise(image: FloatArray, patient: Patient, draw: Draw) -> FloatArray:
    """Correlated noise, stronger in the middle of the body, over a faint mottle of the tissues."""
    rng = draw.generator("noise")
    grain = gaussian_filter(rng.standard_normal(image.shape).astype(np.float32), (0.3, 0.6, 0.6), mode="wrap")
    mottle = gaussian_filter(rng.standard_normal(image.shape).astype(np.float32), 1.2, mode="wrap")
    inside = gaussian_filter((image > -300).astype(np.float32), 4)
    noise = patient.noise_hu * (0.5 + 0.7 * inside) * grain / grain.std()
    return np.asarray(image + noise + 4.0 * inside * mottle / mottle.std(), dtype=np.float32)
