"""Everything that is not one of the thirteen organs: wall, fat, lungs, skeleton, muscles and bowel."""

from __future__ import annotations

import numpy as np

from semiseg.demo.canvas import Canvas
from semiseg.demo.patient import Patient
from semiseg.demo.shapes import column, ellipsoid, tube
from semiseg.randomness import Draw
from semiseg.types import DoubleArray, FloatArray

CAVITY_CENTRE = (0.0, 47.0)
CAVITY_RADII = (142.0, 92.0)
_WALL_MM = 13.0
_RIB_STEP_MM = 29.0


def cavity(points: FloatArray) -> FloatArray:
    """Distance to the inside of the trunk wall."""
    return column(points, CAVITY_CENTRE, CAVITY_RADII, 2.3)


def diaphragm(points: FloatArray, draw: Draw) -> FloatArray:
    """Height in mm of each point above the diaphragm: two domes, the right one higher, and the tendon between them.

    It falls off steeply to the sides and the back, gently to the front.
    """
    rng = draw.generator("diaphragm")
    breath = rng.normal(0, 6)
    depth = points[1] - np.float32(52)
    depth = (depth / np.where(depth > 0, np.float32(125), np.float32(110))) ** 2
    top = np.full(points.shape[1:], -1e3, dtype=np.float32)
    for x, highest in ((72.0, 106.0), (0.0, 86.0), (-70.0, 94.0)):
        away = ((points[0] - np.float32(x)) / np.float32(80)) ** 2 + depth
        height = highest + breath + rng.normal(0, 3) - 34 * away**1.4 - 10 * np.maximum(away - 1, 0)
        np.maximum(top, height, out=top)
    return np.asarray(points[2] - top, dtype=np.float32)


def paint_body(canvas: Canvas, patient: Patient) -> None:
    """Skin and fat, the muscular wall, and the fat of the cavity."""
    points, hu, fat = canvas.points, patient.hu, patient.fat_mm
    wall = (CAVITY_RADII[0] + _WALL_MM, CAVITY_RADII[1] + _WALL_MM)
    back = 16.0  # the muscles of the back make the wall thicker there
    centre = (0.0, CAVITY_CENTRE[1] - back / 2)
    skin = column(points, (0.0, centre[1]), (wall[0] + fat, wall[1] + back / 2 + 0.8 * fat), 2.3)
    canvas.paint(skin, 35.0)
    canvas.paint(skin + 3.5, hu["fat"])
    canvas.paint(column(points, centre, (wall[0], wall[1] + back / 2), 2.4), hu["muscle"])
    canvas.paint(cavity(points), hu["fat"])


def paint_chest(canvas: Canvas, patient: Patient, draw: Draw) -> None:
    """Lungs above the diaphragm, with the heart and the mediastinum between them."""
    points, hu = canvas.points, patient.hu
    height = diaphragm(points, draw)
    bed = column(points, (0.0, -42.0), (50.0, 28.0), 2.2)  # spine and muscles of the back
    inside = np.maximum(cavity(points) + 3, -bed)
    canvas.paint(np.maximum(inside, 2 - height), hu["muscle"])
    middle = column(points, (3.0, 40.0), (39.0, 62.0), 2.2)
    canvas.paint(np.maximum(np.maximum(inside + 2, 5 - height), -middle), hu["lung"])
    canvas.paint(np.maximum(middle, 5 - height), hu["fat"] + 60)
    heart = ellipsoid(points, np.array([-28.0, 88.0, 152.0]), np.array([62.0, 46.0, 44.0]))
    canvas.paint(np.maximum(heart, 4 - height), hu["heart"])


def paint_skeleton(canvas: Canvas, patient: Patient, draw: Draw) -> None:
    """Vertebral bodies with discs, canal, arches and ribs."""
    points, hu, rng = canvas.points, patient.hu, draw.generator("skeleton")
    body = column(points, (0.0, 0.0), (23.0, 18.0), 2.6)
    phase = rng.uniform(0, 34)
    level = np.abs((points[2] + phase) % 34 - 17)
    canvas.paint(body, hu["cortical_bone"] - 150)
    canvas.paint(body + 4, hu["marrow"])
    canvas.paint(np.maximum(body, level - 4), hu["disc"])
    for side in (-1, 1):
        arch = ellipsoid(points, np.array([17.0 * side, -27.0, 0]), np.array([9.0, 13.0, 1e4]))
        canvas.paint(np.maximum(arch, 9 - level), hu["cortical_bone"] - 200)
        process = ellipsoid(points, np.array([34.0 * side, -25.0, 0]), np.array([16.0, 6.0, 1e4]))
        canvas.paint(np.maximum(process, 12 - level), hu["cortical_bone"] - 200)
    spine = ellipsoid(points, np.array([0, -44.0, 0]), np.array([5.0, 17.0, 1e4]))
    canvas.paint(np.maximum(spine, 8 - level), hu["cortical_bone"] - 150)
    canvas.paint(column(points, (0.0, -27.0), (10.0, 8.0), 2.0), hu["spinal_canal"])
    for number in range(9):
        start = 25 + _RIB_STEP_MM * number + phase / 4
        reach = 55 if number == 0 else 105 if number == 1 else 150
        for side in (-1, 1):
            canvas.paint(tube(points, _rib(start, side, reach), [5.0] * 12), hu["cortical_bone"] - 90)


