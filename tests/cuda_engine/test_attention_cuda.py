"""Attention on a device and on its stand-in: the function without a cell, and decoders, against the reference."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from attention_cases import (
    CELLS,
    EMPTY,
    SHAPES,
    Shape,
    arguments_of,
    as_dtype,
    as_tuple,
    assert_close,
    call_of,
    decoder_of,
    gradients_of,
    run_reference,
)
from bitwise import assert_same, copied
from device_runs import widened
from devices import TestDevice, stand_in

import fusedrnn as fr
from fusedrnn import reference
from fusedrnn.arrays.memory import memory_of

DTYPES = ("float32", "float64", "bfloat16", "float16")


def on(device: TestDevice, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments on the device, but for lengths."""
    return {key: value if "lengths" in key else device.put(value) for key, value in arguments.items()}


def close(actual: Any, expected: Any, shape: Shape, dtype: str, name: str, sums: bool = False) -> None:
    """`assert_close`, also for the types of 16 bits; `sums`: of what has the accumulator's dtype there."""
    if dtype in ("float32", "float64"):
        return assert_close(actual, expected, shape, dtype, name)
    steps, rows, locations, inputs, hidden, features, size = shape
    terms = inputs + hidden + features + size + locations + rows
    for ours, theirs in zip(as_tuple(actual), as_tuple(expected), strict=True):
        kind = np.dtype(np.float32) if sums else np.dtype(getattr(ml_dtypes, dtype, dtype))
        assert ours.dtype == kind and ours.shape == theirs.shape, name
        scale = max(1.0, float(np.abs(theirs).max(initial=0)))
        bound = 4 * float(ml_dtypes.finfo(dtype).eps) * math.sqrt(steps * terms) * scale
        np.testing.assert_allclose(ours.astype(np.float64), theirs, rtol=0, atol=bound, err_msg=name)


def run_call(device: TestDevice, arguments: dict[str, Any], *gradients: Any) -> tuple[Any, Any, Any]:
    outputs, tape = fr.additive_attention_forward(**on(device, arguments))
    return device.get((outputs, fr.additive_attention_backward(tape, *device.put(gradients)), None))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [*SHAPES, *EMPTY], ids=str)
def test_a_call_against_the_reference(device: TestDevice, shape: Shape, dtype: str, rng: np.random.Generator) -> None:
    kind = getattr(ml_dtypes, dtype, dtype)
    arguments = as_dtype(call_of(shape, "float64", rng), kind)
    exact = widened(arguments)
    (wanted_context, wanted_attention), kept = reference.additive_attention(**exact)
    dcontext = rng.standard_normal(wanted_context.shape).astype(kind)
    dattention = rng.standard_normal(wanted_attention.shape).astype("float64" if dtype == "float64" else "float32")
    (context, attention), grads, _ = run_call(device, arguments, dcontext, dattention)
    close(context, wanted_context, shape, dtype, "context")
    close(attention, wanted_attention, shape, dtype, "attention", sums=True)
    wanted = reference.additive_attention_backward(kept, widened(dcontext), widened(dattention))
    for name, ours, theirs in zip(arguments, grads, wanted, strict=False):
        close(ours, theirs, shape, dtype, f"d{name}")
    assert_same(device.get(fr.additive_attention(**on(device, arguments))), (context, attention))


def test_a_call_is_the_same_again_in_chunks_and_in_any_order(cuda_host_module: Any, rng: np.random.Generator) -> None:
    with stand_in(cuda_host_module) as device:
        arguments = as_dtype(call_of(SHAPES[2], "float32", rng), "float32")
        dcontext = rng.standard_normal((*arguments["query"].shape[:2], SHAPES[2][5])).astype(np.float32)
        expected = run_call(device, arguments, dcontext)
        assert_same(run_call(device, arguments, dcontext), expected)
        cuda_host_module.set_reversed(True)
        assert_same(run_call(device, arguments, dcontext), expected)
        cuda_host_module.set_reversed(False)
        cuda_host_module.set_chunk_bytes(1)
        found = run_call(device, arguments, dcontext)
        assert_same(found[0], expected[0])
        for ours, theirs in zip(found[1], expected[1], strict=True):
            assert_close(ours, theirs, SHAPES[2], "float32", "gradient")


