"""Cases with a mask of skipped steps."""

from __future__ import annotations

import dataclasses

from cases import CLIP, LAYERS, Case

# (layers, directions, T, B, I, H, ragged, reset, reverse)
SHAPES = (
    (1, 1, 7, 5, 3, 7, False, False, False),
    (1, 1, 9, 6, 5, 17, False, True, False),
    (2, 2, 8, 7, 3, 16, True, True, False),
    (2, 1, 8, 13, 4, 33, True, True, True),
    (1, 2, 130, 9, 3, 20, True, True, False),
    (1, 1, 6, 1, 7, 129, False, True, False),
)


def masked_cases() -> list[Case]:
    """Every cell at every shape, in one dtype or the other."""
    cases = []
    for cell in LAYERS:
        for layers, directions, time, batch, inputs, hidden, *flags in SHAPES:
            dtype = ("float32", "float64")[(len(cases) + len(cases) // len(SHAPES)) % 2]
            sizes = (time, batch, inputs, hidden)
            cases.append(Case(cell, layers, directions, dtype, *sizes, *flags, masked=True))
        cases.append(dataclasses.replace(cases[2], cell=cell, clip=CLIP))
    return cases


CASES = masked_cases()
SHORT = [case for case in CASES if case.time < 100]  # relu's kinks are hard to keep away from in long ones
EMPTY = [
    Case(cell, 2, directions, "float32", time, batch, 3, 5, masked=True)
    for cell, directions, (time, batch) in zip(LAYERS, (1, 2) * 4, ((0, 3), (3, 0), (0, 0)) * 3, strict=False)
]
