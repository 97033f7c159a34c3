"""Swapping a model's recurrent modules for this library's, and back."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn
from torch.nn.parameter import Parameter
from torch.nn.utils import parametrize

from fusedrnn.torch.frozen import forget
from fusedrnn.torch.modules import CLASSES, _Fused
from fusedrnn.torch.obstacles import tensor_obstacle


@dataclass
class Swap:
    """What `accelerate` or `restore` did with a model's recurrent modules, by their names in it ('' is itself).

    Attributes
    ----------
    swapped : dict of str to str
        The class that each swapped module now is of.
    left : dict of str to str
        Why each of the others was left.
    """

    swapped: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{name or '(the model)'}: now {what}" for name, what in self.swapped.items()]
        lines += [f"{name or '(the model)'}: left, {why}" for name, why in self.left.items()]
        return "\n".join(lines) or "no recurrent module"


def why_not(module: nn.Module) -> str | None:
    """Tell why a module does not run on this library's engine.

    Parameters
    ----------
    module : torch.nn.Module
        Any module, swapped or not.

    Returns
    -------
    str or None
        None where `module` is, or can be made by `accelerate`, a module whose calls on tensors of its parameters'
        dtype and device run on the engine.

    Notes
    -----
    Some calls of such a module run torch's own forward all the same: under torch.func transforms, forward-mode
    differentiation, tracing, dispatch modes and float16 autocast, with tensor subclasses, and in bfloat16 where the CPU
    has matrix units for it and the call is large. The first call of each
    kind gives a warning. With options that torch lacks they run step by step in torch's operations. An RNNCell runs
    torch's own on the CPU wherever a graph may be recorded, which is as fast there, and gives no warning.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, not {type(module).__name__}")
    kind = type(module)
    if not isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        return f"{kind.__name__} is not one of torch.nn's recurrent modules"
    fused = _fused_class(module)
    if fused is None:
        return f"{kind.__module__}.{kind.__qualname__} is a subclass, which may compute something else"
    weights = _weights(module)
    return fused._static_obstacle(module) or (tensor_obstacle(weights) if weights else None)  # type: ignore[arg-type]


def _weights(module: nn.Module) -> list[Parameter]:
    """A module's weights, or the parameters from which parametrizations compute them."""
    stored = [parameter for parameter in module._parameters.values() if parameter is not None]
    lists = module._modules["parametrizations"] if _has_injected_class(module) else nn.Module()
    return stored + [p for of_one in lists.children() for p in of_one._parameters.values() if p is not None]  # type: ignore[union-attr]


def _fused_class(module: nn.Module) -> type[_Fused] | None:
    kind = _plain_class(module)
    return next((fused for own, fused in CLASSES.items() if kind in (own, fused)), None)


def _has_injected_class(module: nn.Module) -> bool:
    """Whether a module's class is one that torch made for its parametrizations alone, with properties for them."""
    kind = type(module)
    named = kind.__module__ == parametrize.__name__ and kind.__name__.startswith("Parametrized")
    return named and "parametrizations" in module._modules


def _plain_class(module: nn.Module) -> type[nn.Module]:
    """The class that a module would have without parametrizations."""
    return type(module).__bases__[0] if _has_injected_class(module) else type(module)


def _change_class(module: nn.Module, plain: type[nn.Module]) -> None:
    """Make a module one of another class, parametrized as it is."""
    kind: type[nn.Module] = plain
    if _has_injected_class(module):
        own = {name: value for name, value in vars(type(module)).items() if name not in ("__dict__", "__weakref__")}
        kind = type(f"Parametrized{plain.__name__}", (plain,), own)
    module.__class__ = kind


def accelerate(model: nn.Module) -> Swap:
    """Make a model's recurrent modules this library's, in place.

    Only their class changes: parameters, buffers, hooks, names and aliases stay, so optimisers, state_dicts and
    wrappers around the model go on as before.

    Parameters
    ----------
    model : torch.nn.Module
        The model, or a recurrent module itself. Modules of exactly torch's classes RNN, LSTM, GRU, RNNCell, LSTMCell
        and GRUCell are swapped, parametrized or not; subclasses, and modules that the engine does not run, are left.

    Returns
    -------
    Swap
        What was swapped, and what was left and why. Modules that are this library's already are in neither.

    Raises
    ------
    TypeError
        Where `model` is no torch.nn.Module.
    """
    swap = Swap()
    for name, module in _recurrent_modules(model):
        if isinstance(module, _Fused):
            continue
        reason = why_not(module)
        if reason is not None:
            swap.left[name] = reason
            continue
        fused = CLASSES[_plain_class(module)]
        _change_class(module, fused)  # type: ignore[arg-type]
        swap.swapped[name] = f"fusedrnn.torch.{fused.__name__}"
    return swap


def restore(model: nn.Module) -> Swap:
    """Make a model's recurrent modules torch's own again, in place: the reverse of `accelerate`.

    Parameters
    ----------
    model : torch.nn.Module
        The model.

    Returns
    -------
    Swap
        What was swapped, and what was left and why: modules with options that torch's do not have, such as `peephole`.

    Raises
    ------
    TypeError
        Where `model` is no torch.nn.Module.
    """
    swap = Swap()
    for name, module in _recurrent_modules(model):
        if not isinstance(module, _Fused):
            continue
        if module._options():
            options = ", ".join(option.removeprefix("has_") for option in module._options())
            swap.left[name] = f"torch has no module with {options}"
        elif _fused_class(module) is None:
            swap.left[name] = f"{type(module).__name__} is a class derived from this library's"
        else:
            own = module._torch_class
            _change_class(module, own)
            forget(module)
            swap.swapped[name] = f"torch.nn.{own.__name__}"
    return swap


def _recurrent_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, not {type(model).__name__}")
    return [(n, m) for n, m in model.named_modules() if isinstance(m, (nn.RNNBase, nn.RNNCellBase))]
