"""Swapped modules whose weights are computed: by parametrizations, torch's and others, by hooks, by pruning."""

from __future__ import annotations

import contextlib
import copy
import re
import warnings
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import torch.nn.utils as old  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.utils import parametrizations, parametrize, prune  # noqa: E402
from torch_support import CELLS, LAYERS, SIZE, assert_near, tensors_in  # noqa: E402

import fusedrnn.torch as ft  # noqa: E402
from fusedrnn.torch import dispatch  # noqa: E402
from fusedrnn.torch.modules import CLASSES  # noqa: E402

T, B = 6, 4
DEPTH = 4096  # roundings in a row: as in test_torch_adapter.py, and those of a norm or an orthogonal map of a weight
pytestmark = [pytest.mark.filterwarnings("error:fusedrnn.torch"), pytest.mark.filterwarnings("ignore::FutureWarning")]
each_kind = pytest.mark.parametrize("kind", [*LAYERS, *CELLS], ids=lambda kind: kind.__name__)


class Dropped(nn.Module):
    """Weight dropout."""

    def forward(self, w: Any) -> Any:
        return nn.functional.dropout(w, 0.5, self.training)


class Counted(nn.Module):
    """A weight that depends on how often it was read."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, w: Any) -> Any:
        self.count += 1
        return w * (1 + self.count / 64)


def names_of(module: Any) -> list[str]:
    layers = not isinstance(module, nn.RNNCellBase)
    return [name + "_l0" * layers for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]


def several(make: Any) -> Any:
    def change(module: Any) -> None:
        for name in reversed(names_of(module)):
            parametrize.register_parametrization(module, name, make())

    return change


def one(function: Any, *arguments: Any) -> Any:
    return lambda module: function(module, names_of(module)[1], *arguments)


CHANGES = {
    "dropout": one(lambda module, name: parametrize.register_parametrization(module, name, Dropped())),
    "dropout of all": several(Dropped),
    "counted": several(Counted),
    "spectral norm": one(parametrizations.spectral_norm),
    "weight norm": one(parametrizations.weight_norm),
    "orthogonal": one(parametrizations.orthogonal),
    "older spectral norm": one(old.spectral_norm),
    "older weight norm": one(old.weight_norm),
    "pruned": one(prune.l1_unstructured, 0.5),
}
each_change = pytest.mark.parametrize("change", CHANGES)


def make(kind: Any, change: str, training: bool = True) -> Any:
    torch.manual_seed(1)
    deep = {} if kind in CELLS else {"num_layers": 2, "bidirectional": True, "dropout": 0.3}
    module = kind(**SIZE, dtype=torch.float64, **deep).train(training)
    CHANGES[change](module)
    return module


def three_steps(module: Any) -> list[Any]:
    """Outputs and gradients of three calls, the state that they leave, and what the generator draws next."""
    torch.manual_seed(2)
    found = []
    for _ in range(3):
        x = torch.randn(*[T] * (not isinstance(module, nn.RNNCellBase)), B, SIZE["input_size"], dtype=torch.float64)
        module.zero_grad()
        outputs = tensors_in(module(x.requires_grad_()))
        sum(t.sin().sum() for t in outputs).backward()
        gradients = [p.grad.clone() for p in module.parameters() if p.grad is not None]
        found += [*(t.detach() for t in outputs), x.grad, *gradients]
    return [*found, *(t.double() for t in module.state_dict().values()), torch.rand(3).double()]


@each_kind
@each_change
@pytest.mark.parametrize("training", [True, False])
def test_it_is_torchs_with_the_change_before_and_after(kind: Any, change: str, training: bool) -> None:
    expected = three_steps(make(kind, change, training))
    before = make(kind, change, training)
    swap = ft.accelerate(before)
    assert list(swap.swapped.values()) == [f"fusedrnn.torch.{kind.__name__}"] and not swap.left
    torch.manual_seed(1)
    after = CLASSES[kind](**SIZE, dtype=torch.float64, **{} if kind in CELLS else options_of(before)).train(training)
    CHANGES[change](after)
    for module in (before, after):
        assert isinstance(module, CLASSES[kind]) and ft.why_not(module) is None
        assert_near(three_steps(module), expected, DEPTH)


def options_of(module: Any) -> dict[str, Any]:
    return {name: getattr(module, name) for name in ("num_layers", "bidirectional", "dropout")}


@each_kind
@pytest.mark.parametrize("change", ["counted", "weight norm"])
def test_restored_copied_and_without_its_parametrizations(kind: Any, change: str) -> None:
    own, module = make(kind, change), make(kind, change)
    ft.accelerate(module)
    three_steps(module)
    copied = copy.deepcopy(module)
    assert type(copied).__bases__ == (CLASSES[kind],)
    assert set(ft.restore(module).swapped) == {""} and type(module).__bases__ == (kind,)
    assert ft.why_not(module) is None
    three_steps(own)
    assert_near(three_steps(module), three_steps(own), DEPTH)
    for other, plain in ((module, kind), (copied, CLASSES[kind])):
        for name in list(other.parametrizations):
            parametrize.remove_parametrizations(other, name)
        assert type(other) is plain and three_steps(other)


class Narrow(nn.Module):
    """A weight of another dtype."""

    def forward(self, w: Any) -> Any:
        return w.float()


def warns(kind: Any, text: str) -> Any:
    """That a call is left to torch; nn.RNNCell's graph is torch's own in any case."""
    return contextlib.nullcontext() if kind is nn.RNNCell else pytest.warns(UserWarning, match=text)


@each_kind
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_call_left_to_torch_reads_the_weights_once(kind: Any) -> None:
    """Tracing, which torch's own forward has to run, and weights that turn out not to be the engine's."""
    own, module = make(kind, "counted", False), make(kind, "counted", False)
    ft.accelerate(module)
    x = torch.randn(*[T] * (kind in LAYERS), B, SIZE["input_size"], dtype=torch.float64)
    dispatch._warned.clear()
    with warns(kind, "trac"):
        for m in (own, module):
            torch.jit.trace(m, (x,), check_trace=False)
    assert [int(b) for b in module.buffers()] == [int(b) for b in own.buffers()]
    for m in (own, module):
        for name in names_of(m)[:2]:
            parametrize.register_parametrization(m, name, Narrow(), unsafe=True)
    with pytest.raises((RuntimeError, ValueError)) as expected:
        own(x)
    with pytest.raises(expected.type, match=re.escape(str(expected.value))), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module(x)


@each_kind
def test_weights_that_turn_out_to_be_of_a_subclass_are_read_once(kind: Any) -> None:
    class Tagged(torch.Tensor):
        pass

    class Tagging(nn.Module):
        def forward(self, w: Any) -> Any:
            return w.as_subclass(Tagged)

    own, module = make(kind, "counted"), make(kind, "counted")
    for m in (own, module):
        parametrize.register_parametrization(m, names_of(m)[1], Tagging())
    ft.accelerate(module)
    dispatch._warned.clear()
    torch.manual_seed(3)
    x = torch.randn(*[T] * (kind in LAYERS), B, SIZE["input_size"], dtype=torch.float64)
    torch.manual_seed(4)
    expected = tensors_in(own(x))
    torch.manual_seed(4)
    with warns(kind, "runs torch's own operations: Tagged is not torch.Tensor itself"):
        found = tensors_in(module(x))
    assert_near([t.as_subclass(torch.Tensor) for t in found], [t.as_subclass(torch.Tensor) for t in expected], DEPTH)
    assert [int(b) for b in module.buffers()] == [int(b) for b in own.buffers()]


def test_parametrized_subclasses_are_left() -> None:
    class Mine(nn.LSTM):
        pass

    for kind in (Mine, type("Other", (ft.LSTM,), {})):
        module = kind(3, 4)
        parametrizations.weight_norm(module, "weight_hh_l0")
        assert "subclass" in str(ft.why_not(module))
        assert not ft.accelerate(module).swapped and not ft.restore(module).swapped


def test_parameters_of_a_parametrization_may_have_other_dtypes() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

        def forward(self, w: Any) -> Any:
            return w * self.scale.to(w.dtype)

    module = nn.GRU(3, 4)
    parametrize.register_parametrization(module, "weight_hh_l0", Scaled())
    assert ft.accelerate(module).swapped
    module(torch.randn(5, 2, 3))[0].sum().backward()
    assert module.parametrizations.weight_hh_l0[0].scale.grad is not None


def test_a_compiled_layer_leaves_the_state_that_an_eager_one_leaves() -> None:
    torch._dynamo.reset()
    eager, traced = make(nn.GRU, "counted"), make(nn.GRU, "counted")
    for module in (eager, traced):
        ft.accelerate(module.eval())
    x = torch.randn(T, B, SIZE["input_size"], dtype=torch.float64)
    with torch._dynamo.config.patch(allow_rnn=True):
        found = tensors_in(torch.compile(traced, fullgraph=True, backend="aot_eager")(x))
    assert_near(found, tensors_in(eager(x)), DEPTH)
    assert [int(b) for b in traced.buffers()] == [int(b) for b in eager.buffers()]
    torch._dynamo.reset()
