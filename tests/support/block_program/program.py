"""Compiles the host build of the CUDA block programs, and calls it as a driver would: a layer forward and backward.

The structures mirror ``csrc/cuda/persistent/arguments.h`` and ``plan.h``.
"""

from __future__ import annotations

import ctypes
import pathlib
import subprocess
from ctypes import Structure, c_bool, c_char_p, c_int, c_size_t, c_ssize_t, c_uint, c_void_p
from typing import Any

import cxx
import numpy as np
from oracles import Result

ROOT = pathlib.Path(__file__).parents[3]
PRECISIONS = ("bfloat16", "float16", "tf32")
FORMS = ("a kernel a stage", "one kernel")
ENOUGH = 1 << 20  # multiprocessors

# Of each cell: torch's gate blocks in the order of the slots that x feeds, the first of those slots, the first slot
# that h feeds with its gate blocks in order, and the number of slots.
WINDOWS = {"lstm": ([0, 1, 2, 3], 0, 0, 4), "lstm_coupled": ([0, 1, 2], 0, 0, 3), "gru": ([2, 0, 1], 0, 1, 4)}


def compile_library(directory: pathlib.Path) -> ctypes.CDLL:
    """The block programs with the policy of a host, from the system's C++ compiler."""
    compiler = cxx.compiler()
    if compiler is None:
        raise FileNotFoundError("no C++ compiler: CXX is not set, and none of c++, g++ and clang++ is there")
    library = directory / "block_program.so"
    sources = [ROOT / "tests/support/block_program/host.cpp", ROOT / "csrc/cuda/persistent/plan.cpp"]
    options = [
        "-std=c++17",
        "-O1",
        "-ffp-contract=off",
        "-fPIC",
        "-shared",
        f"-I{ROOT}/csrc",
        f"-I{ROOT}/tests/support",
    ]
    subprocess.run([*compiler, *options, *map(str, sources), "-o", str(library)], check=True)
    loaded = ctypes.CDLL(str(library))
    loaded.block_program_plan.restype = c_char_p
    loaded.block_program_size.restype = c_size_t
    for which, structure in enumerate((Problem, Plan, ForwardProgramArguments, BackwardProgramArguments)):
        assert loaded.block_program_size(which) == ctypes.sizeof(structure), structure.__name__
    return loaded


class Problem(Structure):
    _fields_ = (
        ("cell", c_char_p),
        ("precision", c_int),
        ("backward", c_int),
        ("form", c_int),
        ("hidden_size", c_ssize_t),
        ("rows", c_ssize_t),
        ("directions", c_int),
    )


class Plan(Structure):
    _fields_ = (
        ("problem", Problem),
        *((name, c_int) for name in ("capacity", "units", "blocks", "slice_rows", "slices")),
        ("exchange_stride", c_ssize_t),
        *((name, c_size_t) for name in ("shared", "packed_at", "carry_at", "workspace")),
    )


class Sequence(Structure):
    _fields_ = (("data", c_void_p), ("time", c_ssize_t), ("row", c_ssize_t))


class StateRows(Structure):
    _fields_ = (("data", c_void_p), ("row", c_ssize_t))


class Batch(Structure):
    _fields_ = (
        *((name, c_ssize_t) for name in ("rows", "hidden_size", "first_step", "end_step", "total_steps")),
        ("lengths", c_void_p),
        ("reset", c_void_p),
        ("reset_time", c_ssize_t),
        ("reset_row", c_ssize_t),
        ("first_is_reverse", c_bool),
    )


class Grid(Structure):
    _fields_ = (
        *((name, c_int) for name in ("blocks", "slices", "slice_rows")),
        ("exchange", c_void_p),
        ("exchange_stride", c_ssize_t),
        ("packed", c_void_p),
        ("carry", c_void_p),
    )


class ForwardDirection(Structure):
    _fields_ = (
        ("weight_hh", c_void_p),
        ("bias", c_void_p),
        *((name, Sequence) for name in ("gates", "cells", "y")),
        *((name, StateRows) for name in ("h0", "c0", "hn", "cn")),
    )


class ForwardProgramArguments(Structure):
    _fields_ = (("batch", Batch), ("grid", Grid), ("keep", c_bool), ("direction", ForwardDirection * 2))


class BackwardDirection(Structure):
    _fields_ = (
        ("weight_hh", c_void_p),
        *((name, Sequence) for name in ("gates", "cells")),
        ("c0", StateRows),
        *((name, Sequence) for name in ("h_previous", "dy", "dgates")),
        *((name, StateRows) for name in ("dh", "dc")),
    )


