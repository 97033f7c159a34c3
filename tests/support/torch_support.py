"""What the tests of fusedrnn.torch share."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from cases import LAYERS as NATIVE
from cases import Case, Inputs
from oracles import Result, as_tuple
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

import fusedrnn.torch as ft

LAYERS = (nn.RNN, nn.LSTM, nn.GRU)
CELLS = (nn.RNNCell, nn.LSTMCell, nn.GRUCell)
SIZE = {"input_size": 5, "hidden_size": 7}


def accelerated(module: nn.Module) -> Any:
    """A copy whose recurrent modules are swapped, every one of them."""
    fast = copy.deepcopy(module)
    swap = ft.accelerate(fast)
    assert swap.swapped and not swap.left
    return fast


def tensors_in(found: Any) -> list[Tensor]:
    """The tensors of a nested result, those of a PackedSequence too."""
    if isinstance(found, Tensor):
        return [found]
    if isinstance(found, PackedSequence):
        return [found.data]
    return [t for part in found for t in tensors_in(part)] if isinstance(found, (tuple, list)) else []


def loss_of(outputs: Sequence[Tensor]) -> Tensor:
    """A scalar in which every element of every output has a weight of its own."""
    weights = [torch.cos(torch.arange(t.numel(), device=t.device).double()).reshape(t.shape) for t in outputs]
    return torch.stack([(t.double() * weight).sum() for t, weight in zip(outputs, weights, strict=True)]).sum()


def outputs_and_gradients(module: nn.Module, *arguments: Any, seed: int = 0, **options: Any) -> list[Tensor]:
    """Outputs, then the gradients of every leaf among the arguments and of every parameter that has one."""
    torch.manual_seed(seed)
    for parameter in module.parameters():
        parameter.grad = None
    leaves = [t for t in tensors_in(list(arguments)) if t.requires_grad and t.is_leaf]
    for leaf in leaves:
        leaf.grad = None
    outputs = tensors_in(module(*arguments, **options))
    loss_of(outputs).backward()
    grads = [t.grad for t in (*leaves, *module.parameters())]
    return [*(t.detach() for t in outputs), *(g.clone() for g in grads if g is not None)]


def assert_near(ours: Sequence[Tensor], theirs: Sequence[Tensor], depth: int) -> None:
    """Equal to rounding: `depth` roundings in a row, each of at most eps of the largest value of an array or of 1."""
    assert len(ours) == len(theirs)
    for k, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        a, b = a.detach(), b.detach()
        forms = [(tuple(t.shape), t.dtype, t.device) for t in (a, b)]
        assert forms[0] == forms[1], f"tensor {k} of {len(ours)} is {forms[0]}, not {forms[1]}"
        if b.numel():
            allowed = depth * torch.finfo(b.dtype).eps * max(1.0, float(b.abs().max()))
            far = (a - b).abs()
            where = tuple(map(int, np.unravel_index(int(far.argmax()), b.shape)))
            found = f"tensor {k} of {len(ours)}, {forms[0]}, at {where}: {a[where].item()}, not {b[where].item()}"
            assert float(far.max()) <= allowed, f"{found}; {far[where].item():.3g} apart, allowed {allowed:.3g}"


def leaf(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """A standard normal tensor that asks for its gradient."""
    return torch.randn(*shape, dtype=dtype).requires_grad_()


def state_of(kind: type[nn.Module], *shape: int, dtype: torch.dtype = torch.float64) -> Any:
    """A state for a module of torch's."""
    halves = tuple(leaf(*shape, dtype=dtype) for _ in range(2))
    return halves if issubclass(kind, (nn.LSTM, nn.LSTMCell)) else halves[0]


def module_of(case: Case, layer: Any, device: Any = None) -> Any:
    """The adapter's module for a case, with a native layer's parameters."""
    name, options = NATIVE[case.cell]
    module = getattr(ft, name)(
        case.input_size,
        case.hidden_size,
        case.num_layers,
        bidirectional=case.directions == 2,
        dtype=getattr(torch, case.dtype),
        device=device,
        **options,
    )
    module.load_state_dict({name: torch.tensor(value) for name, value in layer.parameters.items()})
    return module


