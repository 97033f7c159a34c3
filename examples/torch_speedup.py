"""Train an ordinary torch model, swap its recurrent modules with one call, and train it again.

The model is a character model with torch.nn.GRU on the text of `help()`'s topics. Both runs start from the same
weights, take the same steps on the same batches, and print their time and their losses, equal to rounding. The picture
has the losses of both over the time.

    python examples/torch_speedup.py              # a minute with torch's own modules, then as many steps with ours
    python examples/torch_speedup.py --cell lstm
    python examples/torch_speedup.py --quick      # a few seconds
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from pathlib import Path

import numpy as np
import torch
from picture import picture
from text import load_corpus
from torch import nn
from tqdm import tqdm

import fusedrnn.torch

BATCH, WINDOW = 32, 64
CELLS = {"gru": nn.GRU, "lstm": nn.LSTM, "rnn": nn.RNN}
# The two runs round differently from the first step on, and training magnifies that: later losses say little.
COMPARED_STEPS = 20
ALLOWED = 1e-4


class CharacterModel(nn.Module):
    """Embedding, recurrent layer, readout: nothing in it knows of fusedrnn."""

    def __init__(self, characters: int, cell: str, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, 64)
        self.recurrent = CELLS[cell](64, hidden)
        self.readout = nn.Linear(hidden, characters)

    def forward(self, codes: torch.Tensor, state):
        y, state = self.recurrent(self.embedding(codes), state)
        return self.readout(y), state


def warm_up(model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> None:
    """A few steps that count for nothing: torch imports parts of itself at the first one."""
    train(copy.deepcopy(model), inputs, targets, 3, 0.0, "warming up")


def train(model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor, steps: int | None, seconds: float, name: str):
    """Train for `steps` windows, or for `seconds` where that is None; give the losses and the time they took."""
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    state, losses, started = None, [], time.perf_counter()
    with tqdm(total=steps, unit="step", desc=name) as bar:
        while len(losses) < steps if steps else time.perf_counter() - started < seconds:
            first = len(losses) * WINDOW % len(inputs)
            logits, state = model(inputs[first : first + WINDOW], state if first else None)
            state = tuple(s.detach() for s in state) if isinstance(state, tuple) else state.detach()
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), targets[first : first + WINDOW].flatten())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.item())
            bar.update()
    return losses, time.perf_counter() - started


def plot(runs: dict[str, tuple[list[float], float]], output: Path) -> None:
    """Losses over seconds, each a mean of the ones around it."""
    with picture(output) as axes:
        for name, (losses, elapsed) in runs.items():
            width = max(1, len(losses) // 50)
            smooth = np.convolve(losses, np.full(width, 1 / width), mode="valid")
            axes.plot(np.linspace(elapsed * width / len(losses), elapsed, len(smooth)), smooth, label=name)
        axes.set(xlabel="seconds", ylabel="loss (nats a character)", title="The same steps, with torch and swapped")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cell", choices=CELLS, default="gru")
    parser.add_argument("--hidden", type=int, default=256, help="hidden units (default: 256)")
    parser.add_argument("--seconds", type=float, default=60.0, help="of the first run (default: 60)")
    parser.add_argument("--quick", action="store_true", help="a few seconds: a smoke test")
    parser.add_argument(
        "--output", type=Path, default=Path("torch_speedup.png"), help="the picture (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    if options.hidden < 1 or not options.seconds > 0:
        parser.error("--hidden and --seconds must be positive")
    if options.output.is_dir() or not options.output.absolute().parent.is_dir():
        parser.error(f"argument --output: cannot write {options.output}: no such directory, or it is one itself")
    torch.manual_seed(0)
    corpus = load_corpus()
    inputs, targets = (torch.from_numpy(array) for array in corpus.streams(BATCH, WINDOW))
    model = CharacterModel(len(corpus.symbols), options.cell, options.hidden)
    swapped = copy.deepcopy(model)
    print(fusedrnn.torch.accelerate(swapped))

    seconds = 3.0 if options.quick else options.seconds
    warm_up(model, inputs, targets)
    own_losses, own_time = train(model, inputs, targets, None, seconds, "torch")
    warm_up(swapped, inputs, targets)
    losses, taken = train(swapped, inputs, targets, len(own_losses), seconds, "fusedrnn.torch")

    compared = min(COMPARED_STEPS, len(losses))
    print(f"\n{options.cell}-{options.hidden}, {len(losses)} steps of {BATCH} x {WINDOW} characters")
    print(f"{'':<16}{'seconds':>9}{f'loss at step {compared}':>18}{'last loss':>12}")
    for name, run, elapsed in (("torch", own_losses, own_time), ("fusedrnn.torch", losses, taken)):
        print(f"{name:<16}{elapsed:>9.2f}{run[compared - 1]:>18.6f}{run[-1]:>12.6f}")
    plot({"torch": (own_losses, own_time), "fusedrnn.torch": (losses, taken)}, options.output)
    print(f"{own_time / taken:.2f} times as fast, on {torch.get_num_threads()} threads; wrote {options.output}")
    worst = max(abs(a - b) for a, b in zip(own_losses[:compared], losses[:compared], strict=True))
    if not worst <= ALLOWED:
        print(f"error: losses of the first {compared} steps differ by {worst:.2g}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
