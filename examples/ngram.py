"""N-gram models of characters and words: the baselines a recurrent language model has to beat."""

from __future__ import annotations

import numpy as np


def lookup(keys: np.ndarray, values: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Return `values[i]` where `keys[i] == query` (keys sorted), 0 where no key matches."""
    index = np.minimum(np.searchsorted(keys, queries), len(keys) - 1)
    return np.where(keys[index] == queries, values[index], 0)


def numbered_grams(codes: np.ndarray, order: int, kinds: int) -> np.ndarray:
    """Each run of `order` codes as one number; entry i is of the run that ends at `codes[i + order - 1]`."""
    if kinds**order >= 2**63:
        raise ValueError(f"order {order} over {kinds} symbols does not fit 64-bit keys")
    grams = np.zeros(len(codes) - order + 1, dtype=np.int64)
    for offset in range(order):
        grams = grams * kinds + codes[offset : offset + len(grams)]
    return grams


class Counts:
    """How often n-grams were seen, and what follows each context.

    Attributes
    ----------
    grams, counts : ndarray
        The distinct n-grams, ascending, and their counts.
    contexts, totals, followers : ndarray
        The distinct contexts, the sum of the counts after each, and the number of distinct symbols after it.
    """

    def __init__(self, grams: np.ndarray, kinds: int) -> None:
        self.kinds = kinds
        self.grams, self.counts = np.unique(grams, return_counts=True)
        self.contexts, first, self.followers = np.unique(self.grams // kinds, return_index=True, return_counts=True)
        self.totals = np.add.reduceat(self.counts, first)

    def of(self, grams: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Counts of these n-grams, and the totals and the followers of their contexts; 0 where there are none."""
        contexts = grams // self.kinds
        count = lookup(self.grams, self.counts, grams)
        return count, lookup(self.contexts, self.totals, contexts), lookup(self.contexts, self.followers, contexts)


def witten_bell_bits(codes: np.ndarray, split: int, order: int, kinds: int) -> float:
    """Bits per symbol of `codes[split:]` under an interpolated n-gram model counted on `codes[:split]`.

    With `n` the number of times the context was seen and `followers` the number of distinct symbols seen after it,

        P(c | context) = (count(context c) + followers * P(c | shorter context)) / (n + followers)

    (Witten and Bell 1991, method C). Below the unigram (`order=1`) stands the uniform distribution, so that no
    symbol has probability zero.
    """
    probability = np.full(len(codes) - split, 1.0 / kinds)
    for length in range(1, order + 1):
        seen = Counts(numbered_grams(codes[:split], length, kinds), kinds)
        count, n, followers = seen.of(numbered_grams(codes[split - length + 1 :], length, kinds))
        interpolated = (count + followers * probability) / np.maximum(n + followers, 1)
        probability = np.where(n > 0, interpolated, probability)
    return float(-np.log2(probability).mean())


def kneser_ney(codes: np.ndarray, split: int, order: int, kinds: int) -> np.ndarray:
    """Probability of each of `codes[split:]` under an interpolated Kneser-Ney model counted on `codes[:split]`.

    With `n` the sum of the counts after the context and `followers` the number of distinct symbols seen after it,

        P(c | context) = (max(count(context c) - D, 0) + D * followers * P(c | shorter context)) / n

    At the highest order a count is the number of times the n-gram was seen, below it the number of distinct symbols
    seen before the n-gram: how many contexts a symbol completes tells how likely it completes a new one (Kneser and Ney
    1995). D = n1 / (n1 + 2 n2) with the number of n-grams of count 1 and 2 at that order; interpolated as in Chen and
    Goodman 1999. Below the unigram stands the uniform distribution.
    """
    probability = np.full(len(codes) - split, 1.0 / kinds)
    for length in range(1, order + 1):
        grams = numbered_grams(codes[:split], min(length + 1, order), kinds)
        # Each longer n-gram once, without its first symbol.
        seen = Counts(grams if length == order else np.unique(grams) % kinds**length, kinds)
        once, twice = ((seen.counts == n).sum() for n in (1, 2))
        discount = once / max(once + 2 * twice, 1)
        count, n, followers = seen.of(numbered_grams(codes[split - length + 1 :], length, kinds))
        interpolated = (np.maximum(count - discount, 0) + discount * followers * probability) / np.maximum(n, 1)
        probability = np.where(n > 0, interpolated, probability)
    return probability
