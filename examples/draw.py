"""DRAW (Gregor et al. 2015): a network that paints digits step by step, through windows that it places itself.

scikit-learn's 1,797 digits of 8 x 8 pixels are made black and white; a fifth of them, chosen by the seed, is held out.
Three variational autoencoders learn from the others by the same rule: DRAW with attention, DRAW without, and a plain
one with a hidden layer on either side. The figure is the bound -ELBO on -log p(x) of images held out, in nats: the
error of reconstruction and the KL divergence of the latent variables from their prior.

The picture has digits that DRAW with attention generates, the canvas after each step, and what it looks at in images
held out. A window's frame has the width of sigma.

    python examples/draw.py               # fails unless attention gives the lowest bound, below 20 nats
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
FULL = {"steps": 6, "updates": 1000, "target": 20.0}
QUICK = {"steps": 4, "updates": 200, "target": 25.0}


class Bound(NamedTuple):
    """-ELBO of an image, in nats, by its parts."""

    reconstruction: float
    kl: float

    @property
    def total(self) -> float:
        return self.reconstruction + self.kl


def digits(seed: int) -> tuple[Tensor, Tensor]:
    """Images (B, 8, 8) of zeros and ones: those to learn from, and those held out."""
    images = torch.from_numpy((load_digits().images >= 8).astype(np.float32))
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(images)))
    return images[order[HELD_OUT:]], images[order[:HELD_OUT]]


def models(steps: int) -> dict[str, nn.Module]:
    """The three, of about as many parameters each."""
    return {
        ATTENTION: Draw(Windows(SIDE, hidden=64, reading=5, writing=5), steps, hidden=64, latent=8),
        WHOLE: Draw(WholeImage(SIDE, hidden=64), steps, hidden=64, latent=8),
        PLAIN: Autoencoder(SIDE, hidden=300, latent=32),
    }


def losses(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean error of reconstruction and mean KL divergence of images, (9) and (10) of the paper, in nats."""
    logits, kl = model(x)
    return binary_cross_entropy_with_logits(logits, x, reduction="sum") / len(x), kl.mean()


def bound(model: nn.Module, x: Tensor) -> Bound:
    with torch.no_grad():
        return Bound(*(float(part) for part in losses(model, x.repeat(SAMPLES, 1, 1))))


def train(model: nn.Module, images: Tensor, updates: int, seed: int, name: str) -> None:
    torch.manual_seed(seed)  # so that no model's result depends on those before it
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    with tqdm(range(updates), unit="update", desc=name) as bar:
        for _ in bar:
            loss = sum(losses(model, images[torch.randint(len(images), (BATCH,))]))  # (12)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
            optimizer.step()
            schedule.step()
            bar.set_postfix_str(f"{loss.item():.1f} nats", refresh=False)


def report(bounds: dict[str, Bound], sizes: dict[str, int]) -> None:
    print(f"\n{'nats an image, held out':<26}{'-ELBO':>8}{'error':>8}{'KL':>8}{'parameters':>13}")
    for name, each in bounds.items():
        print(f"{name:<26}{each.total:>8.2f}{each.reconstruction:>8.2f}{each.kl:>8.2f}{sizes[name]:>13,}")


def misses(bounds: dict[str, Bound], target: float, quick: bool) -> list[str]:
    """What is not as good as it should be; written so that nan misses, too."""
    best, found = bounds[ATTENTION], []
    if not best.total < target:
        found.append(f"{ATTENTION}: {best.total:.2f} nats, wanted below {target}")
    if not best.kl > LEAST_KL:
        found.append(f"{ATTENTION}: a KL divergence of {best.kl:.2f} nats, wanted above {LEAST_KL}")
    # Few updates tell nothing about which of them ends lowest.
    for name in () if quick else (WHOLE, PLAIN):
        if not best.total < bounds[name].total:
            found.append(f"{name}: {bounds[name].total:.2f} nats, no more than with attention")
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
    bounds = {}
    for name, net in nets.items():
        train(net, images, settings["updates"], options.seed, name)
        bounds[name] = bound(net, held_out)
    report(bounds, {name: sum(each.numel() for each in net.parameters()) for name, net in nets.items()})
    torch.manual_seed(options.seed)
    plot(nets[ATTENTION], held_out, options.output)
    print(f"\n{time.perf_counter() - started:.0f} s on {fr.get_num_threads()} threads; wrote {options.output}")
    missed = misses(bounds, settings["target"], options.quick)
    for miss in missed:
        print(f"error: {miss}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
