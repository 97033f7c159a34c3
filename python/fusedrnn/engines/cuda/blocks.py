"""Which calls run by block programs: a recurrence with its weights in the registers of a GPU."""

from __future__ import annotations

from typing import Any

# Steps from which on engine="auto" runs a call by block programs: they begin by arranging weights for all blocks, which
# takes as long as two or three steps of the other engine.
AUTO_LEAST_STEPS = 4
# Whether a block program runs all steps in one kernel, where the device can hold all of its blocks at once.
LOOP_INSIDE = True


def runs_blocks(net: Any, choice: str, steps: int, rows: int, *, training: bool) -> bool:
    """Whether a compiled net runs such calls by block programs; ValueError where they cannot and must."""
    if choice == "persistent":
        reason = net.persistent_refusal(rows, training, False)
        if reason is not None:
            raise ValueError(f"engine must be 'auto' or 'stepwise' here, not 'persistent': {reason}")
        return True
    # A kernel for each step has been slower than the other engine's two for large batches.
    return choice == "auto" and steps >= AUTO_LEAST_STEPS and net.persistent_refusal(rows, training, True) is None
