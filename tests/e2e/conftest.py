"""Everything here runs on one core, with one thread: small and equal on every machine."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module", autouse=True)
def _one_core_for_all(one_core: None) -> None:
    """Asks for the shared fixture."""
