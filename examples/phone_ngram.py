"""An n-gram model of phones: what a beam search knows of the language beside what it hears."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

ORDER = 5
START = 0  # stands before the first phone; as a class it is the blank


class PhoneNgram:
    """Interpolated n-grams with Witten and Bell's weights (1991, method C), as in `ngram.py`, one phone at a time.

    Parameters
    ----------
    sequences : iterable of sequences of int
        What is counted.
    classes : int
        Number of classes, with the blank.

    Attributes
    ----------
    weight, bonus : float
        `score` is ``weight * log P(phone | phones before) + bonus``.
    """

    def __init__(self, sequences: Iterable[Iterable[int]], classes: int) -> None:
        self.classes, self.weight, self.bonus = classes, 1.0, 0.0
        self.grams: Counter[tuple[int, ...]] = Counter()
        for sequence in sequences:
            padded = (START, *sequence)
            for end in range(2, len(padded) + 1):
                for length in range(1, min(ORDER, end) + 1):
                    self.grams[padded[end - length : end]] += 1
        self.seen: Counter[tuple[int, ...]] = Counter()  # how often a context was seen
        self.kinds: Counter[tuple[int, ...]] = Counter()  # how many phones were seen after it
        for gram, count in self.grams.items():
            self.seen[gram[:-1]] += count
            self.kinds[gram[:-1]] += 1
        self.logarithms: dict[tuple[tuple[int, ...], int], float] = {}

    def probability(self, context: tuple[int, ...], label: int) -> float:
        shorter = self.probability(context[1:], label) if context else 1.0 / self.classes
        seen, kinds = self.seen[context], self.kinds[context]
        return (self.grams[(*context, label)] + kinds * shorter) / (seen + kinds) if seen else shorter

    def score(self, prefix: tuple[int, ...], label: int) -> float:
        """What `ctc_beam_decode` adds when `label` is appended to `prefix`."""
        context = prefix[1 - ORDER :] if len(prefix) >= ORDER - 1 else (START, *prefix)
        key = context, label
        if (logarithm := self.logarithms.get(key)) is None:
            logarithm = self.logarithms[key] = math.log(self.probability(context, label))
        return self.weight * logarithm + self.bonus