@pytest.mark.parametrize("where", ["host", "device"])
def test_a_call_ignores_what_lies_past_a_length(device: TestDevice, where: str, rng: np.random.Generator) -> None:
    arguments = as_dtype(call_of(SHAPES[2], "float32", rng), "float32")
    spoiled = copied(arguments)
    for b, length in enumerate(arguments["memory_lengths"]):
        spoiled["memory"][length:, b] = np.nan
    results = []
    for one in (arguments, spoiled):
        given = on(device, one)
        if where == "device":  # which nobody reads, and which are clamped
            lengths = np.where(one["memory_lengths"] == SHAPES[2][2], 10**9, one["memory_lengths"])
            given["memory_lengths"] = device.put(np.where(lengths == 0, -3, lengths).astype(np.int32))
        outputs, tape = fr.additive_attention_forward(**given)
        gradients = fr.additive_attention_backward(tape, *map(device.put, map(np.ones_like, device.get(outputs))))
        results.append(device.get((outputs, gradients)))
    assert_same(results[1], results[0])


def test_the_tape_of_a_call_tells_what_it_holds(device: TestDevice, rng: np.random.Generator) -> None:
    steps, rows, locations, _, _, _, size = SHAPES[2]
    _, tape = fr.additive_attention_forward(**on(device, as_dtype(call_of(SHAPES[2], "float32", rng), "float32")))
    assert tape.nbytes == 4 * (steps * rows * locations + rows * locations * size) + 8 * rows


Q, W = np.zeros((2, 3, 7), np.float32), np.zeros((8, 7), np.float32)
MEMORY, WM, V8 = np.zeros((5, 3, 6), np.float32), np.zeros((8, 6), np.float32), np.zeros(8, np.float32)
CALL_ERRORS: list[tuple[Callable[..., Any], str, Any]] = [
    (lambda q, m, w, wm, v: fr.additive_attention(q.astype(int), m, w, wm, v, v), "query", TypeError),
    (lambda q, m, w, wm, v: fr.additive_attention(q[0], m, w, wm, v, v), "query", ValueError),
    (lambda q, m, w, wm, v: fr.additive_attention(q[:, :, ::-1], m, w, wm, v, v), "query", ValueError),
    (lambda q, m, w, wm, v: fr.additive_attention(q, MEMORY, w, wm, v, v), "memory", TypeError),
    (lambda q, m, w, wm, v: fr.additive_attention(q, m.astype(float), w, wm, v, v), "memory", TypeError),
    (lambda q, m, w, wm, v: fr.additive_attention(q, m[:, :2], w, wm, v, v), "memory", ValueError),
    (lambda q, m, w, wm, v: fr.additive_attention(q, m, w[:, :6], wm, v, v), "weight_query", ValueError),
    (lambda q, m, w, wm, v: fr.additive_attention(q, m, w, wm[:7], v, v), "weight_memory", ValueError),
    (lambda q, m, w, wm, v: fr.additive_attention(q, m, w, wm, v[:7], v), "bias", ValueError),
    (lambda q, m, w, wm, v: fr.additive_attention(q, m, w, wm, v, None), "weight_score", TypeError),
    (lambda q, m, w, wm, v: fr.additive_attention(q, m, w, wm, v, v, [6, 0, 0]), "memory_lengths", ValueError),
    (lambda q, m, w, wm, v: fr.additive_attention(q, m, w, wm, v, v, v), "memory_lengths", TypeError),
    (
        lambda q, m, w, wm, v: fr.additive_attention_backward(fr.additive_attention_forward(q, m, w, wm, v, v)[1], q),
        "dcontext",
        ValueError,
    ),
    (
        lambda q, m, w, wm, v: fr.additive_attention_backward(
            fr.additive_attention_forward(q, m, w, wm, v, v)[1], None, Q
        ),
        "dattention",
        TypeError,
    ),
]


