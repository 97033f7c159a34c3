"""Beam search against enumeration, and sampling against the probabilities it draws from."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fusedrnn as fr

V, END = 4, 3


def markov(rng: np.random.Generator) -> np.ndarray:
    """Log-probabilities of the next token by the last two."""
    table = rng.standard_normal((V, V, V))
    log_probs: np.ndarray = table - np.log(np.exp(table).sum(axis=2, keepdims=True))
    return log_probs


def every_sequence(table: np.ndarray, start: int, steps: int) -> dict[tuple[int, ...], float]:
    """The log-probability of every sequence that ends, or is cut off after so many steps."""
    found = {}
    for length in range(1, steps + 1):
        for tokens in itertools.product(range(V), repeat=length):
            if END in tokens[:-1] or (length < steps and tokens[-1] != END):
                continue
            before, last, total = 0, start, 0.0
            for token in tokens:
                total += table[before, last, token]
                before, last = last, token
            found[tokens] = float(total)
    return found


class Stateful:
    """A state that reorders itself."""

    def __init__(self, before: np.ndarray) -> None:
        self.before = before

    def select(self, rows: np.ndarray) -> None:
        self.before = self.before[rows]


def stepping(table: np.ndarray, kind: str) -> tuple[Callable[[np.ndarray, Any], Any], Callable[[int], Any]]:
    """A step whose state is the token before the last, in one of the forms that a state may have."""

    def make(rows: int) -> Any:
        zeros = np.zeros(rows, np.int64)
        forms = {"array": zeros, "tuple": (zeros, zeros[:, None]), "dict": {"before": zeros}, "object": Stateful(zeros)}
        return forms[kind]

    def step(tokens: np.ndarray, state: Any) -> Any:
        if kind == "object":
            log_probs = table[state.before, tokens]
            state.before = tokens.copy()
            return log_probs, state
        before = state if kind == "array" else state[0] if kind == "tuple" else state["before"]
        after = {"array": tokens, "tuple": (tokens, tokens[:, None]), "dict": {"before": tokens}}[kind]
        return table[before, tokens], after

    return step, make


@pytest.mark.parametrize("penalty", [0.0, 0.7])
@pytest.mark.parametrize("kind", ["array", "tuple", "dict", "object"])
def test_a_wide_beam_is_exact(kind: str, penalty: float, rng: np.random.Generator) -> None:
    table = markov(rng)
    step, make = stepping(table, kind)
    starts = np.array([0, 2, 1])
    options = {"end": END, "beam_width": 400, "max_steps": 4, "length_penalty": penalty}
    rows = fr.beam_search(step, make(3), starts, **options, top=None)
    for row, start in zip(rows, starts.tolist(), strict=True):
        expected = every_sequence(table, start, 4)
        assert {tuple(tokens.tolist()) for tokens, _ in row} == set(expected)
        for tokens, log_prob in row:
            assert log_prob == pytest.approx(expected[tuple(tokens.tolist())], rel=1e-13)
        rated = [log_prob / ((5 + len(tokens)) / 6) ** penalty for tokens, log_prob in row]
        assert rated == sorted(rated, reverse=True)
    best = fr.beam_search(step, make(3), starts, **options)
    assert [len(row) for row in best] == [1, 1, 1]
    assert all(b[0][0].tolist() == row[0][0].tolist() for b, row in zip(best, rows, strict=True))


def test_a_beam_of_one_is_greedy(rng: np.random.Generator) -> None:
    table = markov(rng)
    step, make = stepping(table, "array")
    ((tokens, log_prob),) = fr.beam_search(step, make(1), 1, end=END, beam_width=1, max_steps=6)[0]
    before, last, total, expected = 0, 1, 0.0, []
    while len(expected) < 6 and (not expected or expected[-1] != END):
        token = int(table[before, last].argmax())
        total += table[before, last, token]
        expected.append(token)
        before, last = last, token
    assert tokens.tolist() == expected and log_prob == pytest.approx(total)


def test_rows_are_those_of_the_state_and_alone_the_same(rng: np.random.Generator) -> None:
    step, make = stepping(markov(rng), "array")
    options: dict[str, Any] = {"end": END, "beam_width": 3, "max_steps": 5, "top": 3}
    together = fr.beam_search(step, make(4), 1, **options)
    assert len(together) == 4
    alone = fr.beam_search(step, make(1), 1, **options)[0]
    for row in together:
        assert [(t.tolist(), p) for t, p in row] == [(t.tolist(), p) for t, p in alone]


def test_impossible_tokens_and_no_steps() -> None:
    def step(tokens: np.ndarray, state: Any) -> Any:
        return np.where(np.arange(V) == 2, 0.0, -np.inf)[None].repeat(len(tokens), 0), state

    rows = fr.beam_search(step, None, 0, end=END, beam_width=3, max_steps=2, top=None)
    assert [(tokens.tolist(), log_prob) for tokens, log_prob in rows[0]] == [([2, 2], 0.0)]
    rows = fr.beam_search(step, None, 0, end=END, beam_width=3, max_steps=0)
    assert rows[0][0][0].tolist() == [] and rows[0][0][1] == 0


def flat(tokens: np.ndarray, state: Any) -> Any:
    return np.zeros((len(tokens), V)), state


BEAM: dict[str, Any] = {"end": END, "beam_width": 2, "max_steps": 3}
BEAM_ERRORS: list[tuple[Callable[[], Any], str, Any]] = [
    (lambda: fr.beam_search(None, None, 0, **BEAM), "step", TypeError),
    (lambda: fr.beam_search(flat, None, 0.5, **BEAM), "start", TypeError),
    (lambda: fr.beam_search(flat, None, np.zeros(2), **BEAM), "start", TypeError),
    (lambda: fr.beam_search(flat, None, 0, **{**BEAM, "end": -1}), "end", ValueError),
    (lambda: fr.beam_search(flat, None, 0, **{**BEAM, "beam_width": 0}), "beam_width", ValueError),
    (lambda: fr.beam_search(flat, None, 0, **{**BEAM, "max_steps": "3"}), "max_steps", TypeError),
    (lambda: fr.beam_search(flat, None, 0, **BEAM, top=3), "top", ValueError),
    (lambda: fr.beam_search(flat, None, 0, **BEAM, length_penalty=math.nan), "length_penalty", ValueError),
    (lambda: fr.beam_search(flat, [1], 0, **BEAM), "state", TypeError),
    (lambda: fr.beam_search(lambda t, s: (np.zeros(V), s), None, 0, **BEAM), "step", ValueError),
    (lambda: fr.beam_search(lambda t, s: (np.full((len(t), V), np.nan), s), None, 0, **BEAM), "step", ValueError),
]
LOGITS, RNG = np.zeros((2, 3)), np.random.default_rng(0)
SAMPLE_ERRORS: list[tuple[Callable[[], Any], str, Any]] = [
    (lambda: fr.sample([[1.0]], RNG), "logits", TypeError),
    (lambda: fr.sample(LOGITS.astype(int), RNG), "logits", TypeError),
    (lambda: fr.sample(LOGITS[0], RNG), "logits", ValueError),
    (lambda: fr.sample(LOGITS[:, :0], RNG), "logits", ValueError),
    (lambda: fr.sample(LOGITS * np.nan, RNG), "logits", ValueError),
    (lambda: fr.sample(LOGITS - np.inf, RNG), "logits", ValueError),
    (lambda: fr.sample(LOGITS, 0), "rng", TypeError),
    (lambda: fr.sample(LOGITS, RNG, temperature=-1.0), "temperature", ValueError),
    (lambda: fr.sample(LOGITS, RNG, top_k=0), "top_k", ValueError),
    (lambda: fr.sample(LOGITS, RNG, top_p=0.0), "top_p", ValueError),
    (lambda: fr.sample(LOGITS, RNG, top_p=1.5), "top_p", ValueError),
]


@pytest.mark.parametrize(("call", "name", "error"), BEAM_ERRORS + SAMPLE_ERRORS)
def test_what_cannot_be_is_named(call: Callable[[], Any], name: str, error: Any) -> None:
    with pytest.raises(error, match=rf"^{name}\b"):
        call()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.1, 0.4, 0.2, 0.3]),
        ({"temperature": 0.5}, [0.01, 0.16, 0.04, 0.09]),
        ({"top_k": 2}, [0, 0.4, 0, 0.3]),
        ({"top_p": 0.7}, [0, 0.4, 0, 0.3]),
        ({"top_p": 0.71}, [0, 0.4, 0.2, 0.3]),
        ({"top_k": 3, "top_p": 0.5}, [0, 0.4, 0, 0.3]),
    ],
)
def test_classes_are_drawn_as_often_as_they_are_probable(
    options: dict[str, Any], expected: list[float], rng: np.random.Generator
) -> None:
    count, wanted = 40_000, np.array(expected) / sum(expected)
    logits = np.log(np.array([[0.1, 0.4, 0.2, 0.3]])).repeat(count, 0) + 5
    drawn = fr.sample(logits, rng, **options)
    assert drawn.dtype == np.int64 and drawn.shape == (count,)
    share = np.bincount(drawn, minlength=4) / count
    # Six standard deviations of a share.
    np.testing.assert_array_less(np.abs(share - wanted), 6 * np.sqrt(wanted * (1 - wanted) / count) + 1e-12)


def test_no_temperature_takes_the_first_of_the_largest(rng: np.random.Generator) -> None:
    logits = np.array([[0, 2, 2, -np.inf], [5, 1, 1, 1]], np.float32)
    assert fr.sample(logits, rng, temperature=0).tolist() == [1, 0]
    assert fr.sample(logits, rng, temperature=1e-30).tolist() in ([1, 0], [2, 0])
    assert fr.sample(logits[:0], rng).shape == (0,)


def test_a_generator_repeats_a_draw() -> None:
    logits = np.random.default_rng(1).standard_normal((50, 9))
    first, second = (fr.sample(logits, np.random.default_rng(7)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
