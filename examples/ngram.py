"""Character n-gram models: the baselines a recurrent language model has to beat."""

from __future__ import annotations

import numpy as np


def lookup(keys: np.ndarray, values: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Return `values[i]` where `keys[i] == query` (keys sorted), 0 where no key matches."""
    index = np.minimum(np.searchsorted(keys, queries), len(keys) - 1)
    return np.where(keys[index] == queries, values[index], 0)


def witten_bell_bits(codes: np.ndarray, split: int, order: int, alphabet_size: int) -> float:
    """Bits per character of `codes[split:]` under an interpolated n-gram model counted on `codes[:split]`.

    With `n` the number of times the context was seen and `kinds` the number of distinct characters seen after it,

        P(c | context) = (count(context c) + kinds * P(c | shorter context)) / (n + kinds)

    (Witten and Bell 1991, method C). Below the unigram (`order=1`) stands the uniform distribution, so that no
    character has probability zero.
    """
    if alphabet_size**order >= 2**63:
        raise ValueError(f"order {order} over {alphabet_size} characters does not fit 64-bit keys")
    probability = np.full(len(codes) - split, 1.0 / alphabet_size)
    for length in range(order):
        context = np.zeros(len(codes) - length, dtype=np.int64)
        for offset in range(length):
            context = context * alphabet_size + codes[offset : offset + len(context)]
        gram = context * alphabet_size + codes[length:]

        seen_grams, gram_counts = np.unique(gram[: split - length], return_counts=True)
        seen_contexts, first, kinds = np.unique(seen_grams // alphabet_size, return_index=True, return_counts=True)
        context_counts = np.add.reduceat(gram_counts, first)

        held_out_context = context[split - length :]
        count = lookup(seen_grams, gram_counts, gram[split - length :])
        n = lookup(seen_contexts, context_counts, held_out_context)
        k = lookup(seen_contexts, kinds, held_out_context)
        interpolated = (count + k * probability) / np.maximum(n + k, 1)
        probability = np.where(n > 0, interpolated, probability)
    return float(-np.log2(probability).mean())
