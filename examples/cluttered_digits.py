"""scikit-learn's digits, turned, scaled and shifted onto a larger image among pieces of other digits."""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits

import fusedrnn as fr

SIDE = 32
PIECES, PIECE = 6, 4  # of other digits, and their side
LARGEST_TURN = np.pi / 4
SCALES = (0.35, 0.65)  # of the image's side
HELD_OUT = 400


class Digits:
    """Images (N, 8, 8) from 0 to 1 and their labels; some are for training, the others for testing."""

    def __init__(self, seed: int) -> None:
        digits = load_digits()
        order = np.random.default_rng(seed).permutation(len(digits.target))
        images, labels = (digits.images / 16).astype(np.float32)[order], digits.target[order]
        self.train = images[HELD_OUT:], labels[HELD_OUT:]
        self.test = images[:HELD_OUT], labels[:HELD_OUT]


def placements(generator: np.random.Generator, rows: int) -> np.ndarray:
    """Maps (rows, 2, 3) from the image's coordinates to a digit's, so that the whole digit is in the image."""
    turn = generator.uniform(-LARGEST_TURN, LARGEST_TURN, rows)
    scale = generator.uniform(*SCALES, rows)
    # A turned square of that side reaches this far from its middle.
    reach = scale * (np.abs(np.cos(turn)) + np.abs(np.sin(turn)))
    middle = generator.uniform(-1, 1, (rows, 2)) * np.maximum(1 - reach, 0)[:, None]
    back = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]]) / scale
    back = back.transpose(2, 0, 1)
    return np.concatenate([back, -back @ middle[:, :, None]], -1).astype(np.float32)


def add_piece(generator: np.random.Generator, scenes: np.ndarray, images: np.ndarray) -> None:
    """Lay a piece of some image over each scene (rows, 32, 32), anywhere; the brighter pixels win."""
    row = np.arange(len(scenes))[:, None, None]
    image = generator.integers(len(images), size=row.shape)
    i, j = window(generator, len(scenes), 8)
    down, right = window(generator, len(scenes), SIDE)
    scenes[row, down, right] = np.maximum(scenes[row, down, right], images[image, i, j])


def window(generator: np.random.Generator, rows: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices (rows, 4, 1) and (rows, 1, 4) of the pixels of a square, anywhere in each of many images."""
    corner = generator.integers(side - PIECE + 1, size=(2, rows, 1, 1))
    return corner[0] + np.arange(PIECE)[:, None], corner[1] + np.arange(PIECE)


def draw(
    generator: np.random.Generator, digits: tuple[np.ndarray, np.ndarray], rows: int
) -> tuple[np.ndarray, np.ndarray]:
    """Scenes (rows, 1, 32, 32) and the labels of their digits."""
    images, labels = digits
    chosen = generator.integers(len(labels), size=rows)
    grid = fr.affine_grid(placements(generator, rows), (rows, 1, SIDE, SIDE))
    scenes = fr.grid_sample(images[chosen][:, None], grid)
    for _ in range(PIECES):
        add_piece(generator, scenes[:, 0], images)
    return scenes, labels[chosen]
