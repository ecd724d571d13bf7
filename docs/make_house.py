"""Draws the house: the rooms of semiseg with their imports as arrows, into docs/house.svg.

    python docs/make_house.py

A room is a module or a package directly below `semiseg`. It stands on the floor above the highest room that it imports.
An arrow that is left out is one that others imply: from a room to one that it also reaches through another room.
"""

from __future__ import annotations

from pathlib import Path

import grimp

PICTURE = Path(__file__).with_name("house.svg")
_ROOT = "semiseg"
_ENTRANCES = ("__init__", "__main__")
_WIDTH, _FLOOR, _BOX, _MARGIN = 1100, 62, 24, 20


def imports() -> dict[str, set[str]]:
    """What every room imports of the others."""
    graph = grimp.build_graph(_ROOT)
    rooms: dict[str, set[str]] = {}
    for module in graph.modules:
        parts = module.split(".")
        if len(parts) < 2 or parts[1] in _ENTRANCES:
            continue
        others = {
            imported.split(".")[1] for imported in graph.find_modules_directly_imported_by(module) if "." in imported
        }
        rooms.setdefault(parts[1], set()).update(others - {parts[1]})
    return rooms


def floors(rooms: dict[str, set[str]]) -> dict[str, int]:
    """The floor of every room, 0 for those that import none. Raises `ValueError` where imports go in a circle."""
    found: dict[str, int] = {}
    while len(found) < len(rooms):
        ready = [room for room, others in rooms.items() if room not in found and others <= found.keys()]
        if not ready:
            raise ValueError(f"imports go in a circle among {', '.join(sorted(rooms.keys() - found.keys()))}")
        found |= {room: max((found[other] + 1 for other in rooms[room]), default=0) for room in ready}
    return found


def needed(rooms: dict[str, set[str]]) -> list[tuple[str, str]]:
    """The imports that no other room implies."""
    below: dict[str, set[str]] = {}
    for room in sorted(rooms, key=floors(rooms).__getitem__):
        below[room] = rooms[room].union(*(below[other] for other in rooms[room]))
    return [
        (room, other)
        for room in sorted(rooms)
        for other in sorted(rooms[room])
        if not any(other in below[between] for between in rooms[room] - {other})
    ]


def picture() -> str:
    """The picture as SVG."""
    rooms = imports()
    level = floors(rooms)
    top = max(level.values())
    height = (top + 1) * _FLOOR + 2 * _MARGIN
    arrows = needed(rooms)
    order = {room: place for place, room in enumerate(sorted(rooms))}
    middle: dict[str, tuple[float, float]] = {}
    for floor in range(top + 1):  # each room near the middle of what it imports, so that arrows cross little
        here = [room for room in rooms if level[room] == floor]
        usual = {room: _WIDTH * (order[room] + 0.5) / len(rooms) for room in here}
        targets = {room: [middle[to][0] for one, to in arrows if one == room] or [usual[room]] for room in here}
        here.sort(key=lambda room: (sum(targets[room]) / len(targets[room]), room))
        for place, room in enumerate(here):
            middle[room] = (_WIDTH * (place + 0.5) / len(here), height - _MARGIN - (floor + 0.5) * _FLOOR)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" '
        'font-size="13" role="img" aria-label="The rooms of semiseg; arrows point from a room to what it imports">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="6" markerHeight="6" orient="auto">'
        '<path d="M0 0 8 4 0 8z" fill="#888"/></marker></defs>',
        f'<rect width="{_WIDTH}" height="{height}" rx="8" fill="#fff"/>',
    ]
    for one, other in arrows:
        (x, y), (to_x, to_y) = middle[one], middle[other]
        y, to_y = y + _BOX / 2, to_y - _BOX / 2 - 2
        bend = (to_y - y) / 2
        lines.append(
            f'<path d="M{x:.0f} {y:.0f}C{x:.0f} {y + bend:.0f} {to_x:.0f} {to_y - bend:.0f} {to_x:.0f} {to_y:.0f}" '
            'fill="none" stroke="#888" stroke-width="1" marker-end="url(#tip)"/>'
        )
    for room, (x, y) in sorted(middle.items()):
        wide = 12 + 7.4 * len(room)
        lines.append(
            f'<rect x="{x - wide / 2:.0f}" y="{y - _BOX / 2:.0f}" width="{wide:.0f}" height="{_BOX}" rx="5" '
            f'fill="#e8eef7" stroke="#4a6a97"/><text x="{x:.0f}" y="{y + 4.5:.0f}" text-anchor="middle" '
            f'fill="#1b2a41">{room}</text>'
        )
    return "\n".join([*lines, "</svg>"]) + "\n"


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
    print(f"{PICTURE}: {len(imports())} rooms, {sum(map(len, imports().values()))} imports, none upward, no circle")
