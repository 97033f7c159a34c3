"""The library inside a process: its threads and Python's, forks, Ctrl-C, floating-point state, memory, pickles."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from bitwise import assert_same, threads
from cases import LAYERS, Case, make_inputs, make_layer, small_cases
from oracles import run_library

import fusedrnn as fr
from fusedrnn import _core

BUSY = Case("lstm", 2, 2, "float32", 20, 16, 32, 64, True, True)
CELLS = [fr.RNNCell, fr.LSTMCell, fr.GRUCell]


def run_python(code: str, arguments: Sequence[str] = (), **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program with this interpreter, for as long as pytest lets the test run, and hand back what it printed."""
    variables = {**os.environ, **environment}
    command = [sys.executable, "-c", textwrap.dedent(code), *arguments]
    return subprocess.run(command, env=variables, capture_output=True, text=True)


# Python's threads


@pytest.mark.parametrize("count", [1, 2])
def test_python_threads_share_a_layer(count: int, rng: np.random.Generator) -> None:
    layer = make_layer(BUSY)
    inputs = [make_inputs(BUSY, rng) for _ in range(4)]
    expected = [run_library(layer, each) for each in inputs]
    begin = threading.Barrier(len(inputs))

    def work(number: int) -> list[Any]:
        begin.wait()
        return [run_library(layer, inputs[number]) for _ in range(5)]

    with threads(count), ThreadPoolExecutor(len(inputs)) as pool:
        for number, results in enumerate(pool.map(work, range(len(inputs)))):
            for result in results:
                assert_same(result, expected[number], f"thread {number}")


def test_python_threads_share_a_tape(rng: np.random.Generator) -> None:
    layer, inputs = make_layer(BUSY), make_inputs(BUSY, rng)
    expected = run_library(layer, inputs)
    tape = layer.forward(inputs.x, inputs.state, **inputs.sequence_options())[2]
    with ThreadPoolExecutor(4) as pool:
        for grads in pool.map(lambda _: layer.backward(tape, inputs.dy, inputs.dstate), range(8)):
            assert_same((grads.x, grads.state, grads.parameters), (expected.dx, expected.dstate, expected.parameters))


def long_calls() -> dict[str, Callable[[], Any]]:
    """Calls that take about a second each, on one thread."""
    layer = fr.LSTM(256, 256, seed=0)
    x = np.zeros((1500, 16, 256), np.float32)
    tape = layer.forward(x[:1000])[2]
    features, weight = np.zeros((3000, 256), np.float32), np.zeros((20000, 256), np.float32)
    arguments = (features, weight, None, np.zeros(3000, int))
    readout = fr.linear_cross_entropy_forward(features[:1500], weight, None, np.zeros(1500, int))[1]
    return {
        "call": lambda: layer(x),
        "forward": lambda: layer.forward(x),
        "backward": lambda: layer.backward(tape),
        "readout": lambda: fr.linear_cross_entropy(*arguments),
        "readout backward": lambda: fr.linear_cross_entropy_backward(readout),
        "linear": lambda: fr.linear(*arguments[:2]),
    }


def test_other_threads_run_during_a_call() -> None:
    for name, call in long_calls().items():
        ticks: list[float] = []
        finished = threading.Event()

        def tick(ticks: list[float] = ticks, finished: threading.Event = finished) -> None:
            while not finished.wait(0.005):
                ticks.append(time.perf_counter())

        other = threading.Thread(target=tick)
        with threads(1):
            other.start()
            start = time.perf_counter()
            call()
            end = time.perf_counter()
            finished.set()
            other.join()
        # A held GIL leaves one tick, at the start; the middle half is free of starting and ending.
        quarter = (end - start) / 4
        assert any(start + quarter < moment < end - quarter for moment in ticks), name


# Ctrl-C

