"""DRAW (Gregor et al. 2015) on `fusedrnn.torch.LSTMCell`, with and without attention; a plain variational autoencoder.

Each model gives, for images x (B, H, W), the logits of their pixels and the KL divergence of its latent variables from
their prior, in nats (B,). Numbers in brackets are the paper's equations.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import gaussian_attention
import torch
from torch import Tensor, nn

from fusedrnn.torch import LSTMCell

# The first windows' log variance, and log gamma for writing: with these z shows on the canvas from the first update on.
LOG_VARIANCE, LOG_GAMMA = -0.7, -2.0


class Moment(NamedTuple):
    """DRAW after one step: the canvas c_t (B, H, W), and the windows (B, 5) that it read and wrote through, if any."""

    canvas: Tensor
    read: Tensor | None
    written: Tensor | None


class Latent(nn.Module):
    """A Gaussian z given features: a sample, and its divergence from a standard normal distribution."""

    def __init__(self, features: int, size: int) -> None:
        super().__init__()
        self.moments = nn.Linear(features, 2 * size)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_sigma = self.moments(features).chunk(2, dim=-1)  # (1), (2)
        z = mean + log_sigma.exp() * torch.randn_like(mean)
        kl = 0.5 * (mean**2 + (2 * log_sigma).exp() - 2 * log_sigma - 1).sum(dim=-1)  # (11)
        return z, kl


class WholeImage(nn.Module):
    """Reading and writing without attention: all pixels at every step."""

    def __init__(self, side: int, hidden: int) -> None:
        super().__init__()
        self.side = side
        self.features = 2 * side**2
        self.image = nn.Linear(hidden, side**2)

    def read(self, images: Tensor, h: Tensor) -> tuple[Tensor, None]:
        return images.flatten(1), None  # (17)

    def write(self, h: Tensor) -> tuple[Tensor, None]:
        return self.image(h).unflatten(-1, (self.side, self.side)), None  # (18)


class Windows(nn.Module):
    """Reading and writing through grids of N x N Gaussians that the decoder places."""

    def __init__(self, side: int, hidden: int, reading: int, writing: int) -> None:
        super().__init__()
        self.side, self.reading, self.writing = side, reading, writing
        self.features = 2 * reading**2
        self.read_window = nn.Linear(hidden, 5)
        self.write_window = nn.Linear(hidden, 5)
        self.patch = nn.Linear(hidden, writing**2)
        with torch.no_grad():
            self.read_window.bias.copy_(torch.tensor([0, 0, LOG_VARIANCE, 0, 0]))
            self.write_window.bias.copy_(torch.tensor([0, 0, LOG_VARIANCE, 0, LOG_GAMMA]))

    def read(self, images: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        window = self.read_window(h)  # (21)
        return gaussian_attention.read(images, window, self.reading).flatten(1), window  # (27)

    def write(self, h: Tensor) -> tuple[Tensor, Tensor]:
        window = self.write_window(h)
        patch = self.patch(h).unflatten(-1, (1, self.writing, self.writing))  # (28)
        return gaussian_attention.write(patch, window, (self.side, self.side))[:, 0], window  # (29)


class Draw(nn.Module):
    """A variational autoencoder that paints an image step by step."""

    def __init__(self, glimpse: WholeImage | Windows, steps: int, hidden: int, latent: int) -> None:
        super().__init__()
        self.glimpse, self.steps, self.size = glimpse, steps, latent
        self.encoder = LSTMCell(glimpse.features + hidden, hidden)
        self.latent = Latent(hidden, latent)
        self.decoder = LSTMCell(latent, hidden)
        # What is there before the first step is learnt: the canvas, and h and c of encoder and decoder.
        self.canvas = nn.Parameter(torch.zeros(glimpse.side, glimpse.side))
        self.states = nn.Parameter(torch.zeros(4, hidden))
        for cell in (self.encoder, self.decoder):
            nn.init.xavier_uniform_(cell.weight_ih)
            nn.init.orthogonal_(cell.weight_hh)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        moments, divergences = zip(*self.autoencode(x), strict=True)
        return moments[-1].canvas, torch.stack(divergences).sum(dim=0)  # (10)

    def autoencode(self, x: Tensor) -> Iterator[tuple[Moment, Tensor]]:
        """What is on the canvas after every step that looks at x, and the step's KL divergence."""
        encoder, decoder, canvas = self._start(len(x))
        for _ in range(self.steps):
            error = x - torch.sigmoid(canvas)  # (3)
            r, read = self.glimpse.read(torch.stack([x, error], dim=1), decoder[0])  # (4)
            encoder = self.encoder(torch.cat([r, decoder[0]], dim=-1), encoder)  # (5)
            z, kl = self.latent(encoder[0])  # (6)
            decoder = self.decoder(z, decoder)  # (7)
            stroke, written = self.glimpse.write(decoder[0])
            canvas = canvas + stroke  # (8)
            yield Moment(canvas, read, written), kl

    def generate(self, count: int) -> Iterator[Moment]:
        """What is on the canvas after every step, with z from the prior."""
        _, decoder, canvas = self._start(count)
        for _ in range(self.steps):
            decoder = self.decoder(torch.randn(count, self.size), decoder)  # (13), (14)
            stroke, written = self.glimpse.write(decoder[0])
            canvas = canvas + stroke  # (15)
            yield Moment(canvas, None, written)

    def _start(self, count: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], Tensor]:
        states = [state.expand(count, -1).contiguous() for state in self.states]
        return (states[0], states[1]), (states[2], states[3]), self.canvas.expand(count, -1, -1)


class Autoencoder(nn.Module):
    """A plain variational autoencoder: a hidden layer before z, and one after it."""

    def __init__(self, side: int, hidden: int, latent: int) -> None:
        super().__init__()
        self.side = side
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(side**2, hidden), nn.Tanh())
        self.latent = Latent(hidden, latent)
        self.decoder = nn.Sequential(nn.Linear(latent, hidden), nn.Tanh(), nn.Linear(hidden, side**2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z, kl = self.latent(self.encoder(x))
        return self.decoder(z).unflatten(-1, (self.side, self.side)), kl
