"""Train a policy that has a memory by reinforcement learning, beside one that has none.

The task is the T-maze: a sign at the entrance tells which way to turn at the end of a corridor, whose length is drawn
anew for each episode. The best return is 1; without a memory it is 0 on average.

Each window of steps holds pieces of episodes of all lengths, in 64 mazes at once. `reset` says where one ends and the
next begins, to the stepper that acts and to the layer that learns. What the layer gives has the bits of what the
stepper gave, so the probabilities and values found while acting serve for learning as they are.

    python examples/recurrent_policy.py                  # an LSTM; fails unless its mean return ends above 0.95
    python examples/recurrent_policy.py --cell gru
    python examples/recurrent_policy.py --quick          # short corridors, for a few seconds
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from picture import option_parser, parse, picture
from t_maze import OBSERVATIONS, RIGHT, TMazes
from tqdm import tqdm

import fusedrnn as fr

CELLS = {"lstm": fr.LSTM, "gru": fr.GRU, "rnn": fr.RNN}
ACTIONS = RIGHT + 1
MAZES = 64
WINDOW = 32
HIDDEN = 32
LEARNING_RATE = 5e-3
MAX_NORM = 0.5
DISCOUNT = 0.98
TRACE = 0.95  # lambda of the advantages
VALUE_WEIGHT = 0.5
ENTROPY_WEIGHT = 0.01
LAST = 1000  # episodes that a mean return is taken over

FULL = {"corridor": (3, 10), "windows": 400}
QUICK = {"corridor": (1, 3), "windows": 150}
TARGET = 0.95


class Window(NamedTuple):
    """What one window of acting gives to learn from, time first."""

    observations: np.ndarray  # (T, B, 3)
    resets: np.ndarray  # (T, B): the first step of an episode
    state: object  # of the layer before the first step
    hidden: np.ndarray  # (T, B, H)
    probabilities: np.ndarray  # (T, B, A)
    actions: np.ndarray  # (T, B)
    values: np.ndarray  # (T + 1, B)
    rewards: np.ndarray  # (T, B)
    ended: np.ndarray  # (T, B)


class Agent:
    """A recurrent layer with a policy and a value read from its output.

    Without `memory` the state is reset before every step, and nothing else differs.
    """

    def __init__(self, cell: str, memory: bool, seed: int) -> None:
        self.layer = CELLS[cell](len(OBSERVATIONS), HIDDEN, seed=seed)
        self.memory = memory
        self.generator = np.random.default_rng(seed)
        # Zeros: at first every action is as likely as any other. The value is the last row.
        self.heads = {"weight": np.zeros((ACTIONS + 1, HIDDEN), np.float32), "bias": np.zeros(ACTIONS + 1, np.float32)}
        groups = {"layer": self.layer.parameters, "heads": self.heads}
        self.optimizer = fr.optim.Adam(groups, lr=LEARNING_RATE)

    def resets(self, first: np.ndarray) -> np.ndarray:
        """The rows whose state goes before this step: those that begin an episode, or all."""
        return first if self.memory else np.ones_like(first)

    def read(self, hidden: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The logits of the actions and the value, from the layer's output."""
        out = fr.linear(hidden, **self.heads)
        return out[..., :ACTIONS], out[..., ACTIONS]

    def act(self, hidden: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Draw an action for each row; gives them with their probabilities and the values."""
        logits, values = self.read(hidden)
        probabilities = fr.softmax(np.ascontiguousarray(logits))
        drawn = self.generator.random((len(hidden), 1), np.float32) > probabilities.cumsum(axis=-1)
        return np.minimum(drawn.sum(axis=-1), ACTIONS - 1), probabilities, values

    def learn(self, window: Window) -> None:
        """One step of advantage actor-critic on a window."""
        advantages = generalized_advantages(window.rewards, window.values, window.ended)
        returns = advantages + window.values[:-1]
        y, _, tape = self.layer.forward(window.observations, window.state, reset=window.resets)
        assert np.array_equal(y, window.hidden), "the layer and its stepper differ"
        _, heads_tape = fr.linear_forward(y, **self.heads)
        dout = gradient_of_heads(window, normalized(advantages), returns)
        dy, dweight, dbias = fr.linear_backward(heads_tape, dout)
        grads, heads = self.layer.backward(tape, dy), {"weight": dweight, "bias": dbias}
        fr.clip_grad_norm([grads, heads], MAX_NORM)
        self.optimizer.step({"layer": grads, "heads": heads})


def normalized(values: np.ndarray) -> np.ndarray:
    return (values - values.mean()) / (values.std() + np.float32(1e-6))


def generalized_advantages(rewards: np.ndarray, values: np.ndarray, ended: np.ndarray) -> np.ndarray:
    """Advantages (T, B) of Schulman et al. 2016: nothing is expected beyond the end of an episode."""
    advantages = np.empty_like(rewards)
    following = np.zeros_like(rewards[0])
    for t in reversed(range(len(rewards))):
        goes_on = DISCOUNT * ~ended[t]
        following = rewards[t] + goes_on * values[t + 1] - values[t] + TRACE * goes_on * following
        advantages[t] = following
    return advantages


def gradient_of_heads(window: Window, advantages: np.ndarray, returns: np.ndarray) -> np.ndarray:
    """The loss differentiated by logits and value, (T, B, A + 1).

    The loss is the mean over all steps of -advantage * log p(action) - ENTROPY_WEIGHT * entropy
    + VALUE_WEIGHT * (value - return)^2 / 2.
    """
    p = window.probabilities
    log_p = np.log(np.maximum(p, np.finfo(p.dtype).tiny))
    entropy = -(p * log_p).sum(axis=-1, keepdims=True)
    dout = np.empty((*window.actions.shape, ACTIONS + 1), p.dtype)
    chosen = np.arange(ACTIONS) == window.actions[..., None]
    dout[..., :ACTIONS] = (p - chosen) * advantages[..., None] + ENTROPY_WEIGHT * p * (log_p + entropy)
    dout[..., ACTIONS] = VALUE_WEIGHT * (window.values[:-1] - returns)
    return dout / window.actions.size


class Rollouts:
    """Acts in the mazes, window after window, and keeps the returns of the episodes that ended."""

    def __init__(self, agent: Agent, mazes: TMazes) -> None:
        self.agent, self.mazes = agent, mazes
        self.observation = mazes.observe()
        self.first = np.ones(len(self.observation), bool)
        self.state = None
        self.running = np.zeros(len(self.observation))
        self.returns: list[float] = []

    def window(self, steps: int) -> Window:
        """Act for `steps` steps with the weights as they are now."""
        agent, state = self.agent, self.state
        stepper = agent.layer.stream(len(self.observation))
        if state is not None:
            stepper.state = state
        rows = []
        for _ in range(steps):
            reset = agent.resets(self.first)
            stepper.reset(reset)
            hidden = stepper.step(self.observation)
            actions, probabilities, values = agent.act(hidden)
            seen, (self.observation, rewards, self.first) = self.observation, self.mazes.step(actions)
            rows.append((seen, reset, hidden, probabilities, actions, values, rewards, self.first))
            self.count(rewards, self.first)
        self.state = stepper.state
        observations, resets, hidden, probabilities, actions, values, rewards, ended = (
            np.stack(each) for each in zip(*rows, strict=True)
        )
        values = np.concatenate([values, self.value_ahead()[None]])
        return Window(observations, resets, state, hidden, probabilities, actions, values, rewards, ended)

    def value_ahead(self) -> np.ndarray:
        """The value of what is seen now, (B,), for the steps that lie beyond the window."""
        agent, reset = self.agent, self.agent.resets(self.first)
        y, _ = agent.layer(self.observation[None], self.state, reset=reset[None])
        return agent.read(y[0])[1]

    def count(self, rewards: np.ndarray, ended: np.ndarray) -> None:
        self.running += rewards
        self.returns += self.running[ended].tolist()
        self.running[ended] = 0.0

    def mean_return(self) -> float:
        """Over the last episodes."""
        return float(np.mean(self.returns[-LAST:])) if self.returns else float("nan")


def train(name: str, agent: Agent, settings: dict, seed: int) -> list[float]:
    """Train an agent; gives the mean return after each window."""
    rollouts = Rollouts(agent, TMazes(MAZES, *settings["corridor"], seed))
    curve = []
    with tqdm(range(settings["windows"]), unit="window", desc=name) as bar:
        for _ in bar:
            agent.learn(rollouts.window(WINDOW))
            curve.append(rollouts.mean_return())
            bar.set_postfix_str(f"mean return {curve[-1]:.3f}", refresh=False)
    return curve


def random_return(settings: dict, seed: int) -> float:
    """The mean return of actions drawn blindly, which is what an agent that has not learned does."""
    rollouts = Rollouts(Agent("rnn", False, seed), TMazes(MAZES, *settings["corridor"], seed))
    while len(rollouts.returns) < LAST:
        rollouts.window(WINDOW)
    return rollouts.mean_return()


def plot(curves: dict[str, list[float]], random: float, output: Path) -> None:
    """Draw the mean returns over the steps taken; the file's suffix picks the format."""
    with picture(output) as axes:
        for label, curve in curves.items():
            axes.plot(np.arange(1, len(curve) + 1) * MAZES * WINDOW, curve, label=label)
        axes.axhline(random, color="gray", linestyle=":", label="random actions")
        axes.set_xlabel("steps taken in the mazes")
        axes.set_ylabel(f"mean return of the last {LAST} episodes")
        axes.set_title("The T-maze: a sign at the entrance, a fork at the end")


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = option_parser(
        __doc__,
        quick="short corridors and few windows",
        seed="weights, mazes and actions",
        output="recurrent_policy.png",
    )
    parser.add_argument("--cell", choices=CELLS, default="lstm", help="default: %(default)s")
    parser.add_argument("--windows", type=int, help=f"windows of {WINDOW} steps (default: {FULL['windows']})")
    options = parse(parser, arguments)
    if options.windows is not None and options.windows < 1:
        parser.error(f"argument --windows: wanted at least 1, got {options.windows}")
    return options


def main(arguments: list[str] | None = None) -> int:
    started = time.perf_counter()
    options = parse_arguments(arguments)
    settings = dict(QUICK if options.quick else FULL)
    settings["windows"] = options.windows or settings["windows"]
    kind = CELLS[options.cell].__name__
    agents = {kind: Agent(options.cell, True, options.seed), "no memory": Agent(options.cell, False, options.seed)}
    curves = {name: train(name, agent, settings, options.seed) for name, agent in agents.items()}
    returns = {"random actions": random_return(settings, options.seed), **{name: c[-1] for name, c in curves.items()}}
    print(f"\nmean return of the last {LAST} episodes")
    for name, value in returns.items():
        print(f"  {name:<16}{value:6.3f}")
    plot(curves, returns["random actions"], options.output)
    print(f"\n{time.perf_counter() - started:.1f} s on {fr.get_num_threads()} threads; wrote {options.output}")
    if not returns[kind] > TARGET:  # so that nan misses, too
        print(f"error: a mean return of {returns[kind]:.3f}, wanted above {TARGET}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
