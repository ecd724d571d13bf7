"""Tables of organs for ITK-SNAP and 3D Slicer."""

from __future__ import annotations

from semiseg.data.colour_tables import itk_snap_labels, slicer_colours
from semiseg.io.dataset import LabelScheme

LABELS = LabelScheme(names={0: "background", 1: "liver", 2: 'left "big" kidney'})


def test_both_programs_get_the_organs_by_value() -> None:
    rows = [line for line in itk_snap_labels(LABELS).splitlines() if not line.startswith("#")]
    assert [row.split()[0] for row in rows] == ["0", "1", "2", "3"]
    assert all(len(row.split('"')) == 3 and len(row.split('"')[0].split()) == 7 for row in rows)
    table = [line.split() for line in slicer_colours(LABELS).splitlines() if not line.startswith("#")]
    assert [row[:2] for row in table[:2]] == [["0", "background"], ["1", "liver"]]
    assert all(len(row) == 6 and all(0 <= int(n) <= 255 for n in row[2:]) for row in table)
