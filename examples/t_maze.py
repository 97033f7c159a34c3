"""The T-maze (Bakker 2002), many at once: what was read at the entrance decides at the fork."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

FORWARD, LEFT, RIGHT = range(3)
OBSERVATIONS = ("the sign says left", "the sign says right", "fork")


class Step(NamedTuple):
    """What every maze gives back for an action.

    `observation` is what is seen next, where `ended` is true at the entrance of the next episode.
    """

    observation: np.ndarray  # (B, 3) float32
    reward: np.ndarray  # (B,) float32
    ended: np.ndarray  # (B,) bool


class TMazes:
    """`count` corridors, each with a sign at its entrance and a fork at its end.

    The sign says left or right and can be read in the first step alone; the corridor is `shortest` to `longest` steps
    long, drawn anew for every episode. At the fork the way the sign told brings 1, the other -1. A step that does not
    lead anywhere costs `BUMP`, and an episode ends without a reward after `PATIENCE` times the steps it needs.
    """

    BUMP = -0.05
    PATIENCE = 4

    def __init__(self, count: int, shortest: int, longest: int, seed: int) -> None:
        self.lengths = (shortest, longest)
        self.generator = np.random.default_rng(seed)
        self.side, self.length, self.place, self.age = (np.zeros(count, np.int64) for _ in range(4))
        self.enter(np.ones(count, bool))

    def enter(self, rows: np.ndarray) -> None:
        """Begin an episode in the rows of a mask."""
        count = int(rows.sum())
        self.side[rows] = self.generator.choice((LEFT, RIGHT), count)
        self.length[rows] = self.generator.integers(*self.lengths, count, endpoint=True)
        self.place[rows] = self.age[rows] = 0

    def observe(self) -> np.ndarray:
        """What is seen in each maze, (B, 3) of 0 and 1 in the order of `OBSERVATIONS`."""
        first = self.age == 0
        seen = (first & (self.side == LEFT), first & (self.side == RIGHT), self.place == self.length)
        return np.stack(seen, axis=-1).astype(np.float32)

    def step(self, actions: np.ndarray) -> Step:
        """Take one action in every maze, (B,) of `FORWARD`, `LEFT` and `RIGHT`."""
        at_fork = self.place == self.length
        turned = at_fork & (actions != FORWARD)
        walked = ~at_fork & (actions == FORWARD)
        reward = np.where(turned, np.where(actions == self.side, 1.0, -1.0), np.where(walked, 0.0, self.BUMP))
        self.place += walked
        self.age += 1
        ended = turned | (self.age >= self.PATIENCE * (self.length + 1))
        self.enter(ended)
        return Step(self.observe(), reward.astype(np.float32), ended)
