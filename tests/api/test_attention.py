"""Attention: decoders and the function without a cell, against the reference, finite differences and themselves."""

from __future__ import annotations

import copy
import itertools
import pickle
from collections.abc import Callable
from typing import Any

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
from bitwise import assert_same, copied, threads
from guards import poison

import fusedrnn as fr
from fusedrnn import _core, reference


def check_decoder(
    name: str, shape: Shape, dtype: str, attention: str, rng: np.random.Generator, scale: float = 1.0
) -> None:
    """`scale` multiplies the first row's memory and the projected queries."""
    decoder = decoder_of(name, shape, dtype, attention=attention)
    arguments = arguments_of(decoder, shape, rng)
    arguments["memory"][:, 0] *= scale
    decoder.parameters["weight_query"] *= scale

    def check(actual: Any, expected: Any, what: str) -> None:
        assert_close(actual, expected, shape, dtype, what, scale)

    y, context, state, tape = decoder.forward(**arguments)
    wanted_y, wanted_context, wanted_state, kept = run_reference(decoder, arguments, locations=tape.locations)
    check(y, wanted_y, "y")
    check(context, wanted_context, "context")
    check(state, wanted_state, "state")
    check(tape.attention, kept.attention, "attention")
    if attention == "hard":
        np.testing.assert_array_equal(tape.locations, kept.locations)
        check(tape.log_prob, kept.log_prob, "log_prob")
        check(tape.entropy, kept.entropy, "entropy")
    given = gradients_of(decoder, shape, rng)
    grads = decoder.backward(tape, **given)
    dx, dmemory, dstate, parameters = reference.attention_decoder_backward(kept, **given)
    check(grads.x, dx, "dx")
    check(grads.memory, dmemory, "dmemory")
    check(grads.state, dstate, "dstate")
    assert list(grads.parameters) == list(decoder.parameters)
    for key, gradient in grads.parameters.items():
        check(gradient, parameters[key], f"d{key}")
    assert_same(decoder.backward(tape, **given), grads)


