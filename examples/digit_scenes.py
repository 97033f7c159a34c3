"""Scenes of scikit-learn's handwritten digits, and captions that say what is where.

A scene has two or three digits of 8 x 8 pixels, which do not overlap, on a canvas of 24 x 24. Its caption names them
from the top to the bottom, and from left to right in each third of the canvas: "three at the top left, nine in the
middle and two at the bottom". A digit may lie anywhere, but for the two positions on each axis where it would be in
doubt which third it belongs to.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from sklearn.datasets import load_digits

CANVAS, SIZE = 24, 8
MOST = 3  # digits of a scene
STEP = 6  # pixels from the first corner of one third to that of the next
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ACROSS = (("top left", "top", "top right"), ("left", "middle", "right"), ("bottom left", "bottom", "bottom right"))
WORDS = (".", ",", "and", "at", "in", "the", "top", "bottom", "left", "right", "middle", *DIGITS)
END = WORDS.index(".")  # also the word before the first
FIRST_DIGIT = WORDS.index("zero")
LONGEST = 6 * MOST  # words of a caption, with the last one


class Digits(NamedTuple):
    """Images (N, 8, 8) from 0 to 1, and what they show (N,)."""

    images: np.ndarray
    labels: np.ndarray


class Scenes(NamedTuple):
    """B scenes, and their captions."""

    canvas: np.ndarray  # (B, 1, 24, 24) of float32
    words: np.ndarray  # (T, B): a caption's numbers of words, the last of them END, and END past its length
    lengths: np.ndarray  # (B,)
    corners: np.ndarray  # (B, MOST, 2): row and column of each digit's first pixel, in the caption's order
    counts: np.ndarray  # (B,): digits of each scene


def split_digits(held_out: int, seed: int) -> tuple[Digits, Digits]:
    """Digits to learn from, and held-out ones."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(labels))
    images = (images[order].reshape(-1, SIZE, SIZE) / 16).astype(np.float32)
    labels = labels[order]
    return Digits(images[held_out:], labels[held_out:]), Digits(images[:held_out], labels[:held_out])


def caption(labels: np.ndarray, thirds: np.ndarray) -> list[int]:
    """The numbers of a caption's words, of digits and their thirds (N, 2) in its order."""
    phrases = []
    for label, (row, column) in zip(labels, thirds, strict=True):
        place = ACROSS[row][column]
        phrases.append(f"{DIGITS[label]} {'in' if place == 'middle' else 'at'} the {place}")
    text = f"{' , '.join(phrases[:-1])} and {phrases[-1]} ."
    return [WORDS.index(word) for word in text.split()]


def read(words: np.ndarray) -> str:
    """The caption of its words' numbers, up to its end."""
    text = " ".join(WORDS[word] for word in words)
    return text.partition(" .")[0].replace(" ,", ",")


def places(generator: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Thirds and corners, (B, MOST, 2) each, of digits that do not overlap, in the order of a caption."""
    thirds, corners = np.zeros((2, rows, MOST, 2), np.int64)
    wanted = np.arange(rows)
    while wanted.size:
        thirds[wanted] = generator.integers(0, 3, (wanted.size, MOST, 2))
        corners[wanted] = STEP * thirds[wanted] + generator.integers(0, STEP - 1, (wanted.size, MOST, 2))
        apart = (np.abs(corners[wanted, :, None] - corners[wanted, None]) >= SIZE).any(axis=-1)
        wanted = wanted[~(apart | np.eye(MOST, dtype=bool)).all(axis=(1, 2))]
    order = np.argsort(3 * thirds[..., 0] + thirds[..., 1], axis=1)[..., None]
    return np.take_along_axis(thirds, order, 1), np.take_along_axis(corners, order, 1)


def draw(generator: np.random.Generator, digits: Digits, rows: int, most: int = MOST) -> Scenes:
    """New scenes of two to `most` of these digits."""
    thirds, corners = places(generator, rows)
    counts = generator.integers(2, most + 1, rows)
    chosen = generator.integers(0, len(digits.labels), (rows, MOST))
    canvas = np.zeros((rows, 1, CANVAS, CANVAS), np.float32)
    words = np.full((LONGEST, rows), END)
    lengths = np.zeros(rows, np.int64)
    inside = np.arange(SIZE)
    for place in range(MOST):
        there = np.flatnonzero(place < counts)
        y, x = (corners[there, place, axis, None] + inside for axis in range(2))
        canvas[there[:, None, None], 0, y[:, :, None], x[:, None, :]] = digits.images[chosen[there, place]]
    for row, count in enumerate(counts):
        found = caption(digits.labels[chosen[row, :count]], thirds[row, :count])
        words[: len(found), row] = found
        lengths[row] = len(found)
    return Scenes(canvas, words[: lengths.max()], lengths, corners, counts)
