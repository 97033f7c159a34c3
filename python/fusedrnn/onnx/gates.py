"""The order of the gate blocks in ONNX's weights, and ours."""

from __future__ import annotations

import numpy as np

from fusedrnn.gradients import Array

Table = list[tuple[int, int] | None]

# For each of ONNX's blocks, its sign and the number of ours that it is; None: zeros, which nobody reads.
# Coupled gates: ONNX's `input_forget`, as onnxruntime computes it, keeps the input gate and takes f = 1 - i, ours keeps
# the forget gate and takes i = 1 - f. Since 1 - sigmoid(z) = sigmoid(-z), either is the other with its sign changed.
_WEIGHTS: dict[str, Table] = {
    "RNN": [(1, 0)],
    "GRU": [(1, 1), (1, 0), (1, 2)],  # z r h, ours r z n
    "LSTM": [(1, 0), (1, 3), (1, 1), (1, 2)],  # i o f c, ours i f g o
    "LSTM coupled": [(-1, 0), (1, 2), None, (1, 1)],  # i o f c, ours f g o
}
_PEEPHOLES: dict[str, Table] = {
    "LSTM": [(1, 0), (1, 2), (1, 1)],  # i o f, ours i f o
    "LSTM coupled": [(-1, 0), (1, 1), None],  # i o f, ours f o
}


def weight_table(op: str, coupled: bool = False) -> Table:
    """Blocks of the weights and biases of an operator."""
    return _WEIGHTS[op + " coupled" * coupled]


def peephole_table(coupled: bool) -> Table:
    """Blocks of the peephole weights of an LSTM."""
    return _PEEPHOLES["LSTM" + " coupled" * coupled]


def to_ours(array: Array, table: Table) -> Array:
    """Our blocks along the first axis of ONNX's ones."""
    blocks = zip(table, np.split(array, len(table)), strict=True)
    ours = {entry[1]: entry[0] * block for entry, block in blocks if entry is not None}
    return np.concatenate([ours[number] for number in sorted(ours)])


def to_theirs(array: Array, table: Table) -> Array:
    """ONNX's blocks along the first axis of our ones."""
    blocks = np.split(array, sum(entry is not None for entry in table))
    zeros = np.zeros_like(blocks[0])
    return np.concatenate([zeros if entry is None else entry[0] * blocks[entry[1]] for entry in table])
