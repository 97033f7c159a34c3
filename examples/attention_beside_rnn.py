"""Self-attention beside recurrent nets: what a step costs, how far gradients reach, and what is remembered.

A layer of each kind, of 64 units: a tanh RNN, an LSTM, an LSTM with a decoder that attends to its states, and scaled
dot-product attention (torch's) with its feed-forward net. The first part measures the processor time and the memory of
a training step against the number of steps T, and how large the gradient of the last answer is by each earlier step.
In the second part the nets learn to copy and to recall over gaps of up to 64 steps: measured are the share of right
answers against the gap, and that gradient again. `docs/attention_beside_rnn.md` tells what is seen, and why.

    python examples/attention_beside_rnn.py                 # fails unless attention remembers and the tanh RNN does not
    python examples/attention_beside_rnn.py --part costs    # the first part alone; or learning, the second
    python examples/attention_beside_rnn.py --quick         # short sequences and few updates
"""

from __future__ import annotations

import sys
import time

import numpy as np
import torch
from attention_picture import Costs, Learnt, plot
from picture import option_parser, parse
from sequence_models import MODELS, Model
from sequence_tasks import VALUES, Copy, Recall
from step_costs import most_bytes, seconds, step_of
from tqdm import tqdm

import fusedrnn as fr

HIDDEN = 64
BATCH = 64  # of training, and of the gradients' mean
TRIED = 1000  # sequences of each gap
LEARNING_RATE = 3e-3
MAX_NORM = 1.0
TASKS = {"copy": Copy(), "recall": Recall()}
PARTS = ("costs", "learning")
FULL = {"lengths": [2**k for k in range(6, 13)], "updates": 1000, "gaps": [0, 8, 16, 32, 64]}
QUICK = {"lengths": [64, 256], "updates": 60, "gaps": [0, 8]}
REMEMBERED, FORGOTTEN = 0.95, 0.6  # shares of right answers over the widest gap, with attention and of the tanh RNN
FAR, LOST = 1e-3, 1e-6  # norms of the farthest gradient over the last's, with attention and of the tanh RNN
ATTENTIVE = ("LSTM + attention", "self-attention")


def make(name: str, vocabulary: int, seed: int) -> Model:
    torch.manual_seed(seed)  # so that no model's result depends on those before it
    return MODELS[name](vocabulary, HIDDEN, VALUES)


def costs_by_length(lengths: list[int], seed: int) -> dict[str, np.ndarray]:
    found = {name: np.zeros((len(lengths), 2)) for name in MODELS}
    with tqdm(total=len(lengths) * len(MODELS), unit="step", desc="costs") as bar:
        for i, steps in enumerate(lengths):
            for name in MODELS:
                step = step_of(make(name, VALUES, seed), steps, VALUES)
                found[name][i] = seconds(step), most_bytes(step)
                bar.update()
    return found


def reach(model: Model, gap: int, seed: int) -> np.ndarray:
    """Norms (T,) of the gradient of the last answer's score by each step's vector: a batch's means, over the last."""
    asked = TASKS["recall"].draw(np.random.default_rng(seed + 1), BATCH, gap)
    vectors = model.embedding(asked.symbols).detach().requires_grad_()
    scores = model.answer(vectors, len(asked.answers))[-1]
    (gradient,) = torch.autograd.grad(scores.gather(-1, asked.answers[-1][:, None]).sum(), vectors)
    norms = gradient.norm(dim=-1).mean(-1).numpy()
    return norms / norms[-1]


def train(model: Model, task: Copy | Recall, updates: int, gap: int, seed: int, name: str) -> None:
    """On sequences whose gaps are up to the widest."""
    generator = np.random.default_rng(seed)
    optimizer = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, updates)
    with tqdm(range(updates), unit="update", desc=name) as bar:
        for _ in bar:
            batch = task.draw(generator, BATCH, int(generator.integers(gap + 1)))
            logits = model(batch.symbols, len(batch.answers))
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.answers.flatten())
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
            optimizer.step()
            schedule.step()
            bar.set_postfix_str(f"loss {loss.item():.3f}", refresh=False)


def accuracy(model: Model, task: Copy | Recall, gap: int, seed: int) -> float:
    """The share of right answers on sequences that training did not draw."""
    batch = task.draw(np.random.default_rng(seed + 1), TRIED, gap)
    with torch.no_grad():
        return float((model(batch.symbols, len(batch.answers)).argmax(-1) == batch.answers).float().mean())