# Signals come at a pace that a trial of each call sets, and from its own start on: no machine is too fast or too slow.
INTERRUPTED = """
    import signal, sys, time
    import numpy as np
    import fusedrnn as fr
    from fusedrnn import _core

    # A signal handler that finds memory in use runs within the call.
    def live():
        return _core.pool_use()["live"]

    class Watch:
        def __init__(self, idle, wanted):
            self.idle, self.wanted, self.looks = idle, wanted, 0
        def __call__(self, number, frame):
            if live() > self.idle:
                self.looks += 1
                if self.looks == self.wanted:
                    self.raised = time.thread_time()
                    raise KeyboardInterrupt

    # Runs the call under a signal every `pace` seconds; the look of that number raises.
    def run(call, pace, wanted):
        watch = Watch(live(), wanted)
        signal.signal(signal.SIGALRM, watch)
        start = time.thread_time()
        signal.setitimer(signal.ITIMER_REAL, pace, pace)
        try:
            call()
        except KeyboardInterrupt:
            signal.setitimer(signal.ITIMER_REAL, 0)
            assert live() == watch.idle, "an interrupted call kept memory"
            # Of this thread alone: what else runs on the machine does not count.
            return watch.raised - start, time.thread_time() - watch.raised
        signal.setitimer(signal.ITIMER_REAL, 0)
        return None

    def interrupt(name, call):
        begun, wall = time.thread_time(), time.perf_counter()
        call()
        whole, wall = time.thread_time() - begun, time.perf_counter() - wall
        for wanted in (1, 6):
            # A call that ends before that many signals gets them faster: it had the machine to itself this time.
            for pace in wall / 16 * 0.5 ** np.arange(8):
                ended = run(call, pace, wanted)
                if ended is not None:
                    break
            else:
                sys.exit(f"{name} ended without {wanted} looks for signals")
            before, after = ended
            assert after < whole / 2, f"{name} went on for {after} s of {whole} s after look {wanted}"
            assert wanted > 1 or before < whole / 2, f"{name} first looked after {before} s of {whole} s"

    _core.set_signal_interval(0.0)
    layer = fr.LSTM(256, 256, dtype="float64", seed=0)
    stack = fr.GRU(256, 256, 3, bidirectional=True, dropout=0.5, dtype="float64", seed=0)
    small = np.random.default_rng(0).standard_normal((3, 2, 256))
    y, state, tape = layer.forward(small)
    expected = layer.backward(tape, y).x
    x = np.zeros((2000, 8, 256))
    held = layer.forward(x)[2]
    features, weight, targets = np.zeros((2000, 256)), np.zeros((20000, 256)), np.zeros(2000, int)
    readout = fr.linear_cross_entropy_forward(features, weight, None, targets)[1]
    fr.set_num_threads(int(sys.argv[1]))

    interrupt("call", lambda: layer(x))
    interrupt("forward", lambda: layer.forward(x))
    interrupt("stack", lambda: stack.forward(x[:500]))
    interrupt("backward", lambda: layer.backward(held))
    interrupt("readout", lambda: fr.linear_cross_entropy(features, weight, None, targets))
    interrupt("readout backward", lambda: fr.linear_cross_entropy_backward(readout))
    logits, map_tape = fr.linear_forward(features, weight)
    interrupt("linear", lambda: fr.linear(features, weight))
    interrupt("linear backward", lambda: fr.linear_backward(map_tape, logits))
    interrupt("softmax", lambda: fr.softmax(logits))
    decoder = fr.AttentionDecoder(64, 128, 128, 128, dtype="float64", seed=0)
    inputs, memory = np.zeros((400, 8, 64)), np.zeros((100, 8, 128))
    held = decoder.forward(inputs, memory)[3]
    interrupt("decoder", lambda: decoder(inputs, memory))
    interrupt("decoder, forward", lambda: decoder.forward(inputs, memory))
    interrupt("decoder, backward", lambda: decoder.backward(held))
    query = np.zeros((800, 8, 128))
    parameters = [decoder.parameters[name] for name in list(decoder.parameters)[-4:]]
    held = fr.additive_attention_forward(query, memory, *parameters)[1]
    interrupt("attention", lambda: fr.additive_attention(query, memory, *parameters))
    interrupt("attention backward", lambda: fr.additive_attention_backward(held, query))
    # Steps so large that an interrupt must end them in their midst.
    wide = fr.LSTM(512, 512, dtype="float64", seed=0)
    step = np.broadcast_to(np.zeros(512), (1, 8000, 512))
    held = wide.forward(step)[2]
    interrupt("large step", lambda: wide(step))
    interrupt("large step, forward", lambda: wide.forward(step))
    interrupt("large step, backward", lambda: wide.backward(held))
    # One row of these is tens of megabytes of logits and gradients: signals come while packing, and in mid-chunk.
    weight, targets = np.zeros((300000, 128), np.float32), np.zeros(120, int)
    features = np.zeros((120, 128), np.float32)
    readout = fr.linear_cross_entropy_forward(features[:20], weight, None, targets[:20])[1]
    interrupt("large readout", lambda: fr.linear_cross_entropy(features, weight, None, targets))
    interrupt("large readout, backward", lambda: fr.linear_cross_entropy_backward(readout))
    y, state, tape = layer.forward(small)
    assert np.array_equal(layer.backward(tape, y).x, expected)
"""


