"""How many cases a budget of seconds allows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from bench.cases import Case


def within_budget(cases: Sequence[Case], budget: float, clock: Callable[[], float]) -> Iterator[Case]:
    """Cases, as long as one as long as the longest before would still end within the budget."""
    begun = clock()
    longest = 0.0
    for case in cases:
        last = clock()
        if last - begun + longest > budget:
            return
        yield case
        longest = max(longest, clock() - last)
