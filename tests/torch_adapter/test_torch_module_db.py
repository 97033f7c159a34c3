"""The recurrent entries of torch's own module database, over modules swapped by fusedrnn.torch."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("expecttest", reason="torch's module database needs expecttest")

from torch import nn  # noqa: E402
from torch.nn.utils.rnn import PackedSequence  # noqa: E402
from torch.testing._internal.common_modules import ModuleErrorEnum, module_db  # noqa: E402
from torch_support import CELLS, LAYERS, assert_near, tensors_in  # noqa: E402

import fusedrnn.torch as ft  # noqa: E402
from fusedrnn.torch.modules import CLASSES  # noqa: E402

DEPTH = 256  # roundings in a row: at most 3 steps of 2 layers, products of at most 11 terms, forward and back

ENTRIES = [info for info in module_db if info.module_cls in (*LAYERS, *CELLS)]


def samples(info: Any, packed: bool = False, training: bool = True, dtype: Any = torch.float64) -> Iterator[Any]:
    """The database's inputs of an entry: constructor and forward arguments."""
    options = {"with_packed_sequence": True} if packed else {}
    for sample in info.module_inputs_func(
        info, device="cpu", dtype=dtype, requires_grad=True, training=training, **options
    ):
        yield sample.constructor_input, sample.forward_input


def pair(info: Any, made: Any, dtype: Any = torch.float64) -> tuple[nn.Module, nn.Module]:
    """torch's module and ours, with the same parameters, ours made by the constructor of our class."""
    theirs = info.module_cls(*made.args, **made.kwargs, dtype=dtype)
    ours = CLASSES[info.module_cls](*made.args, **made.kwargs, dtype=dtype)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def arguments_of(given: Any) -> tuple[list[Any], dict[str, Any]]:
    """A sample's forward arguments, with fresh leaves."""

    def fresh(item: Any) -> Any:
        if isinstance(item, PackedSequence):
            return PackedSequence(fresh(item.data), *item[1:])
        if isinstance(item, torch.Tensor):
            return item.detach().clone().requires_grad_(item.is_floating_point())
        return type(item)(map(fresh, item)) if isinstance(item, (tuple, list)) else item

    return [fresh(a) for a in given.args], {name: fresh(a) for name, a in given.kwargs.items()}


def differentiate(module: nn.Module, given: Any) -> list[Any]:
    """Outputs, and gradients of the inputs and parameters."""
    args, kwargs = arguments_of(given)
    leaves = [*tensors_in(args), *tensors_in(list(kwargs.values())), *module.parameters()]
    outputs = tensors_in(module(*args, **kwargs))
    grads = torch.autograd.grad([o.sin().sum() for o in outputs], leaves, allow_unused=True)
    return [*(o.detach() for o in outputs), *(g for g in grads if g is not None)]


all_entries = pytest.mark.parametrize("info", ENTRIES, ids=lambda info: info.name)


def test_the_database_has_all_six() -> None:
    assert {info.module_cls for info in ENTRIES} == {*LAYERS, *CELLS}


@all_entries
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("training", [True, False])
def test_outputs_and_gradients(info: Any, dtype: Any, training: bool) -> None:
    for made, given in samples(info, training=training, dtype=dtype):
        ours, theirs = (m.train(training) for m in pair(info, made, dtype))
        assert_near(differentiate(ours, given), differentiate(theirs, given), DEPTH)


# The database packs nothing for an LSTM: tests/torch_adapter/test_torch_adapter.py does.
@pytest.mark.parametrize("info", [i for i in ENTRIES if i.module_cls in (nn.RNN, nn.GRU)], ids=lambda info: info.name)
def test_packed_sequences(info: Any) -> None:
    seen = 0
    for made, given in samples(info, packed=True):
        ours, theirs = pair(info, made)
        assert_near(differentiate(ours, given), differentiate(theirs, given), DEPTH)
        seen += isinstance(given.args[0], PackedSequence)
    assert seen


