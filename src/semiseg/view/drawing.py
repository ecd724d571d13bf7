"""Slices, thumbnails and strips of cases, drawn once and kept: in memory, and thumbnails beside the measures."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from semiseg.errors import DataError
from semiseg.files import atomic_file, digest_of, read_json
from semiseg.io.grid import Grid
from semiseg.io.scans import read_grid
from semiseg.reporting.figures import organ_colours
from semiseg.reporting.overlays import PLANES, SOFT_TISSUE_HU, Plane
from semiseg.types import Shape
from semiseg.view.measures import Measurer, Measures, centre
from semiseg.view.pictures import (
    DIFFERENCE_RGB,
    Drawn,
    Rgb,
    Style,
    colours_of,
    draw_slice,
    map_limit,
    png,
    side_by_side,
)
from semiseg.view.source import Layer, Source, ViewCase, state_of
from semiseg.view.volumes import ByteCache, Volume, Volumes

STRIP_PIXELS = (1200, 320)
THUMBNAIL_PIXELS = 192
_PICTURE_BYTES = 24 << 20
_UPLOAD_BYTES_A_VOXEL = 8
_HEADER_BYTES = 1 << 20


class Drawing:
    """Pictures of a source's cases."""

    def __init__(self, source: Source, volumes: Volumes, measurer: Measurer) -> None:
        self._source, self._volumes, self._measurer = source, volumes, measurer
        self._pictures: ByteCache[bytes] = ByteCache(_PICTURE_BYTES, len)
        self._windows: dict[str, tuple[float, float]] = {}
        self._largest = 0

    def grid(self, case: ViewCase) -> Grid:
        """The grid that a case is shown on: its scan's, or its label's where it has none."""
        return read_grid(self._file(case))

    def _file(self, case: ViewCase) -> Path:
        path = case.images[0] if case.images else self._source.measured(case)
        if path is None:
            raise DataError(f"{case.id}: has neither a scan nor a label.")
        return path

    def window(self, case: ViewCase) -> tuple[float, float]:
        """What is black and white where nobody says: soft tissue for CT, else percentiles 1 and 99.5."""
        if self._source.contents().is_ct:
            return SOFT_TISSUE_HU
        if case.id not in self._windows:
            scan = self._scan(case)
            if scan is None:
                return (0.0, 1.0)
            some = scan.array.reshape(-1)[:: max(1, scan.array.size // 1_000_000)]
            low, high = (float(v) * scan.raw.slope + scan.raw.inter for v in np.percentile(some, (1.0, 99.5)))
            self._windows[case.id] = (low, high) if high > low else (low, low + 1.0)
        return self._windows[case.id]

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
            z, y, x = (n // 2 for n in self.grid(case).shape_zyx)
            return (z, y, x)
        value = next((str(v) for v, name in self._source.contents().organs.items() if name == organ), "")
        found = measured["organs"].get(value)
        return found["doubtful"] if found else measured["doubtful"]

    def slice(
        self,
        case: ViewCase,
        *,
        plane: Plane,
        index: int,
        layers: list[str],
        style: Style,
        opacity: float,
        window: tuple[float, float] | None,
        organ: str,
        longest: int,
    ) -> bytes:
        """A slice of a case as PNG. index: below 0 is the middle one."""
        known = {layer.name: layer for layer in self._source.layers(case)}
        drawn = [
            self._drawn(case, known[name], style, opacity, organ)
            for name in layers
            if name in known and known[name].kind != "image"
        ]
        shown = next((known[name] for name in layers if name in known and known[name].kind == "image"), None)
        scan = self._volumes.get(case, shown) if shown else self._scan(case)
        like = self._like(case, scan)
        if index < 0:
            index = like.array.shape[PLANES.index(plane)] // 2
        picture = draw_slice(scan, drawn, plane, index, window or self.window(case), longest=longest, like=like)
        return png(picture)

    def thumbnail(self, case: ViewCase) -> bytes:
        """An axial slice through the organs, kept on the disk."""
        judged = self._source.measured(case)
        parts = [case.id, state_of(*case.images), state_of(judged) if judged else None, THUMBNAIL_PIXELS]
        file = self._source.cache / "thumbnails" / f"{digest_of(parts)[:32]}.png"
        if file.is_file():
            return file.read_bytes()
        measured = self._measurer.now(case)
        scan, layer = self._scan(case), self._judged_layer(case)
        drawn = [self._drawn(case, layer, "fill", 0.45, "")] if layer else []
        like = self._like(case, scan)
        index = self._middle(like, measured, "")[0]
        found = png(draw_slice(scan, drawn, "axial", index, self.window(case), longest=THUMBNAIL_PIXELS, like=like))
        with atomic_file(file) as temporary:
            temporary.write_bytes(found)
        return found

    def strip(self, case: ViewCase, *, organ: str, style: Style, overlay: bool) -> bytes:
        """Three planes through the centroid of an organ, or of all, and the most doubtful axial slice."""
        judged = self._source.measured(case)
        doubt = self._source.folder / "doubt" / f"{case.id}.json"
        key = (case.id, organ, style, overlay, state_of(*case.images, *([judged] if judged else []), doubt))

        def make() -> bytes:
            measured = self._measurer.now(case)
            scan, layer = self._scan(case), self._judged_layer(case)
            drawn = [self._drawn(case, layer, style, 0.5, organ)] if layer and overlay else []
            like = self._like(case, scan)
            at, doubtful = self._middle(like, measured, organ), self.doubtful(case, measured, organ)
            places: list[tuple[Plane, int]] = [*zip(PLANES, at, strict=True), ("axial", doubtful[0])]
            width, height = STRIP_PIXELS
            panels: list[Rgb] = [
                draw_slice(scan, drawn, plane, index, self.window(case), longest=height, like=like)
                for plane, index in places
            ]
            return png(side_by_side(panels, width, height))

        return self._pictures.get(key, make)

    def most_upload_bytes(self) -> int:
        """As large as a label map of any case can be that has been looked at, 512 x 512 x 1000 voxels at least."""
        return _HEADER_BYTES + _UPLOAD_BYTES_A_VOXEL * max(512 * 512 * 1000, self._largest)

    def _scan(self, case: ViewCase) -> Volume | None:
        layer = next((layer for layer in self._source.layers(case) if layer.kind == "image"), None)
        return self._volumes.get(case, layer) if layer else None

    def _like(self, case: ViewCase, scan: Volume | None) -> Volume:
        if scan is not None:
            return scan
        layer = self._judged_layer(case)
        if layer is None:
            raise DataError(f"{case.id}: has neither a scan nor a label.")
        return self._volumes.get(case, layer)

    def _judged_layer(self, case: ViewCase) -> Layer | None:
        layers = {layer.name: layer for layer in self._source.layers(case)}
        name = self._source.reviewed_layer(case)
        return layers.get(name or "") or layers.get("prediction") or layers.get("reference")

    def _middle(self, like: Volume, measured: Measures | None, organ: str) -> Shape:
        z, y, x = like.array.shape
        if measured is None:
            return (z // 2, y // 2, x // 2)
        organs = self._source.contents().organs
        values = {name: str(value) for value, name in organs.items()}
        known = {value: found for value, found in measured["organs"].items() if value in values.values()}
        return centre((z, y, x), known.get(values.get(organ, "")), known)

    def _drawn(self, case: ViewCase, layer: Layer, style: Style, opacity: float, organ: str) -> Drawn:
        volume = self._volumes.get(case, layer)
        if layer.kind == "map":
            return Drawn(volume=volume, colours={}, limit=map_limit(volume))
        if layer.form == "difference":
            return Drawn(volume=volume, colours=DIFFERENCE_RGB, style="fill", opacity=opacity)
        organs = self._source.contents().organs
        colours = colours_of(organs, organ_colours(organs.values()))
        if organ:
            colours = {value: colours[value] for value, name in organs.items() if name == organ}
        return Drawn(volume=volume, colours=colours, style=style, opacity=opacity)
