"""A recurrent language model over characters: embedding, fusedrnn layer, softmax readout."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

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


class CharacterModel:
    """Predicts each character of a text from the ones before it.

    Parameters
    ----------
    alphabet : str
        The characters; a character's code is its index.
    cell : str
        One of `CELLS`.
    hidden, layers, embedding : int
        Hidden units of a layer, number of layers, size of a character's vector.
    dropout : float
        Share of the units dropped in training between layers and before the readout.
    seed : int
        Of the initial weights and the dropout masks.
    device : str
        'cpu', or 'cuda': then every array is CuPy's, and so must those be that the methods are given.

    Attributes
    ----------
    parameters : dict of str to ndarray
        All weights, live: an edit shows at the next call.
    """

    def __init__(
        self,
        alphabet: str,
        *,
        cell: str = "lstm",
        hidden: int = 256,
        layers: int = 1,
        embedding: int = 64,
        dropout: float = 0.0,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        self.alphabet = alphabet
        self.settings = {"cell": cell, "hidden": hidden, "layers": layers, "embedding": embedding}
        self.dropout = dropout
        self.generator = np.random.default_rng(seed)
        between = dropout if layers > 1 else 0.0
        self.recurrent = CELLS[cell](embedding, hidden, layers, dropout=between, seed=seed, device=device)
        # The layer has said what is missing, if the device cannot be used.
        self.arrays = np if device == "cpu" else importlib.import_module("cupy")
        self.masks = self.generator if device == "cpu" else self.arrays.random.default_rng(seed)
        bound = hidden**-0.5
        size = len(alphabet)
        embeddings = self.generator.normal(0.0, 1.0, (size, embedding)).astype(np.float32)
        self.embedding = self.on_device(embeddings)
        self.readout_weight = self.on_device(self.generator.uniform(-bound, bound, (size, hidden)).astype(np.float32))
        self.readout_bias = self.on_device(np.zeros(size, dtype=np.float32))
        self.parameters = {
            "embedding": self.embedding,
            **{f"recurrent.{name}": array for name, array in self.recurrent.parameters.items()},
            "readout.weight": self.readout_weight,
            "readout.bias": self.readout_bias,
        }

    def on_device(self, array: np.ndarray):
        """A host array where the model computes."""
        return self.arrays.asarray(array)

    def to_host(self, array) -> np.ndarray:
        """An array of the model's on the host."""
        return array if self.arrays is np else self.arrays.asnumpy(array)

    def _sum_by_code(self, codes, rows):
        size = len(self.alphabet)
        if self.arrays is np:
            return sum_by_code(codes, rows, size)
        # A product with the codes as indicators: in a fixed order, unlike a scatter by atomics.
        return (self.arrays.arange(size)[:, None] == codes).astype(rows.dtype) @ rows

    def train_window(self, inputs, targets, state):
        """Loss and gradients over one window of truncated BPTT.

        Parameters
        ----------
        inputs, targets : array of int64, shape (T, B)
            Characters, and the character after each.
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
        x = self.embedding[inputs]
        y, state, tape = self.recurrent.forward(x, state)
        features = y
        if self.dropout:
            mask = self.masks.random(y.shape, dtype=np.float32) >= self.dropout
            scale = mask * np.float32(1.0 / (1.0 - self.dropout))
            features = y * scale
        loss, readout_tape = fr.linear_cross_entropy_forward(features, self.readout_weight, self.readout_bias, targets)
        dy, dweight, dbias = fr.linear_cross_entropy_backward(readout_tape)
        if self.dropout:
            dy *= scale
        grads = self.recurrent.backward(tape, dy)
        gradients = {
            "embedding": self._sum_by_code(inputs.ravel(), grads.x.reshape(-1, x.shape[-1])),
            **{f"recurrent.{name}": array for name, array in grads.parameters.items()},
            "readout.weight": dweight,
            "readout.bias": dbias,
        }
        return float(loss), state, gradients

    def bits_per_character(self, codes: np.ndarray, window: int = 1024) -> float:
        """Bits per character of `codes[1:]`, read once from left to right with the state carried all the way."""
        nats = 0.0
        state = None
        codes = self.on_device(codes)
        for inputs, targets in fr.tbptt_windows(codes[:-1, None], codes[1:, None], window=window):
            y, state = self.recurrent(self.embedding[inputs], state)
            nats += float(fr.linear_cross_entropy(y, self.readout_weight, self.readout_bias, targets, reduction="sum"))
        return nats / (len(codes) - 1) / np.log(2.0)

    def sample(self, length: int, temperature: float, seed: int, prompt: str = "\n") -> Iterator[str]:
        """Yield `length` characters, each drawn from softmax(logits / temperature) and fed back as the next input."""
        generator = np.random.default_rng(seed)
        codes = [self.alphabet.index(character) for character in prompt]
        weight, bias = self.to_host(self.readout_weight), self.to_host(self.readout_bias)
        state = None
        for _ in range(length):
            y, state = self.recurrent(self.embedding[self.on_device(np.array(codes))][:, None], state)
            logits = (weight @ self.to_host(y[-1, 0]) + bias) / temperature
            # Gumbel's trick: the largest of logits plus Gumbel noise is distributed as their softmax.
            codes = [int(np.argmax(logits + generator.gumbel(size=logits.shape)))]
            yield self.alphabet[codes[0]]

    def save(self, path: Path) -> None:
        """Write the weights, and what is needed to build the model around them, as safetensors."""
        metadata = {"alphabet": self.alphabet} | {name: str(value) for name, value in self.settings.items()}
        save_file({name: self.to_host(array) for name, array in self.parameters.items()}, path, metadata=metadata)

    @classmethod
    def load(cls, path: Path, *, dropout: float = 0.0, seed: int = 0, device: str = "cpu") -> CharacterModel:
        """Build a model from a file that `save` wrote; a ValueError says what is wrong with any other file."""
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        missing = {"alphabet", "cell", "hidden", "layers", "embedding"} - metadata.keys()
        if missing or metadata["cell"] not in CELLS:
            raise ValueError(f"{path} was not written by this example")
        sizes = {name: int(metadata[name]) for name in ("hidden", "layers", "embedding")}
        model = cls(metadata["alphabet"], cell=metadata["cell"], dropout=dropout, seed=seed, device=device, **sizes)
        for name, parameter in model.parameters.items():
            if name not in arrays or arrays[name].shape != parameter.shape:
                raise ValueError(f"{path}: {name} is missing or is not of shape {parameter.shape}")
            parameter[...] = model.on_device(arrays[name])
        return model
