"""Fixtures and ids that the whole suite shares."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from typing import Any

# Read when NumPy is first imported. OpenBLAS's threads spin where they wait, and on a machine with other work to do
# two of them took 31 s for a reference that one does in 1.5 s.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import pytest
from cases import Case
from devices import TestDevice, build_host_module, real_device, stand_in


def pytest_make_parametrize_id(config: pytest.Config, val: Any, argname: str) -> str | None:
    """Name a parameter that is a case by the case."""
    return val.id if isinstance(val, Case) else None


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """A generator seeded by the test's own name, so that a test draws the same numbers alone and in a full run."""
    return np.random.default_rng(zlib.crc32(request.node.name.encode()))


@pytest.fixture(scope="session")
def cuda_host_module(request: pytest.FixtureRequest) -> Any:
    """The CUDA engine compiled for the host, once for each version of its sources."""
    cache = request.config.cache
    assert cache is not None
    return build_host_module(cache.mkdir("cuda_host"))


@pytest.fixture(params=["host", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[TestDevice]:
    """A CUDA device: the stand-in on the host always, CuPy's where there is one."""
    if request.param == "cuda":
        yield real_device()
        return
    with stand_in(request.getfixturevalue("cuda_host_module")) as one:
        yield one
