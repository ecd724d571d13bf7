"""Every method on two ranks against the same batch on one: the same weights but for rounding, the ranks bit-equal."""

from __future__ import annotations

from pathlib import Path

import pytest
import rank_runs
import torch
from rank_runs import KINDS, VARIANTS
from torch import Tensor
from torch.distributed import TCPStore
from torch.multiprocessing.spawn import spawn

from semiseg.files import read_json
from semiseg.settings import read_settings

pytestmark = pytest.mark.usefixtures("one_thread")

Results = dict[str, dict[str, Tensor]]
PAIRED_WITHIN_RANKS = "copy_paste"
"""It pastes patches into each other, which on many ranks are of one rank: the docs name it as the exception."""


@pytest.fixture(scope="module")
def ranks_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks left."""
    folder = tmp_path_factory.mktemp("ranks")
    rank_runs.store_cases(folder)
    rank_runs.ended_run(folder / "run")
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    spawn(rank_runs.as_rank, (2, str(folder), store.port), nprocs=2)
    return folder


@pytest.fixture(scope="module")
def two_ranks(ranks_folder: Path) -> list[Results]:
    return [torch.load(ranks_folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.fixture(scope="module")
def alone() -> Results:
    return rank_runs.results()


@pytest.mark.parametrize(("batch", "ignore", "dtype"), VARIANTS)
@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_train_as_one(
    kind: str, batch: int, ignore: int | None, dtype: str, alone: Results, two_ranks: list[Results]
) -> None:
    name = f"{kind}, {batch}, {ignore}, {dtype}"
    expected, first, second = alone[name], two_ranks[0][name], two_ranks[1][name]
    assert expected.keys() == first.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert all(bool(torch.isfinite(value).all()) for value in first.values())
    if kind == PAIRED_WITHIN_RANKS:
        return
    for key, value in expected.items():
        if key.startswith("first/"):
            assert float(first[key]) == pytest.approx(float(value), abs=1e-5)  # rounding of float32
        elif dtype == "float64":
            # Sums in another order: rounding of 1e-16, through six steps of two networks.
            assert float((first[key] - value).abs().max()) < 1e-10, key


def test_ranks_share_validation(two_ranks: list[Results], tmp_path: Path) -> None:
    rank_runs.store_cases(tmp_path)
    expected = rank_runs.validated(tmp_path)
    for found in (one["validation"] for one in two_ranks):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert float(found[name]) == pytest.approx(float(value), abs=1e-12), name  # sums in another order


def test_ranks_of_two_jobs_do_not_train_one_network(ranks_folder: Path) -> None:
    first, second = (read_json(ranks_folder / f"{rank}.json")["refused"] for rank in range(2))
    assert first == second
    assert first["one run"] == ""
    one, two = Path("one").resolve(), Path("two").resolve()
    assert f"do not train one run: {one} and {two}. Give each job an --rdzv-id" in first["two runs"]
    assert f"do not train one run: {one} with other settings." in first["two settings"]


def test_weights_that_are_not_finite_are_no_drift_and_drift_of_one_sum_is(ranks_folder: Path) -> None:
    first, second = (read_json(ranks_folder / f"{rank}.json")["refused"] for rank in range(2))
    assert first == second
    assert first["equal"] == ""
    assert first["of one sum"].startswith("step 40: the weights of rank 1 are not those of the first rank.")
    assert first["not finite"].startswith("step 40: w is not finite. Lower method.optimiser.learning_rate")


def test_a_rank_that_fails_ends_without_the_others_and_the_run_is_asked_for_no_more(ranks_folder: Path) -> None:
    """The first hears of it by the end of the second's process: had that parted, NCCL would have waited for ever."""
    first, second = (read_json(ranks_folder / f"{rank}.json")["failed"] for rank in range(2))
    assert second == {"kind": "TrainingError", "joined": True}
    assert first["kind"] in ("RuntimeError", "DistBackendError")
    assert read_settings(ranks_folder / "run" / "run.toml").train.steps == rank_runs.STEPS