@pytest.mark.parametrize("number", range(len(CALL_ERRORS)))
def test_a_calls_errors_name_the_argument(device: TestDevice, number: int) -> None:
    call, name, error = CALL_ERRORS[number]
    with pytest.raises(error, match=rf"^{name}\b"):
        call(*map(device.put, (Q, MEMORY, W, WM, V8)))


def test_a_call_in_a_graph_is_refused(device: TestDevice) -> None:
    if device.real:
        pytest.skip("the stand-in says that a graph is captured")
    given = [device.put(a) for a in (Q, MEMORY, W, WM, V8, V8)]
    _, tape = fr.additive_attention_forward(*given)
    device.arrays.native.set_capturing(True)
    with pytest.raises(ValueError, match="query must not be used while a graph"):
        fr.additive_attention(*given)
    with pytest.raises(ValueError, match="tape must not be used while a graph"):
        fr.additive_attention_backward(tape)


# Decoders


def twins(name: str, shape: Shape, dtype: str, **options: Any) -> tuple[fr.AttentionDecoder, fr.AttentionDecoder]:
    """A decoder of the CPU in float64, and one on the device of the same parameters, which both dtypes hold."""
    device = decoder_of(name, shape, dtype, device="cuda", **options)
    host = decoder_of(name, shape, "float64", **options)
    for key, array in device.parameters.items():
        host.parameters[key][...] = memory_of(array).to_host(array).astype(np.float64)
    return host, device


def cast(value: Any, decoder: fr.AttentionDecoder, name: str) -> Any:
    """A float64 argument or gradient in the dtype that the decoder takes."""
    sums = np.dtype("float64" if decoder.dtype == np.float64 else "float32")
    if name in ("state", "dstate") and isinstance(value, tuple):
        return value[0].astype(decoder.dtype), value[1].astype(sums)
    if "lengths" in name:
        return value
    return value.astype(sums if name in ("dlog_prob", "dentropy") else decoder.dtype)


def run_decoder(device: TestDevice, decoder: Any, arguments: dict[str, Any], given: dict[str, Any]) -> tuple[Any, Any]:
    """Outputs with what the tape tells, and gradients, on the host."""
    arguments = {key: cast(value, decoder, key) for key, value in arguments.items()}
    given = device.put({key: cast(value, decoder, key) for key, value in given.items()})
    *outputs, tape = decoder.forward(**on(device, arguments))
    kept = (tape.attention, tape.locations, tape.log_prob, tape.entropy)
    return device.get((tuple(outputs), kept)), device.get(decoder.backward(tape, **given))


def check_decoder(
    device: TestDevice, name: str, shape: Shape, dtype: str, attention: str, rng: np.random.Generator
) -> None:
    host, decoder = twins(name, shape, dtype, attention=attention)
    arguments, given = arguments_of(host, shape, rng), gradients_of(host, shape, rng)
    (outputs, kept), grads = run_decoder(device, decoder, arguments, given)
    exact, exact_given = (
        {key: widened(cast(value, decoder, key)) for key, value in nest.items()} for nest in (arguments, given)
    )
    wanted_y, wanted_context, wanted_state, tape = run_reference(host, exact, locations=kept[1])
    close(outputs[0], wanted_y, shape, dtype, "y")
    close(outputs[1], wanted_context, shape, dtype, "context")
    for number, (ours, theirs) in enumerate(zip(as_tuple(outputs[2]), as_tuple(wanted_state), strict=True)):
        close(ours, theirs, shape, dtype, "state", sums=number > 0)
    close(kept[0], tape.attention, shape, dtype, "attention", sums=True)
    if attention == "hard":
        close(kept[2], tape.log_prob, shape, dtype, "log_prob", sums=True)
        close(kept[3], tape.entropy, shape, dtype, "entropy", sums=True)
    dx, dmemory, dstate, parameters = reference.attention_decoder_backward(tape, **exact_given)
    close(grads.x, dx, shape, dtype, "dx")
    close(grads.memory, dmemory, shape, dtype, "dmemory")
    for number, (ours, theirs) in enumerate(zip(as_tuple(grads.state), as_tuple(dstate), strict=True)):
        close(ours, theirs, shape, dtype, "dstate", sums=number > 0)
    assert list(grads.parameters) == list(decoder.parameters)
    for key, gradient in grads.parameters.items():
        close(gradient, parameters[key], shape, dtype, f"d{key}")


