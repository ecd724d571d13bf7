"""The thirteen organs, painted from the large and soft ones to the small and sharp ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from semiseg.demo.background import cavity, diaphragm, paint_gut
from semiseg.demo.canvas import Canvas
from semiseg.demo.patient import Patient
from semiseg.demo.shapes import Vector, ellipsoid, intersection, rotation, tube, union
from semiseg.randomness import Draw
from semiseg.types import DoubleArray, FloatArray

_Knots = Sequence[Vector]


def paint_organs(canvas: Canvas, patient: Patient, draw: Draw) -> None:
    """All thirteen; where two of them meet, the later one wins."""
    paint_liver(canvas, patient, draw)
    paint_spleen(canvas, patient, draw)
    paint_stomach(canvas, patient, draw)
    paint_veins_and_pancreas(canvas, patient, draw)
    paint_duodenum(canvas, patient, draw)
    paint_gallbladder(canvas, patient, draw)
    paint_kidneys(canvas, patient, draw)
    paint_vessels(canvas, patient, draw)
    paint_adrenals(canvas, patient, draw)


def paint_liver(canvas: Canvas, patient: Patient, draw: Draw) -> None:
    """Two smoothly joined lobes that fill the right dome, with vessels and now and then a lesion."""
    points, rng = canvas.points, draw.generator("liver")
    size = rng.normal(1.0, 0.08)
    right = _blob(points, rng, (84, 38, 38), (66 * size, 82 * size, 84 * size), 4)
    long_left = rng.uniform(0.65, 1.25)
    left = _blob(points, rng, (8, 92, 62), (82 * long_left, 32, 34 * size), 5)
    liver = union(right, left, blend_mm=30)
    # The lower face is hollow towards kidney, duodenum and gallbladder
    hollow = _blob(points, rng, (28, 28, -28), (62, 62, 62), 5)
    bare = _blob(points, rng, (34, 8, 52), (24, 20, 34), 2)  # The bed of the right adrenal gland
    liver = np.maximum(np.maximum(liver, -hollow - 2), -bare)
    liver = intersection(np.maximum(liver, cavity(points) + 2), diaphragm(points, draw), blend_mm=10)
    canvas.paint(liver, patient.hu["liver"], 1)
    _paint_liver_vessels(canvas, patient, draw, liver)
    for _ in range(rng.poisson(0.7)):
        radius, contrast = rng.uniform(7, 16), rng.choice([-45.0, -30.0, 25.0])
        lesion = _blob(points, rng, (80, 40, 45), (radius, radius, radius), 30)
        canvas.paint(np.maximum(lesion, liver + 3), patient.hu["liver"] + contrast)


def _paint_liver_vessels(canvas: Canvas, patient: Patient, draw: Draw, liver: FloatArray) -> None:
    """Right and left portal branch, right and middle hepatic vein; they count as liver."""
    rng = draw.generator("liver vessels")
    branches: tuple[tuple[str, float, _Knots], ...] = (
        ("portal_vein", 7, [(12, 52, 28), (30, 55, 42), (60, 45, 50), (95, 35, 45)]),
        ("portal_vein", 5, [(40, 56, 46), (20, 78, 58), (-15, 92, 62)]),
        ("hepatic_veins", 6, [(26, 42, 90), (60, 30, 72), (95, 20, 55)]),
        ("hepatic_veins", 5, [(26, 46, 90), (45, 72, 76), (62, 92, 55)]),
    )
    for name, radius, knots in branches:
        vessel = tube(canvas.points, _path(rng, knots, 4), [radius] * (len(knots) - 1) + [radius / 2])
        canvas.paint(np.maximum(vessel, liver), patient.hu[name])


def paint_spleen(canvas: Canvas, patient: Patient, draw: Draw) -> None:
    """A bean between the left dome, the wall and the stomach; of all organs it varies most in size."""
    points, rng = canvas.points, draw.generator("spleen")
    size = float(np.exp(rng.normal(0, 0.14)))
    body = _blob(points, rng, (-110, -4, 58), (37 * size, 56 * size, 58 * size), 5, turn_deg=(20, -12, 18))
    hilum = _blob(points, rng, (-66, 18, 48), (26, 30, 45), 4)
    spleen = np.maximum(np.maximum(body, -hilum), np.maximum(cavity(points) + 3, diaphragm(points, draw) + 2))
    canvas.paint(spleen, patient.hu["spleen"], 3)


def paint_stomach(canvas: Canvas, patient: Patient, draw: Draw) -> None:
    """Fundus under the left dome, body, antrum and pylorus; then the oesophagus that leads into it."""
    points, rng = canvas.points, draw.generator("stomach")
    filling = rng.uniform(0.65, 1.2)
    knots = _path(rng, [(-62, 30, 88), (-66, 48, 62), (-58, 80, 38), (-32, 98, 14), (2, 92, 8), (28, 82, 16)], 5)
    stomach = tube(points, knots, [f * filling for f in (30, 33, 29, 23, 18, 12)])
    stomach = np.maximum(stomach, np.maximum(cavity(points) + 4, diaphragm(points, draw) + 5))
    paint_gut(canvas, patient, stomach, rng, 11)
    gullet = _path(rng, [(-4, 44, 175), (-6, 44, 135), (-14, 46, 104), (-28, 47, 86), (-46, 42, 78)], 3)
    oesophagus = tube(points, gullet, [rng.uniform(12, 15)] * 5)  # wider than in life
    canvas.paint(oesophagus, patient.hu["oesophagus"], 10)
    if rng.random() < 0.4:
        canvas.paint(oesophagus + 7, patient.hu["gas"])
    canvas.label[(stomach < -6) & (canvas.label == 10)] = 11  # the cardia


def paint_veins_and_pancreas(canvas: Canvas, patient: Patient, draw: Draw) -> None:
    """Pancreas, with the splenic vein behind it; portal and superior mesenteric vessels stay unlabelled."""
    points, hu, rng = canvas.points, patient.hu, draw.generator("pancreas")
    knots = _path(rng, [(34, 56, -8), (28, 60, 8), (6, 67, 22), (-28, 62, 32), (-60, 46, 42), (-88, 28, 48)], 4)
    plump = rng.uniform(0.8, 1.2)
    pancreas = tube(points, knots, [plump * r for r in (12, 15, 10, 11, 11.5, 9)])
    canvas.paint(pancreas, hu["pancreas"], 4)
    behind = np.array([0.0, -11.0 * plump - 3, 0.0])
    vein = tube(points, knots[2:] + behind, [5.0] * 4)
    _paint_outside(canvas, vein, hu["portal_vein"])
    portal = tube(points, _path(rng, [(2, 56, 22), (14, 54, 30), (30, 56, 44)], 2), [7.0, 7.0, 6.5])
    _paint_outside(canvas, portal, hu["portal_vein"])
    for x, name, radius in ((8, "portal_vein", 6.5), (-8, "aorta", 4.5)):
        mesenteric = tube(points, _path(rng, [(x, 56, 16), (x, 62, -30), (x, 74, -110)], 2), [radius] * 3)
        _paint_outside(canvas, mesenteric, hu[name])


def paint_duodenum(canvas: Canvas, patient: Patient, draw: Draw) -> None:
    """The loop from the pylorus around the head of the pancreas, and across between aorta and mesenteric artery."""
    points, rng = canvas.points, draw.generator("duodenum")
    loop = [(32, 84, 18), (50, 72, 18), (58, 56, 4), (57, 46, -28), (40, 46, -50), (6, 56, -52), (-26, 56, -34)]
    duodenum = tube(points, _path(rng, loop, 4), [rng.uniform(10.5, 14)] * len(loop))
    paint_gut(canvas, patient, duodenum, rng, 12)


def paint_gallbladder(canvas: Canvas, patient: Patient, draw: Draw) -> None:
    """Pear-shaped, contracted in some, with stones in a few, removed in one of twenty."""
    points, rng = canvas.points, draw.generator("gallbladder")
    if rng.random() < 0.05:
        return
    full = rng.uniform(0.7, 1.2)
    knots = _path(rng, [(60, 70, 30), (68, 82, 14), (76, 94, -4)], 5)
    gallbladder = tube(points, knots, [8 * full, 14 * full, 16 * full])
    canvas.paint(gallbladder, patient.hu["gut_wall"], 9)
    canvas.paint(gallbladder + 2.5, patient.hu["bile"] + rng.uniform(-4, 14))
    if rng.random() < 0.15:
        canvas.paint(ellipsoid(points, knots[2], np.array([6.0, 6, 5])), float(rng.uniform(90, 260)))


def paint_kidneys(canvas: Canvas, patient: Patient, draw: Draw) -> None:
    """Right and left are mirror images in make and look; each has its own place, size and tilt."""
    points, hu, rng = canvas.points, patient.hu, draw.generator("kidneys")
    for label, side, level in ((2, 1, 0.0), (13, -1, 12.0)):
        centre = np.array([72.0 * side, -6, level]) + rng.normal(0, 4, 3)
        size = rng.normal(1.0, 0.07)
        turn = rotation((float(rng.normal(-8, 4)), side * float(rng.normal(-12, 4)), side * float(rng.normal(30, 8))))
        radii = np.array([25.0, 31.0, 53.0]) * size
        outer = ellipsoid(points, centre, radii, turn)
        medial = centre + turn.T @ np.array([-27.0 * side, 0, 0]) * size
        sinus = ellipsoid(points, medial, np.array([17.0, 15, 22]) * size, turn)
        canvas.paint(outer - 4, hu["fat"], 0)  # the fat capsule parts the kidney from liver and spleen
        vein = np.stack([medial, np.array([10.0 * side, 36, level + 8])])
        _paint_outside(canvas, tube(points, vein, [6.0, 5.0]), hu["vena_cava"])
        kidney = np.maximum(outer, -sinus)
        canvas.paint(kidney, hu["kidney_cortex"], label)
        canvas.paint(np.maximum(outer + 8, -sinus), hu["kidney_medulla"])
        canvas.paint(np.maximum(sinus + 3, outer + 3), hu["kidney_sinus"])
        if rng.random() < 0.2:
            cyst = centre + turn.T @ (radii * rng.normal(0, 0.6, 3))
            canvas.paint(np.maximum(ellipsoid(points, cyst, np.full(3, rng.uniform(8, 15))), kidney), hu["fluid"])


def paint_vessels(canvas: Canvas, patient: Patient, draw: Draw) -> None:
    """Aorta down to its division, and the inferior vena cava up to the heart."""
    points, hu, rng = canvas.points, patient.hu, draw.generator("vessels")
    wide, fork = rng.uniform(0.9, 1.3), rng.uniform(-105, -80)
    aorta = _path(rng, [(-20, 20, 190), (-17, 24, 110), (-10, 31, 50), (-7, 32, 0), (-4, 32, fork)], 3)
    cava = _path(rng, [(20, 34, fork - 5), (22, 36, -40), (24, 38, 20), (28, 40, 70), (22, 56, 112)], 3)
    for side, vessel in ((-1, "aorta"), (1, "aorta"), (1, "vena_cava"), (-1, "vena_cava")):
        top = aorta[-1] if vessel == "aorta" else cava[0]
        branch = np.stack([top, top + np.array([26.0 * side, 0, -60])])
        _paint_outside(canvas, tube(points, branch, [8.0, 7.0]), hu[vessel])
    flat = rng.uniform(0.85, 1.2)
    canvas.paint(tube(points, cava, [12 * flat, 12 * flat, 13 * flat, 13, 13]), hu["vena_cava"], 6)
    pipe = tube(points, aorta, [13 * wide, 12.5 * wide, 12 * wide, 11 * wide, 10 * wide])
    canvas.paint(pipe, hu["aorta"], 5)
    if rng.random() < 0.3:
        rim = np.maximum(np.abs(pipe + 2) - 2.5, ellipsoid(points, aorta[3], np.array([8.0, 30, 40])))
        canvas.paint(rim, 420.0)


def paint_adrenals(canvas: Canvas, patient: Patient, draw: Draw) -> None:
    """An inverted V above each kidney, mirrored; far thicker than in life, so that they are two voxels wide."""
    points, rng = canvas.points, draw.generator("adrenals")
    for label, side in ((7, 1), (8, -1)):
        place = rng.normal(0, 3, 3)
        apex, medial, lateral = (
            np.array([x * side, y, z]) + place + rng.normal(0, 2, 3)
            for x, y, z in ((38.0, 22, 70), (35, -2, 42), (56, 6, 40))
        )
        thick = rng.uniform(9.0, 10.5)
        gland = tube(points, np.stack([apex, medial]), [thick, thick - 0.5])
        gland = union(gland, tube(points, np.stack([apex, lateral]), [thick, thick - 0.5]), blend_mm=4)
        _paint_outside(canvas, gland - 4, patient.hu["fat"])
        canvas.paint(gland, patient.hu["adrenal"], label)


def _blob(
    points: FloatArray,
    rng: np.random.Generator,
    centre: Vector,
    radii: Vector,
    jitter_mm: float,
    turn_deg: Vector = (0, 0, 0),
) -> FloatArray:
    """An ellipsoid with its place, size and tilt varied."""
    turn = rotation((turn_deg[0] + rng.normal(0, 5), turn_deg[1] + rng.normal(0, 5), turn_deg[2] + rng.normal(0, 5)))
    moved = np.array(centre, dtype=float) + rng.normal(0, jitter_mm, 3)
    return ellipsoid(points, moved, np.array(radii) * np.exp(rng.normal(0, 0.06, 3)), turn)


def _path(rng: np.random.Generator, knots: _Knots, jitter_mm: float) -> DoubleArray:
    """Knots moved together, and each a little by itself."""
    path = np.array(knots, dtype=float)
    return path + rng.normal(0, jitter_mm, 3) + rng.normal(0, jitter_mm / 2, path.shape)


def _paint_outside(canvas: Canvas, distance: FloatArray, hu: float) -> None:
    """Paint what is no organ, only where no organ is."""
    canvas.paint(np.where(canvas.label == 0, distance, np.float32(1e3)), hu)
