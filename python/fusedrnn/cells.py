"""Cells: one step at a time."""

from __future__ import annotations

from typing import Any, SupportsFloat

import numpy as np

from fusedrnn.arguments import require_choice, require_flag
from fusedrnn.engines.protocol import Engine, Tape
from fusedrnn.gradients import Array, Gradients, State
from fusedrnn.options import Options
from fusedrnn.recurrent import Recurrent, differentiate, lstm_name


class _Cell(Recurrent):
    _engine: Engine

    def __call__(self, x: Array, state: State | None = None) -> State:
        """Run one step.

        Parameters
        ----------
        x : ndarray
            (B, I) or (I,), of the cell's dtype, unit stride in the last axis.
        state : ndarray or (ndarray, ndarray), optional
            h, or (h, c) for an LSTM, each (B, H) or (H,). Zeros if None.

        Returns
        -------
        ndarray or (ndarray, ndarray)
            The new state.

        Raises
        ------
        TypeError, ValueError
            Where an argument is of another kind, dtype or shape; the message names it.
        """
        new_state: State = self._engine.infer(self.parameters, x, state, None, None, None, None)[1]
        return new_state

    def forward(self, x: Array, state: State | None = None) -> tuple[State, Tape]:
        """Run one step in training: as a call, and return (state, tape).

        The tape refers to x, the new h and the parameters: do not write them before the backward pass.
        """
        _, new_state, tape = self._engine.forward(self.parameters, x, state, None, None, None, 0, None)
        return new_state, tape

    def backward(self, tape: Tape, dstate: Any = None, grads: Gradients | None = None) -> Gradients:
        """Differentiate one step.

        Parameters
        ----------
        tape : Tape
            From this cell's `forward`.
        dstate : ndarray or (ndarray or None, ndarray or None), optional
            Gradient of the new state, shaped as it. Zeros where None.
        grads : Gradients, optional
            Of an earlier call: this call's parameter gradients are added into its arrays, which the result shares.

        Returns
        -------
        Gradients
            `x`, `state` (of the state before the step) and `parameters` by name.

        Raises
        ------
        TypeError, ValueError
            Where an argument is of another kind, dtype or shape, or the tape is another object's.
        """
        return differentiate(self._engine, tape, None, dstate, grads)


class RNNCell(_Cell):
    """One step of an Elman network; see `RNN`. Parameters are named as in torch's cell, without ``_l0``."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        bias: bool = True,
        nonlinearity: str = "tanh",
        clip: SupportsFloat | None = None,
        dtype: Any = "float32",
        device: str = "cpu",
        seed: int | np.random.Generator | None = None,
        precision: str = "ieee",
        engine: str = "auto",
    ) -> None:
        self.nonlinearity = require_choice(nonlinearity, "nonlinearity", ("tanh", "relu"))
        cell = f"rnn_{nonlinearity}"
        super().__init__(
            Options.checked(
                cell,
                input_size,
                hidden_size,
                bias=bias,
                clip=clip,
                dtype=dtype,
                device=device,
                seed=seed,
                precision=precision,
                engine=engine,
                single_step=True,
            )
        )

    def __repr__(self) -> str:
        return self._describe(nonlinearity=self.nonlinearity)


class LSTMCell(_Cell):
    """One step of an LSTM; see `LSTM`. Parameters are named as in torch's cell, without ``_l0``."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        bias: bool = True,
        peephole: bool = False,
        coupled: bool = False,
        clip: SupportsFloat | None = None,
        dtype: Any = "float32",
        device: str = "cpu",
        seed: int | np.random.Generator | None = None,
        precision: str = "ieee",
        engine: str = "auto",
    ) -> None:
        self.peephole = require_flag(peephole, "peephole")
        self.coupled = require_flag(coupled, "coupled")
        cell = lstm_name(self.peephole, self.coupled)
        super().__init__(
            Options.checked(
                cell,
                input_size,
                hidden_size,
                bias=bias,
                clip=clip,
                dtype=dtype,
                device=device,
                seed=seed,
                precision=precision,
                engine=engine,
                single_step=True,
            )
        )

    def __repr__(self) -> str:
        return self._describe(peephole=self.peephole, coupled=self.coupled)


class GRUCell(_Cell):
    """One step of a GRU; see `GRU`. Parameters are named as in torch's cell, without ``_l0``."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        bias: bool = True,
        reset_after: bool = True,
        clip: SupportsFloat | None = None,
        dtype: Any = "float32",
        device: str = "cpu",
        seed: int | np.random.Generator | None = None,
        precision: str = "ieee",
        engine: str = "auto",
    ) -> None:
        self.reset_after = require_flag(reset_after, "reset_after")
        cell = "gru" if self.reset_after else "gru_reset_before"
        super().__init__(
            Options.checked(
                cell,
                input_size,
                hidden_size,
                bias=bias,
                clip=clip,
                dtype=dtype,
                device=device,
                seed=seed,
                precision=precision,
                engine=engine,
                single_step=True,
            )
        )

    def __repr__(self) -> str:
        return self._describe(reset_after=self.reset_after)