@pytest.mark.parametrize("count", ["1", "2"])
def test_an_interrupt_ends_a_long_call(count: str) -> None:
    ended = run_python(INTERRUPTED, arguments=[count])
    assert ended.returncode == 0, ended.stderr


HANDLED = """
    import signal
    import numpy as np
    import fusedrnn as fr
    from fusedrnn import _core

    calls = []
    def handler(number, frame):
        calls.append(number)
        if len(calls) == 3:
            raise TimeoutError("enough")

    layer = fr.LSTM(128, 128, seed=0)
    x = np.random.default_rng(0).standard_normal((3000, 8, 128)).astype(np.float32)
    expected = layer(x)[0]
    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
    try:
        # Handlers that return let the call go on to the right result.
        while True:
            assert np.array_equal(layer(x)[0], expected)
    except TimeoutError:
        signal.setitimer(signal.ITIMER_REAL, 0)
    assert len(calls) == 3
    assert np.array_equal(layer(x)[0], expected)
"""


def test_signal_handlers_run_during_a_call() -> None:
    ended = run_python(HANDLED)
    assert ended.returncode == 0, ended.stderr


# Floating-point state


def product_below_normal() -> np.ndarray:
    """Numbers of float32 and float64 that are zero where denormals are flushed."""
    products = np.full(8, 1e-30, np.float32) * np.float32(1e-10), np.full(8, 1e-300) * 1e-15
    return np.array([product.astype(np.float64) for product in products])


def run_everything(dtype: str, rng: np.random.Generator) -> list[Any]:
    """Every kind of call, on numbers that leave the normal range."""
    results: list[Any] = []
    for cell in LAYERS:
        case = Case(cell, 2, 2, dtype, 3, 9, 5, 33)
        layer, inputs = make_layer(case), make_inputs(case, rng)
        for array in (inputs.x, inputs.dy):
            array *= np.finfo(dtype).tiny
        results.append(run_library(layer, inputs))
        results.append(layer(inputs.x, inputs.state))
    x, weight = rng.standard_normal((2, 40, 7)).astype(dtype)
    loss, tape = fr.linear_cross_entropy_forward(x, weight, None, np.arange(40), reduction="none")
    return [*results, loss, *fr.linear_cross_entropy_backward(tape)]


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_floating_point_state_is_the_callers(dtype: str, count: int) -> None:
    torch = pytest.importorskip("torch")
    kept = product_below_normal()
    assert kept.all()
    with threads(count):
        results = run_everything(dtype, np.random.default_rng(0))
        assert_same(product_below_normal(), kept)
        if not torch.set_flush_denormal(True):
            pytest.skip("this processor does not flush denormals")
        try:
            flushed = run_everything(dtype, np.random.default_rng(0))
            assert not product_below_normal().any()
        finally:
            torch.set_flush_denormal(False)
        # The inputs of both runs were drawn alike, and no denormal among them means anything.
        assert_same(flushed, results)


# Memory


def train(layer: Any, x: np.ndarray, steps: int) -> list[int]:
    """A training loop; how many fresh buffers the pool had handed out after each step."""
    fresh, state = [], None
    for _ in range(steps):
        y, state, tape = layer.forward(x, state)
        weight, targets = np.zeros((300, y.shape[-1]), x.dtype), np.zeros(x.shape[:2], int)
        readout = fr.linear_cross_entropy_forward(y, weight, None, targets)[1]
        dy = fr.linear_cross_entropy_backward(readout)[0]
        grads = layer.backward(tape, dy)
        fr.clip_grad_norm(grads, 1.0)
        for name, parameter in layer.parameters.items():
            parameter -= 0.01 * grads.parameters[name]
        fresh.append(_core.pool_use()["fresh"])
    return fresh


@pytest.mark.parametrize("case", small_cases(dtype="float32", time=30, batch=8, hidden_size=96, num_layers=2))
def test_a_training_loop_settles_to_no_fresh_memory(case: Case) -> None:
    x = np.random.default_rng(0).standard_normal((case.time, case.batch, case.input_size)).astype(case.dtype)
    before = _core.pool_use()["live"]
    fresh = train(make_layer(case), x, 8)
    assert fresh[3:] == fresh[-1:] * 5, fresh
    assert _core.pool_use()["live"] == before