@pytest.mark.parametrize("attention", ["soft", "hard"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_decoder_against_the_reference(
    device: TestDevice, shape: Shape, dtype: str, attention: str, rng: np.random.Generator
) -> None:
    check_decoder(device, "lstm", shape, dtype, attention, rng)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", CELLS)
def test_every_cell(device: TestDevice, name: str, dtype: str, rng: np.random.Generator) -> None:
    check_decoder(device, name, SHAPES[1], dtype, "soft", rng)
    check_decoder(device, name, SHAPES[2], dtype, "hard", rng)


@pytest.mark.parametrize("attention", ["soft", "hard"])
def test_a_decoder_is_the_cpus(device: TestDevice, attention: str, rng: np.random.Generator) -> None:
    """With the same draws; the same again, to the bit; and moved from one to the other."""
    shape = SHAPES[1]
    cpu = decoder_of("gru", shape, "float64", attention=attention)
    arguments, given = arguments_of(cpu, shape, rng), gradients_of(cpu, shape, rng)
    decoder = copy.deepcopy(cpu).to("cuda")
    for _ in range(2):  # the second call has other draws
        *outputs, tape = cpu.forward(**arguments)
        (found, kept), grads = run_decoder(device, decoder, arguments, given)
        for ours, theirs in zip(found, outputs, strict=True):
            assert_close(ours, theirs, shape, "float64", "output")
        assert_close(kept[0], tape.attention, shape, "float64", "attention")
        if attention == "hard":
            np.testing.assert_array_equal(kept[1], tape.locations)
        wanted = cpu.backward(tape, **given)
        for key, gradient in wanted.parameters.items():
            assert_close(grads.parameters[key], gradient, shape, "float64", key)
    assert decoder._engine.calls == cpu._engine.calls == 2
    again = pickle.loads(pickle.dumps(decoder))
    assert again._engine.calls == 2
    results = [run_decoder(device, one, arguments, given) for one in (decoder, again)]
    assert_same(results[1], results[0])
    assert_same(decoder.to("cpu").parameters, cpu.parameters)


@pytest.mark.parametrize("name", ["lstm", "gru_reset_before"])
@pytest.mark.parametrize("attention", ["soft", "hard"])
def test_chunks_and_the_order_of_threads(
    cuda_host_module: Any, attention: str, name: str, rng: np.random.Generator
) -> None:
    shape = SHAPES[2]
    with stand_in(cuda_host_module) as device:
        decoder = decoder_of(name, shape, "float32", device="cuda", attention=attention)
        arguments, given = arguments_of(decoder, shape, rng), gradients_of(decoder, shape, rng)
        expected = run_decoder(device, decoder, arguments, given)
        for change, value in ((cuda_host_module.set_reversed, True), (cuda_host_module.set_chunk_bytes, 9000)):
            change(value)
            decoder._engine.calls = 0
            found = run_decoder(device, decoder, arguments, given)
            assert_same(found[0], expected[0])
            for ours, theirs in zip(
                (found[1].x, found[1].memory, *found[1].parameters.values()),
                (expected[1].x, expected[1].memory, *expected[1].parameters.values()),
                strict=True,
            ):
                assert_close(ours, theirs, shape, "float32", "gradient")
            if value is True:
                assert_same(found[1], expected[1])
            cuda_host_module.set_reversed(False)


@pytest.mark.parametrize("attention", ["soft", "hard"])
@pytest.mark.parametrize("name", ["lstm", "gru_reset_before"])
def test_inference_and_steps(device: TestDevice, name: str, attention: str, rng: np.random.Generator) -> None:
    shape = SHAPES[2]
    host, decoder = twins(name, shape, "float64", attention=attention)
    arguments = arguments_of(host, shape, rng) | {"lengths": None}
    there = on(device, arguments)
    y, context, state = device.get(decoder(**there))
    for ours, theirs in zip((y, context, state), host(**arguments), strict=True):
        assert_close(ours, theirs, shape, "float64", "inference")
    assert decoder._engine.calls == 0
    stepper = decoder.stream(there["memory"], there["memory_lengths"])
    assert not device.get(stepper.attention).any()
    stepper.state = there["state"]
    for t in range(len(y)):
        found = device.get(stepper.step(there["x"][t]))
        for ours, theirs in zip(found, (y[t], context[t]), strict=True):
            assert_close(ours, theirs, shape, "float64", "step")
    assert_close(device.get(stepper.state), state, shape, "float64", "state")


def test_a_stepper_selects_rows(device: TestDevice, rng: np.random.Generator) -> None:
    shape = SHAPES[1]
    decoder = decoder_of("lstm", shape, "float32", device="cuda")
    arguments = arguments_of(decoder, shape, rng) | {"lengths": None}
    memory, counts = arguments["memory"], arguments["memory_lengths"]
    stepper = decoder.stream(device.put(memory), counts)
    stepper.step(device.put(arguments["x"][0]))
    before, state = device.get((stepper.attention, stepper.state))
    for rows in ([2, 0, 2, 1, 0], [4, 1], np.array([1], np.uint8), device.put(np.array([0, 0])), []):
        stepper.select(rows)
        index = np.asarray(device.get(rows), np.int64)
        before, memory, counts = before[index], memory[:, index], counts[index]
        state = tuple(s[:, index] for s in state)
        assert_same(device.get((stepper.attention, stepper.state)), (before, state))
        alone = decoder.stream(device.put(memory), counts)
        alone.state = device.put(tuple(map(np.ascontiguousarray, state)))
        step = device.put(np.ones((len(index), shape[3]), np.float32))
        for ours, theirs in zip(device.get(stepper.step(step)), device.get(alone.step(step)), strict=True):
            assert_close(ours, theirs, shape, "float32", "step")
        before, state = device.get((stepper.attention, stepper.state))


def test_beam_search_over_a_stepper(device: TestDevice, rng: np.random.Generator) -> None:
    cpu = decoder_of("gru", SHAPES[1], "float64")
    decoder = copy.deepcopy(cpu).to("cuda")
    memory = rng.standard_normal((5, 3, 5))
    readout, embedding = rng.standard_normal((6, 7)), rng.standard_normal((6, 4))

    def step(tokens: np.ndarray, stepper: Any) -> tuple[np.ndarray, Any]:
        x = embedding[tokens]
        logits = device.get(stepper.step(x if stepper is on_cpu else device.put(x))[0]) @ readout.T
        return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True)), stepper

    on_cpu = cpu.stream(memory)
    options = {"end": 5, "beam_width": 4, "max_steps": 6}
    expected = fr.beam_search(step, on_cpu, np.zeros(3, int), **options)
    found = fr.beam_search(step, decoder.stream(device.put(memory)), np.zeros(3, int), **options)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours[0][0].tolist() == theirs[0][0].tolist()
        assert ours[0][1] == pytest.approx(theirs[0][1], rel=1e-12)


