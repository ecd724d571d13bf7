"""Settings of prediction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from semiseg.errors import ConfigError
from semiseg.prediction.byte_sizes import parse_bytes

EngineName = Literal["auto", "torch", "openvino", "onnx"]
Precision = Literal["auto", "float32", "bfloat16", "int8"]
OutputFormat = Literal["nifti", "nrrd", "mha", "dicom-seg", "dicom-labelmap", "rtstruct"]


@dataclass(frozen=True, kw_only=True)
class PredictSettings:
    """Section `[predict]` of a run file."""

    device: str = "auto"
    """auto (CUDA, or the CPU), cpu, cuda, cuda:1, or mps, on which nothing was tested."""
    engine: EngineName = "auto"
    """What computes on a CPU: by default the fastest that is installed and gives torch's labels. On a GPU torch."""
    precision: Precision = "auto"
    """Of the engine: by default the fastest that the processor has and that gives the labels of float32. int8 is made
    from the scans at hand, which takes minutes once, and so only where it is asked for."""
    tile_step: float = 0.6
    """Largest distance of neighbouring tiles as a share of the patch; smaller is slower, and not measurably better:
    docs/decisions/0011-fewer-tiles.md."""
    tile_batch: int = 1
    """Tiles computed together; more is faster on a GPU and takes more memory."""
    skip_air: bool = True
    """In CT, leave out tiles that hold nothing of the body: their voxels are background."""
    postprocess: bool = True
    """Clean the labels as was chosen for the model (`semiseg postprocess`), if it was."""
    max_memory: str = ""
    """What prediction may take, such as 4GB; it refuses to begin where that does not suffice. Labels do not depend on
    it."""
    max_gpu_memory: str = ""
    """What may be in use on an NVIDIA GPU, by all programs together, such as 2048MiB, the challenge's free zone: tiles
    are then computed in smaller batches, and blended in main memory where that does not suffice."""
    compile: bool = False
    """Have torch.compile make the network for this machine first, which takes a minute or so: for many scans on a
    GPU."""
    mirror: bool = True
    """Average over tiles mirrored along the axes that training mirrored, left and right mostly: twice as long for each,
    and better by 0.003 to 0.007 Dice on four sets."""
    probabilities: bool = False
    """Also write the class probabilities as CASE_probabilities.nii.gz (4D, float32)."""

    def __post_init__(self) -> None:
        if not 0 < self.tile_step <= 1:
            raise ConfigError(f"predict.tile_step = {self.tile_step}: give a number above 0 and up to 1.")
        for setting in ("max_memory", "max_gpu_memory"):
            if getattr(self, setting):
                parse_bytes(getattr(self, setting), setting)
        if self.tile_batch < 1:
            raise ConfigError(f"predict.tile_batch = {self.tile_batch}: give 1 or more.")
