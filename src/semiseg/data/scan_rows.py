"""A scan as the network sees it, made row by row: normalised on its own grid, then resampled to the plan's.

The order is nnU-Net's. Nothing is cropped. Rows are those of any of the three axes, so that prediction can go along
the one that costs least memory and never hold the whole scan in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np

from semiseg.data.body import every_nth
from semiseg.data.plan import ChannelNormalisation, Plan
from semiseg.errors import DataError
from semiseg.geometry import CANONICAL_AXES, triple
from semiseg.io.scans import RawChannel
from semiseg.ops.normalise import dark_limit, mean_and_deviation, normalise_ct, normalise_zscore
from semiseg.ops.resample import Limits, ResampledRows, coarse_axis, is_anisotropic, target_shape, value_limits
from semiseg.types import FloatArray, Shape, Spacing
from semiseg.words import counted

_PIECE_ROWS = 16
"""Rows that are converted to float32 at once where a whole channel is looked through."""


def preparation_axis(spacing_mm: Spacing, plan: Plan) -> int | None:
    """The axis of order 0 on the way from a scan to the plan's grid.

    As in nnU-Net a scan that is itself anisotropic decides, and the plan otherwise.
    """
    return coarse_axis(spacing_mm) if is_anisotropic(spacing_mm) else plan.anisotropic_axis


def export_axis(spacing_mm: Spacing, plan: Plan) -> int | None:
    """The axis of order 0 on the way back from the plan's grid to a scan's: the plan decides first."""
    if plan.anisotropic_axis is not None or is_anisotropic(plan.spacing_mm):
        return plan.anisotropic_axis
    return coarse_axis(spacing_mm)


class ScanRows:
    """The scan on the plan's grid, `(C, rows, ., .)` float32 in network units, from its rows along one axis."""

    def __init__(
        self, channels: Sequence[RawChannel], spacing_mm: Spacing, plan: Plan, axes: Shape = CANONICAL_AXES
    ) -> None:
        """channels: canonical. axes: the order of axes to work in, the one that rows are counted along first.

        Raises `DataError` for another number of channels than the plan's.
        """
        if len(channels) != len(plan.channels):
            raise DataError(
                f"the scan has {counted(len(channels), 'channel')}, but the plan expects {len(plan.channels)} "
                f"({', '.join(plan.channels)}). Give one image per channel, in this order."
            )
        shape = target_shape(triple(channels[0].stored.shape), spacing_mm, plan.spacing_mm)
        self.shape: Shape = triple(shape[axis] for axis in axes)
        """Of the scan on the plan's grid, in the order of `axes`."""
        self.channels = len(channels)
        coarse = preparation_axis(spacing_mm, plan)
        coarse = None if coarse is None else axes.index(coarse)
        self._channels = [
            _channel_rows(channel, normalisation, axes, self.shape, coarse)
            for channel, normalisation in zip(channels, plan.normalisation, strict=True)
        ]
        self._last: tuple[int, list[FloatArray]] | None = None

    def rows(self, start: int, stop: int) -> FloatArray:
        """Rows `[start, stop)`; cheapest asked for one after the other."""
        out = np.empty((self.channels, stop - start, *self.shape[1:]), dtype=np.float32)
        for block in range(self._channels[0].blocks):
            where = self._channels[0].rows_of(block)
            first, last = max(start, where.start), min(stop, where.stop)
            if first < last:
                for target, made in zip(out, self._block(block), strict=True):
                    target[first - start : last - start] = made[first - where.start : last - where.start]
        return out

    def _block(self, block: int) -> list[FloatArray]:
        """A block of all channels; the last one is kept, since the next rows may begin within it."""
        if self._last is None or self._last[0] != block:
            self._last = None  # freed before the next one is made
            self._last = (block, [channel.block(block) for channel in self._channels])
        return self._last[1]


def _channel_rows(
    channel: RawChannel, normalisation: ChannelNormalisation, axes: Shape, shape: Shape, coarse: int | None
) -> ResampledRows:
    normalised = _normaliser(channel, normalisation)
    turned = channel.along(axes)
    source: Shape = triple(turned.stored.shape)
    return ResampledRows(
        lambda start, stop: normalised(turned.values(start, stop)),
        source,
        shape,
        coarse,
        limits=None if source == shape else _limits(turned, normalised, coarse),
    )


def _normaliser(channel: RawChannel, normalisation: ChannelNormalisation) -> Callable[[FloatArray], FloatArray]:
    if normalisation.scheme == "ct":
        return partial(
            normalise_ct,
            low=normalisation.low,
            high=normalisation.high,
            mean=normalisation.mean,
            deviation=normalisation.deviation,
        )
    # How much dark air and margin a scan holds is not to shift it.
    mean, deviation = mean_and_deviation(lambda: _pieces(channel), above=dark_limit(every_nth(channel)[0]))
    return partial(normalise_zscore, mean=mean, deviation=deviation)


def _limits(channel: RawChannel, normalised: Callable[[FloatArray], FloatArray], coarse: int | None) -> Limits:
    """The smallest and largest normalised values: normalising keeps the order, so two stored values tell."""
    ends = [RawChannel(end, channel.slope, channel.inter).values() for end in value_limits(channel.stored, coarse)]
    return normalised(np.minimum(*ends)), normalised(np.maximum(*ends))


def _pieces(channel: RawChannel) -> Iterator[FloatArray]:
    for start in range(0, len(channel.stored), _PIECE_ROWS):
        yield channel.values(start, start + _PIECE_ROWS)