def test_one_call_of_a_stepper_at_a_time(device: TestDevice) -> None:
    stepper = small().stream(device.put(MEMORY))
    with stepper._core._alone():
        for call in (lambda: stepper.step(device.put(X[0])), lambda: stepper.select([0]), lambda: stepper.state):
            with pytest.raises(RuntimeError, match="another thread"):
                call()
    stepper.step(device.put(X[0]))


def test_a_stepper_keeps_what_it_was_made_of(device: TestDevice, rng: np.random.Generator) -> None:
    shape = SHAPES[5]
    decoder = decoder_of("gru", shape, "float32", device="cuda")
    memory = device.put(rng.standard_normal((shape[2], 1, shape[5])).astype(np.float32))
    x = device.put(np.ones((1, shape[3]), np.float32))
    expected = device.get(decoder.stream(memory).step(x))
    stepper = decoder.stream(memory)
    memory[...] = np.nan
    for array in decoder.parameters.values():
        array[...] = np.nan
    assert_same(device.get(stepper.step(x)), expected)


@pytest.mark.parametrize("attention", ["soft", "hard"])
@pytest.mark.parametrize("where", ["host", "device"])
def test_a_decoder_ignores_what_lies_past_a_length(
    device: TestDevice, where: str, attention: str, rng: np.random.Generator
) -> None:
    shape = SHAPES[2]
    decoder = decoder_of("lstm", shape, "float32", device="cuda", attention=attention)
    arguments, given = arguments_of(decoder, shape, rng), gradients_of(decoder, shape, rng)
    spoiled, spoiled_given = copied(arguments), copied(given)
    for b in range(shape[1]):
        spoiled["memory"][arguments["memory_lengths"][b] :, b] = np.nan
        for array in (spoiled["x"], *(spoiled_given[key] for key in given if key != "dstate")):
            array[arguments["lengths"][b] :, b] = np.nan
    if where == "device":
        for key, most in (("lengths", shape[0]), ("memory_lengths", shape[2])):
            lengths = spoiled[key]
            wild = np.where(lengths == most, 10**12, np.where(lengths == 0, -5, lengths))
            spoiled[key] = device.put(wild)
    results = []
    for one, gradients in ((arguments, given), (spoiled, spoiled_given)):
        decoder._engine.calls = 0
        results.append(run_decoder(device, decoder, one, gradients))
    assert_same(results[1], results[0])
    (outputs, kept), grads = results[0]
    for b in range(shape[1]):
        for array in (outputs[0], outputs[1], kept[0], grads.x):
            assert not array[arguments["lengths"][b] :, b].any()
        assert not kept[0][:, b, arguments["memory_lengths"][b] :].any()
        assert not grads.memory[arguments["memory_lengths"][b] :, b].any()


