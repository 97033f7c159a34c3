"""Text that every Python installation carries: the reference topics of `help()`."""

from __future__ import annotations

import collections
import re
from collections.abc import Sequence
from pydoc_data.topics import topics

import numpy as np

UNKNOWN = "<unknown>"


class Corpus:
    """A text as integer codes, split into a training part and a held-out end.

    Attributes
    ----------
    symbols : sequence of str
        What the text consists of, characters or words; a symbol's code is its index.
    codes : ndarray of int64, shape (N,)
        The text.
    split : int
        The held-out part is `codes[split:]`.
    """

    def __init__(self, symbols: Sequence[str], codes: np.ndarray, split: int) -> None:
        self.symbols, self.codes, self.split = symbols, codes, split

    def streams(self, batch: int, window: int) -> tuple[np.ndarray, np.ndarray]:
        """Cut the training part into `batch` streams that run side by side.

        Returns
        -------
        inputs, targets : ndarray of int64, shape (T, batch)
            Stream b reads on through column b, `targets[t]` is the symbol after `inputs[t]`, and T is the largest
            multiple of `window` the text allows.
        """
        steps = (self.split - 1) // batch // window * window
        if steps == 0:
            raise ValueError(f"{self.split} training symbols are too few for {batch} streams of {window} steps")
        span = steps * batch
        inputs = np.ascontiguousarray(self.codes[:span].reshape(batch, steps).T)
        targets = np.ascontiguousarray(self.codes[1 : span + 1].reshape(batch, steps).T)
        return inputs, targets


def load_text() -> str:
    """All topics in the order of their names; about 465,000 characters in Python 3.11."""
    return "\n".join(topics[name] for name in sorted(topics))


def split_of(length: int, held_out: float = 0.1) -> int:
    return length - round(length * held_out)


def load_corpus() -> Corpus:
    """The text as characters, in code point order."""
    text = load_text()
    code_points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    codes = np.unique(code_points, return_inverse=True)[1].astype(np.int64)
    return Corpus("".join(sorted(set(text))), codes, split_of(len(text)))


def load_words(most: int) -> Corpus:
    """The text as words, signs and ends of lines; about 123,000 in Python 3.11.

    The vocabulary has at most `most` words: the most frequent ones of those that the training part has twice or more,
    and `UNKNOWN`, which stands for every other word.
    """
    words = re.findall(r"\w+|[^\w\s]|\n+", load_text())
    split = split_of(len(words))
    # Of equally frequent words the first in the alphabet.
    counts = sorted(collections.Counter(words[:split]).items(), key=lambda item: (-item[1], item[0]))
    symbols = [UNKNOWN, *(word for word, count in counts[: most - 1] if count > 1)]
    code_of = {word: code for code, word in enumerate(symbols)}
    return Corpus(symbols, np.array([code_of.get(word, 0) for word in words]), split)
