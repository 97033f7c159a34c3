"""A recurrent language model over characters or words: embedding, fusedrnn layer, softmax readout; and its training."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file
from tqdm import tqdm

import fusedrnn as fr

CELLS = {
    "lstm": fr.LSTM,
    "lstm_peephole": partial(fr.LSTM, peephole=True),
    "lstm_coupled": partial(fr.LSTM, coupled=True),
    "lstm_peephole_coupled": partial(fr.LSTM, peephole=True, coupled=True),
    "gru": fr.GRU,
    "gru_reset_before": partial(fr.GRU, reset_after=False),
    "rnn_tanh": fr.RNN,
    "rnn_relu": partial(fr.RNN, nonlinearity="relu"),
}


def sum_by_code(codes: np.ndarray, rows: np.ndarray, size: int) -> np.ndarray:
    """Sum the rows (N, E) that share a code (N,): the gradient of `table[codes]` with respect to `table` (size, E)."""
    order = np.argsort(codes, kind="stable")
    present, first = np.unique(codes[order], return_index=True)
    total = np.zeros((size, rows.shape[1]), dtype=rows.dtype)
    total[present] = np.add.reduceat(rows[order], first, axis=0)
    return total


def drawn_scale(generator, shape: tuple[int, ...], share: float):
    """What dropout multiplies numbers with, 0 for `share` of them; 1 where none are dropped."""
    if not share:
        return np.float32(1.0)
    return (generator.random(shape, dtype=np.float32) >= share) * np.float32(1.0 / (1.0 - share))


class LanguageModel:
    """Predicts each symbol of a text from the ones before it.

    Parameters
    ----------
    symbols : sequence of str
        Characters or words; a symbol's code is its index.
    cell : str
        One of `CELLS`.
    hidden, layers : int
        Hidden units of a layer, number of layers.
    embedding : int, optional
        Size of a symbol's vector. None: the readout's weights are the vectors, of `hidden` numbers (Press & Wolf 2017).
    dropout, input_dropout : float
        Share of the units dropped in training between layers and before the readout, and of the vectors' numbers.
    seed : int
        Of the initial weights and the dropout masks.
    device : str
        'cpu', or 'cuda': then every array is CuPy's, and so must those be that the methods are given.
    dtype : str
        What layer and readout compute in. Of 16 bits, they get the weights rounded, anew for each window: an update is
        smaller than the distance between two such numbers, and would be lost in them.

    Attributes
    ----------
    parameters : dict of str to ndarray
        All weights, in float32 and live: an edit shows at the next call.
    """

    def __init__(
        self,
        symbols: Sequence[str],
        *,
        cell: str = "lstm",
        hidden: int = 256,
        layers: int = 1,
        embedding: int | None = 64,
        dropout: float = 0.0,
        input_dropout: float = 0.0,
        seed: int = 0,
        device: str = "cpu",
        dtype: str = "float32",
    ) -> None:
        self.symbols = symbols
        self.settings = {"cell": cell, "hidden": hidden, "layers": layers, "embedding": embedding}
        self.dropout, self.input_dropout = dropout, input_dropout
        self.generator = np.random.default_rng(seed)
        between = dropout if layers > 1 else 0.0
        width = embedding or hidden
        self.recurrent = CELLS[cell](width, hidden, layers, dropout=between, seed=seed, device=device, dtype=dtype)
        # The layer has said what is missing, if the device cannot be used.
        self.arrays = np if device == "cpu" else importlib.import_module("cupy")
        self.masks = self.generator if device == "cpu" else self.arrays.random.default_rng(seed)
        bound = hidden**-0.5
        size = len(symbols)
        if embedding is None:
            vectors = self.generator.uniform(-bound, bound, (size, hidden)).astype(np.float32)
            self.embedding = self.readout_weight = self.on_device(vectors)
        else:
            self.embedding = self.on_device(self.generator.normal(0.0, 1.0, (size, width)).astype(np.float32))
            weight = self.generator.uniform(-bound, bound, (size, hidden)).astype(np.float32)
            self.readout_weight = self.on_device(weight)
        self.readout_bias = self.on_device(np.zeros(size, dtype=np.float32))
        self.parameters = {
            "embedding": self.embedding,
            **{f"recurrent.{name}": self._wide(array) for name, array in self.recurrent.parameters.items()},
            **({} if self.tied else {"readout.weight": self.readout_weight}),
            "readout.bias": self.readout_bias,
        }

    @property
    def tied(self) -> bool:
        return self.settings["embedding"] is None

    def on_device(self, array: np.ndarray):
        """A host array where the model computes."""
        return self.arrays.asarray(array)

    def to_host(self, array) -> np.ndarray:
        """An array of the model's on the host."""
        return array if self.arrays is np else self.arrays.asnumpy(array)

    def _narrow(self, array):
        """An array as layer and readout take it."""
        return array.astype(self.recurrent.dtype, copy=False)

    @staticmethod
    def _wide(array):
        return array.astype(np.float32, copy=False)

    def _round_weights(self) -> None:
        """Bring the layer's weights up to date where they are not those of `parameters` themselves."""
        for name, array in self.recurrent.parameters.items():
            if array is not self.parameters[f"recurrent.{name}"]:
                array[...] = self.parameters[f"recurrent.{name}"].astype(array.dtype)

    def _readout(self) -> tuple:
        """Weight and bias as the readout takes them."""
        return self._narrow(self.readout_weight), self._narrow(self.readout_bias)

    def _sum_by_code(self, codes, rows):
        size = len(self.symbols)
        if self.arrays is np:
            return sum_by_code(codes, rows, size)
        # A product with the codes as indicators: in a fixed order, unlike a scatter by atomics.
        return (self.arrays.arange(size)[:, None] == codes).astype(rows.dtype) @ rows

    def train_window(self, inputs, targets, state):
        """Loss and gradients over one window of truncated BPTT.

        Parameters
        ----------
        inputs, targets : array of int64, shape (T, B)
            Symbols, and the symbol after each.
        state : array, pair of arrays or None
            The state the window before ended in; no gradient flows into it.

        Returns
        -------
        loss : float
            Mean cross-entropy in nats.
        state : array or pair of arrays
            Where the next window starts.
        gradients : dict of str to ndarray
            One array for each of `parameters`.
        """
        self._round_weights()
        x = self.embedding[inputs]
        input_scale = drawn_scale(self.masks, x.shape, self.input_dropout)
        y, state, tape = self.recurrent.forward(self._narrow(x * input_scale), state)
        scale = drawn_scale(self.masks, y.shape, self.dropout)
        loss, readout_tape = fr.linear_cross_entropy_forward(self._narrow(y * scale), *self._readout(), targets)
        dy, dweight, dbias = fr.linear_cross_entropy_backward(readout_tape)
        grads = self.recurrent.backward(tape, self._narrow(dy * scale))
        dembedding = self._sum_by_code(inputs.ravel(), (grads.x * input_scale).reshape(-1, x.shape[-1]))
        gradients = {
            "embedding": dembedding + dweight if self.tied else dembedding,
            **{f"recurrent.{name}": array for name, array in grads.parameters.items()},
            **({} if self.tied else {"readout.weight": dweight}),
            "readout.bias": dbias,
        }
        return float(loss), state, {name: self._wide(array) for name, array in gradients.items()}

    def bits_per_symbol(self, codes: np.ndarray, window: int = 1024, recurrent: Any = None) -> float:
        """Bits per symbol of `codes[1:]`, read once from left to right with the state carried all the way.

        `recurrent` runs in place of the layer where it is given.
        """
        recurrent = recurrent or self.recurrent
        self._round_weights()
        nats = 0.0
        state = None
        codes = self.on_device(codes)
        for inputs, targets in fr.tbptt_windows(codes[:-1, None], codes[1:, None], window=window):
            y, state = recurrent(self._narrow(self.embedding[inputs]), state)
            nats += float(fr.linear_cross_entropy(y, *self._readout(), targets, reduction="sum"))
        return nats / (len(codes) - 1) / np.log(2.0)

    def sample(self, length: int, temperature: float, seed: int, prompt: Sequence[str] = "\n") -> Iterator[str]:
        """Yield `length` symbols, each drawn from softmax(logits / temperature) and fed back as the next input."""
        self._round_weights()
        generator = np.random.default_rng(seed)
        codes = [self.symbols.index(symbol) for symbol in prompt]
        weight, bias = self.to_host(self.readout_weight), self.to_host(self.readout_bias)
        state = None
        for _ in range(length):
            y, state = self.recurrent(self._narrow(self.embedding[self.on_device(np.array(codes))])[:, None], state)
            logits = fr.linear(self._wide(self.to_host(y[-1])), weight, bias)
            codes = fr.sample(logits, generator, temperature=temperature).tolist()
            yield self.symbols[codes[0]]

    def save(self, path: Path) -> None:
        """Write the weights, and what is needed to build the model around them, as safetensors."""
        metadata = {"symbols": json.dumps(list(self.symbols)), "settings": json.dumps(self.settings)}
        save_file({name: self.to_host(array) for name, array in self.parameters.items()}, path, metadata=metadata)

    @classmethod
    def load(cls, path: Path, *, dropout: float = 0.0, seed: int = 0, **options: str) -> LanguageModel:
        """Build a model from a file that `save` wrote; a ValueError says what is wrong with any other file."""
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        try:
            symbols, settings = (json.loads(metadata[name]) for name in ("symbols", "settings"))
            model = cls(symbols, dropout=dropout, seed=seed, **options, **settings)
        except (KeyError, TypeError, json.JSONDecodeError):
            raise ValueError(f"{path} was not written by this example") from None
        for name, parameter in model.parameters.items():
            if name not in arrays or arrays[name].shape != parameter.shape:
                raise ValueError(f"{path}: {name} is missing or is not of shape {parameter.shape}")
            parameter[...] = model.on_device(arrays[name])
        return model