def measure(lengths: list[int], gap: int, seed: int) -> Costs:
    steps = costs_by_length(lengths, seed)
    return Costs(steps, {name: reach(make(name, TASKS["recall"].vocabulary, seed), gap, seed) for name in MODELS})


def learn(updates: int, gaps: list[int], seed: int) -> Learnt:
    right: dict[str, dict[str, list[float]]] = {}
    norms = {}
    for title, task in TASKS.items():
        right[title] = {}
        for name in MODELS:
            model = make(name, task.vocabulary, seed)
            train(model, task, updates, gaps[-1], seed, f"{title}, {name}")
            right[title][name] = [accuracy(model, task, gap, seed) for gap in gaps]
            if title == "recall":
                norms[name] = reach(model, gaps[-1], seed)
    return Learnt(right, norms)


def report_costs(costs: Costs, lengths: list[int]) -> None:
    ends = sorted({lengths[0], lengths[len(lengths) // 2], lengths[-1]})
    columns = "".join(f"{f'T = {steps}':>21}" for steps in ends)
    print(f"\n{'a training step of one sequence':<31}{columns}   farthest gradient")
    for name, values in costs.steps.items():
        rows = [values[lengths.index(steps)] for steps in ends]
        shown = "".join(f"{1e3 * taken:9.2f} ms{most / 1e6:6.1f} MB" for taken, most in rows)
        print(f"{name:<31}{shown}{costs.norms[name][0]:20.1e}")


def report_learnt(learnt: Learnt, gaps: list[int]) -> None:
    print(f"\nright answers, % (by chance {100 / VALUES:.1f}), after a gap of" + "".join(f"{gap:8}" for gap in gaps))
    for title, models in learnt.right.items():
        for name, shares in models.items():
            print(f"{f'{title}, {name}':<50}" + "".join(f"{100 * share:8.1f}" for share in shares))
    print(
        "farthest gradient, recall learnt: "
        + ", ".join(f"{name} {norms[0]:.1e}" for name, norms in learnt.norms.items())
    )


def misses_of_costs(costs: Costs) -> list[str]:
    """What does not show what it should; written so that nan misses, too."""
    found = [f"{name}: the farthest gradient is lost" for name in ATTENTIVE if not costs.norms[name][0] >= FAR]
    if not costs.norms["tanh RNN"][0] <= LOST:
        found.append("tanh RNN: the farthest gradient is not lost")
    return found


def misses_of_learnt(learnt: Learnt) -> list[str]:
    found = []
    for title, models in learnt.right.items():
        for name in ATTENTIVE:
            if not models[name][-1] >= REMEMBERED:
                found.append(f"{title}, {name}: {models[name][-1]:.1%} right, wanted {REMEMBERED:.0%}")
        if not models["tanh RNN"][-1] <= FORGOTTEN:
            found.append(f"{title}: the tanh RNN is as good, the task asks for no memory")
    return found


def main(arguments: list[str] | None = None) -> int:
    started = time.perf_counter()
    parser = option_parser(
        __doc__,
        quick="short sequences and few updates",
        seed="weights and sequences",
        output="attention_beside_rnn.png",
    )
    parser.add_argument("--part", choices=PARTS, help="this one only (default: both)")
    options = parse(parser, arguments)
    settings = QUICK if options.quick else FULL
    # One thread each, so that times can be compared; the nets are too small for more.
    torch.set_num_threads(1)
    fr.set_num_threads(1)
    costs = learnt = None
    missed = []
    if options.part != "learning":
        costs = measure(settings["lengths"], FULL["gaps"][-1], options.seed)
        report_costs(costs, settings["lengths"])
        missed += misses_of_costs(costs)
    if options.part != "costs":
        learnt = learn(settings["updates"], settings["gaps"], options.seed)
        report_learnt(learnt, settings["gaps"])
        missed += [] if options.quick else misses_of_learnt(learnt)
    plot(settings["lengths"], costs, settings["gaps"], learnt, options.output)
    print(f"\n{time.perf_counter() - started:.0f} s on one thread; wrote {options.output}")
    for miss in missed:
        print(f"error: {miss}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