@pytest.mark.parametrize("attention", ["soft", "hard"])
def test_without_memory_steps_or_rows(device: TestDevice, attention: str, rng: np.random.Generator) -> None:
    for steps, rows, locations in itertools.product((0, 2), (0, 2), (0, 3)):
        check_decoder(device, "lstm", (steps, rows, locations, 3, 4, 5, 6), "float32", attention, rng)


@pytest.mark.parametrize("attention", ["soft", "hard"])
def test_batch_first_and_strides(device: TestDevice, attention: str, rng: np.random.Generator) -> None:
    shape = SHAPES[1]
    first = decoder_of("lstm", shape, "float32", device="cuda", attention=attention, batch_first=True)
    second = decoder_of("lstm", shape, "float32", device="cuda", attention=attention)
    arguments, given = arguments_of(first, shape, rng), gradients_of(first, shape, rng)
    (outputs, kept), grads = run_decoder(device, second, arguments, given)
    turned = {key: value.swapaxes(0, 1) if key in ("x", "memory") else value for key, value in arguments.items()}
    turned_given = {key: value if key == "dstate" else value.swapaxes(0, 1) for key, value in given.items()}
    moved = on(device, {key: v.copy() if key in ("x", "memory") else v for key, v in turned.items()})
    *found, tape = first.forward(**moved)
    found, shares = device.get((found, tape.attention))
    # The stand-in adds up in one order however the arrays lie.
    for ours, theirs in zip((*found[:2], shares), (*outputs[:2], kept[0]), strict=True):
        assert_close(np.ascontiguousarray(ours.swapaxes(0, 1)), theirs, shape, "float32", "output")
    copies = {key: v if key == "dstate" else v.copy() for key, v in turned_given.items()}
    back = device.get(first.backward(tape, **device.put(copies)))
    for ours, theirs in ((back.x, grads.x), (back.memory, grads.memory)):
        assert_close(np.ascontiguousarray(ours.swapaxes(0, 1)), theirs, shape, "float32", "gradient")
    for key, gradient in grads.parameters.items():
        assert_close(back.parameters[key], gradient, shape, "float32", key)
    second._engine.calls = 0
    strided = {key: v.swapaxes(0, 1) if key in ("x", "memory") else v for key, v in moved.items()}
    *views, tape = second.forward(**strided)
    for ours, theirs in zip(device.get(views), outputs, strict=True):
        assert_close(ours, theirs, shape, "float32", "of views")
    turned_back = {k: v if k == "dstate" else v.swapaxes(0, 1) for k, v in device.put(copies).items()}
    assert_close(device.get(second.backward(tape, **turned_back)).x, grads.x, shape, "float32", "of views")


