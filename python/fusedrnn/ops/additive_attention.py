"""Additive attention (Bahdanau et al. 2015): what each of many queries reads from a memory, and its gradient."""

from __future__ import annotations

from typing import Any

from fusedrnn import _core
from fusedrnn.arrays.device import owner_of
from fusedrnn.gradients import Array
from fusedrnn.ops.attention_device import AttentionDeviceTape, device_backward, device_forward

_attention: Any = _core.operations["additive_attention"]


def _forward(
    query: Any,
    memory: Any,
    weight_query: Any,
    weight_memory: Any,
    bias: Any,
    weight_score: Any,
    memory_lengths: Any,
    training: bool,
) -> tuple[Array, Array, Any]:
    device = owner_of(query)
    if device is not None:
        weights = (weight_query, weight_memory, bias, weight_score)
        return device_forward(device, query, memory, weights, memory_lengths, training)
    found: tuple[Array, Array, Any] = _attention.forward(
        query, memory, weight_query, weight_memory, bias, weight_score, memory_lengths, training
    )
    return found


def additive_attention(
    query: Array,
    memory: Array,
    weight_query: Array,
    weight_memory: Array,
    bias: Array,
    weight_score: Array,
    memory_lengths: Any = None,
) -> tuple[Array, Array]:
    """Attention of an additive score: ``softmax_j(weight_score . tanh(weight_query h + weight_memory m_j + bias))``.

    Bahdanau, Cho & Bengio, "Neural machine translation by jointly learning to align and translate", 2015. Keys, the
    products with the memory, are made once for all queries, and no array of T*B*S*A elements exists. On the
    CPU a row's results are the same bits whatever rows stand beside it, for any number of threads.

    Parameters
    ----------
    query : ndarray of float32 or float64
        (T, B, H), C-contiguous. On a CUDA device all arrays are CuPy's, there also of bfloat16 or float16; lengths may
        lie on the device, which clamps them, or on the host.
    memory : ndarray
        (S, B, M), of the query's dtype, unit stride in the last axis; S may be 0.
    weight_query, weight_memory, bias, weight_score : ndarray
        (A, H), (A, M), (A,) and (A,), C-contiguous.
    memory_lengths : ndarray of integers, optional
        (B,), each in [0, S], in any order. What lies past a row's length influences nothing, nan included.

    Returns
    -------
    context : ndarray
        (T, B, M): the sum of the memory's rows, each times its share. 0 for a row without memory.
    attention : ndarray
        (T, B, S): the shares, which add up to 1; 0 past a length. Of float32 where the query has 16 bits.

    Raises
    ------
    TypeError, ValueError
        Where an argument is of another kind, dtype, shape or value; ValueError while a graph is captured.
    """
    context, attention, _ = _forward(
        query, memory, weight_query, weight_memory, bias, weight_score, memory_lengths, False
    )
    return context, attention


def additive_attention_forward(
    query: Array,
    memory: Array,
    weight_query: Array,
    weight_memory: Array,
    bias: Array,
    weight_score: Array,
    memory_lengths: Any = None,
) -> tuple[tuple[Array, Array], Any]:
    """`additive_attention` in training: ``((context, attention), tape)``, the tape for `additive_attention_backward`.

    Parameters
    ----------
    query, memory, weight_query, weight_memory, bias, weight_score, memory_lengths
        As for `additive_attention`. The tape refers to the arrays: do not write them before the backward pass.

    Returns
    -------
    result : (ndarray, ndarray)
        context and attention; the latter is the tape's and cannot be written.
    tape : object
        ``tape.nbytes`` tells what it holds: the attention and the keys.

    Raises
    ------
    TypeError, ValueError
        As `additive_attention`.
    """
    context, attention, tape = _forward(
        query, memory, weight_query, weight_memory, bias, weight_score, memory_lengths, True
    )
    return (context, attention), tape


def additive_attention_backward(
    tape: Any, dcontext: Array | None = None, dattention: Array | None = None
) -> tuple[Array, Array, Array, Array, Array, Array]:
    """Gradients of additive attention, from those of its results.

    Parameters
    ----------
    tape : object
        From `additive_attention_forward`. It is not written: it may be used again.
    dcontext, dattention : ndarray, optional
        (T, B, M) and (T, B, S), C-contiguous, of the dtypes of context and attention. Zeros if None.

    Returns
    -------
    dquery, dmemory, dweight_query, dweight_memory, dbias, dweight_score : ndarray
        Each in the shape of its argument; dmemory is 0 past a length.

    Raises
    ------
    TypeError, ValueError
        Where an argument is of another kind, dtype or shape.
    """
    found: tuple[Array, Array, Array, Array, Array, Array]
    if isinstance(tape, AttentionDeviceTape):
        found = device_backward(tape, dcontext, dattention)
        return found
    if not isinstance(tape, _attention.Tape):
        raise TypeError(f"tape must come from additive_attention_forward, not {type(tape).__name__}")
    found = _attention.backward(tape, dcontext, dattention)
    return found
