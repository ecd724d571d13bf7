"""A run folder prepared: what is noticed of its plan."""

from __future__ import annotations

from pathlib import Path

from semiseg.config import load_settings
from semiseg.data.sizing import TOO_COARSE
from semiseg.notices import NOTICES, read_notices
from semiseg.prepare_run import prepare
from semiseg.settings import write_settings
from semiseg.training.settled import PlanSize, Settled, write_settled


def test_a_coarse_grid_is_noticed_for_a_copied_plan_and_taken_back_for_another(
    phantoms: Path, tiny: list[str], tmp_path: Path
) -> None:
    settings = load_settings(None, [*tiny[1::2], f"data.root={phantoms}"])
    run, reason = tmp_path / "run", f"{TOO_COARSE} liver 0.60."
    run.mkdir()
    size = PlanSize(spacing_mm=(6.0, 6.0, 6.0), patch=(16, 16, 16), base_features=4, batch=2, reasons=(reason,))
    write_settings(run / "run.toml", settings)
    write_settled(run, Settled(plan=size))
    prepare(run, settings, quiet=True)
    assert read_notices(run) == [reason]
    for file in ("plan.toml", "settled.toml"):
        (run / file).unlink()
    prepare(run, settings, quiet=True)
    assert read_notices(run) == []
    prepare(tmp_path / "other", settings, quiet=True)
    assert not (tmp_path / "other" / NOTICES).exists()
