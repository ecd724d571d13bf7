"""Fixtures that every room of the tests shares."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--real-data",
        default=str(Path(__file__).resolve().parents[2] / "shared" / "data"),
        help="Folder of real volumes, beside the project by default; tests that need it skip where it is absent.",
    )


@pytest.fixture(scope="session")
def real_data(request: pytest.FixtureRequest) -> Path:
    """The folder of real volumes; skips the test where it is absent."""
    folder = Path(request.config.getoption("--real-data"))
    if not folder.is_dir():
        pytest.skip(f"no real volumes at {folder} (choose the folder with --real-data)")
    return folder
