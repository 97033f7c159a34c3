"""Text that every Python installation carries: the reference topics of `help()`."""

from __future__ import annotations

from pydoc_data.topics import topics

import numpy as np


class Corpus:
    """A text as integer codes, split into a training part and a held-out end.

    Attributes
    ----------
    alphabet : str
        The distinct characters of the text in code point order; a character's code is its index.
    codes : ndarray of int64, shape (N,)
        The text.
    split : int
        The held-out part is `codes[split:]`.
    """

    def __init__(self, text: str, held_out: float = 0.1) -> None:
        self.alphabet = "".join(sorted(set(text)))
        code_points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
        self.codes = np.unique(code_points, return_inverse=True)[1].astype(np.int64)
        self.split = len(text) - round(len(text) * held_out)

    def streams(self, batch: int, window: int) -> tuple[np.ndarray, np.ndarray]:
        """Cut the training part into `batch` streams that run side by side.

        Returns
        -------
        inputs, targets : ndarray of int64, shape (T, batch)
            Stream b reads on through column b, `targets[t]` is the character after `inputs[t]`, and T is the largest
            multiple of `window` the text allows.
        """
        steps = (self.split - 1) // batch // window * window
        if steps == 0:
            raise ValueError(f"{self.split} training characters are too few for {batch} streams of {window} steps")
        span = steps * batch
        inputs = np.ascontiguousarray(self.codes[:span].reshape(batch, steps).T)
        targets = np.ascontiguousarray(self.codes[1 : span + 1].reshape(batch, steps).T)
        return inputs, targets


def load_corpus() -> Corpus:
    """Join all topics in the order of their names; about 465,000 characters in Python 3.11."""
    return Corpus("\n".join(topics[name] for name in sorted(topics)))
