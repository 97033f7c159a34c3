"""The contestants on a CUDA device: those of `bench.peers`, with their arrays there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np

from bench.cases import GPU_STEP, Case
from bench.peers import Fusedrnn, Peer, Torch, Work
from bench.problem import Array, Problem
from bench.ragged import torch_packed


class CudaFusedrnn(Fusedrnn):
    """This library's layers, over CuPy's arrays."""

    def options(self, case: Case) -> dict[str, Any]:
        return {"dtype": case.dtype, "precision": case.precision, "device": "cuda"}

    def put(self, array: Any) -> Any:
        import cupy

        return cupy.asarray(array)

    def get(self, array: Any) -> Array:
        import cupy

        return cupy.asnumpy(array).astype(np.float32)

    def stepper(self, problem: Problem) -> Work:
        """A stepper that writes into an array of the caller's."""
        layer = self.layer(problem)
        stepper, x = layer.stream(problem.case.batch), self.put(problem.x[0].astype(layer.dtype))
        out = self.put(np.empty((problem.case.batch, problem.case.hidden), layer.dtype))
        return Work(lambda: stepper.step(x, out=out), lambda y: {"y": self.get(y)[None]})

    def prepare(self, problem: Problem) -> Work:
        case = problem.case
        if case.table == GPU_STEP:
            return self.stepper(problem)
        return self.work(problem, lengths=self.put(np.array(case.lengths)) if case.ragged else None)


class CudaTorch(Torch):
    """torch's layers: cuDNN's on a CUDA device."""

    def __init__(self, device: str = "cuda") -> None:
        self.device = device

    @contextmanager
    def mode(self, case: Case) -> Iterator[None]:
        """Without gradients in inference, and with TF32 where the case says so."""
        import torch

        if self.device != "cpu":  # torch's own test helpers forbid it, and the CPU has no use for it
            torch.backends.cudnn.allow_tf32 = case.precision == "tf32"
        with nullcontext() if case.training else torch.inference_mode():
            yield

    def prepare(self, problem: Problem) -> Work:
        case, state = problem.case, None

        def forward(module: Any, x: Any) -> Any:
            nonlocal state
            y, following = module(x, state)
            state = following if case.table == GPU_STEP else None
            return y

        lengths = np.array(case.lengths)
        work = torch_packed(problem, lengths, self) if case.ragged else self.work(problem, forward)
        return replace(work, context=lambda: self.mode(case))


class Accelerated(CudaTorch):
    """torch's layers, swapped for fusedrnn's."""

    name = "accelerated"

    def module_of(self, problem: Problem) -> Any:
        from fusedrnn.torch import accelerate, why_not

        module = super().module_of(problem)
        accelerate(module)
        reason = why_not(module)
        if reason is not None:
            raise ValueError(f"torch's own layer runs: {reason}")
        return module


GPU_PEERS: tuple[Peer, ...] = (CudaTorch(), Accelerated(), CudaFusedrnn())
"""The others are compared with the first."""
