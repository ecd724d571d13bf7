"""A plan for very many scans: time, storage and bottleneck of each stage, from constants and the size of a cluster.

    python benchmarks/cluster_model.py --scans 100000 --gpus 64 --cores 1024 --storage-gb-s 10 --network-gb-s 12.5
    python benchmarks/cluster_model.py --table                       # 1 to 64 GPUs

What a scan costs a core and a disk is measured (`cluster_measured.json`, by `cluster_measure.py`); what a GPU takes was
measured on one, or is an estimate: `cluster_constants.toml` says which. A stage lasts as long as the resource that it
needs longest; that is its bottleneck. How often ranks wait for each other in a step is counted by
`tests/methods/test_collectives.py`. Nothing here was measured on a cluster.
"""

from __future__ import annotations

import argparse
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from semiseg.data.plan import NetworkPlan
from semiseg.files import read_json
from semiseg.training.inputs import LABELLED_SHARE

HERE = Path(__file__).parent
HOUR, TB = 3600.0, 1e12
PAPER = NetworkPlan(
    features=(32, 64, 128, 256, 512),
    kernels=((3, 3, 3),) * 5,
    strides=((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2)),
)


@dataclass(frozen=True)
class Waiting:
    """What of a step all ranks do together. passes: through a network with batch norm in training, there and back; a
    pass without gradient is half of one. gradients: means of a network's gradient. sums: of a loss."""

    passes: int
    gradients: int
    sums: int

    def calls(self, network: NetworkPlan) -> int:
        """All-reduces: two of each batch norm, each way."""
        return 4 * self.passes * len(_norms(network)) + self.gradients + self.sums

    def bytes(self, network: NetworkPlan, parameters: int, classes: int) -> int:
        """Of these in float32, at most: a loss sums two numbers of each class, or fewer."""
        channels, norms = sum(_norms(network)), len(_norms(network))
        return 4 * (self.passes * (4 * channels + 2 * norms) + self.gradients * parameters + self.sums * 2 * classes)


STEPS: dict[str, Waiting] = {
    "supervised": Waiting(1, 1, 4),
    "pseudo_rounds": Waiting(1, 1, 9),
    "masked": Waiting(1, 1, 4),
    "pseudo_label": Waiting(1, 1, 4),
    "mpl": Waiting(4, 4, 19),
    "mpl scalar": Waiting(3, 3, 14),
    "mean_teacher": Waiting(1, 1, 6),
    "cross_pseudo": Waiting(2, 2, 16),
    "copy_paste": Waiting(1, 1, 16),
}
"""By method: a step of its training phase, of MPL one in which the teacher moves."""


def _norms(network: NetworkPlan) -> list[int]:
    """Channels of each batch norm of a U-Net: two a level down, two a level up."""
    return [count for features in (network.features, network.features[:-1]) for count in features for _ in range(2)]


