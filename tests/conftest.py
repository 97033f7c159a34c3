"""Fixtures and ids that the whole suite shares."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import pytest
from cases import Case


def pytest_make_parametrize_id(config: pytest.Config, val: Any, argname: str) -> str | None:
    """Name a parameter that is a case by the case."""
    return val.id if isinstance(val, Case) else None


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """A generator seeded by the test's own name, so that a test draws the same numbers alone and in a full run."""
    return np.random.default_rng(zlib.crc32(request.node.name.encode()))
