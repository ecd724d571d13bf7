"""settled.toml: what is written is what is read, and what is wrong in it is named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semiseg.errors import ConfigError, DataError
from semiseg.methods.timeline import Stretch, Timeline
from semiseg.training.settled import FILE, PlanSize, Settled, read_settled, rows, write_settled

SIZE = PlanSize(
    spacing_mm=(2.5, 0.1 + 0.2, 1 / 3), patch=(16, 32, 48), base_features=8, batch=2, voxel_seconds=1.5e-7,
    reasons=('Grid: "coarse".', "Patch: ö."),
)  # fmt: skip
WHOLE = Settled(
    torch="2.0", plan=SIZE, timeline=((0, 0.0, 1 / 3, 0), (7, 0.1 + 0.2, 5e-324, 2)), finished=True,
)  # fmt: skip


@pytest.mark.parametrize(
    "value",
    [Settled(), WHOLE, Settled(threads=1), Settled(plan=replace(SIZE, voxel_seconds=None, reasons=()))],
    ids=["nothing", "all", "some", "without cost"],
)
def test_what_is_written_is_read(tmp_path: Path, value: Settled) -> None:
    write_settled(tmp_path, value)
    assert read_settled(tmp_path) == value


def test_nothing_is_settled_where_there_is_no_file(tmp_path: Path) -> None:
    assert read_settled(tmp_path) == Settled()
    assert Settled().laid_down() is None


@given(st.lists(st.tuples(st.integers(1, 10**9), st.floats(0, 1), st.floats(1e-12, 1), st.integers(0, 64)), max_size=5))
def test_a_timeline_comes_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, stretches: list[tuple[int, float, float, int]]
) -> None:
    """Else a run that is made once more would take other steps."""
    timeline = Timeline((Stretch(0, 0.0, 1e-3), *(Stretch(*row) for row in stretches)))
    folder = tmp_path_factory.mktemp("run")
    write_settled(folder, Settled(timeline=rows(timeline)))
    assert read_settled(folder).laid_down() == timeline


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("threds = 2", r"unknown key threds"),
        ('threads = "two"', r"threads = 'two'"),
        ('precision = "float16"', r"precision = 'float16'"),
        ("timeline = [[0, 0.0]]", r"timeline"),
        ("[plan]\npatch = [1, 2, 3]", r"plan\.\w+"),
        ("[plan]\nsize = 3", r"unknown key plan\.size"),
    ],
)
def test_what_is_wrong_is_named_with_the_file(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(ConfigError, match=rf"settled\.toml.*{message}"):
        read_settled(tmp_path)


def test_a_file_that_is_cut_off_is_named(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("threads = ")
    with pytest.raises(DataError, match=r"settled\.toml: not valid TOML"):
        read_settled(tmp_path)
