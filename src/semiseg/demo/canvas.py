"""What shapes are painted on: an image in HU and its label map, painted in order with partial volume."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from semiseg.types import FloatArray, LabelArray


@dataclass
class Canvas:
    """points: `(3, Z, Y, X)` x, y, z in mm in the patient's frame. voxel_mm: width of the partial-volume edge.

    image: `(Z, Y, X)` float32 in HU. label: `(Z, Y, X)` uint8.
    """

    points: FloatArray
    voxel_mm: float
    image: FloatArray
    label: LabelArray

    def paint(self, distance: FloatArray, hu: float | FloatArray, label: int | None = None) -> None:
        """Blend `hu` in by the share of each voxel inside of the shape; voxels mostly inside take the label.

        Without a label the label map stays: contents and vessels belong to the organ that they are painted in.
        """
        share = np.clip(np.float32(0.5) - distance / np.float32(self.voxel_mm), 0, 1)
        self.image += share * (np.asarray(hu, dtype=np.float32) - self.image)
        if label is not None:
            self.label[distance < 0] = label
