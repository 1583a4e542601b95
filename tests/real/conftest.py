"""Real models are compiled for this machine: what they gain is measured, not counted."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from fixtures.counted_time import real_time


@pytest.fixture(autouse=True, scope="module")
def time_is_real(time_is_counted: None) -> Generator[None]:
    with real_time():
        yield
