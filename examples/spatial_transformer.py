"""A spatial transformer (Jaderberg et al. 2015): a network that finds a digit, turns it upright and enlarges it.

A scene of 32 x 32 pixels has one of scikit-learn's digits, turned by up to 45 degrees, scaled and shifted, among pieces
of other digits. A small convolutional network reads a window of 16 x 16 pixels. With the transformer, a second network
says by an affine map where in the scene that window lies; nobody tells it where the digit is: it learns that from the
gradient that comes back through the sampler. Without the transformer, the window is the whole scene, at half its size.
Both learn from the same scenes, and are tried on scenes of digits that neither has seen.

The picture has scenes with the outline of the window, and below what is in the window.

    python examples/spatial_transformer.py            # fails below 90 %, or less than 3 points above the net without
    python examples/spatial_transformer.py --quick    # few updates: fails below 40 %
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cluttered_digits import SIDE, Digits, draw
from picture import option_parser, parse, picture
from torch import nn
from tqdm import tqdm

import fusedrnn as fr
import fusedrnn.torch

WINDOW = 16
BATCH = 128
TEST = 2000  # scenes
LEARNING_RATE = 2e-3
LOCALIZER_RATE = 1e-3  # less: a window that has left the scene sees nothing to learn from
WARM_UP = 100  # updates, for the same reason
MAX_NORM = 1.0
FULL = {"updates": 1600, "target": 0.9}
QUICK = {"updates": 300, "target": 0.4}
LEAD = 0.03  # over the network without
WITH, WITHOUT = "with the transformer", "without"
SHOWN = 8  # scenes in the picture
READ, MISREAD = "tab:green", "tab:red"


class AffineGrid(torch.autograd.Function):
    """`fr.affine_grid` for torch."""

    @staticmethod
    def forward(context: Any, theta: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
        grid, context.tape = fr.affine_grid_forward(theta.detach().numpy(), size)
        return torch.from_numpy(grid)

    @staticmethod
    def backward(context: Any, dgrid: torch.Tensor) -> tuple[torch.Tensor, None]:
        return torch.from_numpy(fr.affine_grid_backward(context.tape, dgrid.contiguous().numpy())), None


class Localizer(nn.Module):
    """Says where the window of each image lies, as an affine map (B, 2, 3); at first the whole image."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.AvgPool2d(2),
            nn.Conv2d(1, 16, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * 4 * 4, 64),
            nn.ReLU(),
        )
        self.map = nn.Linear(64, 6)
        with torch.no_grad():
            self.map.weight.zero_()
            self.map.bias.copy_(torch.tensor([1.0, 0, 0, 0, 1, 0]))

    def forward(self, scenes: torch.Tensor) -> torch.Tensor:
        return self.map(self.features(scenes)).unflatten(-1, (2, 3))


