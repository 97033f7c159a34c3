"""Functions in processes of their own, started anew and not forked."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any, ParamSpec, TypeVar

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

MEETING_SECONDS = 60
"""A process that died on the way must not keep the others waiting for ever."""

_barrier: Any = None


@contextmanager
def variables(changes: Mapping[str, str]) -> Iterator[None]:
    """Environment variables, set for a while."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def call(function: Callable[Parameters, Result], *arguments: Parameters.args, **options: Parameters.kwargs) -> Result:
    """What the function gives in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments, **options).result()


def call_together(
    count: int, function: Callable[Parameters, Result], *arguments: Parameters.args, **options: Parameters.kwargs
) -> list[Result]:
    """What it gives in each of `count` fresh processes; `meet` waits there for the others."""
    context = get_context("spawn")
    with ProcessPoolExecutor(count, context, _keep_barrier, (context.Barrier(count),)) as pool:
        return [future.result() for future in [pool.submit(function, *arguments, **options) for _ in range(count)]]


def _keep_barrier(barrier: Any) -> None:
    global _barrier
    _barrier = barrier


def meet() -> None:
    """Wait until all processes of `call_together` are here; alone it returns at once."""
    if _barrier is not None:
        _barrier.wait(MEETING_SECONDS)
