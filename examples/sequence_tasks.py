"""Two tasks of memory for sequences of symbols: copying, and recall of the value that came with a key."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

VALUES = 8  # that an answer can have
BLANK = 0
FIRST = 1  # symbol that is no blank


@dataclass(frozen=True)
class Batch:
    """Symbols (T, B), of which the last A are questions; their answers (A, B), below `VALUES`."""

    symbols: torch.Tensor
    answers: torch.Tensor


def batch(told: np.ndarray, gap: int, asked: np.ndarray, answers: np.ndarray) -> Batch:
    blanks = np.full((gap, told.shape[1]), BLANK)
    return Batch(torch.from_numpy(np.concatenate([told, blanks, asked])), torch.from_numpy(answers))


@dataclass(frozen=True)
class Copy:
    """Some values, a gap, and the same values in their order; a question has the number of the value it asks for."""

    length: int = 8

    @property
    def vocabulary(self) -> int:
        return FIRST + VALUES + self.length

    def draw(self, generator: np.random.Generator, rows: int, gap: int) -> Batch:
        values = generator.integers(VALUES, size=(self.length, rows))
        asked = np.repeat(FIRST + VALUES + np.arange(self.length)[:, None], rows, 1)
        return batch(FIRST + values, gap, asked, values)


@dataclass(frozen=True)
class Recall:
    """Facts, each a key and its value in one symbol, a gap, and the keys again in another order: their values."""

    keys: int = 8

    @property
    def vocabulary(self) -> int:
        return FIRST + self.keys * VALUES + self.keys

    def draw(self, generator: np.random.Generator, rows: int, gap: int) -> Batch:
        values = generator.integers(VALUES, size=(self.keys, rows))  # by key
        told, asked = (np.argsort(generator.random((self.keys, rows)), axis=0) for _ in range(2))
        facts = FIRST + told * VALUES + np.take_along_axis(values, told, 0)
        questions = FIRST + self.keys * VALUES + asked
        return batch(facts, gap, questions, np.take_along_axis(values, asked, 0))
