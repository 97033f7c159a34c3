"""Phones as classes, and how far a recognised sequence of them is from the spoken one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from flite_speech import PAUSE, Utterance


class Phones:
    """The phones of some sequences as classes from 1 on; class 0 is the blank."""

    def __init__(self, sequences: Iterable[Sequence[str]]) -> None:
        self.names = ["", *sorted({phone for sequence in sequences for phone in sequence})]
        self.classes = {name: number for number, name in enumerate(self.names) if name}
        self.pause = self.classes[PAUSE]

    def __len__(self) -> int:
        return len(self.names)

    def encode(self, phones: Sequence[str]) -> np.ndarray:
        """Classes (N,). Raises KeyError for a phone of none of the sequences."""
        return np.array([self.classes[phone] for phone in phones], np.int64)

    def without_pauses(self, labels: np.ndarray) -> np.ndarray:
        return labels[labels != self.pause]


def edits(recognised: np.ndarray, spoken: np.ndarray) -> int:
    """Fewest substitutions, insertions and deletions that make one of the other (Levenshtein 1966)."""
    row = np.arange(len(spoken) + 1)
    places = np.arange(len(spoken) + 1)
    for label in recognised:
        best = row + 1
        best[1:] = np.minimum(best[1:], row[:-1] + (spoken != label))
        # Deletions run along the row: each cell is the least of best[k] + (j - k) over k <= j.
        row = np.minimum.accumulate(best - places) + places
    return int(row[-1])


def error_rate(recognised: Sequence[np.ndarray], utterances: Sequence[Utterance], phones: Phones) -> float:
    """Edits over the number of phones that were spoken. Pauses count in neither: they are easy, and would flatter."""
    wrong = total = 0
    for labels, utterance in zip(recognised, utterances, strict=True):
        spoken = phones.without_pauses(phones.encode(utterance.phones))
        wrong += edits(phones.without_pauses(labels), spoken)
        total += len(spoken)
    return wrong / total
