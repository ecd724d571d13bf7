"""How much better a network labels a patch if it sees the scan around it: by itself, and from the whole scan.

    semiseg prepare HIDDEN --recipe RECIPE --data FOLDER --set data.labelled=160 --set train.validation_every=0 ...
    python benchmarks/patch_labels.py --run RUN --hidden HIDDEN

Patches are drawn as training draws unlabelled ones, 12 a scan, of scans that RUN has no label of and HIDDEN (prepared
by the same plan, with all labels shown) has. Prints Dice over the voxels of all patches and organs: of the patch by
itself, of the same voxels from the sliding window over the scan, and that with the scan's mirror image.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch

from semiseg.data.sampling import unlabelled_patch
from semiseg.geometry import Box
from semiseg.io.store import open_case
from semiseg.prediction.engines.torch_engine import torch_engine
from semiseg.prediction.model import load_model
from semiseg.prediction.window import Window
from semiseg.randomness import Draw
from semiseg.training.scan_labels import scan_labels
from semiseg.types import LabelArray, Shape

PATCHES = 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--hidden", type=Path, required=True)
    parser.add_argument("--scans", type=int, default=12)
    arguments = parser.parse_args()
    model = load_model(arguments.run / "model")
    engine, patch, mirrored = torch_engine(model, torch.device("cpu")), model.plan.patch, model.mirror_axes[-1:]
    windows = {
        "from the whole scan": Window(patch=patch),
        "the same, mirrored": Window(patch=patch, mirror_axes=mirrored, labels=model.plan.labels),
    }
    folders = [file.parent for file in sorted((arguments.hidden / "store").glob("*/label.b2nd"))]
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for folder in [f for f in folders if f.name not in model.card["labelled_cases"]][: arguments.scans]:
        case = open_case(folder)
        whole = {name: scan_labels(case, engine, window) for name, window in windows.items()}
        for step in range(PATCHES):
            box = unlabelled_patch([case.meta], {}, patch, Draw(seed=1, step=step), 1).box
            inside = tuple(slice(max(0, a), z) for a, z in zip(box.start, box.stop, strict=True))
            alone = engine.run(case.read_image(box)[None])[0].argmax(axis=0)[_within(box, case.meta.shape_zyx)]
            reference = case.read_label(Box((0, 0, 0), case.meta.shape_zyx))[inside]
            for name, labels in ({"patch by itself": alone} | {k: v[inside] for k, v in whole.items()}).items():
                _add(counts[name], labels, reference)
    for name, (shared, sizes) in counts.items():
        print(f"{name:20s} {2 * shared / sizes:.4f}")


def _within(box: Box, shape: Shape) -> tuple[slice, ...]:
    """The part of a box that lies in the scan."""
    return tuple(slice(max(0, -a), min(z, n) - a) for a, z, n in zip(box.start, box.stop, shape, strict=True))


def _add(count: list[int], labels: LabelArray, reference: LabelArray) -> None:
    organ = reference > 0
    count[0] += int(((labels == reference) & organ).sum())
    count[1] += int(np.count_nonzero(labels)) + int(organ.sum())


if __name__ == "__main__":
    main()
