"""Additive attention in plain NumPy, float64: `fusedrnn.reference` has its functions, and its decoder uses a step.

A step is that of one query for each row of the batch. Nothing here is fast.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

WEIGHTS = ("weight_query", "weight_memory", "bias_attention", "weight_score")


def _mix(value: int) -> int:
    """The finaliser of splitmix64 (Steele, Lea & Flood 2014)."""
    value = (value + 0x9E3779B97F4A7C15) % 2**64
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB % 2**64
    return value ^ (value >> 31)


def uniform(seed: int, call: int, t: int, b: int) -> float:
    """The number in [0, 1) by which the location of a step and row is drawn."""
    key = _mix(_mix(_mix(seed) ^ call))
    return (_mix(_mix(key ^ t) ^ b) >> 11) / 2**53


def draw(shares: Array, number: float) -> int:
    """The first location up to which the sum of probabilities is above a number in [0, 1); -1 where there is none."""
    return int(np.searchsorted(np.cumsum(shares), number * shares.sum(), side="right")) if len(shares) else -1


@dataclass(frozen=True)
class Memory:
    """A memory (S, B, M), its keys (S, B, A), and which of its locations are there, (S, B)."""

    values: Array
    keys: Array
    present: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, weights: Mapping[str, Array], memory: npt.ArrayLike, lengths: npt.ArrayLike | None) -> Memory:
        values = np.array(memory, np.float64)
        counts = np.full(values.shape[1], len(values)) if lengths is None else np.asarray(lengths)
        present = np.arange(len(values))[:, None] < counts
        values[~present] = 0.0
        return cls(values, values @ weights["weight_memory"].T + weights["bias_attention"], present)


@dataclass(frozen=True)
class Read:
    """What one step read: the queries (B, H), tanh of their sums with the keys (S, B, A), shares and locations."""

    query: Array
    squashed: Array
    shares: Array  # (B, S)
    locations: Integers | None  # (B,): of hard attention

    def context(self, memory: Memory) -> Array:
        if self.locations is None:
            found: Array = np.einsum("bs,sbm->bm", self.shares, memory.values)
            return found
        rows = np.arange(len(self.locations))
        picked = memory.values[self.locations, rows] if len(memory.values) else np.zeros(memory.values.shape[1:])
        return np.asarray(np.where(self.locations[:, None] >= 0, picked, 0.0))

    def log_prob(self) -> Array:
        """Of each row's location; 0 where there is none."""
        assert self.locations is not None
        there = self.locations >= 0
        picked = self.shares[np.arange(len(there)), self.locations] if self.shares.shape[1] else np.ones(len(there))
        return np.asarray(np.log(np.where(there, picked, 1.0)))

    def entropy(self) -> Array:
        """Of each row's distribution."""
        return np.asarray(-(self.shares * _log(self.shares)).sum(axis=1))


def _log(shares: Array) -> Array:
    """Logarithms, 0 for a share of 0."""
    return np.asarray(np.log(np.where(shares > 0, shares, 1.0)))


def score(weights: Mapping[str, Array], memory: Memory, query: Array) -> tuple[Array, Array]:
    """Shares of the locations, (B, S), 0 where there is none, and tanh of the sums, (S, B, A)."""
    squashed = np.tanh(memory.keys + query @ weights["weight_query"].T)
    scores = np.where(memory.present, squashed @ weights["weight_score"], -np.inf).T
    any_present = memory.present.any(axis=0, keepdims=True).T
    largest = np.where(any_present, scores.max(axis=1, keepdims=True, initial=-np.inf), 0.0)
    powers = np.where(memory.present.T, np.exp(np.where(memory.present.T, scores - largest, 0.0)), 0.0)
    return powers / np.where(any_present, powers.sum(axis=1, keepdims=True), 1.0), squashed


