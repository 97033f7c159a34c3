"""`fusedrnn.torch` in inference mode: packed parameters that are kept from call to call, and never stale ones."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn.utils import parametrizations  # noqa: E402

import fusedrnn.torch as ft  # noqa: E402
from fusedrnn import _core  # noqa: E402
from fusedrnn.torch import frozen  # noqa: E402
from fusedrnn.torch.engine import bind  # noqa: E402
from fusedrnn.torch.fitting import fit_cell  # noqa: E402
from fusedrnn.torch.weights import stored_weights  # noqa: E402

I, H = 5, 19  # noqa: E741

MODULES: dict[str, Callable[[], Any]] = {
    "RNN": lambda: ft.RNN(I, H, 2, bidirectional=True),
    "relu": lambda: ft.RNN(I, H, nonlinearity="relu", bias=False),
    "LSTM": lambda: ft.LSTM(I, H, 2, bidirectional=True),
    "LSTM, dropout": lambda: ft.LSTM(I, H, 2, dropout=0.5, batch_first=True),
    "LSTM, options": lambda: ft.LSTM(I, H, 2, peephole=True, coupled=True),
    "GRU": lambda: ft.GRU(I, H, 2, bidirectional=True).double(),
    "GRU, reset before": lambda: ft.GRU(I, H, reset_after=False),
    "RNNCell": lambda: ft.RNNCell(I, H),
    "LSTMCell": lambda: ft.LSTMCell(I, H, peephole=True),
    "GRUCell": lambda: ft.GRUCell(I, H),
}


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    torch.manual_seed(0)
    yield


def make(name: str) -> tuple[Any, Any]:
    """A module in evaluation, and an input for it."""
    module = MODULES[name]().eval()
    shape = (3, I) if module._is_cell else (6, 3, I)
    return module, torch.randn(shape, dtype=next(module.parameters()).dtype)


def tensors(value: Any) -> list[Any]:
    return [value] if isinstance(value, torch.Tensor) else [t for item in value for t in tensors(item)]


def assert_equal(found: Any, expected: Any) -> None:
    assert all(torch.equal(a, b) for a, b in zip(tensors(found), tensors(expected), strict=True))


def infer(module: Any, *arguments: Any, **options: Any) -> Any:
    with torch.inference_mode():
        return module(*arguments, **options)


def truth(module: Any, *arguments: Any, **options: Any) -> Any:
    """Outside of inference mode nothing is kept."""
    with torch.no_grad():
        return module(*arguments, **options)


def is_kept(module: Any) -> bool:
    found = frozen.find(module)
    return found is not None and found.packed is not None


def make_kept(name: str) -> tuple[Any, Any]:
    """A module of which packed parameters are kept."""
    module, x = make(name)
    for _ in range(2):
        infer(module, x)
    assert is_kept(module)
    return module, x


@pytest.mark.parametrize("name", MODULES)
def test_the_bits_of_other_calls(name: str) -> None:
    module, x = make(name)
    expected = truth(module, x)
    for kept in (False, True, True):
        assert_equal(infer(module, x), expected)
        assert is_kept(module) is kept
    for size in (1, 2, 5):
        part = x[:size]
        assert_equal(infer(module, part), truth(module, part))


@pytest.mark.parametrize("how", ["unbatched", "strided", "packed", "state", "lengths", "reset", "empty"])
def test_every_form_of_call(how: str) -> None:
    module, x = make_kept("LSTM")
    state, options = None, {}
    if how == "unbatched":
        x = x[:, 0]
    elif how == "strided":
        x = torch.randn(6, I, 3).transpose(1, 2)
    elif how == "packed":
        x = nn.utils.rnn.pack_padded_sequence(x, [2, 6, 4], enforce_sorted=False)
        assert_equal(infer(module, x)[0].data, truth(module, x)[0].data)
        assert_equal(infer(module, x)[1], truth(module, x)[1])
        return
    elif how == "state":
        state = (torch.randn(4, 3, H), torch.randn(4, 3, H))
    elif how == "lengths":
        options = {"lengths": [0, 6, 3]}
    elif how == "reset":
        options = {"reset": torch.rand(6, 3) < 0.3}
    else:
        x = x[:, :0]
    assert_equal(infer(module, x, state, **options), truth(module, x, state, **options))


def first(module: Any) -> Any:
    return next(module.parameters())


def through_no_grad(module: Any) -> None:
    with torch.no_grad():
        for p in module.parameters():
            p.mul_(1.5)


def in_inference_mode(module: Any) -> None:
    with torch.inference_mode():
        first(module).add_(0.25)


def one_element(module: Any) -> None:
    with torch.no_grad():
        first(module).view(-1)[7] += 1


def through_data(module: Any) -> None:
    for p in module.parameters():
        p.data.mul_(1.5)


def through_numpy(module: Any) -> None:
    first(module).detach().numpy()[...] *= 1.5


def other_data(module: Any) -> None:
    for p in module.parameters():
        p.data = p.data * 1.5


def other_data_twice(module: Any) -> None:
    # The memory of the first must not come back at the same address in the same version.
    for _ in range(2):
        first(module).data = first(module).data * 1.5
        gc.collect()


def other_parameter(module: Any) -> None:
    name, parameter = next(module.named_parameters())
    setattr(module, name, nn.Parameter(parameter.detach() * 1.5))


def by_an_optimiser(module: Any) -> None:
    optimiser = torch.optim.Adam(module.parameters(), 0.1)
    for p in module.parameters():
        p.grad = torch.ones_like(p)
    optimiser.step()


def by_load_state_dict(module: Any) -> None:
    module.load_state_dict({name: value * 1.5 for name, value in module.state_dict().items()})


def by_assignment_of_a_state_dict(module: Any) -> None:
    module.load_state_dict({name: value * 1.5 for name, value in module.state_dict().items()}, assign=True)


def by_vector_to_parameters(module: Any) -> None:
    vector = nn.utils.parameters_to_vector(module.parameters())
    nn.utils.vector_to_parameters(vector.detach() * 1.5, module.parameters())


def with_eval_after_a_hidden_write(module: Any) -> None:
    first(module).data.view(-1)[7] += 1
    module.eval()


def with_train_and_eval_around_a_hidden_write(module: Any) -> None:
    module.train()
    first(module).data.view(-1)[7] += 1
    module.eval()


def by_pruning_through_data(module: Any) -> None:
    first(module).data *= torch.rand(first(module).shape) < 0.5


WRITES = [
    through_no_grad,
    in_inference_mode,
    one_element,
    through_data,
    through_numpy,
    other_data,
    other_data_twice,
    other_parameter,
    by_an_optimiser,
    by_load_state_dict,
    by_assignment_of_a_state_dict,
    by_vector_to_parameters,
    with_eval_after_a_hidden_write,
    with_train_and_eval_around_a_hidden_write,
    by_pruning_through_data,
]


@pytest.mark.parametrize("write", WRITES, ids=lambda write: write.__name__)
@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU", "GRUCell"])
def test_a_write_shows_in_the_next_call(name: str, write: Callable[[Any], None]) -> None:
    module, x = make_kept(name)
    before = truth(module, x)
    write(module)
    expected = truth(module, x)
    assert not torch.equal(tensors(before)[0], tensors(expected)[0])
    for _ in range(3):
        assert_equal(infer(module, x), expected)


def test_a_model_that_averages_another_through_data() -> None:
    model, x = ft.GRU(I, H).eval(), torch.randn(4, 2, I)
    average = copy.deepcopy(model)
    for _ in range(4):
        through_no_grad(model)
        for mean, p in zip(average.parameters(), model.parameters(), strict=True):
            mean.data.mul_(0.9).add_(p.data, alpha=0.1)
        for _ in range(2):
            assert_equal(infer(average, x), truth(average, x))


FORGETTING: dict[str, Callable[[Any], Any]] = {
    "train": lambda module: module.train(),
    "eval": lambda module: module.eval(),
    "eval of what holds it": lambda module: nn.Sequential(module).eval(),
    "double": lambda module: module.double(),
    "to": lambda module: module.to(torch.float64),
    "load_state_dict": lambda module: module.load_state_dict(module.state_dict()),
    "restore": ft.restore,
}


@pytest.mark.parametrize("how", FORGETTING)
@pytest.mark.parametrize("name", ["LSTM", "LSTM, dropout", "GRUCell"])
def test_what_drops_the_packed_parameters(name: str, how: str) -> None:
    module, x = make_kept(name)
    FORGETTING[how](module)
    assert not is_kept(module)
    x = x.to(first(module).dtype)
    if how != "train":
        assert_equal(infer(module, x), truth(module, x))


@pytest.mark.parametrize("name", ["LSTM", "LSTM, options", "GRU"])
def test_flattening_drops_them(name: str) -> None:
    module, _ = make_kept(name)
    module.flatten_parameters()
    assert not is_kept(module)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies_have_none(copied: Callable[[Any], Any]) -> None:
    module, x = make_kept("LSTM")
    plain = ft.LSTM(I, H, 2, bidirectional=True)
    assert vars(module).keys() == vars(plain).keys()
    other = copied(module)
    assert not is_kept(other)
    through_no_grad(other)
    for _ in range(3):
        assert_equal(infer(other, x), truth(other, x))
        assert_equal(infer(module, x), truth(module, x))


def test_nothing_is_kept_elsewhere() -> None:
    module, x = make("LSTM")
    for _ in range(3):
        truth(module, x)
        module(x)
    module.train()
    for _ in range(3):
        infer(module, x)
    assert not is_kept(module)


def test_weights_that_are_made_in_each_call_are_not_kept() -> None:
    module, x = make("GRUCell")
    parametrizations.weight_norm(module, "weight_hh")
    for _ in range(3):
        assert_equal(infer(module, x), truth(module, x))
    assert not is_kept(module)
    with torch.no_grad():
        module.parametrizations.weight_hh.original0.mul_(2)
    assert_equal(infer(module, x), truth(module, x))


def test_functional_call_has_its_own_weights() -> None:
    module, x = make_kept("GRU")
    others = {name: p.detach() * 1.5 for name, p in module.named_parameters()}
    with torch.inference_mode():
        for _ in range(3):
            found = torch.func.functional_call(module, others, (x,))
    assert_equal(infer(module, x), truth(module, x))
    module.load_state_dict(others)
    assert_equal(found, truth(module, x))


def test_parameters_that_count_no_versions() -> None:
    with torch.inference_mode():
        module = ft.LSTM(I, H).eval()
        x = torch.randn(4, 2, I)
        for _ in range(3):
            expected = nn.LSTM.forward(module, x)
            torch.testing.assert_close(module(x), expected)
            first(module).mul_(1.5)
    assert not is_kept(module)


def test_strided_parameters() -> None:
    module, x = make("RNN")
    with torch.no_grad():
        module.weight_ih_l0 = nn.Parameter(module.weight_ih_l0.detach().T.contiguous().T)
    for _ in range(3):
        assert_equal(infer(module, x), truth(module, x))
        through_no_grad(module)


def test_memory_comes_back() -> None:
    gc.collect()
    before = _core.pool_use()["live"]
    module, _ = make_kept("LSTM")
    assert _core.pool_use()["live"] - before >= sum(p.nbytes for p in module.parameters())
    del module
    gc.collect()
    assert _core.pool_use()["live"] == before


def test_several_threads_share_a_module() -> None:
    module = ft.GRU(32, 64, 2).eval()
    inputs = [torch.randn(3, 1 + i % 3, 32) for i in range(24)]
    expected = [truth(module, x) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        for found, wanted in zip(pool.map(lambda x: infer(module, x), inputs), expected, strict=True):
            assert_equal(found, wanted)


def test_packed_parameters_of_other_layers_are_refused() -> None:
    module, x = make_kept("GRUCell")
    packed = frozen.find(module).packed
    other = ft.GRUCell(I, H + 1)
    call, x, _ = fit_cell(other, x, None)
    bound = bind(call, x, (None,), stored_weights(other, other._weight_names()))
    assert not bound.fits(packed)
    with pytest.raises(ValueError, match="packed"):
        bound.forward(1, False, packed)
