"""Our function on the threads of the run and, where these are more than one, on one thread beside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from bench.peers import FUSEDRNN, Work
from bench.runner import Figure, Figures, Row

OURS, ONE_THREAD = FUSEDRNN.name, f"{FUSEDRNN.name}, one thread"


@contextmanager
def threads_set(threads: int, after: int) -> Iterator[None]:
    """Our number of threads inside and afterwards."""
    FUSEDRNN.set_threads(threads)
    try:
        yield
    finally:
        FUSEDRNN.set_threads(after)


def makers_of_ours(make: Callable[[], Work], threads: int) -> dict[str, Callable[[], Work]]:
    """What makes the work of each of our contestants."""
    if threads == 1:
        return {OURS: make}
    return {OURS: make, ONE_THREAD: lambda: replace(make(), context=lambda: threads_set(1, after=threads))}


def figure(row: Row) -> Figures:
    """The time of one thread over that of all."""
    return {"one thread / all": Figure(row.ratio(ONE_THREAD, OURS))}