@pytest.mark.parametrize("attention", ["soft", "hard"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_against_the_reference(name: str, shape: Shape, dtype: str, attention: str, rng: np.random.Generator) -> None:
    check_decoder(name, shape, dtype, attention, rng)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", CELLS)
def test_every_cell(name: str, dtype: str, rng: np.random.Generator) -> None:
    check_decoder(name, SHAPES[1], dtype, "soft", rng)
    check_decoder(name, SHAPES[2], dtype, "hard", rng)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("scale", [20.0, 300.0])
def test_large_queries_and_keys(scale: float, dtype: str, rng: np.random.Generator) -> None:
    """Exponentials of some sums, or of all, would overflow."""
    check_decoder("lstm", SHAPES[1], dtype, "soft", rng, scale)


def test_every_registered_cell_is_tested() -> None:
    assert set(CELLS) == set(_core.cells)
    for name, options in CELLS.items():
        assert fr.AttentionDecoder(1, 1, 1, 1, **options).cell_name == name


@pytest.mark.parametrize("attention", ["soft", "hard"])
@pytest.mark.parametrize("name", ["lstm_peephole", "gru", "gru_reset_before", "rnn_tanh"])
def test_the_references_gradient_is_the_slope(name: str, attention: str, rng: np.random.Generator) -> None:
    shape = SHAPES[1]
    decoder = decoder_of(name, shape, attention=attention)
    arguments, given = arguments_of(decoder, shape, rng), gradients_of(decoder, shape, rng)
    kept = run_reference(decoder, arguments, seed=3)[3]
    dx, dmemory, dstate, parameters = reference.attention_decoder_backward(kept, **given)
    moves = {"x": dx, "memory": dmemory, **parameters}
    moves |= {f"state{i}": gradient for i, gradient in enumerate(as_tuple(dstate))}
    direction = {key: rng.standard_normal(gradient.shape) for key, gradient in moves.items()}

    def value(step: float) -> float:
        moved = {key: array + step * direction[key] for key, array in decoder.parameters.items()}
        state = [s + step * direction[f"state{i}"] for i, s in enumerate(as_tuple(arguments["state"]))]
        y, context, final, tape = reference.attention_decoder(
            decoder.cell_name,
            moved,
            arguments["x"] + step * direction["x"],
            arguments["memory"] + step * direction["memory"],
            arguments["memory_lengths"],
            tuple(state) if len(state) == 2 else state[0],
            arguments["lengths"],
            hard=attention == "hard",
            locations=kept.locations,
        )
        total = (y * given["dy"]).sum() + (context * given["dcontext"]).sum()
        total += sum((s * d).sum() for s, d in zip(as_tuple(final), as_tuple(given["dstate"]), strict=True))
        if attention == "hard":
            total += (tape.log_prob * given["dlog_prob"]).sum() + (tape.entropy * given["dentropy"]).sum()
        return float(total)

    slope = (value(1e-5) - value(-1e-5)) / 2e-5
    found = sum(float((moves[key] * direction[key]).sum()) for key in moves)
    np.testing.assert_allclose(found, slope, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("attention", ["soft", "hard"])
@pytest.mark.parametrize("name", ["lstm", "gru_reset_before"])
def test_inference_and_steps_have_the_bits_of_a_call(name: str, attention: str, rng: np.random.Generator) -> None:
    shape = SHAPES[2]
    decoder = decoder_of(name, shape, "float32", attention=attention)
    arguments = arguments_of(decoder, shape, rng) | {"lengths": None}
    y, context, state = decoder(**arguments)
    if attention == "soft":
        assert_same(decoder.forward(**arguments)[:3], (y, context, state))
    else:
        kept = run_reference(decoder, arguments)[3]
        np.testing.assert_array_equal(np.take(kept.attention, 0, 2).shape, y.shape[:2])
        expected = run_reference(decoder, arguments, locations=kept.locations)
        assert_close(context, expected[1], shape, "float32", "context")
    stepper = decoder.stream(arguments["memory"], arguments["memory_lengths"])
    assert not stepper.attention.any()
    stepper.state = arguments["state"]
    for t in range(len(y)):
        assert_same(stepper.step(arguments["x"][t]), (y[t], context[t]))
        if attention == "soft":
            assert_same(stepper.attention, decoder.forward(**arguments)[3].attention[t])
    assert_same(stepper.state, state)


def test_a_stepper_selects_rows(rng: np.random.Generator) -> None:
    shape = SHAPES[1]
    decoder = decoder_of("lstm", shape, "float32")
    arguments = arguments_of(decoder, shape, rng) | {"lengths": None}
    x, memory, counts = arguments["x"], arguments["memory"], arguments["memory_lengths"]
    stepper = decoder.stream(memory, counts)
    stepper.step(x[0])
    before, state = stepper.attention, stepper.state
    for rows in ([2, 0, 2, 1, 0], [4, 1], np.array([1], np.uint8), []):
        stepper.select(rows)
        index = np.asarray(rows, np.int64)
        before, memory, counts = before[index], memory[:, index], counts[index]
        state = tuple(s[:, index] for s in state)
        assert_same(stepper.attention, before)
        assert_same(stepper.state, state)
        alone = decoder.stream(memory, counts)
        alone.state = state
        step = np.ones((len(index), shape[3]), np.float32)
        assert_same(stepper.step(step), alone.step(step))
        before, state = stepper.attention, stepper.state


def test_beam_search_over_a_stepper(rng: np.random.Generator) -> None:
    """A beam as wide as all sequences finds the most probable one of them, row by row."""
    decoder = decoder_of("gru", SHAPES[1], "float64")
    memory = rng.standard_normal((5, 3, 5))
    readout, embedding = rng.standard_normal((3, 7)), rng.standard_normal((3, 4))

    def log_probs_of(h: np.ndarray) -> np.ndarray:
        logits = h @ readout.T
        return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))

    def step(tokens: np.ndarray, stepper: Any) -> tuple[np.ndarray, Any]:
        return log_probs_of(stepper.step(embedding[tokens])[0]), stepper

    found = fr.beam_search(step, decoder.stream(memory), np.zeros(3, int), end=2, beam_width=27, max_steps=3)
    for b in range(3):
        best: dict[tuple[int, ...], float] = {}
        for tokens in itertools.product(range(3), repeat=3):
            kept = tokens[: tokens.index(2) + 1] if 2 in tokens else tokens
            x = embedding[[0, *kept[:-1]]][:, None]
            log_probs = log_probs_of(decoder(x, memory[:, b : b + 1].copy())[0][:, 0])
            best[kept] = float(log_probs[np.arange(len(kept)), list(kept)].sum())
        wanted = max(best, key=lambda kept: best[kept])
        tokens, log_prob = found[b][0]
        assert tuple(tokens.tolist()) == wanted
        assert log_prob == pytest.approx(best[wanted], rel=1e-12)


def test_a_stepper_keeps_what_it_was_made_of(rng: np.random.Generator) -> None:
    shape = SHAPES[5]
    decoder = decoder_of("gru", shape, "float32")
    memory = rng.standard_normal((shape[2], 1, shape[5])).astype(np.float32)
    x = np.ones((1, shape[3]), np.float32)
    expected = decoder.stream(memory).step(x)
    stepper = decoder.stream(memory)
    memory[...] = np.nan
    for array in decoder.parameters.values():
        array[...] = np.nan
    assert_same(stepper.step(x), expected)


@pytest.mark.parametrize("attention", ["soft", "hard"])
@pytest.mark.parametrize("name", ["lstm", "gru_reset_before", "rnn_tanh"])
@pytest.mark.parametrize("shape", [SHAPES[2], SHAPES[4], SHAPES[5]], ids=str)
def test_threads_do_not_change_a_bit(name: str, shape: Shape, attention: str, rng: np.random.Generator) -> None:
    decoder = decoder_of(name, shape, "float32", attention=attention)
    arguments, given = arguments_of(decoder, shape, rng), gradients_of(decoder, shape, rng)
    results = []
    for count in (1, 2, 3, 5):
        decoder._engine.calls = 0
        with threads(count):
            y, context, state, tape = decoder.forward(**arguments)
            stepper = decoder.stream(arguments["memory"], arguments["memory_lengths"])
            steps = [stepper.step(arguments["x"][t]) for t in range(len(y))]
            results.append((y, context, state, tape.attention, steps, decoder.backward(tape, **given)))
    for other in results[1:]:
        assert_same(other, results[0])


@pytest.mark.parametrize("attention", ["soft", "hard"])
def test_a_row_alone_has_the_bits_that_it_has_in_a_batch(attention: str, rng: np.random.Generator) -> None:
    shape = SHAPES[2]
    decoder = decoder_of("lstm", shape, "float32", attention=attention)
    arguments, given = arguments_of(decoder, shape, rng), gradients_of(decoder, shape, rng)
    y, context, state, tape = decoder.forward(**arguments)
    grads = decoder.backward(tape, **given)
    for b in range(shape[1]):
        if attention == "hard" and b > 0:  # the draws go by the row's number
            break
        row = slice(b, b + 1)
        alone = {
            key: tuple(s[:, row] for s in value)
            if isinstance(value, tuple)
            else value[row]
            if value.ndim == 1
            else value[:, row]
            for key, value in arguments.items()
        }
        own = {
            key: tuple(s[:, row] for s in value) if isinstance(value, tuple) else value[:, row].copy()
            for key, value in given.items()
        }
        decoder._engine.calls = 0
        found_y, found_context, found_state, kept = decoder.forward(**alone)
        assert_same((found_y, found_context), (y[:, row], context[:, row]))
        assert_same(found_state, tuple(s[:, row] for s in state))
        assert_same(kept.attention, tape.attention[:, row])
        found = decoder.backward(kept, **own)
        assert_same((found.x, found.memory), (grads.x[:, row], grads.memory[:, row]))
        assert_same(found.state, tuple(s[:, row] for s in grads.state))


@pytest.mark.parametrize("attention", ["soft", "hard"])
@pytest.mark.parametrize("name", ["lstm", "gru_reset_before"])
def test_what_lies_past_a_length_influences_nothing(name: str, attention: str, rng: np.random.Generator) -> None:
    shape = SHAPES[2]
    decoder = decoder_of(name, shape, "float32", attention=attention)
    arguments, given = arguments_of(decoder, shape, rng), gradients_of(decoder, shape, rng)
    spoiled, spoiled_given = copied(arguments), copied(given)
    for b in range(shape[1]):
        spoiled["memory"][arguments["memory_lengths"][b] :, b] = np.nan
        for array in (spoiled["x"], *(spoiled_given[key] for key in given if key != "dstate")):
            array[arguments["lengths"][b] :, b] = np.nan
    results = []
    for one, gradients in ((arguments, given), (spoiled, spoiled_given)):
        decoder._engine.calls = 0
        *outputs, tape = decoder.forward(**one)
        results.append((outputs, tape.attention, tape.locations, decoder.backward(tape, **gradients)))
    assert_same(results[1], results[0])
    outputs, shares, _, grads = results[0]
    for b in range(shape[1]):
        for array in (outputs[0], outputs[1], shares, grads.x):
            assert not array[arguments["lengths"][b] :, b].any()
        assert not shares[:, b, arguments["memory_lengths"][b] :].any()
        assert not grads.memory[arguments["memory_lengths"][b] :, b].any()
        if arguments["memory_lengths"][b] == 0:
            assert not outputs[1][:, b].any()


@pytest.mark.parametrize("attention", ["soft", "hard"])
def test_without_memory_steps_or_rows(attention: str, rng: np.random.Generator) -> None:
    for steps, rows, locations in itertools.product((0, 2), (0, 2), (0, 3)):
        shape = (steps, rows, locations, 3, 4, 5, 6)
        decoder = decoder_of("gru", shape, "float32", attention=attention)
        x = rng.standard_normal((steps, rows, 3)).astype(np.float32)
        memory = rng.standard_normal((locations, rows, 5)).astype(np.float32)
        y, context, state, tape = decoder.forward(x, memory)
        assert tape.attention.shape == (steps, rows, locations)
        assert y.shape == (steps, rows, 4) and context.shape == (steps, rows, 5) and state.shape == (1, rows, 4)
        given = gradients_of(decoder, shape, rng)
        grads = decoder.backward(tape, **given)
        kept = run_reference(decoder, {"x": x, "memory": memory}, locations=tape.locations)[3]
        dx, dmemory, dstate, parameters = reference.attention_decoder_backward(kept, **given)
        for ours, theirs in ((grads.x, dx), (grads.memory, dmemory), (grads.state, dstate)):
            assert_close(ours, theirs, shape, "float32", "gradient")
        for key, gradient in grads.parameters.items():
            assert_close(gradient, parameters[key], shape, "float32", key)
        if locations == 0:
            assert not context.any()
            if attention == "hard":
                assert (tape.locations == -1).all() and not tape.log_prob.any() and not tape.entropy.any()


@pytest.mark.parametrize("attention", ["soft", "hard"])
def test_batch_first(attention: str, rng: np.random.Generator) -> None:
    shape = SHAPES[1]
    first = decoder_of("lstm", shape, "float32", attention=attention, batch_first=True)
    second = decoder_of("lstm", shape, "float32", attention=attention)
    arguments, given = arguments_of(first, shape, rng), gradients_of(first, shape, rng)
    swapped = {key: value.swapaxes(0, 1).copy() for key, value in arguments.items() if key in ("x", "memory")}
    *outputs, tape = first.forward(**{**arguments, **swapped})
    *expected, kept = second.forward(**arguments)
    assert_same([o.swapaxes(0, 1).copy() for o in outputs[:2]], expected[:2])
    assert_same(outputs[2], expected[2])
    for name in ("attention", "locations", "log_prob", "entropy"):
        if getattr(kept, name) is not None:
            assert_same(getattr(tape, name).swapaxes(0, 1).copy(), getattr(kept, name))
    turned = {key: value if key == "dstate" else value.swapaxes(0, 1).copy() for key, value in given.items()}
    grads, wanted = first.backward(tape, **turned), second.backward(kept, **given)
    assert_same([a.swapaxes(0, 1).copy() for a in (grads.x, grads.memory)], [wanted.x, wanted.memory])
    assert_same((grads.state, grads.parameters), (wanted.state, wanted.parameters))
    assert_same(first(**{**arguments, **swapped})[0].swapaxes(0, 1).copy(), second(**arguments)[0])


def test_strides_do_not_change_a_bit(rng: np.random.Generator) -> None:
    shape = SHAPES[1]
    decoder = decoder_of("lstm", shape, "float32", attention="hard")
    arguments, given = arguments_of(decoder, shape, rng), gradients_of(decoder, shape, rng)

    def strided(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(strided, value))
        buffer = poison([2 * size + 1 for size in value.shape[:2]] + list(value.shape[2:]), value.dtype)
        view = buffer[1::2, 1::2]
        view[...] = value
        return view

    results = []
    for change in (lambda value: value, strided):
        decoder._engine.calls = 0
        one = {key: value if "lengths" in key else change(value) for key, value in arguments.items()}
        *outputs, tape = decoder.forward(**one)
        results.append((outputs, decoder.backward(tape, **{key: change(value) for key, value in given.items()})))
    assert_same(results[1], results[0])


def test_gradients_are_added(rng: np.random.Generator) -> None:
    shape = SHAPES[2]
    decoder = decoder_of("lstm", shape, "float64", attention="hard")
    arguments, given = arguments_of(decoder, shape, rng), gradients_of(decoder, shape, rng)
    tape = decoder.forward(**arguments)[3]
    once = decoder.backward(tape, **given)
    first = copy.deepcopy(once)
    twice = decoder.backward(tape, **given, grads=once)
    for key, gradient in twice.parameters.items():
        assert gradient is once.parameters[key]
        scale = max(1.0, float(np.abs(gradient).max()))
        np.testing.assert_allclose(gradient, 2 * first.parameters[key], atol=8 * np.finfo(np.float64).eps * scale)
    assert_same((twice.x, twice.memory, twice.state), (first.x, first.memory, first.state))


def test_no_gradient_given_is_none(rng: np.random.Generator) -> None:
    shape = SHAPES[1]
    decoder = decoder_of("lstm", shape, "float32")
    tape = decoder.forward(**arguments_of(decoder, shape, rng))[3]
    grads = decoder.backward(tape)
    arrays = [grads.x, grads.memory, *grads.state, *grads.parameters.values()]
    assert not any(array.any() for array in arrays)


def test_memory_of_a_tape(rng: np.random.Generator) -> None:
    """Shares, keys, and what a layer's tape holds: no array of T * B * S * A elements, in the tape or beside it."""
    shape = steps, rows, locations, inputs, hidden, features, size = (60, 8, 70, 8, 32, 16, 64)
    decoder = decoder_of("lstm", shape, "float32")
    x = rng.standard_normal((steps, rows, inputs)).astype(np.float32)
    memory = rng.standard_normal((locations, rows, features)).astype(np.float32)
    fr.release_memory()
    before = _core.pool_use()["live"]
    y, _, _, tape = decoder.forward(x, memory)
    layer = fr.LSTM(inputs + features, hidden)
    own = layer.forward(rng.standard_normal((steps, rows, inputs + features)).astype(np.float32))[2].nbytes
    expected = own + 4 * (steps * rows * locations + rows * locations * size)
    assert expected <= tape.nbytes <= 1.05 * expected  # the pool may give a buffer that is a little larger
    decoder.backward(tape, np.ones_like(y))
    use = _core.pool_use()
    assert use["live"] + use["idle"] - before < 4 * steps * rows * locations * size / 4


# Hard attention


def test_draws_are_the_references(rng: np.random.Generator) -> None:
    shape = (40, 9, 13, 3, 8, 5, 8)
    decoder = decoder_of("gru", shape, attention="hard")
    arguments = arguments_of(decoder, shape, rng)
    for call in range(3):
        tape = decoder.forward(**arguments)[3]
        kept = run_reference(decoder, arguments, seed=5, call=call)[3]
        np.testing.assert_array_equal(tape.locations, kept.locations)
    assert decoder._engine.calls == 3


def test_draws_follow_the_distribution(rng: np.random.Generator) -> None:
    """Counts of 40,000 draws of one distribution, within five standard deviations."""
    rows, locations = 40_000, 6
    decoder = decoder_of("rnn_tanh", (1, rows, locations, 1, 4, 4, 8), "float32", attention="hard")
    memory = np.repeat(rng.standard_normal((locations, 1, 4)), rows, axis=1).astype(np.float32)
    tape = decoder.forward(np.zeros((1, rows, 1), np.float32), memory)[3]
    shares = tape.attention[0, 0].astype(np.float64)
    assert (tape.attention[0] == tape.attention[0, 0]).all() and shares.max() < 0.9
    counts = np.bincount(tape.locations[0], minlength=locations)
    deviation = np.sqrt(rows * shares * (1 - shares))
    assert (np.abs(counts - rows * shares) <= 5 * deviation + 1).all()
    np.testing.assert_allclose(tape.log_prob[0], np.log(shares[tape.locations[0]]), rtol=1e-6)


def test_inference_takes_the_most_probable_location(rng: np.random.Generator) -> None:
    shape = SHAPES[2]
    decoder = decoder_of("lstm", shape, "float64", attention="hard")
    arguments = arguments_of(decoder, shape, rng)
    y, context, _ = decoder(**arguments)
    wanted_y, wanted_context = run_reference(decoder, arguments)[:2]
    assert_close(y, wanted_y, shape, "float64", "y")
    assert_close(context, wanted_context, shape, "float64", "context")
    assert_same(decoder(**arguments)[:2], (y, context))


def test_a_seed_repeats_the_draws(rng: np.random.Generator) -> None:
    shape = (20, 4, 9, 3, 8, 5, 8)
    one, two = (decoder_of("lstm", shape, attention="hard") for _ in range(2))
    arguments = arguments_of(one, shape, rng)
    first, second = one.forward(**arguments)[3].locations, one.forward(**arguments)[3].locations
    assert (first != second).any()
    assert_same(two.forward(**arguments)[3].locations, first)
    two = pickle.loads(pickle.dumps(one))
    assert_same(two.forward(**arguments)[3].locations, one.forward(**arguments)[3].locations)


# The object


def test_parameters_are_a_layers_and_attentions() -> None:
    decoder = fr.AttentionDecoder(3, 4, 5, 6, seed=1)
    layer = fr.LSTM(3 + 5, 4)
    own = {"weight_query": (6, 4), "weight_memory": (6, 5), "bias_attention": (6,), "weight_score": (6,)}
    shapes = {key: array.shape for key, array in decoder.parameters.items()}
    assert shapes == {key: array.shape for key, array in layer.parameters.items()} | own
    assert list(shapes)[-4:] == list(own)
    assert_same(fr.AttentionDecoder(3, 4, 5, 6, seed=1).parameters, decoder.parameters)
    other = fr.AttentionDecoder(3, 4, 5, 6, seed=2)
    other.load_parameters(decoder.parameters)
    assert_same(other.parameters, decoder.parameters)
    assert other.to(dtype="float64").parameters["weight_score"].dtype == np.float64
    fr.init.forget_bias_(other)
    assert repr(other) == "AttentionDecoder(3, 4, 5, 6, cell='lstm', dtype='float64')"


def test_an_optimizer_trains_it(rng: np.random.Generator) -> None:
    """To copy the memory, which only attention that moves on with the steps can."""
    decoder = fr.AttentionDecoder(1, 24, 8, 16, seed=0)
    optimizer = fr.optim.Adam(decoder.parameters, lr=0.01)
    losses = []
    for _ in range(150):
        values = rng.standard_normal((5, 16, 6)).astype(np.float32)
        place = np.repeat(np.linspace(-1, 1, 5, dtype=np.float32)[:, None, None], 16, 1)
        memory = np.concatenate([values, place, place**2], axis=2)
        _, context, _, tape = decoder.forward(place, memory)
        error = context[..., :6] - values
        dcontext = np.zeros_like(context)
        dcontext[..., :6] = 2 * error / error.size
        grads = decoder.backward(tape, None, dcontext)
        fr.clip_grad_norm(grads, 1.0)
        optimizer.step(grads)
        losses.append(float((error**2).mean()))
    assert losses[-1] < 0.3 * losses[0]


def test_a_tape_cannot_be_written(rng: np.random.Generator) -> None:
    shape = SHAPES[1]
    decoder = decoder_of("lstm", shape, attention="hard")
    tape = decoder.forward(**arguments_of(decoder, shape, rng))[3]
    for array in (tape.attention, tape.locations, tape.log_prob, tape.entropy):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0
    soft = decoder_of("lstm", shape)
    tape = soft.forward(**arguments_of(soft, shape, rng))[3]
    assert tape.locations is None and tape.log_prob is None and tape.entropy is None
    with pytest.raises(TypeError, match="forward"):
        _core.DecoderTape()


X, MEMORY = np.zeros((2, 3, 4), np.float32), np.zeros((5, 3, 6), np.float32)


def small(**options: Any) -> fr.AttentionDecoder:
    return fr.AttentionDecoder(4, 7, 6, 8, seed=0, **options)


def small_tape(**options: Any) -> tuple[fr.AttentionDecoder, Any]:
    decoder = small(**options)
    return decoder, decoder.forward(X, MEMORY)[3]


def backward_with(**given: Any) -> Any:
    decoder, tape = small_tape()
    return decoder.backward(tape, **given)


def hard_backward_with(**given: Any) -> Any:
    decoder, tape = small_tape(attention="hard")
    return decoder.backward(tape, **given)


def without(name: str) -> fr.AttentionDecoder:
    decoder = small()
    del decoder.parameters[name]
    return decoder


ERRORS: list[tuple[Callable[[], Any], str, Any]] = [
    (lambda: fr.AttentionDecoder(4, 7, 6, 8, cell="cfg"), "cell", ValueError),
    (lambda: fr.AttentionDecoder(4, 7, 6, 8, attention="both"), "attention", ValueError),
    (lambda: fr.AttentionDecoder(4, 7, 6, 8, reset_after=True), "reset_after", TypeError),
    (lambda: fr.AttentionDecoder(4, 7, 6, 8, cell="gru", reset_after=1), "reset_after", TypeError),
    (lambda: fr.AttentionDecoder(4, 7, 6, 8, cell="rnn", nonlinearity="sin"), "nonlinearity", ValueError),
    (lambda: fr.AttentionDecoder(4, 7, 6, 8, clip=-1), "clip", ValueError),
    (lambda: fr.AttentionDecoder(4, 7, 6, 8, dtype="int32"), "dtype", ValueError),
    (lambda: fr.AttentionDecoder(4, 7, 6, 8, seed=-1), "seed", ValueError),
    (lambda: fr.AttentionDecoder(4, 7, 0, 8), "memory_size", ValueError),
    (lambda: fr.AttentionDecoder(4, 7, 6, 8.0), "attention_size", TypeError),
    (lambda: fr.AttentionDecoder(0, 7, 6, 8), "input_size", ValueError),
    (lambda: small()(X.tolist(), MEMORY), "x", TypeError),
    (lambda: small()(X.astype(np.float64), MEMORY), "x", TypeError),
    (lambda: small()(X[0], MEMORY), "x", ValueError),
    (lambda: small()(X[..., :3], MEMORY), "x", ValueError),
    (lambda: small()(X[..., ::-1], MEMORY), "x", ValueError),
    (lambda: small()(X, MEMORY.astype(np.float64)), "memory", TypeError),
    (lambda: small()(X, MEMORY[:, :2]), "memory", ValueError),
    (lambda: small()(X, MEMORY[..., :5]), "memory", ValueError),
    (lambda: small()(X, MEMORY[..., ::-1]), "memory", ValueError),
    (lambda: small()(X, None), "memory", TypeError),
    (lambda: small()(X, MEMORY, [5, 6, 1]), "memory_lengths", ValueError),
    (lambda: small()(X, MEMORY, [5, -1, 1]), "memory_lengths", ValueError),
    (lambda: small()(X, MEMORY, [5, 1]), "memory_lengths", ValueError),
    (lambda: small()(X, MEMORY, [5.0, 1.0, 1.0]), "memory_lengths", TypeError),
    (lambda: small()(X, MEMORY, np.ones(3)), "memory_lengths", TypeError),
    (lambda: small()(X, MEMORY, lengths=[3, 0, 0]), "lengths", ValueError),
    (lambda: small()(X, MEMORY, state=X), "state", TypeError),
    (lambda: small()(X, MEMORY, state=(X, X)), "state", ValueError),
    (lambda: small(cell="gru")(X, MEMORY, state=X), "state", ValueError),
    (lambda: without("weight_query")(X, MEMORY), "parameters", ValueError),
    (lambda: backward_with(dy=X), "dy", ValueError),
    (lambda: backward_with(dy=1.0), "dy", TypeError),
    (lambda: backward_with(dcontext=X), "dcontext", ValueError),
    (lambda: backward_with(dstate=(X, None)), "dstate", ValueError),
    (lambda: backward_with(dlog_prob=X[..., 0]), "dlog_prob", ValueError),
    (lambda: backward_with(dentropy=X[..., 0]), "dentropy", ValueError),
    (lambda: hard_backward_with(dlog_prob=X), "dlog_prob", ValueError),
    (lambda: hard_backward_with(dentropy=np.zeros((2, 3))), "dentropy", TypeError),
    (lambda: backward_with(grads={}), "grads", TypeError),
    (lambda: small().backward(None), "tape", TypeError),
    (lambda: small().backward(small_tape()[1]), "tape", ValueError),
    (lambda: small().stream(X), "memory", ValueError),
    (lambda: small().stream(MEMORY, [9, 1, 1]), "memory_lengths", ValueError),
    (lambda: small().stream(MEMORY).step(X), "x_t", ValueError),
    (lambda: small().stream(MEMORY).step(X[0].astype(np.float64)), "x_t", TypeError),
    (lambda: small().stream(MEMORY).select([3]), "rows", ValueError),
    (lambda: small().stream(MEMORY).select([-1]), "rows", ValueError),
    (lambda: small().stream(MEMORY).select([0.0]), "rows", TypeError),
    (lambda: small().stream(MEMORY).select("0"), "rows", TypeError),
    (lambda: small().stream(MEMORY).select([[0]]), "rows", ValueError),
    (lambda: setattr(small().stream(MEMORY), "state", (X, X)), "state", ValueError),
]


@pytest.mark.parametrize(("call", "name", "error"), ERRORS)
def test_errors_name_the_argument(call: Callable[[], Any], name: str, error: Any) -> None:
    with pytest.raises(error, match=rf"^{name}\b"):
        call()


def test_gradients_must_be_nobody_elses_memory() -> None:
    decoder, tape = small_tape()
    grads = decoder.backward(tape)
    grads.parameters["weight_score"] = decoder.parameters["weight_score"]
    with pytest.raises(ValueError, match=r"^grads\.parameters\['weight_score'\] must not share memory"):
        decoder.backward(tape, grads=grads)


def test_a_devices_arrays_are_refused_by_a_decoder_of_the_cpu(device: Any) -> None:
    with pytest.raises(TypeError, match=r"^x must be a numpy\.ndarray"):
        small()(device.put(X), MEMORY)
    with pytest.raises(TypeError, match=r"^memory must be a numpy\.ndarray"):
        small().stream(device.put(MEMORY))


# Without a cell


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [*SHAPES, *EMPTY], ids=str)
def test_additive_attention_against_the_reference(shape: Shape, dtype: str, rng: np.random.Generator) -> None:
    arguments = as_dtype(call_of(shape, dtype, rng), dtype)
    (context, attention), tape = fr.additive_attention_forward(**arguments)
    (wanted_context, wanted_attention), kept = reference.additive_attention(**arguments)
    assert_close(context, wanted_context, shape, dtype, "context")
    assert_close(attention, wanted_attention, shape, dtype, "attention")
    assert_same(fr.additive_attention(**arguments), (context, attention))
    dcontext = rng.standard_normal(context.shape).astype(dtype)
    dattention = rng.standard_normal(attention.shape).astype(dtype)
    grads = fr.additive_attention_backward(tape, dcontext, dattention)
    wanted = reference.additive_attention_backward(kept, dcontext, dattention)
    for name, ours, theirs in zip(arguments, grads, wanted, strict=False):
        assert_close(ours, theirs, shape, dtype, f"d{name}")
    assert_same(fr.additive_attention_backward(tape, dcontext, dattention), grads)
    halves = [fr.additive_attention_backward(tape, dcontext), fr.additive_attention_backward(tape, None, dattention)]
    for one, two, both in zip(*halves, grads, strict=True):
        assert_close(one + two, both, shape, dtype, "sum of halves")


