"""Plot how gradients vanish or survive on their way back through time, for an RNN, an LSTM and a GRU.

The error E is put on the last step only, and the norm of dE/ds_k is drawn for every step k before it. The states in
between are reached by running the sequence as windows of one step: each `backward` returns the gradient of the state
its window started from, and hands it to the window before. That is plain BPTT with its links laid open.

    python examples/gradient_norms.py --output gradient_norms.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import fusedrnn as fr

BATCH = 16
INPUT = 32
# In float32 the square of a vanished gradient is 0, and the curve would end there.
DTYPE = "float64"


def stack(state) -> np.ndarray:
    """A state as one array: an LSTM's h and c side by side, for together they are the s_k that step k hands on."""
    return np.concatenate(state, axis=-1) if isinstance(state, tuple) else state


def gradient_norms(layer, x: np.ndarray) -> np.ndarray:
    """Norm of dE/ds_k for k = 0..T, averaged over the batch, with E = sum(h_T u) for a random unit vector u a row.

    Parameters
    ----------
    layer : fr.RNN, fr.LSTM or fr.GRU
        One layer, one direction.
    x : ndarray, shape (T, B, I)

    Returns
    -------
    ndarray, shape (T + 1,)
        Entry k belongs to the state after k steps; for an LSTM the state is h and c together.
    """
    tapes = []
    state = None
    for window in fr.tbptt_windows(x, window=1):
        _, state, tape = layer.forward(window, state)
        tapes.append(tape)
    direction = np.random.default_rng(0).standard_normal((*x.shape[1:2], layer.hidden_size)).astype(x.dtype)
    dh = (direction / np.linalg.norm(direction, axis=-1, keepdims=True))[None]
    dstate = (dh, np.zeros_like(dh)) if isinstance(state, tuple) else dh
    norms = [np.linalg.norm(stack(dstate), axis=-1).mean()]
    for tape in reversed(tapes):
        dstate = layer.backward(tape, None, dstate).state
        norms.append(np.linalg.norm(stack(dstate), axis=-1).mean())
    return np.array(norms[::-1])


def layers(hidden: int, seed: int) -> dict:
    """The layers to compare: each kind as initialised, an RNN whose Jacobians stretch, an LSTM that remembers."""
    exploding = fr.RNN(INPUT, hidden, nonlinearity="relu", dtype=DTYPE, seed=seed)
    fr.init.orthogonal_(exploding, seed)
    exploding.parameters["weight_hh_l0"] *= 2.0
    remembering = fr.LSTM(INPUT, hidden, dtype=DTYPE, seed=seed)
    fr.init.forget_bias_(remembering, 3.0)
    return {
        "RNN (tanh)": fr.RNN(INPUT, hidden, dtype=DTYPE, seed=seed),
        "RNN (relu, W = 2 x orthogonal)": exploding,
        "GRU": fr.GRU(INPUT, hidden, dtype=DTYPE, seed=seed),
        "LSTM": fr.LSTM(INPUT, hidden, dtype=DTYPE, seed=seed),
        "LSTM (forget bias 3)": remembering,
    }


def plot(curves: dict[str, np.ndarray], output: Path) -> None:
    """Draw the curves on a logarithmic axis into a file; its suffix picks the format."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    for label, norms in curves.items():
        axes.semilogy(np.arange(len(norms)), norms, label=label)
    axes.set_xlabel("step k")
    axes.set_ylabel("norm of dE/ds_k, mean over the batch")
    axes.set_title("Gradient of an error at the last step, on its way back through time")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(output, dpi=150)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("gradient_norms.png"), help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=100, help="length of the sequence (default: %(default)s)")
    parser.add_argument("--hidden", type=int, default=128, help="hidden units (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and input (default: %(default)s)")
    options = parser.parse_args(arguments)
    if options.steps < 1 or options.hidden < 1 or options.seed < 0:
        parser.error("--steps and --hidden want at least 1, --seed at least 0")
    if not options.output.absolute().parent.is_dir():
        parser.error(f"argument --output: no such directory: {options.output.absolute().parent}")

    x = np.random.default_rng(options.seed).standard_normal((options.steps, BATCH, INPUT)).astype(DTYPE)
    curves = {label: gradient_norms(layer, x) for label, layer in layers(options.hidden, options.seed).items()}
    for label, norms in curves.items():
        print(f"{label:<32} dE/ds at step 0: {norms[0]:.2e} of {norms[-1]:.2e} at step {options.steps}")
    plot(curves, options.output)
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