def run_module(case: Case, module: Any, inputs: Inputs) -> Result:
    """A training step of a module in its dtype and on its device; results as NumPy has them."""
    like = next(module.parameters())

    def put(array: np.ndarray) -> Tensor:
        return torch.tensor(array).to(like)

    x = put(inputs.x).requires_grad_()
    leaves = tuple(put(s).requires_grad_() for s in as_tuple(inputs.state))
    reset = None if inputs.reset is None else torch.tensor(inputs.reset, device=like.device)
    lengths = None if inputs.lengths is None else torch.tensor(inputs.lengths)
    mask = None if inputs.mask is None else torch.tensor(inputs.mask, device=like.device)
    y, final = module(x, leaves if case.two_states else leaves[0], lengths=lengths, reset=reset, mask=mask)
    torch.autograd.backward([y, *as_tuple(final)], [put(d) for d in (inputs.dy, *as_tuple(inputs.dstate))])

    def get(tensor: Tensor) -> np.ndarray:
        assert tensor.dtype == like.dtype and tensor.device == like.device
        tensor = tensor.detach().cpu()
        return (tensor.float() if tensor.dtype.itemsize == 2 else tensor).numpy()

    def joined(tensors: Sequence[Tensor]) -> Any:
        return tuple(map(get, tensors)) if case.two_states else get(tensors[0])

    gradients = {name: get(module.get_parameter(name).grad) for name in module._flat_weights_names}
    return Result(get(y), joined(as_tuple(final)), get(x.grad), joined([s.grad for s in leaves]), gradients)


def assert_memory_is_looked_after(kind: type[nn.Module], size: int, where: str = "cpu") -> None:
    """Assert that a storage cut down to `size` bytes under any tensor of a call is an error, which names the tensor."""
    steps, layers, halves = [6] * (kind in LAYERS), [1] * (kind in LAYERS), 1 + (kind in (nn.LSTM, nn.LSTMCell))

    def run() -> tuple[Any, dict[str, Any]]:
        module = accelerated(kind(**SIZE, dtype=torch.float64)).to(where)
        for parameter in module.parameters():  # cuDNN has them share one storage
            parameter.data = parameter.detach().clone()
        states = [leaf(*layers, 4, SIZE["hidden_size"]).to(where) for _ in range(halves)]
        x = leaf(*steps, 4, SIZE["input_size"]).to(where)
        named = {"the input": x, "h_0": states[0], **dict(module.named_parameters())}
        return lambda: tensors_in(module(x, tuple(states) if halves == 2 else states[0]))[0], named

    for name in run()[1]:
        forward, named = run()
        y = forward()
        named[name].untyped_storage().resize_(size)
        for use in (forward, lambda y=y: y.backward(torch.ones_like(y))):
            with pytest.raises(RuntimeError, match=f"the memory of {name} has been freed or cut short"):
                use()
    forward, named = run()
    weight = next(t for name, t in named.items() if name.startswith("weight_ih"))
    weight.data = weight.detach().T.contiguous().T
    weight.untyped_storage().resize_(size)
    with pytest.raises(RuntimeError, match="the memory of weight_ih"):  # before it is copied
        forward()
    # The backward pass of a single step reads no output.
    for which in ("output", "gradient") if kind in LAYERS or where != "cpu" else ("gradient",):
        y = run()[0]()
        gradient = torch.ones_like(y)
        (y if which == "output" else gradient).untyped_storage().resize_(size)
        with pytest.raises(RuntimeError, match=f"{which} has been freed or cut short"):
            y.backward(gradient)


def assert_options_are_copied(kind: type[nn.Module], where: str = "cpu") -> None:
    """Assert that what is written to lengths and masks after a call changes no derivative, and no second one."""
    module, x = accelerated(kind(**SIZE, dtype=torch.float64)).to(where), leaf(6, 4, SIZE["input_size"]).to(where)
    found = []
    for write in (False, True):
        lengths, reset = torch.tensor([6, 3, 0, 1], device=where), torch.arange(24, device=where).reshape(6, 4) % 5 == 0
        mask = torch.arange(24, device=where).reshape(6, 4) % 3 != 1
        y, _ = module(x, lengths=lengths, reset=reset, mask=mask)
        if write:
            lengths.fill_(6)
            reset.fill_(True)
            mask.fill_(True)
        first = torch.autograd.grad(y.sin().sum(), [x, *module.parameters()], retain_graph=True)
        (dx,) = torch.autograd.grad(y.sin().sum(), x, create_graph=True)
        found.append([*first, dx, *torch.autograd.grad(dx.square().sum(), [x, *module.parameters()])])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


class Tagger(nn.Module):
    """A recurrent module within a model that writes into its output, as a model may."""

    def __init__(self, recurrent: nn.Module, width: int, **arguments: Any) -> None:
        super().__init__()
        self.recurrent, self.readout, self.arguments = recurrent, nn.Linear(width, 3), arguments

    def forward(self, x: Any) -> Any:
        y, state = self.recurrent(x, **self.arguments)
        return self.readout(y.relu_()), state