def cosine_decay(progress: float, warmup: float = 0.0) -> float:
    """Factor on the learning rate: a linear rise over the first `warmup` of the run, then half a cosine down to 0."""
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, (progress - warmup) / (1.0 - warmup))))


def train(
    model: LanguageModel,
    inputs: np.ndarray,
    targets: np.ndarray,
    *,
    window: int,
    epochs: int,
    peak: float,
    warmup: float = 0.03,
    max_norm: float = 1.0,
    unit: str,
    after_epoch=None,
) -> None:
    """Truncated BPTT with Adam, for so many passes over streams (T, B) of symbols and the symbols after them.

    `after_epoch()` is called after each pass.
    """
    inputs, targets = model.on_device(inputs), model.on_device(targets)
    total = inputs.size * epochs
    optimizer = fr.optim.Adam(model.parameters, lr=peak)
    seen, average = 0, None
    with tqdm(total=total, unit=unit, unit_scale=True, desc="training") as bar:
        for _ in range(epochs):
            state = None
            for x, y in fr.tbptt_windows(inputs, targets, window=window):
                loss, state, gradients = model.train_window(x, y, state)
                fr.clip_grad_norm(gradients, max_norm)
                optimizer.lr = peak * cosine_decay(seen / total, warmup)
                optimizer.step(gradients)
                seen += x.size
                bits = loss / math.log(2.0)
                average = bits if average is None else 0.98 * average + 0.02 * bits
                bar.set_postfix_str(f"{average:.3f} bits", refresh=False)
                bar.update(x.size)
            if after_epoch:
                after_epoch()
