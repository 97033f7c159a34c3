"""The GPU table: ``python -m bench gpu --budget-seconds N``, fusedrnn beside torch's cuDNN layers on a CUDA device.

Contestants: torch's layer, the same after ``fusedrnn.torch.accelerate``, and the native layer. Rows come in the order
of their importance and end with the budget; the JSON is written anew after each. Every contestant gets the same input,
weights and incoming gradient, and its outputs are compared with the first one's before any is timed. Times are those of
the device, between two events, over bursts of calls, the input GEMM included; a training step goes down to the input
and every weight. Bandwidth and the matrix peaks are measured at the start of the same run.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import itertools
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from bench.environment import ROOT, git_commit

FORMAT = "fusedrnn gpu benchmark 1"
GATES = {"LSTM": 4, "GRU": 3}
MODES = {
    "fp32": ("float32", "ieee"),
    "tf32": ("float32", "tf32"),
    "bf16": ("bfloat16", "ieee"),
    "fp16": ("float16", "ieee"),
}
EPS = {"fp32": 2.0**-23, "tf32": 2.0**-10, "bf16": 2.0**-7, "fp16": 2.0**-10}
BURST_SECONDS = 0.03
ROUNDS = 5


@dataclasses.dataclass(frozen=True)
class Case:
    """One row."""

    kind: str  # "train", "infer" or "step": a stepper's
    cell: str
    mode: str
    hidden: int
    batch: int
    steps: int
    layers: int = 1
    directions: int = 1
    ragged: bool = False

    @property
    def name(self) -> str:
        shape = f"H{self.hidden}-B{self.batch}-T{self.steps}"
        return f"{self.kind}-{self.cell}-{self.mode}-{shape}-L{self.layers}D{self.directions}" + "-ragged" * self.ragged

    @property
    def itemsize(self) -> int:
        return 2 if self.mode in ("bf16", "fp16") else 4

    @property
    def weights(self) -> int:
        """Elements of all weight matrices."""
        inputs = [self.hidden] + [self.directions * self.hidden] * (self.layers - 1)
        return sum(self.directions * GATES[self.cell] * self.hidden * (i + self.hidden) for i in inputs)

    @property
    def flops(self) -> int:
        """Operations of the products, with real steps only."""
        return 2 * self.weights * int(self.lengths().sum()) * (3 if self.kind == "train" else 1)

    @property
    def least_bytes(self) -> int:
        """What must be read and written at least: weights once, x and y once; a training step, three times that."""
        moved = self.weights + self.steps * self.batch * self.hidden * (1 + self.directions)
        return moved * self.itemsize * (3 if self.kind == "train" else 1)

    def lengths(self) -> np.ndarray:
        """Steps of each row: ragged, from all to none in even distances, half of all steps."""
        if not self.ragged:
            return np.full(self.batch, self.steps)
        return np.maximum(np.linspace(self.steps, 1, self.batch).astype(int), 1)


def cases() -> list[Case]:
    """All rows, the most important first."""
    hidden, batches = (768, 256, 1024, 512, 128, 2048), (16, 64, 1, 256)
    # What published kernels are compared at; then the cases beside the plain one, at that shape.
    first = [
        Case(kind, "LSTM", mode, 768, 16, 1024)
        for mode in ("bf16", "fp16", "tf32", "fp32")
        for kind in ("infer", "train")
    ]
    beside = [
        Case("train", cell, mode, 768, 64, 128, layers, directions, ragged)
        for cell in GATES
        for mode in ("bf16", "tf32")
        for layers, directions, ragged in ((2, 1, False), (1, 2, False), (1, 1, True), (2, 2, True))
    ]
    steppers = [Case("step", cell, mode, h, 1, 1) for cell in GATES for mode in ("bf16", "fp32") for h in (256, 1024)]
    work = (("train", "bf16"), ("train", "tf32"), ("train", "fp32"), ("infer", "bf16"), ("train", "fp16"))
    work += (("infer", "tf32"), ("infer", "fp16"), ("infer", "fp32"))
    sweep = [
        Case(kind, cell, mode, h, b, steps)
        for steps in (128, 1024)
        for kind, mode in work
        for h, b in itertools.product(hidden, batches)
        for cell in GATES
    ]
    return list(dict.fromkeys([*first, *beside, *steppers, *sweep]))


def cudnn_algorithm(case: Case) -> str:
    """The algorithm torch should ask cuDNN for, by what its source says; not measured."""
    even = case.hidden % 128 == 0 and case.batch % 8 == 0 and case.batch <= 128 and case.hidden <= 1024
    plain = case.layers == 1 and case.directions == 1 and not case.ragged
    if case.mode == "fp16" and case.cell == "LSTM" and plain and even:
        return "PERSIST_STATIC"
    if not case.ragged and case.hidden <= (128 if case.kind == "train" else 192):
        return "PERSIST_STATIC_SMALL_H"
    return "STANDARD"


@dataclasses.dataclass
class Problem:
    """The arrays of a case, in float32 on the host."""

    x: np.ndarray
    dy: np.ndarray
    parameters: dict[str, np.ndarray]

    @classmethod
    def of(cls, case: Case) -> Problem:
        rng = np.random.default_rng(0)
        hidden = case.hidden
        # Of variance 1/3: normal numbers would take most of the time of a row.
        x, dy = (
            2 * rng.random((case.steps, case.batch, width), np.float32) - 1
            for width in (hidden, case.directions * hidden)
        )
        beyond = np.arange(case.steps)[:, None] >= case.lengths()
        x[beyond] = dy[beyond] = 0
        parameters = {}
        for layer, suffix in itertools.product(range(case.layers), ("", "_reverse")[: case.directions]):
            rows, inputs = GATES[case.cell] * hidden, hidden * (case.directions if layer else 1)
            for name, shape in (
                ("weight_ih", (rows, inputs)),
                ("weight_hh", (rows, hidden)),
                ("bias_ih", (rows,)),
                ("bias_hh", (rows,)),
            ):
                values = rng.uniform(-1, 1, shape) / np.sqrt(hidden)
                parameters[f"{name}_l{layer}{suffix}"] = values.astype(np.float32)
        return cls(x, dy, parameters)


Outputs = dict[str, np.ndarray]


class Contestant(Protocol):
    """Something that runs a case: `step` as it is timed, `outputs` once for the comparison."""

    def step(self) -> Any: ...

    def outputs(self) -> Outputs: ...


class Fused(Contestant):
    """fusedrnn."""

    def __init__(self, case: Case, problem: Problem) -> None:
        import fusedrnn as fr

        dtype, precision = MODES[case.mode]
        options = {"bidirectional": case.directions == 2, "dtype": dtype, "precision": precision, "device": "cuda"}
        self.layer = getattr(fr, case.cell)(case.hidden, case.hidden, case.layers, seed=0, **options)
        self.layer.load_parameters(problem.parameters, convert=True)
        self.device = self.layer._engine.memory
        self.case = case
        self.x, self.dy = (self.device.from_host(a.astype(self.layer.dtype)) for a in (problem.x, problem.dy))
        self.lengths = self.device.from_host(case.lengths().astype(np.int64)) if case.ragged else None
        if case.kind == "step":
            self.stepper = self.layer.stream(case.batch)
            self.y = self.device.empty((case.batch, case.hidden), self.layer.dtype)

    def step(self) -> Any:
        if self.case.kind == "step":
            return self.stepper.step(self.x[0], out=self.y)
        if self.case.kind == "infer":
            return self.layer(self.x, lengths=self.lengths)[0]
        y, _, tape = self.layer.forward(self.x, lengths=self.lengths)
        return y, self.layer.backward(tape, self.dy)

    def outputs(self) -> Outputs:
        result = self.step()
        arrays = {"y": result[0] if self.case.kind == "train" else result}
        if self.case.kind == "step":
            self.stepper.reset()
            arrays["y"] = self.stepper.step(self.x[0])[None]
            self.stepper.reset()
        if self.case.kind == "train":
            arrays |= {"dx": result[1].x, **result[1].parameters}
        return {name: self.device.to_host(array).astype(np.float32) for name, array in arrays.items()}


class Torch(Contestant):
    """torch's layer: cuDNN on a CUDA device."""

    def __init__(self, case: Case, problem: Problem, where: str = "cuda") -> None:
        import torch

        self.torch, self.case, self.where = torch, case, where
        kind = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[MODES[case.mode][0]]
        self.module = getattr(torch.nn, case.cell)(
            case.hidden, case.hidden, case.layers, bidirectional=case.directions == 2, device=where, dtype=kind
        )
        self.module.load_state_dict(
            {name: torch.tensor(array, dtype=kind) for name, array in problem.parameters.items()}
        )
        self.x = torch.tensor(problem.x, dtype=kind, device=where, requires_grad=case.kind == "train")
        self.dy = torch.tensor(problem.dy, dtype=kind, device=where)
        self.lengths = torch.tensor(case.lengths()) if case.ragged else None
        self.state: Any = None

    def _run(self) -> Any:
        if self.lengths is None:
            return self.module(self.x, self.state)
        rnn = self.torch.nn.utils.rnn
        packed = rnn.pack_padded_sequence(self.x, self.lengths, enforce_sorted=False)
        out, state = self.module(packed)
        return rnn.pad_packed_sequence(out, total_length=self.case.steps)[0], state

    def step(self) -> Any:
        if self.where != "cpu":  # torch's own test helpers forbid it, and the CPU has no use for it
            self.torch.backends.cudnn.allow_tf32 = self.case.mode == "tf32"
        if self.case.kind == "train":
            for tensor in (self.x, *self.module.parameters()):
                tensor.grad = None
            y = self._run()[0]
            y.backward(self.dy)
            return y
        with self.torch.inference_mode():
            y, state = self._run()
            if self.case.kind == "step":
                self.state = state
            return y

    def outputs(self) -> Outputs:
        self.state = None
        arrays = {"y": self.step()}
        if self.case.kind == "train":
            arrays |= {"dx": self.x.grad} | {name: p.grad for name, p in self.module.named_parameters()}
        return {name: array.detach().float().cpu().numpy() for name, array in arrays.items()}


