"""A captioner: convolutions that make a grid of features, and an attention decoder that reads it word by word.

As Xu et al., "Show, attend and tell", 2015: the state begins with the mean feature, each step reads the grid by what
the state asks for, and a word is told from the state and what was read. Convolutions and readout are torch's.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from digit_scenes import CANVAS, END, LONGEST, WORDS
from torch import Tensor, nn
from torch.nn import functional as F

import fusedrnn as fr
from fusedrnn.torch import AttentionDecoder
from fusedrnn.torch.attention import Attended

STRIDE = 4  # pixels between two locations of the grid
GRID = CANVAS // STRIDE
LOCATIONS = GRID * GRID
FILTERS, FEATURES, EMBEDDING, HIDDEN, ATTENTION = 24, 48, 32, 128, 64
NUMBER = 4.0  # what stands for the 1 of one-hot numbers, so that places count at once


class Told(NamedTuple):
    """Captions that a captioner gave, (T, B), and the weights of the locations at each word, (T, B, S)."""

    words: np.ndarray
    attention: np.ndarray


def _layer(inputs: int, outputs: int, size: int, pool: int) -> nn.Sequential:
    """A convolution; its largest outputs in squares, which makes the rest cheaper; normalised, and no less than 0."""
    convolution = nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False)
    return nn.Sequential(convolution, nn.MaxPool2d(pool), nn.BatchNorm2d(outputs), nn.ReLU())


class Captioner(nn.Module):
    """Features on a grid and a decoder over them: `attention` is soft, hard, or none, which reads the mean feature."""

    def __init__(self, attention: str) -> None:
        super().__init__()
        self.attention = attention
        # A location sees 12 x 12 pixels around its own 4 x 4.
        self.encoder = nn.Sequential(
            _layer(1, FILTERS, size=5, pool=2),
            _layer(FILTERS, FEATURES, size=3, pool=2),
            _layer(FEATURES, FEATURES, size=1, pool=1),
        )
        self.embedding = nn.Embedding(len(WORDS), EMBEDDING)
        self.begin = nn.Linear(FEATURES, 2 * HIDDEN)
        # A location's feature is followed by its number, one-hot: attention can go by place, and what is read then ends
        # with the weights of all locations, through which a penalty of them has its gradient.
        sizes = (EMBEDDING, HIDDEN, FEATURES + LOCATIONS, ATTENTION)
        self.decoder = AttentionDecoder(*sizes)
        # Hard attention has the same parameters.
        self.drawing = AttentionDecoder(*sizes, attention="hard")
        for name, parameter in self.decoder.named_parameters():
            setattr(self.drawing, name, parameter)
        self.readout = nn.Linear(HIDDEN + FEATURES + LOCATIONS, len(WORDS))

    def encode(self, canvas: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The memory (S, B, M), and the initial state."""
        grid = self.encoder(canvas).flatten(2).permute(2, 0, 1)
        numbers = NUMBER * torch.eye(LOCATIONS)[:, None].expand(-1, grid.shape[1], -1)
        memory = torch.cat([grid, numbers], dim=2)
        h, c = self.begin(grid.mean(dim=0)).tanh()[None].chunk(2, dim=2)
        if self.attention == "none":
            memory = memory.mean(dim=0, keepdim=True)
        return memory, (h.contiguous(), c.contiguous())

    def read(self, canvas: Tensor, words: Tensor, lengths: Tensor, draws: bool) -> tuple[Tensor, Attended]:
        """Minus the logarithm of each word's probability, given those before it, (T, B); 0 past a caption's length.
        Beside it what the decoder read, which drew its locations where `draws`."""
        memory, state = self.encode(canvas)
        before = F.pad(words[:-1], (0, 0, 1, 0), value=END)
        decoder = self.drawing if draws else self.decoder
        read = decoder.attend(self.embedding(before), memory, None, state, lengths)
        logits = self.readout(torch.cat([read.y, read.context], dim=2))
        losses = F.cross_entropy(logits.flatten(0, 1), words.flatten(), reduction="none").view(words.shape)
        return losses * (torch.arange(len(words))[:, None] < lengths), read

    def stream(self, memory: Tensor, state: tuple[Tensor, Tensor]) -> Any:
        """A stepper: hard attention takes the most probable location."""
        kind = "hard" if self.attention == "hard" else "soft"
        decoder = fr.AttentionDecoder(EMBEDDING, HIDDEN, FEATURES + LOCATIONS, ATTENTION, attention=kind)
        decoder.load_parameters({name: value.numpy() for name, value in self.decoder.named_parameters()})
        stepper = decoder.stream(memory.numpy())
        stepper.state = tuple(part.numpy() for part in state)
        return stepper

    @torch.no_grad()
    def tell(self, canvas: np.ndarray) -> Told:
        """The most probable word at each step, given those before it."""
        self.eval()
        memory, state = self.encode(torch.from_numpy(canvas))
        stepper = self.stream(memory, state)
        word = torch.full((len(canvas),), END)
        words, attention = [], []
        for _ in range(LONGEST):
            read = stepper.step(self.embedding(word).numpy())
            word = self.readout(torch.cat([torch.from_numpy(part) for part in read], dim=1)).argmax(dim=1)
            words.append(word.numpy())
            attention.append(stepper.attention)
        return Told(np.array(words), np.array(attention))
