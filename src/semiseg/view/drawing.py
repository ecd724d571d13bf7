"""Slices, thumbnails and strips of cases, drawn once and kept: in memory, and thumbnails beside the measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress

import numpy as np

from semiseg.data.plan import ChannelNormalisation, read_plan
from semiseg.errors import DataError
from semiseg.files import atomic_file, digest_of, read_json
from semiseg.geometry import Box, triple
from semiseg.io.colours import organ_colours
from semiseg.io.grid import Grid
from semiseg.io.scans import RawChannel, read_grid
from semiseg.io.store import open_case
from semiseg.reporting.overlays import PLANES, SOFT_TISSUE_HU, Plane
from semiseg.types import Shape
from semiseg.view.contents import Fresh, ViewCase, state_of
from semiseg.view.looks import OWN_WINDOWS, looks_of
from semiseg.view.measures import Measurer, Measures, OrganMeasures, centre
from semiseg.view.pictures import (
    DIFFERENCE_RGB,
    Drawn,
    Style,
    colours_of,
    draw_slice,
    map_limit,
    png,
    side_by_side,
)
from semiseg.view.source import Layer, Source
from semiseg.view.volumes import ByteCache, Volume, Volumes, on_plan

STRIP_PIXELS = (1200, 320)
THUMBNAIL_PIXELS = 192
_GAP_PIXELS = 4
_PICTURE_BYTES = 24 << 20
_MARGIN_MM = 30.0
"""Around an organ that a strip is of."""


class Drawing:
    """Pictures of a source's cases."""

    def __init__(self, source: Source, volumes: Volumes, measurer: Measurer) -> None:
        self._source, self._volumes, self._measurer = source, volumes, measurer
        self._pictures: ByteCache[bytes] = ByteCache(_PICTURE_BYTES, len)
        self._windows: dict[tuple[str, int], list[tuple[float, float]]] = {}
        plan = source.folder / "plan.toml"
        self._normalisation: Fresh[ChannelNormalisation] = Fresh(lambda: read_plan(plan).normalisation[0], plan)

    def grid(self, case: ViewCase) -> Grid:
        """The grid that a case is shown on: its scan's, or its label's where it has none."""
        path = case.images[0] if case.images else self._source.measured(case)
        if path is None:
            raise DataError(f"{case.id}: has neither a scan nor a label.")
        return read_grid(path)

    def window(self, case: ViewCase, channel: int = 0) -> tuple[float, float]:
        """What of a channel is black and white where nobody says: soft tissue for CT, else the first of its own."""
        return SOFT_TISSUE_HU if self._source.contents().is_ct(channel) else self.own_windows(case, channel)[0]

    def own_windows(self, case: ViewCase, channel: int) -> list[tuple[float, float]]:
        """The windows `OWN_WINDOWS` of a channel."""
        if (case.id, channel) not in self._windows:  # of all channels: large scans are read anew each time
            layer = next((layer for layer in self._source.layers(case) if layer.kind == "image"), None)
            scans = self._volumes.channels(case, layer) if layer else ()
            self._windows |= {(case.id, n): _own_windows(scan) for n, scan in enumerate(scans)}
        return self._windows.get((case.id, channel), [(0.0, 1.0)] * len(OWN_WINDOWS))

    def doubtful(self, case: ViewCase, measured: Measures | None, organ: str) -> Shape:
        """For each plane the slice to look at first: the most doubtful by the network, else the one on which outlines
        (an organ's, or all) are longest."""
        path = self._source.folder / "doubt" / f"{case.id}.json"
        if not organ and path.is_file():
            means = read_json(path)
            try:
                z, y, x = (int(np.argmax(means[plane])) for plane in PLANES)
            except (KeyError, TypeError, ValueError) as error:
                raise DataError(f"{path}: no doubts of slices ({error}). Rank the run again.") from None
            return (z, y, x)
        if measured is None:
            return triple(n // 2 for n in self.grid(case).shape_zyx)
        found = self._organs(measured).get(organ)
        return found["doubtful"] if found else measured["doubtful"]

    def slice(
        self,
        case: ViewCase,
        *,
        plane: Plane,
        index: int,
        layers: Sequence[str],
        style: Style,
        opacity: float,
        window: tuple[float, float] | None,
        organ: str,
        longest: int,
    ) -> bytes:
        """A slice of a case as PNG, of which the longest side has so many pixels. index: below 0 is the middle one.
        layers: by name, the first image among them is drawn below the others."""
        known = {layer.name: layer for layer in self._source.layers(case)}
        asked = [known[name] for name in layers if name in known]
        shown = next((layer for layer in asked if layer.kind == "image"), None)
        several = sum(layer.kind == "label" and layer.form != "difference" for layer in asked) > 1
        grid = self.grid(case)
        picture = draw_slice(
            self._volumes.get(case, shown) if shown else self._scan(case),
            [
                self._drawn(case, layer, style, opacity, organ, wide=several and layer.name == "reference")
                for layer in asked
                if layer.kind != "image"
            ],
            plane,
            index if index >= 0 else grid.shape_zyx[PLANES.index(plane)] // 2,
            window or self.window(case, shown.channel if shown else 0),
            grid=grid,
            fit=(longest, longest),
        )
        return png(picture)

    def thumbnail(self, case: ViewCase) -> bytes:
        """An axial slice through the organs, kept on the disk."""
        judged = self._source.measured(case)
        state = state_of(*case.images, *([judged] if judged else []))
        file = self._source.cache / "thumbnails" / f"{digest_of([case.id, state, THUMBNAIL_PIXELS])[:32]}.png"
        if file.is_file():
            return file.read_bytes()
        grid, measured, layer = self.grid(case), self._measurer.now(case), self._judged_layer(case)
        index = self._middle(grid, measured, "")[0]
        prepared = self._prepared_slice(case, grid, index)
        scan, window = prepared or (self._scan(case), self.window(case))
        found = png(
            draw_slice(
                scan,
                [self._drawn(case, layer, "fill", 0.45, "")] if layer else [],
                "axial",
                index,
                window,
                grid=grid,
                fit=(THUMBNAIL_PIXELS, THUMBNAIL_PIXELS),
            )
        )
        with suppress(OSError), atomic_file(file) as temporary:  # where it cannot be written it is drawn each time
            temporary.write_bytes(found)
        return found

    def _prepared_slice(self, case: ViewCase, grid: Grid, index: int) -> tuple[Volume, tuple[float, float]] | None:
        """An axial slice of a scan that a run has prepared, which is read without the rest of the scan, and its window;
        None where there is none."""
        folder = self._source.folder / "store" / case.id
        if self._source.kind != "run" or not folder.is_dir():
            return None
        try:
            stored = open_case(folder)
            shape = stored.meta.shape_zyx
            at = min(shape[0] - 1, int((index + 0.5) * shape[0] / grid.shape_zyx[0]))
            values = stored.read_image(Box((at, 0, 0), (at + 1, *shape[1:])))[0]
            units = self._normalisation()
        except DataError:  # being prepared anew, say
            return None
        volume = on_plan(values, shape, grid, (at, 0, 0))
        if units.scheme == "ct":
            return Volume(
                RawChannel(values, units.deviation, units.mean), volume.grid, volume.start, volume.step
            ), SOFT_TISSUE_HU
        return volume, _own_windows(volume)[0]

    def strip(self, case: ViewCase, *, organ: str, style: Style, overlay: bool, look: int = 0) -> bytes:
        """Three planes through the centroid of an organ, or of all, and the most doubtful axial slice. look: the number
        of one of `looks_of`."""
        judged = self._source.measured(case)
        doubt = self._source.folder / "doubt" / f"{case.id}.json"
        looks = looks_of(self._source.contents())
        grey = looks[look % len(looks)]
        key = (case.id, organ, style, overlay, grey, state_of(*case.images, *([judged] if judged else []), doubt))

        def make() -> bytes:
            grid, measured, layer = self.grid(case), self._measurer.now(case), self._judged_layer(case)
            scan, window = self._scan(case, grey.channel), grey.window
            if isinstance(window, int):
                window = self.own_windows(case, grey.channel)[window]
            drawn = [self._drawn(case, layer, style, 0.5, organ)] if layer and overlay else []
            at, doubtful = self._middle(grid, measured, organ), self.doubtful(case, measured, organ)
            places: list[tuple[Plane, int]] = [*zip(PLANES, at, strict=True), ("axial", doubtful[0])]
            width, height = STRIP_PIXELS
            fit = (width // len(places) - _GAP_PIXELS, height)
            box = self._around(grid, measured, organ)
            panels = [
                draw_slice(scan, drawn, plane, index, window, grid=grid, fit=fit, box=box) for plane, index in places
            ]
            return png(side_by_side(panels, width, height))

        return self._pictures.get(key, make)

    def _around(self, grid: Grid, measured: Measures | None, organ: str) -> Box | None:
        """An organ with 30 mm around it and as much again as it is large; None shows all."""
        found = self._organs(measured).get(organ) if measured else None
        if found is None:
            return None
        margins = [
            round(max(_MARGIN_MM / mm, 0.5 * (stop - first)))
            for first, stop, mm in zip(found["first"], found["stop"], grid.spacing_mm, strict=True)
        ]
        return Box(
            triple(max(0, first - margin) for first, margin in zip(found["first"], margins, strict=True)),
            triple(
                min(n, stop + margin) for n, stop, margin in zip(grid.shape_zyx, found["stop"], margins, strict=True)
            ),
        )

    def _organs(self, measured: Measures) -> Mapping[str, OrganMeasures]:
        """What was measured, by the organ's name."""
        organs, found = self._source.contents().organs, measured["organs"]
        return {name: found[str(value)] for value, name in organs.items() if str(value) in found}

    def _middle(self, grid: Grid, measured: Measures | None, organ: str) -> Shape:
        """Where planes go through: the centroid of an organ, or of all; of these the slice with the longest outlines
        where it lies beside each, between two lungs say."""
        organs = self._organs(measured) if measured else {}
        places = centre(grid.shape_zyx, organs.get(organ), organs)
        if measured is None or not organs or organ in organs:
            return places
        boxes = [(one["first"], one["stop"]) for one in organs.values()]
        through = (any(first[axis] <= at < stop[axis] for first, stop in boxes) for axis, at in enumerate(places))
        return triple(
            at if inside else other for at, inside, other in zip(places, through, measured["doubtful"], strict=True)
        )

    def _scan(self, case: ViewCase, channel: int = 0) -> Volume | None:
        images = [layer for layer in self._source.layers(case) if layer.kind == "image"]
        layer = next((layer for layer in images if layer.channel == channel), images[0] if images else None)
        return self._volumes.get(case, layer) if layer else None

    def _judged_layer(self, case: ViewCase) -> Layer | None:
        """The label map that is measured, as a layer."""
        layers = {layer.name: layer for layer in self._source.layers(case)}
        name = self._source.reviewed_layer(case)
        return layers.get(name or "") or layers.get("prediction") or layers.get("reference")

    def _drawn(
        self, case: ViewCase, layer: Layer, style: Style, opacity: float, organ: str, *, wide: bool = False
    ) -> Drawn:
        volume = self._volumes.get(case, layer)
        if layer.kind == "map":
            return Drawn(volume=volume, colours={}, limit=map_limit(volume))
        if layer.form == "difference":
            return Drawn(volume=volume, colours=DIFFERENCE_RGB, style="fill", opacity=opacity)
        organs = self._source.contents().organs
        colours = colours_of(organs, organ_colours(organs.values()))
        if organ:
            colours = {value: colours[value] for value, name in organs.items() if name == organ}
        return Drawn(volume=volume, colours=colours, style=style, opacity=opacity, wide=wide)


def _own_windows(scan: Volume) -> list[tuple[float, float]]:
    some = scan.array.reshape(-1)[:: max(1, scan.array.size // 1_000_000)]
    values = (*np.percentile(some, (1.0, 99.5, 99.0)), scan.array.min(), scan.array.max())
    low, high, bright, least, most = (float(v) * scan.raw.slope + scan.raw.inter for v in values)
    pairs = ((low, high), (bright, most), (least, most))
    return [(first, last) if last > first else (first, first + 1.0) for first, last in pairs]
