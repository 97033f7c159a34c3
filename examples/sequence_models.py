"""Four models of sequences of symbols with one interface: RNN, LSTM, LSTM with attention, self-attention.

Each gives the logits (A, B, K) of the last A steps, in which the symbols (T, B) are questions.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import nn
from torch.nn.functional import relu, scaled_dot_product_attention

import fusedrnn.torch

HEADS = 4
FORGET = 1.0  # bias of the forget gate, so that an LSTM remembers before it has learnt to


class Model(nn.Module, ABC):
    """A vector for each symbol; what makes logits of them is a subclass's."""

    def __init__(self, vocabulary: int, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, hidden)

    @abstractmethod
    def answer(self, vectors: torch.Tensor, answers: int) -> torch.Tensor:
        """From the symbols' vectors (T, B, H)."""

    def forward(self, symbols: torch.Tensor, answers: int) -> torch.Tensor:
        return self.answer(self.embedding(symbols), answers)


class Rnn(Model):
    """A recurrent layer, whose state is all that it knows of earlier steps."""

    layer: type[nn.Module] = fusedrnn.torch.RNN

    def __init__(self, vocabulary: int, hidden: int, classes: int) -> None:
        super().__init__(vocabulary, hidden)
        self.recurrent = self.layer(hidden, hidden)
        self.readout = nn.Linear(hidden, classes)

    def answer(self, vectors: torch.Tensor, answers: int) -> torch.Tensor:
        states, _ = self.recurrent(vectors)
        return self.readout(states[len(states) - answers :])


class Lstm(Rnn):
    layer = fusedrnn.torch.LSTM

    def __init__(self, vocabulary: int, hidden: int, classes: int) -> None:
        super().__init__(vocabulary, hidden, classes)
        with torch.no_grad():
            self.recurrent.bias_ih_l0[hidden : 2 * hidden] = FORGET


class AttentiveLstm(Lstm):
    """An LSTM, and a decoder that looks back at all its states in every step that is a question."""

    def __init__(self, vocabulary: int, hidden: int, classes: int) -> None:
        super().__init__(vocabulary, hidden, classes)
        self.decoder = fusedrnn.torch.AttentionDecoder(hidden, hidden, hidden, hidden, cell="lstm")
        self.readout = nn.Linear(2 * hidden, classes)

    def answer(self, vectors: torch.Tensor, answers: int) -> torch.Tensor:
        memory, state = self.recurrent(vectors)
        y, context, _ = self.decoder(vectors[len(vectors) - answers :], memory, state=state)
        return self.readout(torch.cat([y, context], -1))


class SelfAttention(Model):
    """A block of scaled dot-product attention (Vaswani et al. 2017), torch's; no step sees later ones."""

    def __init__(self, vocabulary: int, hidden: int, classes: int) -> None:
        super().__init__(vocabulary, hidden)
        self.projections, self.output = nn.Linear(hidden, 3 * hidden), nn.Linear(hidden, hidden)
        self.wide, self.narrow = nn.Linear(hidden, 2 * hidden), nn.Linear(2 * hidden, hidden)
        self.norms = nn.ModuleList(nn.LayerNorm(hidden) for _ in range(3))
        self.readout = nn.Linear(hidden, classes)

    def attend(self, vectors: torch.Tensor) -> torch.Tensor:
        steps, rows, hidden = vectors.shape
        parts = self.projections(vectors).view(steps, rows, 3, HEADS, hidden // HEADS)
        read = scaled_dot_product_attention(*parts.permute(2, 1, 3, 0, 4), is_causal=True)  # (B, heads, T, H / heads)
        return self.output(read.permute(2, 0, 1, 3).reshape(vectors.shape))

    def answer(self, vectors: torch.Tensor, answers: int) -> torch.Tensor:
        steps, _, hidden = vectors.shape
        seen = vectors + places(steps, hidden)
        seen = seen + self.attend(self.norms[0](seen))
        seen = seen[steps - answers :]
        seen = seen + self.narrow(relu(self.wide(self.norms[1](seen))))
        return self.readout(self.norms[2](seen))


def places(steps: int, hidden: int) -> torch.Tensor:
    """Sines and cosines (T, 1, H) of wavelengths from 2 pi to 10000 times that, which tell steps apart."""
    rates = torch.exp(torch.arange(0, hidden, 2) * (-math.log(1e4) / hidden))
    angles = torch.arange(steps)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], -1)[:, None]


MODELS: dict[str, type[Rnn] | type[SelfAttention]] = {
    "tanh RNN": Rnn,
    "LSTM": Lstm,
    "LSTM + attention": AttentiveLstm,
    "self-attention": SelfAttention,
}