def _rib(start_mm: float, side: int, reach_deg: float) -> DoubleArray:
    """Knots of a rib: from beside the spine around the cavity, sloping down to the front."""
    angle = np.deg2rad(np.linspace(20, reach_deg, 12))
    x = side * (CAVITY_RADII[0] + 6) * np.sin(angle)
    y = CAVITY_CENTRE[1] - (CAVITY_RADII[1] + 7) * np.cos(angle)
    z = start_mm - 115 * (1 - np.cos(angle)) / 2 + 8 * np.sin(angle)
    return np.stack([x, y, z], axis=1)


def paint_muscles(canvas: Canvas, patient: Patient, draw: Draw) -> None:
    """Muscles of the back, psoas, and the crura of the diaphragm beside the aorta."""
    points, muscle, rng = canvas.points, patient.hu["muscle"], draw.generator("muscles")
    bulk = rng.uniform(0.8, 1.15)
    for side in (-1, 1):
        canvas.paint(column(points, (34.0 * side, -46.0), (27.0, 19.0 * bulk), 2.2), muscle)
        psoas = np.array([[27.0 * side, 2, 12], [36.0 * side, 2, -35], [47.0 * side, 6, -130]])
        canvas.paint(tube(points, psoas, [8 * bulk, 17 * bulk, 24 * bulk]), muscle)
        crus = np.array([[9.0 * side, 24, -25], [15.0 * side, 22, 30], [24.0 * side, 30, 75]])
        canvas.paint(tube(points, crus, [5, 7, 5]), muscle)


def paint_bowel(canvas: Canvas, patient: Patient, draw: Draw) -> None:
    """Colon and small-bowel loops: unlabelled, with the look of stomach and duodenum."""
    rng = draw.generator("bowel")
    inside = cavity(canvas.points) + 3
    colon = [
        np.array([[108.0, 25, -140], [106, 25, -80], [96, 45, -42]]),
        np.array([[96.0, 45, -42], [70, 100, -52], [10, 118, -48], [-50, 112, -25], [-100, 55, 28]]),
        np.array([[-100.0, 55, 28], [-115, 5, 5], [-114, 0, -60], [-108, 10, -140]]),
    ]
    for knots in colon:
        moved = knots + rng.normal(0, 6, 3) + rng.normal(0, 5, knots.shape)
        gut = tube(canvas.points, moved, [rng.uniform(13, 22)] * len(knots))
        paint_gut(canvas, patient, np.maximum(gut, inside), rng)
    for _ in range(16):
        centre = np.array([rng.uniform(-85, 70), rng.uniform(60, 115), rng.uniform(-140, -25)])
        if rng.random() < 0.5:  # the jejunum lies at the left, and reaches up to the pancreas
            centre = np.array([rng.uniform(-85, -25), rng.uniform(45, 105), rng.uniform(-90, 15)])
        knots = centre + np.cumsum(rng.normal(0, 22, (5, 3)), axis=0)
        gut = tube(canvas.points, knots, [rng.uniform(9, 15)] * 5)
        paint_gut(canvas, patient, np.maximum(gut, inside), rng)


def paint_gut(
    canvas: Canvas, patient: Patient, distance: FloatArray, rng: np.random.Generator, label: int | None = None
) -> None:
    """A hollow organ: its wall, and within it fluid, chyme, gas above a level, oral contrast, or nothing at all."""
    hu = patient.hu
    # All draws come first, so that a patient does not depend on what the grid happens to cover.
    wall_mm, content = rng.uniform(3.5, 6.0), rng.random()
    chyme, contrast = rng.uniform(20, 65), rng.uniform(150, 320)
    gas, filled = rng.random() < 0.5, rng.uniform(0.45, 0.9)
    canvas.paint(distance, hu["gut_wall"], label)
    inner = distance + np.float32(wall_mm)
    if content < 0.3 or not (inner < 0).any():
        return
    canvas.paint(inner, hu["fluid"] if content < 0.6 else chyme if content < 0.9 else contrast)
    if gas:
        front = canvas.points[1]
        level = np.quantile(front[inner < 0], filled)
        canvas.paint(np.maximum(inner, np.float32(level) - front), hu["gas"])


def paint_table(canvas: Canvas, patient: Patient, points_mm: FloatArray) -> None:
    """The table under the back, which does not bend with the patient; painted where there is air."""
    top = -92 - patient.fat_mm
    curved = points_mm[1] - np.float32(top) - points_mm[0] ** 2 / 1500
    outside = canvas.image < -950
    slab = np.abs(curved + 9) - 7
    canvas.image[outside & (slab < 0)] = -820.0
    canvas.image[outside & (np.abs(slab) < 2.5)] = -120.0
