"""The adding problem: what a gated cell remembers over 200 steps, and an Elman network does not.

Each step brings a number between 0 and 1 and a mark. Two of the steps are marked, one in each half, and the net is to
give the sum of their two numbers after the last step (Hochreiter & Schmidhuber 1997; Le et al. 2015). Whoever always
says 1 has a mean squared error of 1/6. LSTM, GRU and tanh network have as many units, the same steps to learn from, and
the same rule to learn by.

The second picture shows why: the norm of dE/dh_t for every step, with E the error at the end, from
`backward(norms=True)`.

    python examples/adding_problem.py               # fails unless LSTM and GRU end below 0.01 and the tanh net above
    python examples/adding_problem.py --quick       # 20 steps, for a few seconds
"""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
from picture import option_parser, parse, picture
from tqdm import tqdm

import fusedrnn as fr

KINDS = {"LSTM": fr.LSTM, "GRU": fr.GRU, "tanh network": fr.RNN}
GATED = ("LSTM", "GRU")
BATCH = 64
MAX_NORM = 1.0
SOLVED = 0.01
TEST = 1000  # sequences that an error is measured on
EVERY = 50  # updates between two measurements
FULL = {"steps": 200, "updates": 3000, "hidden": 64, "rate": 3e-3}
QUICK = {"steps": 20, "updates": 500, "hidden": 32, "rate": 1e-2}


def draw(generator: np.random.Generator, steps: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Sequences (T, B, 2) of numbers and marks, and the sums (B, 1) of their two marked numbers."""
    x = np.zeros((steps, rows, 2), np.float32)
    x[..., 0] = generator.random((steps, rows), np.float32)
    every = np.arange(rows)
    for first, last in ((0, steps // 2), (steps // 2, steps)):
        x[generator.integers(first, last, rows), every, 1] = 1
    return x, (x[..., 0] * x[..., 1]).sum(axis=0)[:, None]


class Adder:
    """A recurrent layer whose last h is read out as one number."""

    def __init__(self, kind: str, hidden: int, seed: int) -> None:
        self.layer = KINDS[kind](2, hidden, seed=seed)
        if kind == "LSTM":
            fr.init.forget_bias_(self.layer, 1.0)
        # At first it says 1, as the baseline does.
        self.readout = {"weight": np.zeros((1, hidden), np.float32), "bias": np.ones(1, np.float32)}
        self.parameters = {"layer": self.layer.parameters, "readout": self.readout}

    def error(self, x: np.ndarray, sums: np.ndarray) -> float:
        """Mean squared error."""
        y, _ = self.layer(x)
        return float(((fr.linear(y[-1], **self.readout) - sums) ** 2).mean())

    def differentiate(self, x: np.ndarray, sums: np.ndarray, norms: bool = False) -> dict[str, Any]:
        """Gradients of the mean squared error."""
        y, _, tape = self.layer.forward(x)
        guess, linear_tape = fr.linear_forward(y[-1], **self.readout)
        dlast, dweight, dbias = fr.linear_backward(linear_tape, 2 * (guess - sums) / np.float32(len(sums)))
        # Many to one: the error is that of the last step alone.
        dy = np.zeros_like(y)
        dy[-1] = dlast
        return {"layer": self.layer.backward(tape, dy, norms=norms), "readout": {"weight": dweight, "bias": dbias}}


def train(kind: str, settings: dict, seed: int) -> tuple[Adder, list[float]]:
    """A trained net, and its error on unseen sequences after every so many updates."""
    generator = np.random.default_rng(seed)
    test = draw(np.random.default_rng(seed + 1), settings["steps"], TEST)
    net = Adder(kind, settings["hidden"], seed)
    optimizer = fr.optim.Adam(net.parameters, lr=settings["rate"])
    curve = [net.error(*test)]
    with tqdm(range(settings["updates"]), unit="update", desc=kind) as bar:
        for update in bar:
            gradients = net.differentiate(*draw(generator, settings["steps"], BATCH))
            fr.clip_grad_norm(gradients.values(), MAX_NORM)
            optimizer.lr = settings["rate"] * 0.5 * (1 + np.cos(np.pi * update / settings["updates"]))
            optimizer.step(gradients)
            if (update + 1) % EVERY == 0:
                curve.append(net.error(*test))
                bar.set_postfix_str(f"error {curve[-1]:.4f}", refresh=False)
    return net, curve


def norms(net: Adder, steps: int, seed: int) -> np.ndarray:
    """Norms (T,) of the gradient of the state after each step, h and c together, relative to the last one's."""
    measured = net.differentiate(*draw(np.random.default_rng(seed + 2), steps, BATCH), norms=True)["layer"].norms
    both = measured.h[0] if measured.c is None else np.hypot(measured.h[0], measured.c[0])
    mean = both.mean(axis=-1)
    return mean / mean[-1]


def plot(curves: dict[str, list[float]], norms: dict[str, np.ndarray], baseline: float, output: Any) -> None:
    with picture(output, columns=2, size=(12, 5)) as (left, right):
        for name, curve in curves.items():
            left.semilogy(np.arange(len(curve)) * EVERY, curve, label=name)
        left.axhline(baseline, color="gray", linestyle=":", label="always 1")
        left.axhline(SOLVED, color="black", linestyle="--", label="solved")
        left.set(xlabel="updates", ylabel="mean squared error, unseen sequences", title="The adding problem")
        for name, curve in norms.items():
            right.semilogy(np.arange(1, len(curve) + 1), curve, label=name)
        right.set(
            xlabel="step t", ylabel="norm of dE/d(state after t), over that of the last step", title="After training"
        )


def main(arguments: list[str] | None = None) -> int:
    started = time.perf_counter()
    options = parse(
        option_parser(
            __doc__, quick="short sequences and few updates", seed="weights and sequences", output="adding_problem.png"
        ),
        arguments,
    )
    settings = QUICK if options.quick else FULL
    sums = draw(np.random.default_rng(options.seed + 1), settings["steps"], TEST)[1]
    baseline = float(((sums - 1) ** 2).mean())
    nets, curves = {}, {}
    for kind in KINDS:
        nets[kind], curves[kind] = train(kind, settings, options.seed)
    print(f"\nmean squared error on {TEST} unseen sequences of {settings['steps']} steps")
    for name, value in {"always 1": baseline, **{kind: curve[-1] for kind, curve in curves.items()}}.items():
        print(f"  {name:<14}{value:.4f}")
    measured = {kind: norms(net, settings["steps"], options.seed) for kind, net in nets.items()}
    plot(curves, measured, baseline, options.output)
    print(f"\n{time.perf_counter() - started:.1f} s on {fr.get_num_threads()} threads; wrote {options.output}")
    missed = [kind for kind in GATED if not curves[kind][-1] < SOLVED]
    if missed:
        print(f"error: {' and '.join(missed)} did not get below {SOLVED}", file=sys.stderr)
        return 1
    # Over few steps the tanh network may solve it, too.
    if not options.quick and curves["tanh network"][-1] < SOLVED:
        print(f"error: the tanh network got below {SOLVED} as well: the sequences ask for no memory", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
