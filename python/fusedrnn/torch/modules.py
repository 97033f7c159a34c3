"""The modules: torch's own classes, with this library's forward and options."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import Parameter

from fusedrnn.arguments import require_flag
from fusedrnn.recurrent import lstm_name
from fusedrnn.torch import device
from fusedrnn.torch.compiled import compiled_forward
from fusedrnn.torch.frozen import forget
from fusedrnn.torch.plain import eager_forward

_compiler = getattr(torch._C._dynamo.eval_frame, "get_eval_frame_callback", lambda: True)
_hidden_forward: Any = torch.compiler.disable(eager_forward)  # type: ignore[no-untyped-call]
"""`eager_forward` where Dynamo is active but has not traced the module: it would compile each function in it."""


class _Fused:
    """What layers and cells have in common; `_torch_class` is torch's own module of the name."""

    _torch_class: ClassVar[type[nn.Module]]
    _is_cell: ClassVar[bool]
    _two_states: ClassVar[bool] = False
    _autocast_narrows: ClassVar[bool] = False
    """Whether torch's own module returns bfloat16 under autocast where its input is float32."""

    # Options that torch's modules do not have. Only those that are set stand in an instance, which is otherwise
    # like one of torch's in every attribute.
    has_peephole: bool = False
    coupled: bool = False
    reset_after: bool = True

    def _options(self) -> dict[str, bool]:
        return {name: vars(self)[name] for name in ("has_peephole", "coupled", "reset_after") if name in vars(self)}

    def _static_obstacle(self) -> str | None:
        """Why the engine runs no call of the module; also asked of torch's own modules."""
        return None

    # Packed parameters are dropped wherever a program is likely to have written to the parameters, or to want the
    # memory back: torch does not count all writes.

    def train(self, mode: bool = True) -> Any:
        forget(self)
        return super().train(mode)  # type: ignore[misc]

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        forget(self)
        return super()._apply(*args, **kwargs)  # type: ignore[misc]

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        forget(self)
        super()._load_from_state_dict(*args, **kwargs)  # type: ignore[misc]

    def extra_repr(self) -> str:
        options = "".join(f", {name.removeprefix('has_')}={value}" for name, value in self._options().items())
        own: str = super().extra_repr()  # type: ignore[misc]
        return own + options

    @property
    def qconfig(self) -> Any:
        raise AttributeError("qconfig")

    @qconfig.setter
    def qconfig(self, value: Any) -> None:
        # torch.ao.quantization finds modules by their exact class, and would leave this one as it is without a word.
        raise RuntimeError(
            f"quantization does not know fusedrnn.torch.{type(self).__name__}: "
            "call fusedrnn.torch.restore(model) first, and accelerate what is left afterwards"
        )

    def __prepare_scriptable__(self) -> nn.Module:
        """What torch.jit.script compiles: torch's own module with these parameters."""
        if self._options():
            raise RuntimeError(f"fusedrnn.torch.{self!r} cannot be scripted: torch has no such module")
        plain = copy.copy(self)
        plain.__class__ = self._torch_class  # type: ignore[assignment]
        return plain  # type: ignore[return-value]


class _Layers(_Fused):
    _is_cell = False

    def flatten_parameters(self) -> None:
        """As torch's; packed parameters that are kept for inference are dropped."""
        forget(self)
        super().flatten_parameters()  # type: ignore[misc]

    def _weight_names(self) -> Sequence[str]:
        return self._flat_weights_names  # type: ignore[attr-defined,no-any-return]

    def forward(
        self,
        input: Any,
        hx: Any = None,
        lengths: Any = None,
        reset: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Any, Any]:
        """Run a sequence: torch's forward, and three arguments more.

        Parameters
        ----------
        input : Tensor or PackedSequence
            As torch's module takes it.
        hx : Tensor or (Tensor, Tensor), optional
            Initial state, as torch's module takes it.
        lengths : sequence of int or Tensor, optional
            (B,), each in [0, T], in any order. Past its length a row's output is 0 and its state stays.
        reset : Tensor of bool, optional
            (T, B), or (B, T) with `batch_first`, or (T,). ``reset[t]`` cuts the link between t-1 and t, in both
            directions.
        mask : Tensor of bool, optional
            As `reset`. Where False the row skips the step: its state stays, the output repeats the state's h, gradients
            pass by, and the input there influences nothing.

        Returns
        -------
        output, state
            As torch's module returns them.

        Raises
        ------
        TypeError, ValueError
            Where `lengths`, `reset` or `mask` is of another kind, dtype, shape or value; torch's own errors for the
            rest.
        """
        if torch.compiler.is_compiling():
            perform: Any = compiled_forward
        else:
            perform = eager_forward if _compiler() is None else _hidden_forward
        return perform(self, super().forward, input, hx, lengths, reset, mask)  # type: ignore[misc,no-any-return]


_CELL_NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


class _Cell(_Fused):
    _is_cell = True

    def _weight_names(self) -> Sequence[str]:
        names = _CELL_NAMES if self.bias else _CELL_NAMES[:2]  # type: ignore[attr-defined]
        return (*names, "peephole") if self.has_peephole else names

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        """Run one step; arguments, result and errors are those of torch's cell."""
        if torch.compiler.is_compiling():
            perform: Any = compiled_forward
        else:
            perform = eager_forward if _compiler() is None else _hidden_forward
        return perform(self, super().forward, input, hx)  # type: ignore[misc]


class RNN(_Layers, nn.RNN):
    """torch.nn.RNN on this library's engine."""

    _torch_class = nn.RNN
    _autocast_narrows = True

    @property
    def _cell_name(self) -> str:
        return "rnn_tanh" if self.mode == "RNN_TANH" else "rnn_relu"