def test_gradients_are_added(device: TestDevice, rng: np.random.Generator) -> None:
    shape = SHAPES[2]
    decoder = decoder_of("lstm", shape, "float64", device="cuda", attention="hard")
    arguments, given = arguments_of(decoder, shape, rng), device.put(gradients_of(decoder, shape, rng))
    tape = decoder.forward(**on(device, arguments))[3]
    once = decoder.backward(tape, **given)
    first = copy.deepcopy(device.get(once))
    twice = decoder.backward(tape, **given, grads=once)
    for key, gradient in twice.parameters.items():
        assert gradient is once.parameters[key]
        assert_close(device.get(gradient), 2 * first.parameters[key], shape, "float64", key)
    assert_same(device.get((twice.x, twice.memory, twice.state)), (first.x, first.memory, first.state))
    none = device.get(decoder.backward(tape))
    assert not any(a.any() for a in (none.x, none.memory, *none.state, *none.parameters.values()))


def test_memory_of_a_tape(device: TestDevice) -> None:
    """Shares, keys, and what a layer's tape holds: no array of T * B * S * A elements, in the tape or beside it."""
    shape = steps, rows, locations, inputs, hidden, features, size = (60, 8, 70, 8, 32, 16, 64)
    decoder = decoder_of("lstm", shape, "float32", device="cuda")
    x, memory = np.zeros((steps, rows, inputs), np.float32), np.zeros((locations, rows, features), np.float32)
    tape = decoder.forward(device.put(x), device.put(memory))[3]
    own = fr.LSTM(inputs + features, hidden, device="cuda").forward(
        device.put(np.zeros((steps, rows, inputs + features), np.float32))
    )[2]
    expected = own.nbytes + 4 * (steps * rows * locations + rows * locations * size)
    assert expected <= tape.nbytes <= 1.05 * expected
    calls, made = decoder._engine._calls, tape.made
    needed = calls._net.decoder_bytes(made.net, made.attention_call, True)
    gemm = 0 if not device.real else 2**25
    assert needed - gemm < 4 * steps * rows * locations * size / 4


X = np.zeros((2, 3, 4), np.float32)


def small(**options: Any) -> fr.AttentionDecoder:
    return fr.AttentionDecoder(4, 7, 6, 8, seed=0, device="cuda", **options)


def tape_of(decoder: fr.AttentionDecoder, x: Any, m: Any) -> Any:
    return decoder.forward(x, m)[3]


def back(x: Any, m: Any, attention: str = "soft", **given: Any) -> Any:
    decoder = small(attention=attention)
    return decoder.backward(tape_of(decoder, x, m), **given)


def without(name: str) -> fr.AttentionDecoder:
    decoder = small()
    del decoder.parameters[name]
    return decoder