@all_entries
def test_first_and_second_derivatives(info: Any) -> None:
    for made, given in list(samples(info))[::4]:
        module, _ = pair(info, made)
        args, kwargs = arguments_of(given)
        leaves = [*tensors_in(args), *tensors_in(list(kwargs.values()))]
        names = [name for name, _ in module.named_parameters()]
        weights = [p.detach().clone().requires_grad_() for p in module.parameters()]

        def run(*inputs: Any, bound: Any = (module, args, names, leaves)) -> Any:
            module, args, names, count = *bound[:3], len(bound[3])
            found = iter(inputs[:count])
            weights = dict(zip(names, inputs[count:], strict=True))
            return tuple(
                tensors_in(torch.func.functional_call(module, weights, tuple(rebuild(a, found) for a in args)))
            )

        assert torch.autograd.gradcheck(run, (*leaves, *weights), fast_mode=True)
        assert torch.autograd.gradgradcheck(run, (*leaves, *weights), fast_mode=True)


def rebuild(item: Any, found: Iterator[Any]) -> Any:
    """An argument with its tensors replaced by the next ones."""
    if isinstance(item, torch.Tensor):
        return next(found)
    return tuple(rebuild(part, found) for part in item) if isinstance(item, (tuple, list)) else item


@all_entries
def test_non_contiguous_inputs_and_gradients(info: Any) -> None:
    def spread(t: Any) -> Any:
        """The same values, every element apart from its neighbours."""
        wide = torch.stack([torch.full_like(t, torch.nan), t], -1)
        return wide[..., 1]

    for made, given in samples(info):
        module, _ = pair(info, made)
        found = []
        for change in (lambda t: t, spread):
            args, kwargs = arguments_of(given)
            leaves = [*tensors_in(args), *tensors_in(list(kwargs.values()))]
            changed = iter([change(t) for t in leaves])
            outputs = tensors_in(module(*[rebuild(a, changed) for a in args]))
            weights = [change(torch.cos(torch.arange(o.numel()).double()).reshape(o.shape)) for o in outputs]
            grads = torch.autograd.grad(outputs, [*leaves, *module.parameters()], weights)
            found.append([*outputs, *grads])
        for plain, apart in zip(*found, strict=True):
            assert torch.equal(plain, apart)


@all_entries
def test_copies_and_files(info: Any) -> None:
    for made, given in list(samples(info))[::3]:
        module, _ = pair(info, made)
        expected = differentiate(module, given)
        stream = io.BytesIO()
        torch.save(module, stream)
        stream.seek(0)
        fresh = CLASSES[info.module_cls](*made.args, **made.kwargs, dtype=torch.float64)
        fresh.load_state_dict(module.state_dict())
        for other in (
            pickle.loads(pickle.dumps(module)),
            copy.deepcopy(module),
            torch.load(stream, weights_only=False),
            fresh,
        ):
            assert type(other) is type(module)
            assert all(torch.equal(a, b) for a, b in zip(differentiate(other, given), expected, strict=True))


@all_entries
def test_errors_are_torchs(info: Any) -> None:
    for sample in info.module_error_inputs_func(
        info, device="cpu", dtype=torch.float64, requires_grad=True, training=True
    ):
        made, given = sample.module_error_input.constructor_input, sample.module_error_input.forward_input
        ours = CLASSES[info.module_cls]
        if sample.error_on == ModuleErrorEnum.CONSTRUCTION_ERROR:
            with pytest.raises(sample.error_type, match=sample.error_regex):
                ours(*made.args, **made.kwargs)
        else:
            module = ours(*made.args, **made.kwargs)
            with pytest.raises(sample.error_type, match=sample.error_regex):
                module(*given.args, **given.kwargs)


@all_entries
def test_representations_differ_in_nothing(info: Any) -> None:
    made, _ = next(iter(samples(info)))
    ours, theirs = pair(info, made)
    assert repr(ours) == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ft.restore(ours)
    assert type(ours) is type(theirs)
