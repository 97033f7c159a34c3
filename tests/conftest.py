"""Fixtures and ids that the whole suite shares."""

from __future__ import annotations

import os
import zlib
from typing import Any

# Read when NumPy is first imported. OpenBLAS's threads spin where they wait, and on a machine with other work to do
# two of them took 31 s for a reference that one does in 1.5 s.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

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