class BackwardProgramArguments(Structure):
    _fields_ = (("batch", Batch), ("grid", Grid), ("direction", BackwardDirection * 2))


def encode(values: np.ndarray, precision: str) -> np.ndarray:
    """`values` as an array of the precision holds them; bfloat16 as its bits; a nan of all ones stays one."""
    if precision == "float16":
        return np.asarray(values, np.float16)
    single = np.ascontiguousarray(values, np.float32)
    if precision == "tf32":
        return single
    bits = single.view(np.uint32)
    rounded = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(single), (bits >> 16).astype(np.uint16) | 0x40, rounded)


def decode(array: np.ndarray, precision: str) -> np.ndarray:
    if precision == "bfloat16":
        array = (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float64)


def poison(shape: Any, dtype: Any) -> np.ndarray:
    """An array of one nan."""
    size = np.dtype(dtype).itemsize
    return np.full(shape, {2: 0x7FBD, 4: 0x7FBDBDBD}[size], f"u{size}").view(dtype)


class Guarded:
    """Poisoned arrays within larger ones, to see that nothing else is written."""

    WIDTH = 5

    def __init__(self) -> None:
        self.pairs: list[tuple[np.ndarray, np.ndarray]] = []

    def array(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        buffer = poison([size + 2 * self.WIDTH for size in shape], dtype)
        view = buffer[tuple(slice(self.WIDTH, -self.WIDTH) for _ in shape)]
        self.pairs.append((buffer, view))
        return view

    def check(self) -> None:
        for buffer, view in self.pairs:
            expected = poison(buffer.shape, buffer.dtype)
            expected[tuple(slice(self.WIDTH, -self.WIDTH) for _ in view.shape)] = view
            assert buffer.tobytes() == expected.tobytes(), "written outside of an output"


def sequence(array: np.ndarray | None) -> Sequence:
    """An array (steps, rows, units) whose units lie side by side; strides count elements."""
    if array is None:
        return Sequence()
    return Sequence(array.ctypes.data, *(stride // array.itemsize for stride in array.strides[:2]))


def state_rows(array: np.ndarray | None) -> StateRows:
    return StateRows() if array is None else StateRows(array.ctypes.data, array.strides[0] // array.itemsize)


class Layer:
    """One layer through the block programs, forward and backward, as `oracles.run_library` has it."""

    def __init__(self, library: Any, case: Any, parameters: dict[str, np.ndarray], inputs: Any) -> None:
        self.library, self.case, self.parameters, self.inputs = library, case, parameters, inputs
        self.order, self.x_first, self.h_first, self.slots = WINDOWS[case.cell]
        self.gates = len(self.order)
        steps = np.arange(case.time)[:, None]
        self.lengths = np.full(case.batch, case.time) if inputs.lengths is None else inputs.lengths
        self.alive = steps < self.lengths
        # Time of each step and row, for each direction, and whether the step is entered from zero.
        self.times = [np.broadcast_to(steps, self.alive.shape), np.where(self.alive, self.lengths - 1 - steps, steps)]
        self.cut = [np.zeros_like(self.alive), np.zeros_like(self.alive)]
        if inputs.reset is not None:
            rows = np.arange(case.batch)
            self.cut[0] = inputs.reset & self.alive
            self.cut[1][1:] = inputs.reset[self.times[1][:-1], rows] & self.alive[1:]
        # A length beyond the sequence and one below 0 are clamped.
        shown = np.where(self.lengths == case.time, case.time + 3, np.where(self.lengths == 0, -2, self.lengths))
        self.given_lengths = None if inputs.lengths is None else shown.astype(np.int64)

    def suffixes(self) -> list[str]:
        return ["_l0", "_l0_reverse"][: self.case.directions]

    def by_step(self, array: np.ndarray, direction: int) -> np.ndarray:
        """An array in time order, in step order; 0 past each row's length."""
        return np.where(self.alive[..., None], array[self.times[direction], np.arange(self.case.batch)], 0.0)

    def by_time(self, array: np.ndarray, direction: int) -> np.ndarray:
        result = np.empty_like(array)
        result[self.times[direction], np.arange(self.case.batch)] = array
        return result

    def x_slots(self) -> slice:
        return slice(self.x_first, self.x_first + self.gates)

    def h_slots(self) -> slice:
        return slice(self.h_first, self.h_first + self.gates)

    def blocks(self, array: np.ndarray) -> np.ndarray:
        """Gate blocks of weights or biases, in the order of the slots that x feeds."""
        return array.reshape(self.gates, self.case.hidden_size, *array.shape[1:])[self.order]

    def launch(self, arguments: Any, backward: bool, apart: bool, *options: Any) -> None:
        """Both directions in one launch, or one of its own for each."""
        if not apart:
            return self.launch_one(arguments, backward, self.case.directions, *options)
        for d in range(self.case.directions):
            one = type(arguments).from_buffer_copy(arguments)
            one.direction[0] = arguments.direction[d]
            one.batch.first_is_reverse = d == 1
            self.launch_one(one, backward, 1, *options)

    def launch_one(
        self, arguments: Any, backward: bool, directions: int, form: str, seed: int, multiprocessors: int, fences: bool
    ) -> None:
        """Run one launch on a poisoned workspace."""
        case = self.case
        problem = Problem(
            case.cell.encode(),
            PRECISIONS.index(case.precision),
            int(backward),
            FORMS.index(form),
            case.hidden_size,
            case.batch,
            directions,
        )
        plan = Plan()
        reason = self.library.block_program_plan(ctypes.byref(problem), multiprocessors, ctypes.byref(plan))
        assert reason is None, reason
        workspace = np.full(plan.workspace + 512, 0xFF, np.uint8)
        offset = -workspace.ctypes.data % 256
        message = ctypes.create_string_buffer(200)
        self.library.block_program_run(
            ctypes.byref(plan),
            ctypes.byref(arguments),
            c_void_p(workspace.ctypes.data + offset),
            c_uint(seed),
            c_bool(fences),
            message,
            c_size_t(len(message)),
        )
        assert not message.value, message.value.decode()
        around = np.concatenate([workspace[:offset], workspace[offset + plan.workspace :]])
        assert (around == 0xFF).all(), "written outside of the workspace"

    def batch(self, first: int, end: int) -> Batch:
        reset, lengths = self.inputs.reset, self.given_lengths
        return Batch(
            self.case.batch,
            self.case.hidden_size,
            first,
            end,
            self.case.time,
            None if lengths is None else lengths.ctypes.data,
            None if reset is None else reset.ctypes.data,
            *((0, 0) if reset is None else reset.strides),
            False,
        )

    def run(
        self,
        form: str = FORMS[0],
        seed: int = 0,
        multiprocessors: int = ENOUGH,
        keep: bool = True,
        chunk: int | None = None,
        apart: bool = False,
        fences: bool = True,
    ) -> dict[str, Any]:
        """Every array that the programs write, in launches of `chunk` steps."""
        case, guarded = self.case, Guarded()
        directions, steps, rows, hidden = case.directions, case.time, case.batch, case.hidden_size
        stored = encode(np.zeros(0), case.precision).dtype
        chunk = max(steps, 1) if chunk is None else chunk
        two = case.two_states
        state = self.inputs.state if two else (self.inputs.state, None)
        h0 = encode(state[0], case.precision)
        weights = [encode(self.parameters["weight_hh" + s], case.precision) for s in self.suffixes()]

        gates = guarded.array((directions * steps, rows, self.slots * hidden), np.float32)
        cells = guarded.array((directions * steps, rows, hidden), np.float32)
        y = guarded.array((steps, rows, directions * hidden), stored)
        hn = guarded.array((directions * rows, hidden), stored)
        cn = guarded.array((directions * rows, hidden), np.float32)
        biases = []
        for d, suffix in enumerate(self.suffixes()):
            bias = np.zeros((self.slots, hidden), np.float32)
            bias[self.x_slots()] += self.blocks(self.parameters["bias_ih" + suffix])
            bias[self.h_slots()] += self.parameters["bias_hh" + suffix].reshape(self.gates, hidden)
            biases.append(bias)
            part = self.by_step(self.inputs.x, d) @ self.blocks(self.parameters["weight_ih" + suffix]).reshape(
                self.gates * hidden, case.input_size
            ).T.astype(np.float64)
            into = gates[d * steps : (d + 1) * steps, :, self.x_first * hidden :][..., : self.gates * hidden]
            into[self.alive] = part[self.alive]  # elsewhere it stays nan

        def of(array: np.ndarray, d: int, first: int) -> np.ndarray:
            return array[d * steps + first : (d + 1) * steps]

        for first in range(0, max(steps, 1), chunk):
            arguments = ForwardProgramArguments(self.batch(first, min(first + chunk, steps)), Grid(), keep)
            for d in range(directions):
                own = slice(d * rows, (d + 1) * rows)
                arguments.direction[d] = ForwardDirection(
                    weights[d].ctypes.data,
                    biases[d].ctypes.data,
                    sequence(of(gates, d, first)),
                    sequence(of(cells, d, first) if two and keep else None),
                    sequence(y[:, :, d * hidden :]),
                    state_rows(hn[own] if first else h0[d]),
                    state_rows((cn[own] if first else state[1][d]) if two else None),
                    state_rows(hn[own]),
                    state_rows(cn[own] if two else None),
                )
            self.launch(arguments, False, apart, form, seed, multiprocessors, fences)
        guarded.check()
        written = {"y": y, "hn": hn, "cn": cn} | ({"gates": gates, "cells": cells} if keep else {})
        if not keep:
            return written

        dy = encode(self.inputs.dy, case.precision)
        dstate = self.inputs.dstate if two else (self.inputs.dstate, None)
        dgates = guarded.array((directions * steps, rows, self.slots * hidden), stored)
        dh = guarded.array((directions * rows, hidden), np.float32)
        dc = guarded.array((directions * rows, hidden), np.float32)
        dh[...] = dstate[0].reshape(dh.shape)
        if two:
            dc[...] = dstate[1].reshape(dc.shape)
        h_previous = np.empty((directions * steps, rows, hidden), stored)
        for d in range(directions):
            outputs = self.by_step(decode(y[:, :, d * hidden : (d + 1) * hidden], case.precision), d)
            entering = np.concatenate([decode(h0[d : d + 1], case.precision), outputs])[:steps]
            kept = (self.alive & ~self.cut[d])[..., None]
            h_previous[d * steps : (d + 1) * steps] = encode(np.where(kept, entering, 0.0), case.precision)
        tape = [gates.copy(), cells.copy()]
        for first in reversed(range(0, max(steps, 1), chunk)):
            backward = BackwardProgramArguments(self.batch(first, min(first + chunk, steps)), Grid())
            for d in range(directions):
                own = slice(d * rows, (d + 1) * rows)
                before = cells[d * steps + first - 1] if first else state[1][d] if two else None
                backward.direction[d] = BackwardDirection(
                    weights[d].ctypes.data,
                    sequence(of(gates, d, first)),
                    sequence(of(cells, d, first) if two else None),
                    state_rows(before if two else None),
                    sequence(of(h_previous, d, first)),
                    sequence(dy[:, :, d * hidden :]),
                    sequence(of(dgates, d, first)),
                    state_rows(dh[own]),
                    state_rows(dc[own] if two else None),
                )
            self.launch(backward, True, apart, form, seed, multiprocessors, fences)
        guarded.check()
        assert [gates.tobytes(), cells.tobytes()] == [array.tobytes() for array in tape], "the tape was written"
        return written | {"dgates": dgates, "dh": dh, "dc": dc, "h_previous": h_previous}

    def result(self, written: dict[str, np.ndarray]) -> Result:
        """Outputs and gradients, the products over all steps taken in float64."""
        case = self.case
        steps, rows, hidden = case.time, case.batch, case.hidden_size
        shape = (case.directions, rows, hidden)
        dx, gradients = np.zeros((steps, rows, case.input_size)), {}
        for d, suffix in enumerate(self.suffixes()):
            own = slice(d * steps, (d + 1) * steps)
            dslots = decode(written["dgates"][own], case.precision).reshape(steps, rows, self.slots, hidden)
            assert not dslots[~self.alive].any(), "a gradient past a row's length"
            by_gate = np.argsort(self.order)
            of_x = dslots[:, :, self.x_slots()][:, :, by_gate].reshape(steps * rows, -1)
            of_h = dslots[:, :, self.h_slots()].reshape(steps * rows, -1)
            x = self.by_step(self.inputs.x, d).reshape(steps * rows, -1)
            h = decode(written["h_previous"][own], case.precision).reshape(steps * rows, -1)
            weight_ih = self.parameters["weight_ih" + suffix].astype(np.float64)
            dx += self.by_time((of_x @ weight_ih).reshape(dx.shape), d)
            gradients |= {"weight_ih" + suffix: of_x.T @ x, "weight_hh" + suffix: of_h.T @ h}
            gradients |= {"bias_ih" + suffix: of_x.sum(0), "bias_hh" + suffix: of_h.sum(0)}

        def joined(h: np.ndarray, c: np.ndarray) -> Any:
            return (h.reshape(shape), c.reshape(shape)) if case.two_states else h.reshape(shape)

        return Result(
            decode(written["y"], case.precision),
            joined(decode(written["hn"], case.precision), written["cn"]),
            dx,
            joined(written["dh"], written["dc"]),
            {name: gradients[name] for name in self.parameters},
        )
