"""DRAW (Gregor et al. 2015): a network that paints digits step by step, through windows that it places itself.

scikit-learn's 1,797 digits of 8 x 8 pixels are made black and white; a fifth of them, chosen by the seed, is held out.
Three variational autoencoders learn from the others by the same rule: DRAW with attention, DRAW without, and a plain
one with a hidden layer on either side. The figure is the bound -ELBO on -log p(x) of images held out, in nats: the
error of reconstruction and the KL divergence of the latent variables from their prior. The bound on the training images
stands beside it: the gap between the two is overfitting.

The picture has digits that DRAW with attention generates, the canvas after each step, and what it looks at in images
held out. The frame of a window is the thicker, the larger its sigma.

    # Fails unless attention ends below 20 nats, and below both others by two standard errors.
    python examples/draw.py
    python examples/draw.py --quick       # few updates: fails unless the bound falls below 25
"""

from __future__ import annotations

import sys
import time
from typing import NamedTuple

import numpy as np
import torch
from draw_model import Autoencoder, Draw, WholeImage, Windows
from draw_picture import plot
from picture import option_parser, parse
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from tqdm import tqdm

import fusedrnn as fr

SIDE = 8  # pixels
HELD_OUT = 360  # images
BATCH = 128
LEARNING_RATE = 1e-2
MAX_NORM = 5.0
SAMPLES = 10  # of the latent variables, for the bound of an image held out
LEAST_KL = 1.0
ATTENTION, WHOLE, PLAIN = "DRAW with attention", "DRAW without attention", "plain autoencoder"
STANDARD_ERRORS = 2.0  # of its mean over images, that a difference of two bounds must exceed
FULL = {"steps": 6, "updates": 4000, "target": 20.0}
QUICK = {"steps": 4, "updates": 200, "target": 25.0}


class Bound(NamedTuple):
    """-ELBO of each image in nats, by its parts, (B,) each."""

    reconstruction: Tensor
    kl: Tensor

    @property
    def total(self) -> Tensor:
        return self.reconstruction + self.kl


class Margin(NamedTuple):
    """The mean over images of how much lower a bound is than another, and its standard error."""

    mean: float
    error: float


def digits(seed: int) -> tuple[Tensor, Tensor]:
    """Images (B, 8, 8) of zeros and ones: those to learn from, and those held out."""
    images = torch.from_numpy((load_digits().images >= 8).astype(np.float32))
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(images)))
    return images[order[HELD_OUT:]], images[order[:HELD_OUT]]


def models(steps: int) -> dict[str, nn.Module]:
    """DRAW with hidden layers of one size, and an autoencoder of about as many parameters as it has with attention."""
    return {
        ATTENTION: Draw(Windows(SIDE, hidden=64, reading=5, writing=5), steps, hidden=64, latent=8),
        WHOLE: Draw(WholeImage(SIDE, hidden=64), steps, hidden=64, latent=8),
        PLAIN: Autoencoder(SIDE, hidden=300, latent=32),
    }


def losses(model: nn.Module, x: Tensor) -> Bound:
    """Error of reconstruction and KL divergence of each image, (9) and (10) of the paper, in nats."""
    logits, kl = model(x)
    return Bound(binary_cross_entropy_with_logits(logits, x, reduction="none").sum(dim=(1, 2)), kl)


def bound(model: nn.Module, x: Tensor) -> Bound:
    """The mean over samples of the latent variables."""
    with torch.no_grad():
        parts = losses(model, x.repeat(SAMPLES, 1, 1))
    return Bound(*(part.unflatten(0, (SAMPLES, -1)).mean(dim=0) for part in parts))


def margin(lower: Bound, higher: Bound) -> Margin:
    difference = higher.total - lower.total
    return Margin(float(difference.mean()), float(difference.std()) / len(difference) ** 0.5)


def train(model: nn.Module, images: Tensor, updates: int, seed: int, name: str) -> None:
    torch.manual_seed(seed)  # so that no model's result depends on those before it
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    with tqdm(range(updates), unit="update", desc=name) as bar:
        for _ in bar:
            loss = losses(model, images[torch.randint(len(images), (BATCH,))]).total.mean()  # (12)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
            optimizer.step()
            schedule.step()
            bar.set_postfix_str(f"{loss.item():.1f} nats", refresh=False)


def report(bounds: dict[str, Bound], learned: dict[str, Bound], sizes: dict[str, int]) -> None:
    print(f"\n{'-ELBO, nats an image':<24}{'learned from':>14}{'held out':>10}{'error':>8}{'KL':>6}", end="")
    print(f"{'above attention':>18}{'parameters':>12}")
    for name, each in bounds.items():
        mean, error = margin(bounds[ATTENTION], each)
        above = "" if name == ATTENTION else f"{mean:.2f} ± {error:.2f}"
        print(f"{name:<24}{learned[name].total.mean():>14.2f}{each.total.mean():>10.2f}", end="")
        print(f"{each.reconstruction.mean():>8.2f}{each.kl.mean():>6.2f}{above:>18}{sizes[name]:>12,}")


def misses(bounds: dict[str, Bound], target: float, quick: bool) -> list[str]:
    """What is not as good as it should be; written so that nan misses, too."""
    best, found = bounds[ATTENTION], []
    if not best.total.mean() < target:
        found.append(f"{ATTENTION}: {best.total.mean():.2f} nats, wanted below {target}")
    if not best.kl.mean() > LEAST_KL:
        found.append(f"{ATTENTION}: a KL divergence of {best.kl.mean():.2f} nats, wanted above {LEAST_KL}")
    # Few updates tell nothing about which of them ends lowest.
    for name in () if quick else (WHOLE, PLAIN):
        mean, error = margin(best, bounds[name])
        if not mean > STANDARD_ERRORS * error:
            found.append(f"{name}: {mean:.2f} nats above attention, wanted more than {STANDARD_ERRORS * error:.2f}")
    return found


def main(arguments: list[str] | None = None) -> int:
    started = time.perf_counter()
    options = parse(
        option_parser(__doc__, quick="few updates", seed="split, weights and samples", output="draw.png"), arguments
    )
    settings = QUICK if options.quick else FULL
    torch.set_num_threads(1)  # torch's part are small operations, which threads only slow down
    torch.manual_seed(options.seed)
    images, held_out = digits(options.seed)
    nets = models(settings["steps"])
    bounds, learned = {}, {}
    for name, net in nets.items():
        train(net, images, settings["updates"], options.seed, name)
        bounds[name], learned[name] = bound(net, held_out), bound(net, images)
    report(bounds, learned, {name: sum(each.numel() for each in net.parameters()) for name, net in nets.items()})
    torch.manual_seed(options.seed)
    plot(nets[ATTENTION], held_out, options.output)
    print(f"\n{time.perf_counter() - started:.0f} s on {fr.get_num_threads()} threads; wrote {options.output}")
    missed = misses(bounds, settings["target"], options.quick)
    for miss in missed:
        print(f"error: {miss}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
