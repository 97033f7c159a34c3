"""Sequences out of a model that gives the next token's probabilities: beam search, and sampling."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fusedrnn.arguments import require_integer, require_number
from fusedrnn.gradients import Array

Step = Callable[[Array, Any], tuple[Any, Any]]


@dataclass
class _Row:
    """The hypotheses of one row of the batch: those that go on, and those that have reached the end."""

    going: list[tuple[list[int], float]] = field(default_factory=lambda: [([], 0.0)])
    finished: list[tuple[list[int], float]] = field(default_factory=list)


def _rows_of(state: Any) -> int | None:
    """How many rows a state of arrays has; None for any other state."""
    if isinstance(state, dict):
        state = tuple(state.values())
    if isinstance(state, tuple):
        return next((_rows_of(part) for part in state), None)
    shape: Any = getattr(state, "shape", None)
    return int(shape[0]) if shape else None


def _selected(state: Any, rows: Array) -> Any:
    """The rows of a state, in their order and as often as they are named."""
    if state is None:
        return None
    if hasattr(state, "select"):
        made = state.select(rows)
        return state if made is None else made
    if isinstance(state, tuple):
        return tuple(_selected(part, rows) for part in state)
    if isinstance(state, dict):
        return {name: _selected(part, rows) for name, part in state.items()}
    if not hasattr(state, "shape"):
        kinds = "an array, a tuple or dict of arrays, or an object with select(rows)"
        raise TypeError(f"state must be {kinds}, not {type(state).__name__}")
    return state[rows]


def _first_tokens(start: Any, state: Any) -> Array:
    if isinstance(start, np.ndarray) and start.ndim > 0:
        if start.ndim != 1 or start.dtype.kind not in "iu":
            raise TypeError(f"start must be an integer or an array (B,) of integers, not {start.dtype} {start.shape}")
        return start.astype(np.int64)
    return np.full(_rows_of(state) or 1, require_integer(start, "start", least=0), np.int64)


def _checked(log_probs: Any, rows: int, width: int | None) -> Array:
    """What a step gave, in float64."""
    wanted = f"({rows}, {'V' if width is None else width})"
    if getattr(log_probs, "ndim", 0) != 2 or log_probs.shape[0] != rows or width not in (None, log_probs.shape[1]):
        shape = getattr(log_probs, "shape", type(log_probs).__name__)
        raise ValueError(f"step must give log_probs of shape {wanted}, not {shape}")
    wide = np.asarray(log_probs.get() if hasattr(log_probs, "get") else log_probs, np.float64)
    if np.isnan(wide).any() or np.isposinf(wide).any():
        raise ValueError("step must give log_probs that are numbers or minus infinity, not nan or infinity")
    return wide


def _largest(values: Array, count: int) -> Array:
    """Indices of the largest values, the largest first; of equal values the first."""
    if count < values.size:
        least = np.partition(values, values.size - count)[values.size - count]
        above, equal = np.flatnonzero(values > least), np.flatnonzero(values == least)
        places = np.sort(np.concatenate([above, equal[: count - above.size]]))
    else:
        places = np.arange(values.size)
    return places[np.argsort(-values[places], kind="stable")]


def beam_search(
    step: Step,
    state: Any,
    start: Any,
    *,
    end: int,
    beam_width: int,
    max_steps: int,
    length_penalty: float = 0.0,
    top: int | None = 1,
) -> list[list[tuple[Array, float]]]:
    """Most probable sequences of a model that gives the next token's log-probabilities.

    After each step a row keeps the `beam_width` best of all its hypotheses, finished ones included, by
    ``log_prob / ((5 + len) / 6) ** length_penalty`` (Wu et al., "Google's neural machine translation system", 2016).

    Parameters
    ----------
    step : callable
        ``step(tokens, state) -> (log_probs, state)``: tokens is an int64 array (N,), log_probs (N, V). N changes from
        call to call: hypotheses of all rows go on together.
    state : array, tuple or dict of arrays, or object
        What `step` is given first, with rows first, B of them. Between steps its rows are reordered, dropped and
        repeated: by indexing, or by ``state.select(rows)`` of an object, which changes it in place or gives another.
    start : int or ndarray of integers
        First token, of every row or (B,).
    end : int
        The token that ends a sequence.
    beam_width : int
        Hypotheses that a row keeps.
    max_steps : int
        Tokens of a sequence at most.
    length_penalty : float
        0 compares sequences of different lengths by their probability alone.
    top : int, optional
        Sequences wanted of each row, at most `beam_width`; None for all that were kept.

    Returns
    -------
    list of B lists of (tokens, log_prob)
        Best first. Tokens are an int64 array without the first token and with `end` if that was reached.

    Raises
    ------
    TypeError, ValueError
        Where an argument, or what `step` gives, is of another kind, shape or value; the message names it.
    """
    if not callable(step):
        raise TypeError(f"step must be callable, not {type(step).__name__}")
    end = require_integer(end, "end", least=0)
    beam_width = require_integer(beam_width, "beam_width", least=1)
    max_steps = require_integer(max_steps, "max_steps", least=0)
    penalty = require_number(length_penalty, "length_penalty", least=-1e3, most=1e3)
    top = beam_width if top is None else require_integer(top, "top", least=1, most=beam_width)
    tokens = _first_tokens(start, state)
    rows, width = [_Row() for _ in tokens], None

    def rated(hypothesis: tuple[list[int], float]) -> float:
        return float(hypothesis[1] / ((5 + len(hypothesis[0])) / 6) ** penalty)

    for _ in range(max_steps):
        if not tokens.size:
            break
        log_probs, state = step(tokens, state)
        log_probs = _checked(log_probs, tokens.size, width)
        width = log_probs.shape[1]
        tokens, parents = _advance(rows, log_probs, end, beam_width, penalty)
        if tokens.size:
            state = _selected(state, parents)
    found = [sorted([*row.finished, *row.going], key=rated, reverse=True)[:top] for row in rows]
    return [[(np.array(labels, np.int64), log_prob) for labels, log_prob in row] for row in found]


def _advance(rows: list[_Row], log_probs: Array, end: int, width: int, penalty: float) -> tuple[Array, Array]:
    """Take every row one token on; give the next tokens of all rows, and the rows of the state that they come from."""
    tokens: list[int] = []
    parents: list[int] = []
    first = 0
    for row in rows:
        going = row.going
        if not going:
            continue
        before = np.array([log_prob for _, log_prob in going])
        extended = (before[:, None] + log_probs[first : first + len(going)]).reshape(-1)
        scale = ((5 + len(going[0][0]) + 1) / 6) ** penalty
        own = np.array([log_prob / ((5 + len(labels)) / 6) ** penalty for labels, log_prob in row.finished])
        chosen = _largest(np.concatenate([own, extended / scale]), width)
        finished, row.going = row.finished, []
        row.finished = [finished[i] for i in chosen if i < len(finished)]
        for place in chosen[chosen >= len(finished)] - len(finished):
            if extended[place] == -math.inf:
                continue
            parent, token = divmod(int(place), log_probs.shape[1])
            hypothesis = [*going[parent][0], token], float(extended[place])
            if token == end:
                row.finished.append(hypothesis)
            else:
                row.going.append(hypothesis)
                tokens.append(token)
                parents.append(first + parent)
        first += len(going)
    return np.array(tokens, np.int64), np.array(parents, np.int64)


def sample(
    logits: Array,
    rng: np.random.Generator,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Array:
    """Draw one class of each row, with the probabilities ``softmax(logits / temperature)``.

    Parameters
    ----------
    logits : ndarray
        (N, V), floating-point. -inf is a class that is never drawn.
    rng : numpy.random.Generator
        One number of it is taken for each row.
    temperature : float
        Above 0; or 0, for the largest logit, of equal ones the first.
    top_k : int, optional
        Draw from the `top_k` most probable classes only; of equal ones the first.
    top_p : float, optional
        In (0, 1]: draw from the fewest most probable classes whose probabilities come to `top_p` only (Holtzman et al.,
        "The curious case of neural text degeneration", 2020). With `top_k` of those that it leaves.

    Returns
    -------
    ndarray of int64
        (N,).

    Raises
    ------
    TypeError, ValueError
        Where an argument is of another kind, dtype, shape or value; the message names it. Also where a row has no class
        to draw.
    """
    scores = _scores(logits)
    if not isinstance(rng, np.random.Generator):
        raise TypeError(f"rng must be a numpy.random.Generator, not {type(rng).__name__}")
    temperature = require_number(temperature, "temperature", least=0.0, most=1e30)
    rows, classes = scores.shape
    count = classes if top_k is None else min(require_integer(top_k, "top_k", least=1), classes)
    share = 1.0 if top_p is None else require_number(top_p, "top_p", least=0.0, most=1.0)
    if share == 0:
        raise ValueError("top_p must be above 0, not 0.0")
    order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    uniform = rng.random(rows)
    if temperature == 0 or rows == 0:
        return order[:, 0].astype(np.int64) if rows else np.zeros(0, np.int64)
    ranked = np.take_along_axis(scores, order, axis=1)
    # Differences first: a quotient of a large logit by a small temperature would overflow.
    with np.errstate(over="ignore"):
        weights = np.exp((ranked - ranked[:, :1]) / temperature)
    cumulative = weights.cumsum(axis=1)
    # The classes before the one that reaches the share, and that one.
    kept = np.minimum((cumulative < share * cumulative[:, -1:]).sum(axis=1), count - 1)
    total = np.take_along_axis(cumulative, kept[:, None], axis=1)[:, 0]
    drawn = np.minimum((cumulative <= (uniform * total)[:, None]).sum(axis=1), kept)
    return np.take_along_axis(order, drawn[:, None], axis=1)[:, 0].astype(np.int64)


def _scores(logits: Any) -> Array:
    """Logits in float64, from wherever they lie."""
    if not hasattr(logits, "dtype") or getattr(logits.dtype, "kind", "") not in "fV":
        kind = getattr(logits, "dtype", type(logits).__name__)
        raise TypeError(f"logits must be an array of floating-point numbers, not {kind}")
    if logits.ndim != 2 or logits.shape[1] < 1:
        raise ValueError(f"logits must have shape (N, V) with V at least 1, not {tuple(logits.shape)}")
    scores = np.asarray(logits.get() if hasattr(logits, "get") else logits).astype(np.float64)
    if np.isnan(scores).any() or np.isposinf(scores).any():
        raise ValueError("logits must be numbers or minus infinity, not nan or infinity")
    if np.isneginf(scores).all(axis=1).any():
        row = int(np.flatnonzero(np.isneginf(scores).all(axis=1))[0])
        raise ValueError(f"logits must have a class to draw in each row; in row {row} all are minus infinity")
    return scores