class Reader(nn.Module):
    """Reads a digit in a window of each scene, which the localizer places where there is one."""

    def __init__(self, localizer: nn.Module | None) -> None:
        super().__init__()
        self.localizer = localizer
        self.classes = nn.Sequential(
            nn.Conv2d(1, 24, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(24, 48, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(48 * 4 * 4, 64),
            nn.ReLU(),
            nn.Linear(64, 10),
        )

    def maps(self, scenes: torch.Tensor) -> torch.Tensor:
        """The affine map of each window (B, 2, 3)."""
        if self.localizer is None:
            return torch.eye(2, 3).expand(len(scenes), 2, 3).contiguous()
        return self.localizer(scenes)

    def windows(self, scenes: torch.Tensor) -> torch.Tensor:
        """The pixels that are read (B, 1, 16, 16); `align_corners` is False throughout."""
        grid = AffineGrid.apply(self.maps(scenes), (len(scenes), 1, WINDOW, WINDOW))
        return fusedrnn.torch.grid_sample(scenes, grid, align_corners=False)

    def forward(self, scenes: torch.Tensor) -> torch.Tensor:
        return self.classes(self.windows(scenes))


def accuracy(reader: Reader, scenes: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of the scenes that are read right."""
    with torch.no_grad():
        found = torch.cat([reader(part).argmax(-1) for part in scenes.split(500)])
    return float((found == labels).float().mean())


def tensors(scenes: np.ndarray, labels: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(scenes), torch.from_numpy(labels)


class Learner:
    """A reader, and what trains it."""

    def __init__(self, reader: Reader, updates: int) -> None:
        self.reader = reader
        parts, rates = [reader.classes], [LEARNING_RATE]
        if reader.localizer is not None:
            parts.append(reader.localizer)
            rates.append(LOCALIZER_RATE)
        self.optimizer = torch.optim.Adam([{"params": part.parameters()} for part in parts])
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, rates, updates, pct_start=WARM_UP / updates, cycle_momentum=False
        )

    def learn(self, scenes: torch.Tensor, labels: torch.Tensor) -> float:
        """One update; the loss before it."""
        loss = nn.functional.cross_entropy(self.reader(scenes), labels)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.reader.parameters(), MAX_NORM)
        self.optimizer.step()
        self.schedule.step()
        return loss.item()


def train(readers: dict[str, Reader], digits: Digits, updates: int, seed: int) -> None:
    """All of them, on the same scenes."""
    generator = np.random.default_rng(seed)
    learners = [Learner(reader, updates) for reader in readers.values()]
    with tqdm(range(updates), unit="update") as bar:
        for _ in bar:
            scenes, labels = tensors(*draw(generator, digits.train, BATCH))
            losses = [learner.learn(scenes, labels) for learner in learners]
            bar.set_postfix_str("loss " + ", ".join(f"{loss:.2f}" for loss in losses), refresh=False)


def outlines(maps: np.ndarray) -> np.ndarray:
    """The windows' corners (B, 5, 2) in pixels of the scene: upper side first, and the first corner again."""
    corners = np.array([[-1, -1, 1], [1, -1, 1], [1, 1, 1], [-1, 1, 1], [-1, -1, 1]], np.float32)
    return ((corners @ maps.transpose(0, 2, 1) + 1) * SIDE - 1) / 2


def plot(reader: Reader, scenes: torch.Tensor, labels: torch.Tensor, output: Path) -> None:
    with torch.no_grad():
        corners = outlines(reader.maps(scenes).numpy())
        windows, found = reader.windows(scenes)[:, 0], reader(scenes).argmax(-1)
    with picture(output, rows=2, columns=len(scenes), size=(1.5 * len(scenes), 3.7)) as (above, below):
        for b, (top, bottom) in enumerate(zip(above, below, strict=True)):
            top.imshow(scenes[b, 0], cmap="gray", vmin=0, vmax=1)
            top.plot(*corners[b].T, color="tab:orange")
            top.plot(*corners[b, :2].T, color="tab:cyan", linewidth=3)
            top.set(xlim=(-0.5, SIDE - 0.5), ylim=(SIDE - 0.5, -0.5))
            bottom.imshow(windows[b], cmap="gray", vmin=0, vmax=1)
            right = found[b] == labels[b]
            bottom.set_title(f"{found[b]}" + ("" if right else f", not {labels[b]}"), color=READ if right else MISREAD)
            for one in (top, bottom):
                one.set(xticks=(), yticks=())
        above[0].set_ylabel("scene")
        below[0].set_ylabel("window")
        above[0].figure.suptitle(
            "the window in the scene, its upper side in blue; below, what is in it and what is read"
        )


def misses(right: dict[str, float], target: float, quick: bool) -> list[str]:
    """What is not as good as it should be; written so that nan misses, too."""
    found = []
    if not right[WITH] >= target:
        found.append(f"{right[WITH]:.1%} right with the transformer, wanted {target:.0%}")
    if not quick and not right[WITH] >= right[WITHOUT] + LEAD:
        found.append(f"{right[WITHOUT]:.1%} right without the transformer, wanted {LEAD:.0%} less than with it")
    return found


def main(arguments: list[str] | None = None) -> int:
    started = time.perf_counter()
    options = parse(
        option_parser(
            __doc__, quick="few updates", seed="weights, scenes and the split", output="spatial_transformer.png"
        ),
        arguments,
    )
    settings = QUICK if options.quick else FULL
    torch.set_num_threads(1)  # small operations, which threads only slow down
    torch.manual_seed(options.seed)
    digits = Digits(options.seed)
    readers = {WITH: Reader(Localizer()), WITHOUT: Reader(None)}
    train(readers, digits, settings["updates"], options.seed)
    scenes, labels = tensors(*draw(np.random.default_rng(options.seed + 1), digits.test, TEST))
    right = {name: accuracy(reader, scenes, labels) for name, reader in readers.items()}
    print(f"\nright of {TEST} scenes of digits held out")
    for name, share in right.items():
        print(f"  {name:<22}{share:.1%}")
    plot(readers[WITH], scenes[:SHOWN], labels[:SHOWN], options.output)
    print(f"\n{time.perf_counter() - started:.0f} s on {fr.get_num_threads()} threads; wrote {options.output}")
    missed = misses(right, settings["target"], options.quick)
    for miss in missed:
        print(f"error: {miss}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