def test_additive_attentions_reference_is_the_slope(rng: np.random.Generator) -> None:
    arguments = as_dtype(call_of(SHAPES[1], "float64", rng), "float64")
    (context, attention), kept = reference.additive_attention(**arguments)
    dcontext, dattention = rng.standard_normal(context.shape), rng.standard_normal(attention.shape)
    grads = dict(zip(arguments, reference.additive_attention_backward(kept, dcontext, dattention), strict=False))
    direction = {key: rng.standard_normal(gradient.shape) for key, gradient in grads.items()}

    def value(step: float) -> float:
        moved = {key: arguments[key] + step * direction[key] for key in grads}
        c, a = reference.additive_attention(**moved, memory_lengths=arguments["memory_lengths"])[0]
        return float((c * dcontext).sum() + (a * dattention).sum())

    slope = (value(1e-5) - value(-1e-5)) / 2e-5
    found = sum(float((grads[key] * direction[key]).sum()) for key in grads)
    np.testing.assert_allclose(found, slope, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("shape", [SHAPES[2], SHAPES[5]], ids=str)
def test_additive_attention_has_the_same_bits_on_any_threads(shape: Shape, rng: np.random.Generator) -> None:
    arguments = as_dtype(call_of(shape, "float32", rng), "float32")
    dcontext = rng.standard_normal((*arguments["query"].shape[:2], shape[5])).astype(np.float32)
    results = []
    for count in (1, 2, 3, 5):
        with threads(count):
            outputs, tape = fr.additive_attention_forward(**arguments)
            results.append((outputs, fr.additive_attention_backward(tape, dcontext)))
    for other in results[1:]:
        assert_same(other, results[0])
    for b in range(shape[1]):
        row = slice(b, b + 1)
        alone = {key: value[:, row].copy() if value.ndim == 3 else value for key, value in arguments.items()}
        alone["memory_lengths"] = arguments["memory_lengths"][row]
        outputs, tape = fr.additive_attention_forward(**alone)
        assert_same(outputs, tuple(o[:, row] for o in results[0][0]))
        grads = fr.additive_attention_backward(tape, dcontext[:, row].copy())
        assert_same(grads[:2], tuple(g[:, row] for g in results[0][1][:2]))


def test_additive_attention_ignores_what_lies_past_a_length(rng: np.random.Generator) -> None:
    arguments = as_dtype(call_of(SHAPES[2], "float32", rng), "float32")
    spoiled = copied(arguments)
    for b, length in enumerate(arguments["memory_lengths"]):
        spoiled["memory"][length:, b] = np.nan
    results = []
    for one in (arguments, spoiled):
        outputs, tape = fr.additive_attention_forward(**one)
        results.append(
            (outputs, fr.additive_attention_backward(tape, np.ones_like(outputs[0]), np.ones_like(outputs[1])))
        )
    assert_same(results[1], results[0])


@pytest.mark.parametrize("scale", [1e4, 1e30])
def test_scores_of_any_size(scale: float, rng: np.random.Generator) -> None:
    arguments = as_dtype(call_of(SHAPES[1], "float32", rng), "float32")
    arguments["query"] *= np.float32(scale)
    arguments["weight_score"] *= np.float32(scale / 1e4)
    context, attention = fr.additive_attention(**arguments)
    present = np.arange(SHAPES[1][2]) < arguments["memory_lengths"][:, None]
    sums = attention.sum(axis=2)
    np.testing.assert_allclose(sums, np.broadcast_to(present.any(axis=1), sums.shape), atol=1e-6)
    assert np.isfinite(context).all()


Q, W = np.zeros((2, 3, 7), np.float32), np.zeros((8, 7), np.float32)
WM, V8 = np.zeros((8, 6), np.float32), np.zeros(8, np.float32)
CALL_ERRORS: list[tuple[Callable[[], Any], str, Any]] = [
    (lambda: fr.additive_attention(Q.tolist(), MEMORY, W, WM, V8, V8), "query", TypeError),
    (lambda: fr.additive_attention(Q.astype(int), MEMORY, W, WM, V8, V8), "query", TypeError),
    (lambda: fr.additive_attention(Q[0], MEMORY, W, WM, V8, V8), "query", ValueError),
    (lambda: fr.additive_attention(Q[:, :, ::-1], MEMORY, W, WM, V8, V8), "query", ValueError),
    (lambda: fr.additive_attention(Q, MEMORY.astype(float), W, WM, V8, V8), "memory", TypeError),
    (lambda: fr.additive_attention(Q, MEMORY[:, :2], W, WM, V8, V8), "memory", ValueError),
    (lambda: fr.additive_attention(Q, MEMORY, W[:, :6], WM, V8, V8), "weight_query", ValueError),
    (lambda: fr.additive_attention(Q, MEMORY, W[:0], WM, V8, V8), "weight_query", ValueError),
    (lambda: fr.additive_attention(Q, MEMORY, W, WM[:7], V8, V8), "weight_memory", ValueError),
    (lambda: fr.additive_attention(Q, MEMORY, W, WM, V8[:7], V8), "bias", ValueError),
    (lambda: fr.additive_attention(Q, MEMORY, W, WM, V8, None), "weight_score", TypeError),
    (lambda: fr.additive_attention(Q, MEMORY, W, WM, V8, V8, [6, 0, 0]), "memory_lengths", ValueError),
    (lambda: fr.additive_attention_backward(None), "tape", TypeError),
    (
        lambda: fr.additive_attention_backward(fr.additive_attention_forward(Q, MEMORY, W, WM, V8, V8)[1], Q),
        "dcontext",
        ValueError,
    ),
    (
        lambda: fr.additive_attention_backward(fr.additive_attention_forward(Q, MEMORY, W, WM, V8, V8)[1], None, Q),
        "dattention",
        ValueError,
    ),
]


@pytest.mark.parametrize(("call", "name", "error"), CALL_ERRORS)
def test_a_calls_errors_name_the_argument(call: Callable[[], Any], name: str, error: Any) -> None:
    with pytest.raises(error, match=rf"^{name}\b"):
        call()