@dataclass
class Sums:
    """Gradients that all steps add to: of the weights by name, of the keys, and of the values past the keys."""

    weights: dict[str, Array]
    keys: Array
    values: Array

    @classmethod
    def zeros(cls, weights: Mapping[str, Array], memory: Memory) -> Sums:
        zeros = {name: np.zeros_like(weights[name]) for name in WEIGHTS}
        return cls(zeros, np.zeros_like(memory.keys), np.zeros_like(memory.values))

    def add(
        self,
        weights: Mapping[str, Array],
        memory: Memory,
        read: Read,
        dcontext: Array,
        dshares: Array | float = 0.0,
        dlog_prob: Array | float = 0.0,
        dentropy: Array | float = 0.0,
    ) -> Array:
        """Add a step's, and give the gradient of its queries, (B, H)."""
        shares = read.shares
        if read.locations is None:
            self.values += np.einsum("bs,bm->sbm", shares, dcontext)
            dshares = np.einsum("bm,sbm->bs", dcontext, memory.values) + dshares
            dscores = shares * (dshares - (shares * dshares).sum(axis=1, keepdims=True))
        else:
            chosen = (read.locations == np.arange(len(memory.values))[:, None]).T.astype(np.float64)
            self.values += np.einsum("bs,bm->sbm", chosen, dcontext)
            dlog_prob, dentropy = (np.broadcast_to(d, len(shares))[:, None] for d in (dlog_prob, dentropy))
            dscores = dlog_prob * (chosen - shares * chosen.sum(axis=1, keepdims=True))
            dscores = dscores - dentropy * shares * (_log(shares) + read.entropy()[:, None])
        self.weights["weight_score"] += np.einsum("bs,sba->a", dscores, read.squashed)
        dsums = dscores.T[..., None] * weights["weight_score"] * (1.0 - read.squashed**2)
        self.keys += dsums
        dprojected = dsums.sum(axis=0)
        self.weights["weight_query"] += dprojected.T @ read.query
        return np.asarray(dprojected @ weights["weight_query"])

    def finish(self, weights: Mapping[str, Array], memory: Memory) -> Array:
        """Add what goes through the keys to the weights' gradients, and give that of the memory, (S, B, M)."""
        keys = np.where(memory.present[..., None], self.keys, 0.0)
        self.weights["weight_memory"] += np.einsum("sba,sbm->am", keys, memory.values)
        self.weights["bias_attention"] += keys.sum(axis=(0, 1))
        dmemory = self.values + keys @ weights["weight_memory"]
        return np.asarray(np.where(memory.present[..., None], dmemory, 0.0))


@dataclass(frozen=True)
class AttentionTape:
    """What the backward pass of `additive_attention` needs."""

    weights: dict[str, Array]
    memory: Memory
    reads: list[Read]


def additive_attention(
    query: npt.ArrayLike,
    memory: npt.ArrayLike,
    weight_query: npt.ArrayLike,
    weight_memory: npt.ArrayLike,
    bias: npt.ArrayLike,
    weight_score: npt.ArrayLike,
    memory_lengths: npt.ArrayLike | None = None,
) -> tuple[tuple[Array, Array], AttentionTape]:
    """Context (T, B, M) and attention (T, B, S), and a tape; arguments as for `fusedrnn.additive_attention`."""
    given = (weight_query, weight_memory, bias, weight_score)
    weights = {name: np.asarray(value, np.float64) for name, value in zip(WEIGHTS, given, strict=True)}
    queries = np.asarray(query, np.float64)
    held = Memory.of(weights, memory, memory_lengths)
    reads = []
    for q in queries:
        shares, squashed = score(weights, held, q)
        reads.append(Read(q, squashed, shares, None))
    steps, rows = queries.shape[:2]
    context = np.array([read.context(held) for read in reads]).reshape(steps, rows, held.values.shape[2])
    attention = np.array([read.shares for read in reads]).reshape(steps, rows, len(held.values))
    return (context, attention), AttentionTape(weights, held, reads)


def additive_attention_backward(
    tape: AttentionTape, dcontext: npt.ArrayLike, dattention: npt.ArrayLike | None = None
) -> tuple[Array, ...]:
    """Gradients of the six arguments, in their order."""
    sums = Sums.zeros(tape.weights, tape.memory)
    outer = np.asarray(dcontext, np.float64)
    of_shares: Any = [0.0] * len(tape.reads) if dattention is None else np.asarray(dattention, np.float64)
    dquery = np.zeros((*outer.shape[:2], tape.weights["weight_query"].shape[1]))
    for t in reversed(range(len(tape.reads))):
        dquery[t] = sums.add(tape.weights, tape.memory, tape.reads[t], outer[t], of_shares[t])
    dmemory = sums.finish(tape.weights, tape.memory)
    return dquery, dmemory, *(sums.weights[name] for name in WEIGHTS)