def test_memory_comes_back_when_tapes_die() -> None:
    layer, x = fr.LSTM(32, 64, seed=0), np.zeros((50, 8, 32), np.float32)
    before = _core.pool_use()["live"]
    tapes = [layer.forward(x)[2] for _ in range(5)]
    held = _core.pool_use()["live"]
    assert held - before >= sum(tape.nbytes for tape in tapes)
    del tapes
    use = _core.pool_use()
    assert use["live"] == before
    assert use["idle"] > 0


def test_results_outlive_their_layer_and_tape() -> None:
    layer, x = fr.LSTM(32, 64, seed=0), np.ones((50, 8, 32), np.float32)
    y, state, tape = layer.forward(x)
    grads = layer.backward(tape, y)
    before = [array.copy() for array in (y, *state, grads.x, *grads.parameters.values())]
    kept = y, *state, grads.x, *grads.parameters.values()
    del layer, tape, y, state, grads
    train(fr.LSTM(32, 64, seed=1), x, 2)
    assert_same(kept, before)


def test_a_tape_keeps_what_it_refers_to() -> None:
    layer, rng = fr.LSTM(32, 64, seed=0), np.random.default_rng(0)
    x = rng.standard_normal((50, 8, 32)).astype(np.float32)
    tape = layer.forward(x)[2]
    expected = layer.backward(tape).x
    tape = layer.forward(x.copy())[2]
    layer.parameters = {name: array.copy() for name, array in layer.parameters.items()}
    train(fr.LSTM(32, 64, seed=1), x, 2)
    assert_same(layer.backward(tape).x, expected)


@pytest.mark.parametrize("case", small_cases(dtype="float32", num_layers=2, directions=2, time=100, batch=8))
def test_tapes_grow_with_time(case: Case, rng: np.random.Generator) -> None:
    layer, inputs = make_layer(case), make_inputs(case, rng)
    sizes = [layer.forward(inputs.x[:steps])[2].nbytes for steps in (25, 50, 100)]
    assert 0 < sizes[0] < sizes[1] < sizes[2]
    # The pool rounds sizes up by an eighth at most.
    assert sizes[1] / sizes[0] == pytest.approx(2, rel=0.25)
    assert sizes[2] / sizes[1] == pytest.approx(2, rel=0.25)
    assert fr.linear_cross_entropy_forward(inputs.x, inputs.x[0], None, np.zeros((100, 8), int))[1].nbytes > 0


@pytest.mark.parametrize("case", small_cases(dtype="float32", num_layers=2, ragged=True))
def test_backward_twice_is_the_same(case: Case, rng: np.random.Generator) -> None:
    layer, inputs = make_layer(case, dropout=0.5), make_inputs(case, rng)
    tape = layer.forward(inputs.x, inputs.state, **inputs.sequence_options())[2]
    first = layer.backward(tape, inputs.dy, inputs.dstate)
    layer.backward(tape)
    # The last gradients are the last to be written: into memory of their own.
    for array in (first.x, *first.parameters.values()):
        array += 1
    again = layer.backward(tape, inputs.dy, inputs.dstate)
    for array in (first.x, *first.parameters.values()):
        array -= 1
    third = layer.backward(tape, inputs.dy, inputs.dstate)
    assert_same(third, again)


# Copies


def duplicates(layer: Any) -> dict[str, Any]:
    protocols = range(2, pickle.HIGHEST_PROTOCOL + 1)
    pickled = {f"pickle {protocol}": pickle.loads(pickle.dumps(layer, protocol)) for protocol in protocols}
    return {"deepcopy": copy.deepcopy(layer), **pickled}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("cell", LAYERS)
def test_copies_of_layers(cell: str, dtype: str, rng: np.random.Generator) -> None:
    case = Case(cell, 2, 2, dtype)
    layer, inputs = make_layer(case, dropout=0.5), make_inputs(case, rng)
    layer.forward(inputs.x)
    for how, duplicate in duplicates(layer).items():
        assert repr(duplicate) == repr(layer)
        assert_same(duplicate.parameters, layer.parameters, how)
        assert not np.shares_memory(duplicate.parameters["weight_ih_l0"], layer.parameters["weight_ih_l0"])
    # The next mask is the same everywhere: the copies carry the count of calls on.
    others = duplicates(layer)
    expected = run_library(layer, inputs)
    for how, duplicate in others.items():
        assert_same(run_library(duplicate, inputs), expected, how)


