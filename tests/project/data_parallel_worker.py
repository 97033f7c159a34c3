"""One process of tests/project/test_data_parallel.py: torch's DistributedDataParallel over gloo around swapped modules.

Arguments: rank, processes, port, mode. "check" compares with one process on the joint batch; "die" and "raise" make the
last process end in the middle of training; "time" prints what a step costs.
"""

from __future__ import annotations

import copy
import datetime
import os
import signal
import sys
import time
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import fusedrnn.torch as ft

STEPS, BATCH, INPUTS, HIDDEN, UPDATES = 12, 4, 6, 20, 3


class Model(nn.Module):
    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.recurrent = nn.GRU(INPUTS, HIDDEN, 2, bidirectional=True, dtype=dtype)
        self.cell = nn.LSTMCell(2 * HIDDEN, HIDDEN, dtype=dtype)
        self.readout = nn.Linear(HIDDEN, 3, dtype=dtype)

    def forward(self, x: Any) -> Any:
        y, _ = self.recurrent(x)
        state = None
        for t in range(0, len(y), 4):
            state = self.cell(y[t], state)
        return self.readout(state[0])


def check(model: nn.Module, joint: nn.Module, rank: int, processes: int) -> None:
    """Some steps of SGD; after each backward pass the gradients are those of the joint batch."""
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, joint)]
    for _ in range(UPDATES):
        x = torch.randn(STEPS, BATCH * processes, INPUTS, dtype=torch.float64)
        for optimizer in optimizers:
            optimizer.zero_grad()
        model(x[:, rank * BATCH : (rank + 1) * BATCH]).square().mean().backward()
        joint(x).square().mean().backward()
        for ours, theirs in zip(model.parameters(), joint.parameters(), strict=True):
            allowed = torch.finfo(torch.float64).eps * STEPS * BATCH * processes * 16
            assert float((ours.grad - theirs.grad).abs().max()) <= allowed * max(1.0, float(theirs.grad.abs().max()))
        for optimizer in optimizers:
            optimizer.step()


def train_until_end(model: nn.Module, rank: int, processes: int, mode: str) -> None:
    for update in range(1000):
        if update == 2 and rank == processes - 1:
            if mode == "raise":
                raise RuntimeError("the last process fails")
            os.kill(os.getpid(), signal.SIGKILL)
        model(torch.randn(STEPS, BATCH, INPUTS, dtype=torch.float64)).sum().backward()


def measure(model: nn.Module, rank: int) -> None:
    x = torch.randn(STEPS, BATCH, INPUTS, dtype=torch.float64)
    for update in range(60):
        if update == 10:
            dist.barrier()
            started = time.perf_counter()
        model(x).sum().backward()
    if rank == 0:
        print((time.perf_counter() - started) / 50)


def main() -> None:
    rank, processes, port, mode = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
    # A process that is gone is noticed after this long at the most, where gloo's default is half an hour.
    timeout = datetime.timedelta(seconds=20)
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=processes, timeout=timeout
    )
    torch.manual_seed(0)
    own = Model()
    joint = copy.deepcopy(own)
    swap = ft.accelerate(own)
    assert set(swap.swapped) == {"recurrent", "cell"}
    model = DistributedDataParallel(own)
    if mode == "check":
        check(model, joint, rank, processes)
    elif mode == "time":
        measure(model, rank)
    else:
        train_until_end(model, rank, processes, mode)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
