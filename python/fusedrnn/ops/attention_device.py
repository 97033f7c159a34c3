"""Additive attention on a device: checks of its arguments, memory, and calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fusedrnn.arrays.checks import (
    integers,
    require_array,
    require_contiguous,
    require_float,
    require_shape,
    require_unit_stride,
)
from fusedrnn.arrays.device import Device, owner_of
from fusedrnn.arrays.dtypes import accumulator
from fusedrnn.ops.device_call import require_no_graph
from fusedrnn.ops.labels import lengths_of


@dataclass(frozen=True)
class AttentionDeviceTape:
    """What the backward pass needs: it refers to the arguments, and holds the attention and the keys."""

    device: Device
    call: Any
    attention: Any
    keys: Any
    lengths: Any
    arguments: tuple[Any, ...]

    @property
    def nbytes(self) -> int:
        """Bytes it holds beyond the arrays it refers to."""
        return sum(int(array.nbytes) for array in (self.attention, self.keys, self.lengths) if array is not None)


def device_counts(device: Device, values: Any, name: str, rows: int, most: int) -> Any:
    """Lengths on the device, in memory of their own, or None. The device's are not read, and clamped there."""
    if values is None:
        return None
    if owner_of(values) is None:
        return device.from_host(lengths_of(values, name, rows, most))
    wide = integers(device, values, name, (rows,))
    if wide is values:
        with device.on():
            wide = wide.copy()
    return wide


def _check(device: Device, query: Any, memory: Any, weights: tuple[Any, Any, Any, Any]) -> None:
    require_float(query, "query")
    if query.ndim != 3 or query.shape[2] < 1:
        raise ValueError(f"query must have shape (T, B, H) with H at least 1, not {tuple(query.shape)}")
    require_contiguous(query, "query")
    require_array(device, memory, "memory", query.dtype)
    if memory.ndim != 3 or memory.shape[1] != query.shape[1] or memory.shape[2] < 1:
        wanted = f"(S, {query.shape[1]}, M) with M at least 1"
        raise ValueError(f"memory must have shape {wanted}, not {tuple(memory.shape)}")
    require_unit_stride(memory, "memory")
    for array, name in zip(weights, ("weight_query", "weight_memory", "bias", "weight_score"), strict=True):
        require_array(device, array, name, query.dtype)
    size = weights[0].shape[0] if weights[0].ndim == 2 else 0
    if size < 1 or weights[0].shape[1] != query.shape[2]:
        wanted = f"(A, {query.shape[2]}) with A at least 1"
        raise ValueError(f"weight_query must have shape {wanted}, not {tuple(weights[0].shape)}")
    require_contiguous(weights[0], "weight_query")
    for array, name, shape in (
        (weights[1], "weight_memory", (size, memory.shape[2])),
        (weights[2], "bias", (size,)),
        (weights[3], "weight_score", (size,)),
    ):
        require_shape(array, name, shape)
        require_contiguous(array, name)


def device_forward(
    device: Device, query: Any, memory: Any, weights: tuple[Any, Any, Any, Any], memory_lengths: Any, training: bool
) -> tuple[Any, Any, AttentionDeviceTape | None]:
    """Context, attention, which is of the accumulator's dtype, and tape."""
    require_no_graph(device, "query", "additive_attention")
    _check(device, query, memory, weights)
    (steps, rows, hidden), (locations, _, features) = query.shape, memory.shape
    size, sums, item = weights[0].shape[0], accumulator(query.dtype), query.dtype.itemsize
    lengths = device_counts(device, memory_lengths, "memory_lengths", rows, locations)
    context = device.empty((steps, rows, features), query.dtype)
    attention = device.empty((steps, rows, locations), sums)
    keys = device.empty((rows, locations, size), sums) if training else None
    call = device.native.AdditiveAttentionCall(
        dtype=query.dtype.name,
        steps=steps,
        rows=rows,
        locations=locations,
        query_size=hidden,
        features=features,
        size=size,
        query=device.address(query),
        memory=(device.address(memory), memory.strides[0] // item, memory.strides[1] // item),
        memory_lengths=device.address(lengths),
        memory_rows=rows,
        weight_query=device.address(weights[0]),
        weight_memory=device.address(weights[1]),
        bias=device.address(weights[2]),
        weight_score=device.address(weights[3]),
        keys=device.address(keys),
        attention=(device.address(attention), rows * locations, locations),
        context=(device.address(context), rows * features, features),
    )
    workspace = device.memory(call.bytes())
    call.forward(device.index, device.stream(), device.address(workspace))
    tape = AttentionDeviceTape(device, call, attention, keys, lengths, (query, memory, *weights)) if training else None
    return context, attention, tape


def device_backward(tape: AttentionDeviceTape, dcontext: Any, dattention: Any) -> tuple[Any, ...]:
    """Gradients of the arguments."""
    device, attention = tape.device, tape.attention
    require_no_graph(device, "tape", "additive_attention_backward")
    query, memory, *_ = tape.arguments
    steps, rows, locations = attention.shape
    features = memory.shape[2]
    for array, name, dtype, width in (
        (dcontext, "dcontext", query.dtype, features),
        (dattention, "dattention", attention.dtype, locations),
    ):
        if array is not None:
            require_array(device, array, name, dtype)
            require_shape(array, name, (steps, rows, width))
            require_contiguous(array, name)
    found = tuple(device.empty(array.shape, query.dtype) for array in tape.arguments)
    dquery, dmemory, *weights = map(device.address, found)
    names = ("dweight_query", "dweight_memory", "dbias", "dweight_score")
    call = tape.call.with_fields(
        ready=True,
        dcontext=(device.address(dcontext), rows * features, features),
        dattention=(device.address(dattention), rows * locations, locations),
        dquery=dquery,
        dmemory=(dmemory, rows * features, features),
        **dict(zip(names, weights, strict=True)),
    )
    workspace = device.memory(call.bytes())
    call.backward(device.index, device.stream(), device.address(workspace))
    return found