class LSTM(_Layers, nn.LSTM):
    """torch.nn.LSTM on this library's engine.

    Parameters
    ----------
    peephole : bool
        Gates i and f see ``p c_{t-1}``, o sees ``p c_t`` (Gers & Schmidhuber 2000): a parameter `peephole_l0` (3, H)
        for each layer and direction, in the order i f o; coupled: (2, H), order f o.
    coupled : bool
        ``i = 1 - f`` (Greff et al. 2015): gate blocks f g o, weights of 3*H rows.
    *args, **kwargs
        As torch.nn.LSTM takes them.

    Raises
    ------
    TypeError, ValueError
        Those of torch.nn.LSTM, and where an option is no bool or stands beside `proj_size`.
    """

    _torch_class = nn.LSTM
    _two_states = True
    _autocast_narrows = True
    _cell_name = property(lambda self: lstm_name(self.has_peephole, self.coupled))

    def _static_obstacle(self) -> str | None:
        return "proj_size: the engine has no projected LSTM" if self.proj_size > 0 else None

    def __init__(self, *args: Any, peephole: bool = False, coupled: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _set_lstm_options(self, peephole, coupled)
        if not self._options():
            return
        if self.proj_size > 0:
            raise ValueError("proj_size must be 0 with peephole or coupled")
        for names in self._all_weights:
            if coupled:
                _drop_input_gate(self, names)
            if peephole:
                name = names[0].replace("weight_ih", "peephole")
                self.register_parameter(name, _peephole(self))
                names.append(name)
        self._flat_weights_names = [name for names in self._all_weights for name in names]
        self._init_flat_weights()

    def flatten_parameters(self) -> None:
        """Lay the weights out for cuDNN, as torch's module does; it has no room for those of the options."""
        if not self._options():
            super().flatten_parameters()
        forget(self)


class GRU(_Layers, nn.GRU):
    """torch.nn.GRU on this library's engine.

    Parameters
    ----------
    reset_after : bool
        False: the reset gate acts before the product with the recurrent weights, as in Cho et al. 2014.
    *args, **kwargs
        As torch.nn.GRU takes them.

    Raises
    ------
    TypeError, ValueError
        Those of torch.nn.GRU, and where the option is no bool.
    """

    _torch_class = nn.GRU
    _cell_name = property(lambda self: "gru" if self.reset_after else "gru_reset_before")

    def __init__(self, *args: Any, reset_after: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _set_reset_after(self, reset_after)


class RNNCell(_Cell, nn.RNNCell):
    """torch.nn.RNNCell on this library's engine."""

    _torch_class = nn.RNNCell
    _autocast_narrows = True
    _cell_name = property(lambda self: f"rnn_{self.nonlinearity}")

    def _static_obstacle(self) -> str | None:
        return None if self.nonlinearity in ("tanh", "relu") else "its nonlinearity is neither tanh nor relu"

    def forward(self, input: Any, hx: Any = None) -> Any:
        """Run one step, as torch's cell does; where a graph may be recorded on the CPU it is torch's own.

        torch's autograd has fast compiled nodes for two products and an activation. The engine would need a node in
        Python, which costs more than the engine gains.
        """
        if torch.is_grad_enabled() and type(input) is Tensor and not device.kind.holds(input):
            return nn.RNNCell.forward(self, input, hx)
        return super().forward(input, hx)


class LSTMCell(_Cell, nn.LSTMCell):
    """torch.nn.LSTMCell on this library's engine; `peephole` and `coupled` are those of `LSTM`."""

    _torch_class = nn.LSTMCell
    _two_states = True
    _cell_name = property(lambda self: lstm_name(self.has_peephole, self.coupled))

    def __init__(self, *args: Any, peephole: bool = False, coupled: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _set_lstm_options(self, peephole, coupled)
        if coupled:
            _drop_input_gate(self, self._weight_names()[: 4 if self.bias else 2])
        if peephole:
            self.register_parameter("peephole", _peephole(self))


class GRUCell(_Cell, nn.GRUCell):
    """torch.nn.GRUCell on this library's engine; `reset_after` is that of `GRU`."""

    _torch_class = nn.GRUCell
    _cell_name = property(lambda self: "gru" if self.reset_after else "gru_reset_before")

    def __init__(self, *args: Any, reset_after: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _set_reset_after(self, reset_after)


def _set_lstm_options(module: Any, peephole: bool, coupled: bool) -> None:
    if require_flag(peephole, "peephole"):
        module.has_peephole = True
    if require_flag(coupled, "coupled"):
        module.coupled = True


def _set_reset_after(module: Any, reset_after: bool) -> None:
    if not require_flag(reset_after, "reset_after"):
        module.reset_after = False


def _drop_input_gate(module: Any, names: Sequence[str]) -> None:
    """Make weights and biases of gates i f g o those of f g o."""
    for name in names:
        setattr(module, name, Parameter(getattr(module, name).detach()[module.hidden_size :].clone()))


def _peephole(module: Any) -> Parameter:
    """Peephole weights, drawn as torch draws the others."""
    weight = next(module.parameters())
    shape = (2 if module.coupled else 3, module.hidden_size)
    bound = module.hidden_size**-0.5
    return Parameter(torch.empty(shape, device=weight.device, dtype=weight.dtype).uniform_(-bound, bound))


CLASSES: dict[type[nn.Module], type[_Fused]] = {
    fused._torch_class: fused for fused in (RNN, LSTM, GRU, RNNCell, LSTMCell, GRUCell)
}
"""This library's class for each of torch's."""