ERRORS: list[tuple[Callable[[Any, Any], Any], str, Any]] = [
    (lambda x, m: small()(X, m), "x", TypeError),
    (lambda x, m: small()(x.astype(float), m), "x", TypeError),
    (lambda x, m: small()(x[0], m), "x", ValueError),
    (lambda x, m: small()(x[..., :3], m), "x", ValueError),
    (lambda x, m: small()(x[..., ::-1], m), "x", ValueError),
    (lambda x, m: small()(x, MEMORY), "memory", TypeError),
    (lambda x, m: small()(x, m[:, :2]), "memory", ValueError),
    (lambda x, m: small()(x, m[..., :5]), "memory", ValueError),
    (lambda x, m: small()(x, None), "memory", TypeError),
    (lambda x, m: small()(x, m, [5, 6, 1]), "memory_lengths", ValueError),
    (lambda x, m: small()(x, m, [5, 1]), "memory_lengths", ValueError),
    (lambda x, m: small()(x, m, np.ones(3)), "memory_lengths", TypeError),
    (lambda x, m: small()(x, m, x[0, :, 0]), "memory_lengths", TypeError),
    (lambda x, m: small()(x, m, lengths=[3, 0, 0]), "lengths", ValueError),
    (lambda x, m: small()(x, m, state=x), "state", TypeError),
    (lambda x, m: small()(x, m, state=(x, x)), "state", ValueError),
    (lambda x, m: without("weight_query")(x, m), "parameters", ValueError),
    (lambda x, m: back(x, m, dy=x), "dy", ValueError),
    (lambda x, m: back(x, m, dy=X), "dy", TypeError),
    (lambda x, m: back(x, m, dcontext=x), "dcontext", ValueError),
    (lambda x, m: back(x, m, dstate=(x, None)), "dstate", ValueError),
    (lambda x, m: back(x, m, dlog_prob=x[..., 0]), "dlog_prob", ValueError),
    (lambda x, m: back(x, m, "hard", dlog_prob=x), "dlog_prob", ValueError),
    (lambda x, m: back(x, m, "hard", dentropy=x[..., 0].astype(float)), "dentropy", TypeError),
    (lambda x, m: back(x, m, grads={}), "grads", TypeError),
    (lambda x, m: small().backward(None), "tape", TypeError),
    (lambda x, m: small().backward(tape_of(small(), x, m)), "tape", ValueError),
    (lambda x, m: small().stream(MEMORY), "memory", TypeError),
    (lambda x, m: small().stream(x), "memory", ValueError),
    (lambda x, m: small().stream(m, [9, 1, 1]), "memory_lengths", ValueError),
    (lambda x, m: small().stream(m).step(x), "x_t", ValueError),
    (lambda x, m: small().stream(m).step(X[0]), "x_t", TypeError),
    (lambda x, m: small().stream(m).select([3]), "rows", ValueError),
    (lambda x, m: small().stream(m).select([0.0]), "rows", TypeError),
    (lambda x, m: setattr(small().stream(m), "state", (x, x)), "state", ValueError),
    (lambda x, m: setattr(small().stream(m), "state", None), "state", TypeError),
]


@pytest.mark.parametrize("number", range(len(ERRORS)))
def test_errors_name_the_argument(device: TestDevice, number: int) -> None:
    call, name, error = ERRORS[number]
    with pytest.raises(error, match=rf"^{name}\b"):
        call(*map(device.put, (X, MEMORY)))


def test_gradients_must_be_nobody_elses_memory(device: TestDevice) -> None:
    decoder = small()
    tape = tape_of(decoder, device.put(X), device.put(MEMORY))
    grads = decoder.backward(tape)
    grads.parameters["weight_score"] = decoder.parameters["weight_score"]
    with pytest.raises(ValueError, match=r"^grads\.parameters\['weight_score'\] must not share memory"):
        decoder.backward(tape, grads=grads)


def test_a_decoder_in_a_graph_is_refused(device: TestDevice) -> None:
    if device.real:
        pytest.skip("the stand-in says that a graph is captured")
    decoder, x, memory = small(), device.put(X), device.put(MEMORY)
    tape, stepper = tape_of(decoder, x, memory), decoder.stream(memory)
    device.arrays.native.set_capturing(True)
    for call, name in (
        (lambda: decoder(x, memory), "x"),
        (lambda: decoder.backward(tape), "tape"),
        (lambda: decoder.stream(memory), "memory"),
        (lambda: stepper.step(x[0]), "x_t"),
    ):
        with pytest.raises(ValueError, match=f"^{name} must not be used while a graph"):
            call()


def test_its_representation_tells_the_device(device: TestDevice) -> None:
    assert repr(small(dtype="bfloat16")).endswith("dtype='bfloat16', device='cuda:0')")