@dataclass(frozen=True)
class Cluster:
    """Many machines. storage, iops: of the file system that all see. network: of a machine. staged: training reads
    scans from a disc of each machine."""

    gpus: int = 64
    gpus_a_node: int = 8
    cores: int = 1024
    storage_gb_s: float = 10.0
    iops: float = 50_000.0
    network_gb_s: float = 12.5
    staged: bool = False

    @property
    def nodes(self) -> int:
        return -(-self.gpus // self.gpus_a_node)


@dataclass(frozen=True)
class Job:
    """patches: labelled ones that training takes in all, and as many unlabelled. a_gpu: of each in a step of one GPU.
    tests: scans to predict and to score."""

    scans: int = 100_000
    labelled: int = 1_000
    tests: int = 1_000
    method: str = "pseudo_rounds"
    patches: int = 1_000_000
    a_gpu: int = 2
    rounds: int = 5
    label_scans: int = 0
    """Of each round; 0 is all unlabelled. Rounds label no more than is worth while beside training."""


@dataclass
class Stage:
    """What a stage needs of each resource, in seconds that it would take alone."""

    name: str
    seconds: dict[str, float]
    core_hours: float = 0.0
    gpu_hours: float = 0.0
    read_tb: float = 0.0
    written_tb: float = 0.0
    notes: list[str] = field(default_factory=list)

    @property
    def hours(self) -> float:
        return max(self.seconds.values()) / HOUR

    @property
    def bottleneck(self) -> str:
        return max(self.seconds, key=lambda name: self.seconds[name])


def stages(job: Job, cluster: Cluster, measured: dict[str, Any], constants: dict[str, Any]) -> list[Stage]:
    """Each stage of a run on a cluster."""
    m, c = measured, {name: one["value"] for name, one in constants.items()}
    unlabelled = job.scans - job.labelled
    storage, cores = cluster.storage_gb_s * 1e9, cluster.cores

    def both(name: str) -> float:
        return float(unlabelled * m[f"{name}_unlabelled"] + job.labelled * m[f"{name}_labelled"])

    def work(name: str, core_seconds: float, read: float, written: float, operations: float) -> Stage:
        seconds = {
            "cores": core_seconds / cores,
            "storage GB/s": (read + written) / storage,
            "storage IOPS": operations / cluster.iops,
        }
        return Stage(name, seconds, core_seconds / HOUR, 0.0, read / TB, written / TB)

    source = job.scans * m["source_mb"] * 1e6
    stored = 1e6 * (unlabelled * m["stored_mb"] + job.labelled * m["stored_labelled_mb"])
    inodes = unlabelled * m["inodes_unlabelled"] + job.labelled * m["inodes_labelled"]
    found = [
        work("check", both("check"), source, 0.0, job.scans * c["operations_to_read_a_file"]),
        work(
            "prepare",
            both("prepare") + job.labelled * m["fingerprint_labelled"],
            2 * source,  # once for its hash, and once to be prepared; by then it may be in memory
            stored,
            job.scans * 3 * c["operations_to_read_a_file"] + inodes * c["operations_to_make_a_file"],
        ),
    ]
    # Its last part: the index of all descriptions is written by one process.
    found[1].seconds["one process"] = (unlabelled * m["case_meta_ms"] + job.labelled * m["case_meta_labelled_ms"]) / 1e3
    share = min(1.0, cluster.nodes * c["local_disc_tb"] * TB / stored)
    found.append(
        Stage(
            "stage to local discs",
            {
                "storage GB/s": cluster.nodes * stored * share / storage,
                "network": stored * share / (cluster.network_gb_s * 1e9),
                "local disc": stored * share / (c["local_disc_write_gb_s"] * 1e9),
            },
            read_tb=cluster.nodes * stored * share / TB,
            written_tb=cluster.nodes * stored * share / TB,
        )
    )
    found.append(_training(job, cluster, m, c))
    found.append(_labelling(job, cluster, m, c))
    found += [_prediction(job, cluster, m, c)]
    label_maps = job.tests * 2 * m["label_map_mb"] * 1e6
    found.append(
        work(
            "evaluate",
            job.tests * m["evaluate"] * c["organs"] / m["organs"],
            label_maps,
            0.0,
            job.tests * 2 * c["operations_to_read_a_file"],
        )
    )
    return found


def step_seconds(job: Job, cluster: Cluster, c: dict[str, float]) -> dict[str, float]:
    """Of a step on each GPU: computing, waiting for each other, and moving gradients."""
    waiting = STEPS[job.method]
    compute = c[f"step_{job.method.replace(' ', '_')}"] * job.a_gpu / 2
    if cluster.gpus == 1:
        return {"compute": compute, "latency": 0.0, "bandwidth": 0.0}
    parameters, classes = int(c["parameters"]), int(c["organs"]) + 1
    far = cluster.nodes > 1
    latency = c["latency_far_us" if far else "latency_near_us"] * 1e-6
    rate = cluster.network_gb_s * 1e9 if far else c["nvlink_gb_s"] * 1e9
    moved = 2 * (cluster.gpus - 1) / cluster.gpus * waiting.bytes(PAPER, parameters, classes)
    return {"compute": compute, "latency": latency * waiting.calls(PAPER), "bandwidth": moved / rate}


def _training(job: Job, cluster: Cluster, m: dict[str, Any], c: dict[str, float]) -> Stage:
    parts = step_seconds(job, cluster, c)
    steps = job.patches / (cluster.gpus * job.a_gpu)
    both = job.a_gpu * (m["patch_read"] + m["patch_read_labelled"])
    drawn = job.patches if job.method == "supervised" else 2 * job.patches
    read = drawn * m["patch_mb"] * 1e6
    seconds = {"GPUs": steps * sum(parts.values()), "a rank's reader": steps * both}
    if cluster.staged:
        seconds["local discs"] = read / (cluster.nodes * c["local_disc_read_gb_s"] * 1e9)
    else:
        seconds["storage GB/s"] = read / (cluster.storage_gb_s * 1e9)
        seconds["storage IOPS"] = drawn * m["patch_chunks"] / cluster.iops
    stage = Stage(f"train ({job.method})", seconds, read_tb=read / TB)
    together = 1 - parts["compute"] / sum(parts.values())
    stage.notes.append(
        f"{steps:,.0f} steps of {sum(parts.values()) * 1e3:.0f} ms, of which ranks wait for each other {together:.0%}"
    )
    stage.gpu_hours = cluster.gpus * stage.hours
    return stage


def labelled_scans(job: Job, m: dict[str, Any]) -> int:
    """Scans that are labelled in all rounds; rounds label so many in each that their voxels are a share of those that
    training has seen since the last one (`semiseg.training.inputs`)."""
    unlabelled = job.scans - job.labelled
    asked = min(unlabelled, job.label_scans or unlabelled)
    if job.method == "pseudo_label":
        return asked
    if job.method != "pseudo_rounds":
        return 0  # patches are labelled as they are drawn, or not at all
    seen = job.patches / job.rounds * m["tile_voxels"] / m["grid_voxels"]
    return job.rounds * min(asked, int(LABELLED_SHARE * seen))


def _labelling(job: Job, cluster: Cluster, m: dict[str, Any], c: dict[str, float]) -> Stage:
    scans = labelled_scans(job, m)
    gpu = m["labelled_tiles"] * m["tile_voxels"] / c["tile_voxels"] * c["tile_ms"] * 1e-3
    each = gpu + m["label_scan"]  # one after the other, in a rank
    read, written = scans * m["stored_mb"] * 1e6, scans * m["label_map_mb"] * 1e6
    stage = Stage(
        f"label {scans:,} scans",
        {
            "GPUs and their cores": scans * each / cluster.gpus,
            "storage GB/s": (read + written) / (cluster.storage_gb_s * 1e9),
            "storage IOPS": scans
            * (2 * c["operations_to_read_a_file"] + c["operations_to_make_a_file"])
            / cluster.iops,
        },
        core_hours=scans * m["label_scan"] / HOUR,
        read_tb=read / TB,
        written_tb=written / TB,
        notes=[f"{gpu:.2f} s of a GPU and {m['label_scan']:.2f} s of a core for a scan"],
    )
    stage.gpu_hours = cluster.gpus * stage.hours
    return stage


def _prediction(job: Job, cluster: Cluster, m: dict[str, Any], c: dict[str, float]) -> Stage:
    read = job.tests * m["source_mb"] * 1e6
    stage = Stage(
        f"predict {job.tests:,}",
        {
            "GPUs and their cores": job.tests * c["predict_a_scan"] / cluster.gpus,
            "storage GB/s": read / (cluster.storage_gb_s * 1e9),
        },
        read_tb=read / TB,
        written_tb=job.tests * m["label_map_mb"] * 1e6 / TB,
    )
    stage.gpu_hours = cluster.gpus * stage.hours
    return stage


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for kind in (Job, Cluster):
        for name, default in vars(kind()).items():
            choices = list(STEPS) if name == "method" else None
            if isinstance(default, bool):
                parser.add_argument(f"--{name}", action="store_true")
                continue
            parser.add_argument(
                f"--{name.replace('_', '-')}", type=type(default), default=default,
                choices=choices,
            )  # fmt: skip
    parser.add_argument("--table", action="store_true", help="1 to 64 GPUs, with 16 cores each")
    parser.add_argument("--measured", type=Path, default=HERE / "cluster_measured.json")
    given = parser.parse_args()
    measured = read_json(given.measured)
    constants = tomllib.loads((HERE / "cluster_constants.toml").read_text())
    job = Job(**{name: getattr(given, name) for name in vars(Job())})
    cluster = Cluster(**{name: getattr(given, name) for name in vars(Cluster())})
    if given.table:
        _print_table(job, cluster, measured, constants)
    else:
        _print_stages(job, cluster, measured, constants)


def _print_stages(job: Job, cluster: Cluster, measured: dict[str, Any], constants: dict[str, Any]) -> None:
    print(f"{'stage':26}{'hours':>8}  {'bottleneck':22}{'core-h':>9}{'GPU-h':>9}{'read TB':>9}{'written':>9}")
    for one in stages(job, cluster, measured, constants):
        print(
            f"{one.name:26}{one.hours:8.2f}  {one.bottleneck:22}{one.core_hours:9.1f}{one.gpu_hours:9.1f}"
            f"{one.read_tb:9.2f}{one.written_tb:9.2f}"
        )
        for note in one.notes:
            print(f"  {note}")
    inodes = measured["inodes_unlabelled"] * job.scans + job.labelled + labelled_scans(job, measured) / job.rounds
    print(f"inodes: {inodes:,.0f}")


def _print_table(job: Job, cluster: Cluster, measured: dict[str, Any], constants: dict[str, Any]) -> None:
    counts: Sequence[int] = (1, 2, 4, 8, 16, 32, 64)
    columns = [stages(job, replace(cluster, gpus=gpus, cores=16 * gpus), measured, constants) for gpus in counts]
    print("| stage | " + " | ".join(f"{gpus} GPU{'s' * (gpus > 1)}" for gpus in counts) + " |")
    print("|---" * (len(counts) + 1) + "|")
    for rows in zip(*columns, strict=True):
        cells = [f"{one.hours:.3g} h, {one.bottleneck}" for one in rows]
        print(f"| {rows[0].name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