class Accelerated(Torch):
    """torch's layer, swapped for fusedrnn's."""

    def __init__(self, case: Case, problem: Problem, where: str = "cuda") -> None:
        super().__init__(case, problem, where)
        from fusedrnn.torch import accelerate, why_not

        accelerate(self.module)
        reason = why_not(self.module)
        if reason is not None:
            raise ValueError(f"torch's own layer runs: {reason}")


def disagreement(expected: Outputs, actual: Outputs, case: Case) -> str | None:
    """What differs by more than rounding, or None: errors grow with the root of the summands, and with the steps.

    In 16 bits that would allow anything; a quarter of the largest value still tells a wrong answer from a rough one.
    """
    allowed = min(8 * EPS[case.mode] * np.sqrt(case.hidden) * (1 + np.log2(case.steps)), 0.25)
    for name, wanted in expected.items():
        error = np.max(np.abs(actual[name] - wanted)) / max(np.max(np.abs(wanted)), 1e-30)
        if not error <= allowed:
            return f"{name} is off by {error:.1e} of its largest value, {allowed:.1e} allowed"
    return None


def measure(
    case: Case,
    makers: dict[str, Callable[[Case, Problem], Contestant]],
    seconds_of: Callable[[Callable[[], Any], int], float],
) -> dict[str, Any]:
    """One row: times of those that agree with the first, and what is wrong with the others."""
    problem = Problem.of(case)
    row: dict[str, Any] = {**dataclasses.asdict(case), "name": case.name, "cudnn": cudnn_algorithm(case)}
    row |= {"flops": case.flops, "least_bytes": case.least_bytes, "seconds": {}, "errors": {}}
    ready: dict[str, tuple[Contestant, int]] = {}
    expected: Outputs | None = None
    for name, make in makers.items():
        try:
            one = make(case, problem)
            outputs = one.outputs()
            expected = expected if expected is not None else outputs
            wrong = disagreement(expected, outputs, case)
            if wrong is None:
                seconds_of(one.step, 3)
                ready[name] = one, max(1, round(BURST_SECONDS / max(seconds_of(one.step, 2), 1e-6)))
        except Exception as error:  # one that fails is a line of the row, not the end of the run
            wrong = f"{type(error).__name__}: {error}"
        if wrong is not None:
            row["errors"][name] = wrong
    samples: dict[str, list[float]] = {name: [] for name in ready}
    for number in range(ROUNDS):
        for name in list(ready)[:: -1 if number % 2 else 1]:
            one, calls = ready[name]
            samples[name].append(seconds_of(one.step, calls))
    row["seconds"] = {name: float(np.median(times)) for name, times in samples.items()}
    row["samples"] = samples
    row["us_per_step"] = {name: 1e6 * value / case.steps for name, value in row["seconds"].items()}
    return row


