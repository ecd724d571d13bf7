"""Do deformations that unlabelled scans show do more than random ones?

Transformations learnt by registration, as augmentation (Zhao et al., CVPR 2019), of which this is the spatial part.

    python benchmarks/learnt_deformations.py --data FOLDER --output FOLDER [--steps 1000] [--subsets 3]

Each labelled scan is registered onto each scan of a pool without labels (diffeomorphic demons, two resolutions), and it
and its label are moved there: an exact label of a scan whose shape somebody has. Trained on is:

  unseen             the labelled scans, with the random deformations of augmentation
  alone              these, with the histograms of the pool, too, as labels alone always have them
  rounds             these and the pool, by the default method
  registered         the labelled scans and all that were moved, each seen as often
  registered_rounds  all of these

Scored on training scans that are held back, of which no run knows anything. What is done is not done again. Writes
benchmarks/results/learnt_deformations.json after every run. Needs SimpleITK.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations, permutations
from pathlib import Path

import numpy as np
import SimpleITK

from few_labels import SETS, Subset, keep_row, made_run, mean_dice, organ_dice
from pseudo_label_ladder import gain
from semiseg.files import atomic_folder, read_json, write_json
from semiseg.scoring.label_efficiency import verdict

RESULTS = Path(__file__).resolve().parent / "results" / "learnt_deformations.json"
WAYS = ("unseen", "alone", "rounds", "registered", "registered_rounds")
HELD_BACK = 40
SMOOTH_VOXELS, ITERATIONS = 1.5, 60
"""Of the demons, at each resolution."""
MOST_VOXELS = 400_000
"""Of a scan that is registered; larger ones are made coarser first, along all axes alike."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--set", dest="name", choices=[*SETS], default="hippocampus")
    parser.add_argument("--subsets", type=int, default=3)
    parser.add_argument("--first-subset", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--alone-steps", type=int, default=0, help="of labels alone in the differences; 0 is as many")
    parser.add_argument("--pool", type=int, default=30, help="scans without labels")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--fit", action="store_true", help="how well registration fits labelled scans; no run is made")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    if arguments.fit:
        subset = Subset.of(arguments.name, 0, data=arguments.data, folder=arguments.output, pool=arguments.pool)
        print("mean Dice of labels centred and registered:", *np.round(fit_of_labels(subset), 4))
        return
    for number in range(arguments.first_subset, arguments.first_subset + arguments.subsets):
        folder = arguments.output / f"{arguments.name}_onto_{arguments.pool}" / f"subset_{number}"
        subset = Subset.of(arguments.name, number, data=arguments.data, folder=folder, pool=arguments.pool)
        for way in arguments.ways:
            moved = way.startswith("registered")
            named = "registered" if moved else "unseen" if way == "unseen" else "alone"
            root = folder / f"Dataset_{named}"
            if not root.exists():
                write_set(root, replace(subset, pool=[]) if way == "unseen" else subset, moved=moved)
            here = replace(subset, root=root, plain={})  # all scans of the folder that have a label are learnt from
            method = "pseudo_rounds" if way.endswith("rounds") else "supervised"
            settings = here.settings(arguments.steps, method__name=method)
            found = made_run(folder / f"{way}_{arguments.steps}_steps", settings)
            cases = {case: round(mean_dice(values), 4) for case, values in sorted(found.items())}
            row = {
                "set": arguments.name,
                "pool": arguments.pool,
                "steps": arguments.steps,
                "subset": number,
                "seed": 0,
                "way": way,
                "dice": round(float(np.mean(list(cases.values()))), 4),
                "cases": cases,
            }
            keep_row(arguments.results, row, ("set", "pool", "steps", "subset", "way"))
            print({key: value for key, value in row.items() if key != "cases"}, flush=True)
    print_differences(arguments)


def print_differences(arguments: argparse.Namespace) -> None:
    """Of each way to those before it, on the choices of labels that both have."""
    rows = [
        row for row in read_json(arguments.results) if (row["set"], row["pool"]) == (arguments.name, arguments.pool)
    ]
    steps = dict.fromkeys(WAYS, arguments.steps) | {"alone": arguments.alone_steps or arguments.steps}
    found = {way: [row for row in rows if (row["way"], row["steps"]) == (way, steps[way])] for way in WAYS}
    for one, other in combinations([way for way in WAYS if found[way]], 2):
        both, by_case = gain(found[other], found[one])
        over = f"[{both['low']:+.4f}, {both['high']:+.4f}], over cases [{by_case['low']:+.4f}, {by_case['high']:+.4f}]"
        print(f"{other} minus {one} of {steps[one]} steps: {both['mean']:+.4f} {over}: {verdict(both)}")


def write_set(root: Path, subset: Subset, *, moved: bool) -> None:
    """The labelled scans, held-back ones as test cases, and what was moved onto the pool, as a data set of its own."""
    files = {case.id: (case.images[0], case.label) for case in subset.dataset.cases}
    others = [id for id in subset.dataset.train_order if id not in {*subset.labelled, *subset.pool}]
    with atomic_folder(root, made=("imagesTr",)) as temporary:
        for part in ("imagesTr", "labelsTr", "imagesUn", "imagesTs", "labelsTs"):
            (temporary / part).mkdir()
        for part, ids in (("Tr", subset.labelled), ("Ts", others[-HELD_BACK:])):
            for id in ids:
                image, label = files[id]
                assert label is not None
                shutil.copy(image, temporary / f"images{part}" / f"{id}_0000.nii.gz")
                shutil.copy(label, temporary / f"labels{part}" / f"{id}.nii.gz")
        pool = [files[id][0] for id in subset.pool]
        for file in pool:
            shutil.copy(file, temporary / "imagesUn" / file.name)
        if moved:
            for id in subset.labelled:
                image, label = files[id]
                assert label is not None
                for number, pair in enumerate(moved_onto(pool, image, label)):
                    for array, name in zip(pair, ("imagesTr/{}_0000.nii.gz", "labelsTr/{}.nii.gz"), strict=True):
                        SimpleITK.WriteImage(array, str(temporary / name.format(f"{id}_on_{number:03d}")))
        described = read_json(subset.root / "dataset.json")
        keys = ("name", "channel_names", "labels", "file_ending")
        write_json(temporary / "dataset.json", {key: described[key] for key in keys if key in described})


def moved_onto(pool: Sequence[Path], image: Path, label: Path) -> Iterator[tuple[SimpleITK.Image, SimpleITK.Image]]:
    """A scan and its label in the shape, and on the grid, of each scan of the pool."""
    moving = coarser(SimpleITK.ReadImage(str(image), SimpleITK.sitkFloat32))
    labels = SimpleITK.ReadImage(str(label), SimpleITK.sitkUInt8)
    for file in pool:
        fixed = coarser(SimpleITK.ReadImage(str(file), SimpleITK.sitkFloat32))
        to_moving = registration(fixed, moving)
        yield (
            SimpleITK.Resample(moving, fixed, to_moving, SimpleITK.sitkLinear, float(np.median(values_of(moving)))),
            SimpleITK.Resample(labels, fixed, to_moving, SimpleITK.sitkNearestNeighbor, 0),
        )


def fit_of_labels(subset: Subset) -> tuple[float, float]:
    """Mean Dice of one labelled scan's labels on another's grid with the other's, over organs and ordered pairs of the
    first four: where both are centred alone, and where one is registered onto the other."""
    files = {case.id: (str(case.images[0]), str(case.label)) for case in subset.dataset.cases}
    organs = list(subset.dataset.labels.organs)
    found = []
    for one, other in permutations(subset.labelled[:4], 2):
        moving, fixed = (coarser(SimpleITK.ReadImage(files[id][0], SimpleITK.sitkFloat32)) for id in (one, other))
        given, true = (SimpleITK.ReadImage(files[id][1], SimpleITK.sitkUInt8) for id in (one, other))
        ways = (SimpleITK.Transform(), centred(fixed, moving), registration(fixed, moving))
        labels = [
            values_of(SimpleITK.Resample(label, fixed, way, SimpleITK.sitkNearestNeighbor, 0))
            for label, way in zip((true, given, given), ways, strict=True)
        ]
        found.append([mean_dice(organ_dice(label, labels[0], organs)) for label in labels[1:]])
    before, after = np.mean(found, axis=0)
    return float(before), float(after)


def centred(fixed: SimpleITK.Image, moving: SimpleITK.Image) -> SimpleITK.Transform:
    """From places of `fixed` to those of `moving`, centre upon centre."""
    return SimpleITK.CenteredTransformInitializer(
        fixed, moving, SimpleITK.Euler3DTransform(), SimpleITK.CenteredTransformInitializerFilter.GEOMETRY
    )


def registration(fixed: SimpleITK.Image, moving: SimpleITK.Image) -> SimpleITK.Transform:
    """From places of `fixed` to those of `moving` that look alike."""
    first = centred(fixed, moving)
    there = SimpleITK.Resample(moving, fixed, first, SimpleITK.sitkLinear, float(np.median(values_of(moving))))
    matched = SimpleITK.HistogramMatching(there, fixed, 128, 10, False)
    field = None
    for shrink in (2, 1):
        small, seen = (SimpleITK.Shrink(one, [shrink] * 3) for one in (fixed, matched))
        demons = SimpleITK.DiffeomorphicDemonsRegistrationFilter()
        demons.SetNumberOfIterations(ITERATIONS)
        demons.SetSmoothDisplacementField(True)
        demons.SetStandardDeviations(SMOOTH_VOXELS)
        if field is None:
            field = demons.Execute(small, seen)
        else:
            field = demons.Execute(small, seen, SimpleITK.Resample(field, small))
    moved = SimpleITK.DisplacementFieldTransform(SimpleITK.Cast(field, SimpleITK.sitkVectorFloat64))
    return SimpleITK.CompositeTransform([first, moved])


def coarser(image: SimpleITK.Image) -> SimpleITK.Image:
    """The image with so many voxels at most."""
    factor = float(np.cbrt(image.GetNumberOfPixels() / MOST_VOXELS))
    if factor <= 1:
        return image
    spacing = [max(own, factor * float(np.cbrt(np.prod(image.GetSpacing())))) for own in image.GetSpacing()]
    size = [
        max(1, round(n * own / new)) for n, own, new in zip(image.GetSize(), image.GetSpacing(), spacing, strict=True)
    ]
    smooth = SimpleITK.SmoothingRecursiveGaussian(image, [new / 2 for new in spacing])
    return SimpleITK.Resample(
        smooth, size, SimpleITK.Transform(), SimpleITK.sitkLinear, image.GetOrigin(), spacing, image.GetDirection()
    )


def values_of(image: SimpleITK.Image) -> np.ndarray:
    return np.asarray(SimpleITK.GetArrayFromImage(image))


if __name__ == "__main__":
    main()
