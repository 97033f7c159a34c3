"""The picture of `draw.py`: digits generated beside real ones, the canvas over time, and the windows of attention."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from draw_model import Draw, Moment
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

PAINTED, COPIED = 4, 3  # digits whose canvas is shown over time: generated ones, and copies of ones held out
SIDE_BY_SIDE = 7  # digits on either side of a square
READ, WRITTEN = "tab:green", "tab:red"
POINTS = 2.0  # width of a frame whose sigma is one pixel
THINNEST, THICKEST = 0.5, 5.0


def plot(model: Draw, images: Tensor, output: Path) -> None:
    copied = images[:: len(images) // COPIED][:COPIED]
    with torch.no_grad():
        generated = list(model.generate(SIDE_BY_SIDE**2))
        encoded = [moment for moment, _ in model.autoencode(copied)]
    figure = Figure(figsize=(5 + 0.95 * model.steps, 9.5), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(5, 0.95 * model.steps), wspace=0.04)
    above, below = left.subplots(2, 1)
    show(above, torch.sigmoid(generated[-1].canvas))
    above.set_title("digits that DRAW generates")
    show(below, images[: SIDE_BY_SIDE**2])
    below.set_title("digits held out, to compare")
    above, below = right.subfigures(2, 1, height_ratios=(PAINTED + 0.8, 2 * COPIED + 0.8))
    paint(above, generated)
    copy(below, encoded, copied)
    figure.savefig(output, dpi=110)


def paint(figure: Any, moments: list[Moment]) -> None:
    """How digits are generated, step by step."""
    figure.suptitle("generating: the canvas after each step\nred frame: where the step wrote", fontsize=10)
    cells = figure.subplots(PAINTED, len(moments), squeeze=False)
    for step, (canvas, _, written) in enumerate(moments):
        cells[0, step].set_title(f"step {step + 1}", fontsize=8)
        for row in range(PAINTED):
            cell(cells[row, step], torch.sigmoid(canvas[row]), written, row, WRITTEN)


def copy(figure: Any, moments: list[Moment], images: Tensor) -> None:
    """How digits are read and written again, step by step."""
    figure.suptitle(
        "copying a digit held out, the canvas below it\ngreen: where the step looked; red: wrote", fontsize=10
    )
    cells = figure.subplots(2 * COPIED, len(moments), squeeze=False)
    for step, (canvas, read, written) in enumerate(moments):
        for row in range(COPIED):
            cell(cells[2 * row, step], images[row], read, row, READ)
            cell(cells[2 * row + 1, step], torch.sigmoid(canvas[row]), written, row, WRITTEN)
    for row in range(COPIED):
        cells[2 * row, 0].set_ylabel("digit", color=READ, fontsize=8)
        cells[2 * row + 1, 0].set_ylabel("canvas", color=WRITTEN, fontsize=8)


def show(axes: Any, images: Tensor) -> None:
    """Images (B, H, W) side by side in a square."""
    side = int(len(images) ** 0.5)
    framed = np.pad(images.numpy(), ((0, 0), (1, 1), (1, 1)), constant_values=0.5)
    height, width = framed.shape[1:]
    tiled = framed.reshape(side, side, height, width).swapaxes(1, 2).reshape(side * height, side * width)
    axes.imshow(tiled, cmap="gray", vmin=0, vmax=1)
    axes.set(xticks=(), yticks=())


def cell(axes: Any, image: Tensor, windows: Tensor | None, row: int, color: str) -> None:
    """An image, and the frame of the window that the row has in it."""
    height, width = image.shape
    axes.imshow(image.numpy(), cmap="gray", vmin=0, vmax=1)
    axes.set(xticks=(), yticks=(), xlim=(-1.5, width + 0.5), ylim=(height + 0.5, -1.5))
    if windows is not None:
        axes.add_patch(frame(windows[row].numpy(), height, width, color))


def frame(window: np.ndarray, height: int, width: int, color: str) -> Rectangle:
    """From the first to the last filter of a window; (21) to (24) of the paper, whose pixels begin at 1."""
    x, y, log_variance, log_distance, _ = window.tolist()
    middle = np.array([(width + 1) * (x + 1) / 2 - 1, (height + 1) * (y + 1) / 2 - 1])
    side = (max(height, width) - 1) * np.exp(log_distance)  # (N - 1) delta
    thickness = np.clip(POINTS * np.exp(log_variance / 2), THINNEST, THICKEST)
    return Rectangle(tuple(middle - side / 2), side, side, fill=False, color=color, linewidth=thickness)
