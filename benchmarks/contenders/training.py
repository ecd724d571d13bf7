"""Training in turns: a contender makes itself ready, says so, and does a turn of its work for each line it is sent.

    python benchmarks/contenders/training.py CONTENDER FOLDER THREADS

FOLDER holds `plan.toml` (network, patch, batch) and `store`, the scans that patches are cut from. A turn prints for a
unit, a step or an augmented patch, the seconds that its threads computed and those that passed. nnU-Net's step is that
of its own trainer, with its loss, optimiser and layout of memory; its patches come from its own loader, from the same
prepared scans.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from semiseg.data.plan import Plan, read_plan

Turn = Callable[[], int]
"""Does some of the work; says how many units."""
PATCHES = 16
"""Of a turn of augmentation: so many are rotated, blurred and so on in about the same share in each."""


def main() -> None:
    name, folder, threads = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    with redirect_stdout(sys.stderr):
        torch.set_num_threads(threads)
        turn = CONTENDERS[name](folder)
        turn()
    print("ready", flush=True)
    for _ in sys.stdin:
        began, computed = time.perf_counter(), time.process_time()
        with redirect_stdout(sys.stderr):
            units = turn()
        print((time.process_time() - computed) / units, (time.perf_counter() - began) / units, flush=True)


def _batch(plan: Plan) -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn((plan.batch, len(plan.channels), *plan.patch), generator=generator)
    return images, torch.randint(0, plan.labels.count, (plan.batch, *plan.patch), generator=generator)


def _semiseg_step(folder: Path, method: str = "supervised", precision: str = "auto", every: int = 1) -> Turn:
    from semiseg.methods.base import Batch, UnlabelledBatch
    from semiseg.methods.build import build_method
    from semiseg.methods.phases import Phases
    from semiseg.methods.settings import MplSettings, SupervisedSettings
    from semiseg.randomness import Draw
    from semiseg.training.precision import autocast_dtype, choose_precision
    from semiseg.training.session import set_up_torch

    plan, device = read_plan(folder / "plan.toml"), torch.device("cpu")
    set_up_torch(torch.get_num_threads(), deterministic=True)
    chosen = choose_precision(precision, device)
    print(method, chosen)
    settings = MplSettings(teacher_every=every) if method == "mpl" else SupervisedSettings()
    made = build_method(
        plan, settings, Phases.of_steps(0, 10**6, 10**6), seed=0, device=device, autocast=autocast_dtype(chosen)
    )
    images, labels = _batch(plan)
    images = images.contiguous(memory_format=torch.channels_last_3d)
    labelled, unlabelled = (
        Batch(images, labels),
        UnlabelledBatch(images, images, labels if made.labelling_steps else None),
    )
    steps = count()

    def turn() -> int:
        for _ in range(every):
            draw = Draw(seed=0, step=next(steps))
            made.step(labelled, unlabelled if method == "mpl" else None, draw)
        return every

    return turn


def _nnunet_step(folder: Path, *, own_network: bool) -> Turn:
    import numpy as np
    from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
    from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
    from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    plan = read_plan(folder / "plan.toml")
    images, labels = _batch(plan)
    loss: Any = DC_and_CE_loss(
        {"batch_dice": True, "smooth": 1e-5, "do_bg": False, "ddp": False},
        {},
        weight_ce=1,
        weight_dice=1,
        ignore_label=None,
        dice_class=MemoryEfficientSoftDiceLoss,
    )
    target: Any = labels[:, None].to(torch.int16)
    if own_network:
        network = _nnunet_network(plan)
        sizes = [output.shape[2:] for output in network(images)]
        target = [
            torch.nn.functional.interpolate(labels[:, None].float(), tuple(size), mode="nearest").to(torch.int16)
            for size in sizes
        ]
        weights = np.array([0.5**level for level in range(len(sizes))])
        weights[-1] = 0
        loss = DeepSupervisionWrapper(loss, weights / weights.sum())
    else:
        from semiseg.models.build import build_network

        network = build_network(plan.student, channels=len(plan.channels), classes=plan.labels.count, seed=0)
    trainer = SimpleNamespace(
        device=torch.device("cpu"), network=network.train(), loss=loss, grad_scaler=None, initial_lr=1e-2,
        weight_decay=3e-5, num_epochs=1000,
    )  # fmt: skip
    trainer.optimizer, _ = nnUNetTrainer.configure_optimizers(trainer)

    def turn() -> int:
        nnUNetTrainer.train_step(trainer, {"data": images, "target": target})
        return 1

    return turn


def _nnunet_network(plan: Plan) -> Any:
    """nnU-Net's, of the same features, strides and kernels, with what else it plans for: convolutions with strides,
    instance norm, leaky ReLU, and a loss at every level."""
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    sizes = plan.student
    return PlainConvUNet(
        len(plan.channels),
        len(sizes.features),
        list(sizes.features),
        torch.nn.Conv3d,
        [list(kernel) for kernel in sizes.kernels],
        [list(stride) for stride in sizes.strides],
        2,
        plan.labels.count,
        2,
        conv_bias=True,
        norm_op=torch.nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=torch.nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=True,
    )


def _semiseg_patches(folder: Path, *, from_store: bool, elastic: bool = True) -> Turn:
    from semiseg.augment.settings import AugmentSettings
    from semiseg.augment.views import labelled_view
    from semiseg.data.batches import BatchSource
    from semiseg.data.sampling import SamplingSettings
    from semiseg.randomness import Draw

    plan = read_plan(folder / "plan.toml")
    source = BatchSource(
        sorted(path.parent for path in (folder / "store").glob("*/case.json")),
        patch=plan.patch,
        batch=plan.batch,
        seed=0,
        settings=SamplingSettings(cache_gb=0.0),  # scans are too many to be kept, for nnU-Net as for us
    )
    augment = AugmentSettings(elastic=elastic).suited_to(mirror_axes=(0, 1, 2))
    kept, steps = source.labelled(0), count()

    def turn() -> int:
        for _ in range(PATCHES // plan.batch):
            step = next(steps)
            images, labels = source.labelled(step) if from_store else kept
            draw = Draw(seed=0, step=step)
            labelled_view(torch.from_numpy(images), torch.from_numpy(labels), draw, augment, plan.labels)
        return PATCHES

    return turn


def _nnunet_patches(folder: Path, *, from_store: bool) -> Turn:
    import nnunet
    import numpy as np
    from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
    from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    from semiseg.geometry import Box
    from semiseg.io.store import open_case

    plan = read_plan(folder / "plan.toml")
    manager = nnunet.plans_manager(plan)
    trainer = SimpleNamespace(
        configuration_manager=manager.get_configuration("3d_fullres"), print_to_log_file=lambda *_, **__: None
    )
    rotation, dummy_2d, first_patch, mirror_axes = (
        nnUNetTrainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size(trainer)
    )
    transforms = nnUNetTrainer.get_training_transforms(
        list(plan.patch), rotation, None, mirror_axes, dummy_2d, use_mask_for_norm=[False]
    )
    prepared = folder / "nnunet"
    for case in sorted(path.parent for path in (folder / "store").glob("*/case.json")):
        if (prepared / f"{case.name}.pkl").exists():
            continue
        prepared.mkdir(exist_ok=True)
        stored = open_case(case)
        box = Box((0, 0, 0), stored.meta.shape_zyx)
        blocks, chunks = comp_blosc2_params((1, *stored.meta.shape_zyx), tuple(plan.patch))
        locations = {
            value: np.array([(0, *place) for place in places]) for value, places in stored.meta.class_locations.items()
        }
        nnUNetDatasetBlosc2.save_case(
            stored.read_image(box), stored.read_label(box)[None].astype(np.int16), {"class_locations": locations},
            str(prepared / case.name), chunks=chunks, blocks=blocks, chunks_seg=chunks, blocks_seg=blocks,
        )  # fmt: skip
    loader = nnUNetDataLoader(
        nnUNetDatasetBlosc2(str(prepared)),
        plan.batch,
        first_patch,
        list(plan.patch),
        manager.get_label_manager(nnunet.dataset_json(plan)),
        oversample_foreground_percent=0.33,
        transforms=transforms if from_store else None,
    )
    kept = loader.generate_train_batch()

    def turn() -> int:
        for _ in range(PATCHES // plan.batch):
            if from_store:
                loader.generate_train_batch()
            else:
                for image, labels in zip(kept["data"], kept["target"], strict=True):
                    transforms(image=image.clone(), segmentation=labels.clone())
        return PATCHES

    return turn


CONTENDERS: dict[str, Callable[[Path], Turn]] = {
    "semiseg": _semiseg_step,
    "semiseg float32": partial(_semiseg_step, precision="float32"),
    "semiseg dense feedback": partial(_semiseg_step, method="mpl"),
    "semiseg dense feedback, every 4th": partial(_semiseg_step, method="mpl", every=4),
    "nnU-Net": partial(_nnunet_step, own_network=False),
    "nnU-Net, its network": partial(_nnunet_step, own_network=True),
    "semiseg patches": partial(_semiseg_patches, from_store=True),
    "semiseg patches, not deformed": partial(_semiseg_patches, from_store=True, elastic=False),
    "semiseg augmentation": partial(_semiseg_patches, from_store=False),
    "semiseg augmentation, not deformed": partial(_semiseg_patches, from_store=False, elastic=False),
    "nnU-Net patches": partial(_nnunet_patches, from_store=True),
    "nnU-Net augmentation": partial(_nnunet_patches, from_store=False),
}


if __name__ == "__main__":
    main()