def shares(row: dict[str, Any], limits: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Parts of the matrix peak of the row's mode and of the bandwidth."""
    return {
        name: {
            "of_matrix_peak": row["flops"] / seconds / limits["flops_per_second"][row["mode"]],
            "of_bandwidth": row["least_bytes"] / seconds / limits["bytes_per_second"],
        }
        for name, seconds in row["seconds"].items()
    }


def within_budget(rows: Sequence[Case], budget: float, clock: Callable[[], float]) -> Iterator[Case]:
    """Rows, as long as one as long as the longest before would still end within the budget."""
    begun = last = clock()
    longest = 0.0
    for case in rows:
        if clock() - begun + longest > budget:
            return
        last = clock()
        yield case
        longest = max(longest, clock() - last)


def run(
    rows: Sequence[Case],
    facts: dict[str, Any],
    measured: Callable[[Case], dict[str, Any]],
    path: Path,
    budget: float,
    clock: Callable[[], float] = time.monotonic,
) -> list[dict[str, Any]]:
    """Measure what the budget allows, and write everything after each row."""
    done: list[dict[str, Any]] = []
    for case in within_budget(rows, budget, clock):
        row = measured(case)
        row["shares"] = shares(row, facts["limits"])
        done.append(row)
        left = [one.name for one in rows[len(done) :]]
        unfinished = path.with_suffix(".partial")
        unfinished.write_text(json.dumps({"format": FORMAT, **facts, "rows": done, "not_run": left}, indent=1) + "\n")
        unfinished.replace(path)
        times = ", ".join(f"{name} {value:.2f}" for name, value in row["us_per_step"].items())
        print(f"{case.name}: us a step: {times}" + "".join(f"; {k}: {v}" for k, v in row["errors"].items()), flush=True)
    return done


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as a table: us a step of each contestant with the longest burst over the shortest, and torch's over ours."""
    names = ("torch", "accelerated", "fusedrnn")
    lines = ["| row | torch us a step | accelerated | fusedrnn | torch over fusedrnn |", "| --- " * 5 + "|"]
    for row in rows:
        times, cells = row["us_per_step"], []
        for name in names:
            samples = row.get("samples", {}).get(name)
            spread = f" ({max(samples) / min(samples):.2f})" if samples else ""
            cells.append(f"{times[name]:.3g}{spread}" if name in times else "-")
        ratio = f"{times['torch'] / times['fusedrnn']:.3g}" if {"torch", "fusedrnn"} <= set(times) else "-"
        lines.append(f"| {' | '.join((row['name'], *cells, ratio))} |")
    return "\n".join(lines)


def commit() -> str:
    """The commit that is measured: FUSEDRNN_COMMIT, for a copy without its repository, or git's."""
    return os.environ.get("FUSEDRNN_COMMIT") or git_commit() or "unknown"


def event_seconds(step: Callable[[], Any], calls: int) -> float:
    """Seconds of a call on the device's legacy default stream, which both CuPy and torch use here."""
    import cupy

    begin, end = cupy.cuda.Event(), cupy.cuda.Event()
    begin.record()
    for _ in range(calls):
        step()
    end.record()
    end.synchronize()
    return float(cupy.cuda.get_elapsed_time(begin, end)) / 1e3 / calls


def release_memory() -> None:
    """Give back what both libraries' pools keep, so that neither runs out because of what the other kept of a row."""
    import cupy
    import torch

    gc.collect()
    torch.cuda.empty_cache()
    cupy.get_default_memory_pool().free_all_blocks()


def measure_limits() -> dict[str, Any]:
    """Bandwidth of a large copy and the speed of large square products, through torch."""
    import torch

    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    copy = min(event_seconds(lambda: target.copy_(source), 20) for _ in range(5))
    size, speeds = 8192, {}
    for mode, kind in (
        ("fp32", torch.float32),
        ("tf32", torch.float32),
        ("bf16", torch.bfloat16),
        ("fp16", torch.float16),
    ):
        torch.backends.cuda.matmul.allow_tf32 = mode == "tf32"
        a = torch.randn(size, size, device="cuda").to(kind)
        best = min(event_seconds(lambda a=a: a @ a, 5) for _ in range(4))
        speeds[mode] = 2 * size**3 / best
    return {"bytes_per_second": 2 * source.numel() / copy, "flops_per_second": speeds}


def gather_facts() -> dict[str, Any]:
    """Device, driver, versions, commit and limits."""
    import cupy
    import torch

    import fusedrnn as fr

    runtime = cupy.cuda.runtime
    return {
        "device": fr.info()["cuda"],
        "driver": runtime.driverGetVersion(),
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "fusedrnn": fr.__version__,
            "cupy": cupy.__version__,
            "cuda_runtime": runtime.runtimeGetVersion(),
            "torch": torch.__version__,
            "cudnn": torch.backends.cudnn.version(),
        },
        "commit": commit(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "limits": measure_limits(),
    }


def missing() -> str | None:
    """Why nothing can be measured here."""
    from fusedrnn.arrays.device import describe

    found = describe()
    if found.startswith("none: "):
        return f"no CUDA device: {found.removeprefix('none: ')}"
    try:
        import torch
    except ImportError as error:
        return f"torch cannot be imported: {error}"
    return None if torch.cuda.is_available() else "this torch finds no CUDA device: it may be a build for the CPU"


def positive(text: str) -> float:
    """Seconds, positive and finite."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number of seconds")
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the table; 1 if a contestant failed or disagreed."""
    parser = argparse.ArgumentParser("python -m bench gpu", description=__doc__)
    parser.add_argument(
        "--budget-seconds", type=positive, default=600.0, help="no row begins that would end after this (600)"
    )
    parser.add_argument("--output", type=Path, default=ROOT / "bench" / "results" / "gpu.json", help="the JSON file")
    parser.add_argument("--list", action="store_true", help="print the names of the rows in their order and stop")
    parser.add_argument("--show", action="store_true", help="print the JSON file's rows as Markdown and stop")
    options = parser.parse_args(arguments)
    if options.show:
        print(markdown(json.loads(options.output.read_text())["rows"]))
        return 0
    if options.list:
        print("\n".join(case.name for case in cases()))
        return 0
    reason = missing()
    if reason is not None:
        parser.error(reason)
    if not options.output.parent.is_dir():
        parser.error(f"there is no directory {options.output.parent}")
    begun = time.monotonic()
    facts = {**gather_facts(), "budget_seconds": options.budget_seconds}
    makers: dict[str, Callable[[Case, Problem], Contestant]] = {
        "torch": Torch,
        "accelerated": Accelerated,
        "fusedrnn": Fused,
    }
    left = options.budget_seconds - (time.monotonic() - begun)

    def measured(case: Case) -> dict[str, Any]:
        row = measure(case, makers, event_seconds)
        release_memory()
        return row

    done = run(cases(), facts, measured, options.output, left)
    return int(any(row["errors"] for row in done))


if __name__ == "__main__":
    sys.exit(main())
