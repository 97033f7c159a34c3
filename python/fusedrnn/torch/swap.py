"""Swapping a model's recurrent modules for this library's, and back."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from fusedrnn.torch.calls import tensor_obstacle
from fusedrnn.torch.modules import CLASSES, _Fused


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
    differentiation, tracing, dispatch modes and float16 autocast, and with tensor subclasses. The first call of each
    kind gives a warning. With options that torch lacks they run step by step in torch's operations.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, not {type(module).__name__}")
    kind = type(module)
    if not isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        return f"{kind.__name__} is not one of torch.nn's recurrent modules"
    fused = _fused_class(module)
    if fused is None:
        return f"{kind.__module__}.{kind.__qualname__} is a subclass, which may compute something else"
    return fused._static_obstacle(module) or tensor_obstacle(list(module.parameters()))  # type: ignore[arg-type]


def _fused_class(module: nn.Module) -> type[_Fused] | None:
    for kind, fused in CLASSES.items():
        if type(module) in (kind, fused) or (isinstance(module, fused) and _is_parametrized(module)):
            return fused
    return None


def _is_parametrized(module: nn.Module) -> bool:
    """torch makes a class of its own of a module with parametrizations."""
    return "parametrizations" in module._modules


def accelerate(model: nn.Module) -> Swap:
    """Make a model's recurrent modules this library's, in place.

    Only their class changes: parameters, buffers, hooks, names and aliases stay, so optimisers, state_dicts and
    wrappers around the model go on as before.

    Parameters
    ----------
    model : torch.nn.Module
        The model, or a recurrent module itself. Modules of exactly torch's classes RNN, LSTM, GRU, RNNCell, LSTMCell
        and GRUCell are swapped; subclasses, and modules that the engine does not run, are left.

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
        module.__class__ = CLASSES[type(module)]  # type: ignore[assignment]
        swap.swapped[name] = f"fusedrnn.torch.{type(module).__name__}"
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
        What was swapped, and what was left and why: modules with options that torch's do not have, such as `peephole`,
        and modules that have been parametrized since.

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
            swap.left[name] = f"torch has no module with {', '.join(module._options())}"
        elif type(module) is not CLASSES.get(module._torch_class):
            swap.left[name] = f"{type(module).__name__} is a class derived from this library's"
        else:
            module.__class__ = module._torch_class  # type: ignore[assignment]
            swap.swapped[name] = f"torch.nn.{type(module).__name__}"
    return swap


def _recurrent_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, not {type(model).__name__}")
    return [(n, m) for n, m in model.named_modules() if isinstance(m, (nn.RNNBase, nn.RNNCellBase))]
