"""Which calls run by block programs: a recurrence with its weights in the registers of a GPU."""

from __future__ import annotations

from typing import Any

# The fewest steps that engine="auto" runs by block programs. These first arrange the weights for all blocks, which
# takes as long as two or three stepwise steps.
AUTO_LEAST_STEPS = 4
# Whether a block program runs all steps in one kernel, where the device can hold all of its blocks at once.
LOOP_INSIDE = True


def runs_blocks(net: Any, choice: str, steps: int, rows: int, *, training: bool) -> bool:
    """Whether a compiled net runs such calls by block programs; ValueError where `choice` demands it in vain."""
    if choice == "persistent":
        reason = net.persistent_refusal(rows, training, False)
        if reason is not None:
            raise ValueError(f"engine must be 'auto' or 'stepwise' here, not 'persistent': {reason}")
        return True
    # For large batches one block program a step has been slower than the two stepwise kernels.
    return choice == "auto" and steps >= AUTO_LEAST_STEPS and net.persistent_refusal(rows, training, True) is None