@pytest.mark.parametrize("options", [{"batch_first": True}, {"bias": False}, {"dtype": "float64"}])
@pytest.mark.parametrize("kind", [fr.RNN, fr.LSTM, fr.GRU, *CELLS])
def test_copies_keep_options(kind: Any, options: dict[str, Any]) -> None:
    if "batch_first" in options and kind in CELLS:
        pytest.skip("cells have no time")
    original = kind(3, 5, **options)
    for duplicate in duplicates(original).values():
        assert repr(duplicate) == repr(original)
        for name in options:
            assert getattr(duplicate, name) == getattr(original, name)
        x = np.ones((2, 3), original.dtype) if kind in CELLS else np.ones((4, 2, 3), original.dtype)
        assert_same(duplicate(x), original(x))


# The machine


def test_info() -> None:
    info = fr.info()
    assert {"version", "isa", "isas", "threads", "available_threads", "cells", "cuda"} <= set(info)
    assert info["version"] == fr.__version__
    assert info["isa"] in info["isas"] == _core.isas()
    assert info["bfloat16_isa"] in info["bfloat16_isas"] == _core.pair_isas()
    assert set(info["isas"]) <= set(info["bfloat16_isas"])
    assert info["threads"] == fr.get_num_threads()
    assert sorted(info["cells"]) == sorted(LAYERS)


def test_the_module_prints_its_info() -> None:
    command = [sys.executable, "-m", "fusedrnn"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True)
    for name in fr.info():
        assert name in printed.stdout
    assert fr.__version__ in printed.stdout
    assert not printed.stderr


def test_threads_stay_within_what_is_available() -> None:
    before = fr.get_num_threads()
    try:
        for wanted in (1, 2, 10**6):
            fr.set_num_threads(wanted)
            assert fr.get_num_threads() == min(wanted, _core.available_threads())
    finally:
        fr.set_num_threads(before)
    assert 1 <= _core.available_threads() <= len(os.sched_getaffinity(0))


def test_threads_obey_affinity_and_openmp() -> None:
    code = """
        import os
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        import fusedrnn as fr
        fr.set_num_threads(64)
        print(fr.get_num_threads())
    """
    assert run_python(code).stdout == "1\n"
    code = "import fusedrnn as fr; print(fr.get_num_threads())"
    available = _core.available_threads()
    for setting, expected in (("1", 1), (" 2,1", min(2, available)), ("1000", available), ("", available)):
        assert run_python(code, OMP_NUM_THREADS=setting).stdout == f"{expected}\n"


def test_other_libraries_threads_are_their_own() -> None:
    code = """
        import ctypes
        import fusedrnn as fr
        ctypes.CDLL("libgomp.so.1").omp_set_num_threads(1)  # as torch.set_num_threads(1) does
        print(fr.get_num_threads())
        fr.LSTM(64, 64)  # the first call that could look
        print(fr.get_num_threads())
    """
    ended = run_python(code, OMP_NUM_THREADS="")
    assert ended.stdout == f"{_core.available_threads()}\n" * 2, ended.stderr


@pytest.mark.parametrize("isa", _core.isas())
def test_every_instruction_set_computes(isa: str) -> None:
    code = """
        import numpy as np
        import fusedrnn as fr
        from fusedrnn import reference
        print(fr.info()["isa"])
        layer = fr.LSTM(7, 33, 2, bidirectional=True, peephole=True, seed=0)
        x = np.random.default_rng(0).standard_normal((9, 5, 7)).astype(np.float32)
        y, _, tape = layer.forward(x)
        dx = layer.backward(tape, y).x
        expected, _, tape = reference.forward("lstm_peephole", layer.parameters, x, num_layers=2, bidirectional=True)
        np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5)
        np.testing.assert_allclose(dx, reference.backward(tape, y)[0], rtol=0, atol=1e-4)
    """
    ended = run_python(code, FUSEDRNN_ISA=isa)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.split() == [isa]


def test_an_unknown_instruction_set_is_an_error_at_import() -> None:
    for isa in ("x86-64-v9", "avx2", "X86-64-V3"):
        ended = run_python("import fusedrnn", FUSEDRNN_ISA=isa)
        assert ended.returncode == 1
        last = ended.stderr.strip().splitlines()[-1]
        assert "FUSEDRNN_ISA" in last
        assert isa in last
        assert all(offered in last for offered in _core.pair_isas())


def test_an_empty_choice_of_instruction_set_is_none() -> None:
    ended = run_python("import fusedrnn; print(fusedrnn.info()['isa'])", FUSEDRNN_ISA="")
    assert ended.stdout.split() == [_core.isas()[0]]
