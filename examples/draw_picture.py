"""The picture of `draw.py`: digits generated, the canvas over time, and the windows of attention."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from draw_model import Draw
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

SHOWN = 5  # digits whose canvas is shown over time
GENERATED = 10  # on either side of a square
READ, WRITTEN = "tab:green", "tab:red"
POINTS = 2.0  # width of a frame whose sigma is one pixel
THINNEST, THICKEST = 0.5, 5.0


def plot(model: Draw, images: Tensor, output: Path) -> None:
    with torch.no_grad():
        gallery = list(model.generate(GENERATED**2))[-1].canvas
        generated = list(model.generate(SHOWN))
        encoded = [moment for moment, _ in model.autoencode(images[:SHOWN])]
    figure = Figure(figsize=(6 + 0.7 * model.steps, 9), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(5.2, 0.8 + 0.7 * model.steps))
    whole = left.subplots()
    show(whole, torch.sigmoid(gallery))
    whole.set_title("generated")
    rows = right.subplots(3 * SHOWN, model.steps, squeeze=False)
    for step in range(model.steps):
        for row in range(SHOWN):
            canvas, _, window = generated[step]
            cell(rows[row, step], torch.sigmoid(canvas[row]), window, row, WRITTEN)
            canvas, read, window = encoded[step]
            cell(rows[SHOWN + 2 * row, step], images[row], read, row, READ)
            cell(rows[SHOWN + 2 * row + 1, step], torch.sigmoid(canvas[row]), window, row, WRITTEN)
        rows[0, step].set_title(str(step + 1), fontsize=8)
    rows[SHOWN // 2, 0].set_ylabel("generated", fontsize=8)
    for row in range(SHOWN):
        rows[SHOWN + 2 * row, 0].set_ylabel("read", color=READ, fontsize=8)
        rows[SHOWN + 2 * row + 1, 0].set_ylabel("written", color=WRITTEN, fontsize=8)
    right.suptitle("canvas after each step", fontsize=10)
    figure.savefig(output, dpi=130)


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
