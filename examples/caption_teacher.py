"""How a captioner learns: the loss of Xu et al. 2015 for soft attention, and for hard attention."""

from __future__ import annotations

import torch
from captioner import FEATURES, NUMBER, Captioner
from digit_scenes import LONGEST, Scenes
from torch import Tensor, nn

RATE = 3e-3
MAX_NORM = 5.0
PENALTY = 0.002  # of the doubly stochastic term
ENTROPY = 0.002  # of the entropy term
DECAY = 0.9  # of the moving baseline


class Teacher:
    """Trains a captioner on one batch after the other.

    In some updates hard attention reads the expected value, as soft attention does, in place of a drawn location, as in
    the paper: here in the first half of all updates, and then in ever fewer, down to none.
    """

    def __init__(self, model: Captioner, updates: int) -> None:
        self.model, self.updates, self.update = model, updates, 0
        self.optimizer = torch.optim.Adam(model.parameters(), RATE)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, RATE, updates, pct_start=0.1)
        self.baseline = torch.zeros(LONGEST)

    def learn(self, scenes: Scenes) -> float:
        """One update; gives the mean loss of a word."""
        model = self.model
        draws = model.attention == "hard" and float(torch.rand(())) < 2 * self.update / self.updates - 1
        canvas, words, lengths = (torch.from_numpy(array) for array in scenes[:3])
        losses, read = model.read(canvas, words, lengths, draws)
        total = losses.sum()
        if model.attention == "soft":
            weights = read.context[..., FEATURES:].sum(dim=0) / NUMBER
            total = total + PENALTY * ((1 - weights) ** 2).sum()
        if model.attention == "hard":
            surprise = self.surprise(losses.detach())
            if draws:
                total = total + (surprise * read.log_prob - ENTROPY * read.entropy).sum()
        self.optimizer.zero_grad()
        (total / len(lengths)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        self.optimizer.step()
        self.schedule.step()
        self.update += 1
        return float(losses.detach().sum() / lengths.sum())

    def surprise(self, losses: Tensor) -> Tensor:
        """Losses of a step's word and those after it, (T, B), less the moving baseline of the step.

        A location has no part in the words before it: without them REINFORCE's mean is the same, and its noise less.
        """
        to_come = losses.flip(0).cumsum(dim=0).flip(0)
        baseline = self.baseline[: len(losses)]
        surprise = to_come - baseline[:, None]
        baseline += (1 - DECAY) * surprise.mean(dim=1)
        return surprise
