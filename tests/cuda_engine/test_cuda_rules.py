"""What the CUDA engine promises beside its numbers: errors, devices, streams, threads, graph capture, memory."""

from __future__ import annotations

import importlib
import sys
import threading
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from bitwise import assert_same
from cases import Case, make_inputs, make_layer
from devices import TestDevice, real_device, stand_in

import fusedrnn as fr
from fusedrnn.arrays import device as devices

CASE = Case("lstm", 2, 2, "float32", time=6, batch=4, input_size=3, hidden_size=5)


# ---- what is missing ----


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """As if nothing had been asked for yet."""
    monkeypatch.setattr(devices, "_arrays", None)
    return monkeypatch


def hide(monkeypatch: pytest.MonkeyPatch, name: str, module: Any = None) -> None:
    """Make `import name` fail, or give the module."""
    original = importlib.import_module

    def import_module(wanted: str, package: str | None = None) -> Any:
        if wanted == name and module is None:
            raise ModuleNotFoundError(f"No module named {name!r}")
        return module if wanted == name else original(wanted, package)

    monkeypatch.setattr(devices.importlib, "import_module", import_module)


def fake_cupy(available: bool) -> Any:
    cupy = types.SimpleNamespace(ndarray=type("ndarray", (), {}), __version__="14.0")
    cupy.cuda = types.SimpleNamespace(is_available=lambda: available)
    return cupy


def assert_unavailable(*words: str) -> None:
    for name in ("cuda", "cuda:1"):
        with pytest.raises(ValueError, match="device must be 'cpu' here") as raised:
            fr.LSTM(3, 4, device=name)
        assert all(word in str(raised.value) for word in words), raised.value
        with pytest.raises(ValueError, match="device must be 'cpu' here"):
            fr.GRUCell(3, 4, device=name)
        with pytest.raises(ValueError, match="device must be 'cpu' here"):
            fr.RNN(3, 4).to(device=name)
    assert fr.info()["cuda"].startswith("none: ")
    assert all(word in fr.info()["cuda"] for word in words)


def test_without_the_module(fresh: pytest.MonkeyPatch) -> None:
    hide(fresh, "fusedrnn._cuda")
    assert_unavailable("no CUDA module", "FUSEDRNN_CUDA=ON")


def test_the_module_of_another_package(fresh: pytest.MonkeyPatch) -> None:
    """fusedrnn-cuda13 brings it for a build that has none, and has to be of this version."""
    hide(fresh, "fusedrnn._cuda")
    module, package = types.ModuleType("_cuda"), types.ModuleType("fusedrnn_cuda13")
    fresh.setitem(sys.modules, "fusedrnn_cuda13", package)
    fresh.setitem(sys.modules, "fusedrnn_cuda13._cuda", module)
    package.__version__ = fr.__version__  # type: ignore[attr-defined]
    assert devices.load_native() is module
    package.__version__ = "0.0"  # type: ignore[attr-defined]
    assert_unavailable(f"fusedrnn-cuda13 is of version 0.0, fusedrnn of {fr.__version__}: they must be equal")


def test_without_cupy(fresh: pytest.MonkeyPatch, cuda_host_module: Any) -> None:
    fresh.setitem(sys.modules, "fusedrnn._cuda", cuda_host_module)
    fresh.setitem(sys.modules, "cupy", None)
    assert_unavailable("CuPy cannot be imported", "fusedrnn[cuda13]")


def test_without_a_gpu(fresh: pytest.MonkeyPatch, cuda_host_module: Any) -> None:
    fresh.setitem(sys.modules, "fusedrnn._cuda", cuda_host_module)
    fresh.setitem(sys.modules, "cupy", fake_cupy(False))
    assert_unavailable("no NVIDIA GPU")


def test_without_cublas(fresh: pytest.MonkeyPatch, cuda_host_module: Any) -> None:
    fresh.setitem(sys.modules, "fusedrnn._cuda", cuda_host_module)
    fresh.setitem(sys.modules, "cupy", fake_cupy(True))
    hide(fresh, "cuda.pathfinder")
    assert_unavailable("cuBLAS cannot be opened", "fusedrnn[cuda13]")


@pytest.mark.parametrize("name", ["cuda:", "cuda:-1", "cuda:x", "cuda:٣", "cuda0", "gpu", ""])
def test_other_names_of_devices(device: TestDevice, name: str) -> None:
    with pytest.raises(ValueError, match="device must be"):
        fr.LSTM(3, 4, device=name)


def test_devices_there_are(device: TestDevice) -> None:
    count = device.arrays.count()
    with pytest.raises(ValueError, match=f"one of cuda:0 to cuda:{count - 1}, not 'cuda:{count}'"):
        fr.LSTM(3, 4, device=f"cuda:{count}")
    assert fr.LSTM(3, 4, device="cuda").device == "cuda:0"
    assert fr.info()["cuda"].startswith("cuda:0 ")


# ---- arguments ----


def test_options_of_a_device(device: TestDevice) -> None:
    for options, words in (
        ({"dtype": "int8"}, "dtype must be"),
        ({"precision": "fast"}, "precision"),
        ({"precision": "tf32", "dtype": "float64"}, "precision"),
        ({"engine": "fast"}, "engine"),
        ({"engine": "persistent"}, "engine must be 'auto' or 'stepwise' here"),
    ):
        with pytest.raises(ValueError, match=words):
            fr.LSTM(3, 4, device="cuda", **options)
    for options, words in (
        ({"dtype": "float16"}, "dtype"),
        ({"precision": "tf32"}, "precision"),
        ({"engine": "stepwise"}, "engine must be 'auto' on the CPU"),
    ):
        with pytest.raises(ValueError, match=words):
            fr.LSTM(3, 4, **options)
    layer = fr.GRU(3, 4, device="cuda", precision="tf32", engine="stepwise")
    assert repr(layer) == "GRU(3, 4, reset_after=True, device='cuda:0', precision='tf32', engine='stepwise')"
    with pytest.raises(ValueError, match="device"):
        fr.LSTM(3, 4).buffers(2, 3)


def test_arguments_are_named_before_memory_is_touched(device: TestDevice, rng: np.random.Generator) -> None:
    layer, inputs = make_layer(CASE, device="cuda"), make_inputs(CASE, rng)
    x, state = device.put((inputs.x, inputs.state))
    y, _, tape = layer.forward(x, state)
    grads = layer.backward(tape, device.put(inputs.dy))
    flags = device.put(np.zeros((6, 4), bool))
    bad: list[tuple[Any, type[Exception], str]] = [
        (lambda: layer(inputs.x), TypeError, f"x must be a {device.arrays.kind_name} on cuda:0, not numpy.ndarray"),
        (lambda: layer([[1.0]]), TypeError, "x must be a .*, not list"),
        (lambda: layer(x.astype("float64")), TypeError, "x must be an array of float32, not of float64"),
        (lambda: layer(x[..., :2]), ValueError, r"x must have shape \(T, B, 3\) or \(T, 3\), not \(6, 4, 2\)"),
        (lambda: layer(device.put(np.zeros((6, 4, 6), "f4"))[..., ::2]), ValueError, "x must have elements next to"),
        (lambda: layer(x, inputs.state), TypeError, r"state\[0\] must be a "),
        (lambda: layer(x, state[0]), TypeError, "state must be a pair"),
        (lambda: layer(x, (state[0], None)), TypeError, r"state\[1\] must be a .*, not NoneType"),
        (lambda: layer(x, (state[0], state[1][:2])), ValueError, r"state\[1\] must have shape"),
        (lambda: layer(x, lengths=[1, 2, 3]), ValueError, r"lengths must have shape \(4,\)"),
        (lambda: layer(x, lengths=[1, 2, 3, 7]), ValueError, r"lengths must lie in \[0, 6\], not 7"),
        (lambda: layer(x, lengths=np.ones(4)), TypeError, "lengths must be an array of integers"),
        (lambda: layer(x, lengths=device.put(np.ones(4, "f4"))), TypeError, "lengths must be an array of integers"),
        (lambda: layer(x, lengths=device.put(np.ones(5, "i8"))), ValueError, r"lengths must have shape \(4,\)"),
        (lambda: layer(x, reset=np.zeros((6, 4), bool)), TypeError, "reset must be a "),
        (lambda: layer(x, reset=flags.astype("i1")), TypeError, "reset must be an array of bool"),
        (lambda: layer(x, reset=flags[:5]), ValueError, r"reset must have shape \(6, 4\)"),
        (lambda: layer(x, out=np.zeros(y.shape, "f4")), TypeError, "out must be a "),
        (lambda: layer(x, out=y[:5]), ValueError, "out must have shape"),
        (lambda: layer(x, recompute=2), TypeError, "recompute"),
        (lambda: layer.backward(tape, inputs.dy), TypeError, "dy must be a "),
        (lambda: layer.backward(tape, y[:5]), ValueError, "dy must have shape"),
        (lambda: layer.backward(3), TypeError, "tape must be the one"),
        (lambda: make_layer(CASE, device="cuda").backward(tape), ValueError, "tape must come from this object"),
        (lambda: layer.backward(tape, grads=fr.Gradients(0, 0, {})), ValueError, "grads.parameters.*is missing"),
        (lambda: layer.stream(2), ValueError, "bidirectional must be False"),
    ]
    if device.real:  # the stand-in's arrays are NumPy's
        bad.append((lambda: fr.LSTM(3, 4)(x), TypeError, "x must be a numpy.ndarray"))
    for call, error, words in bad:
        with pytest.raises(error, match=words):
            call()
    shared = device.put(np.zeros((6, 4, 10), "f4"))
    same = fr.RNN(10, 10, device="cuda")
    with pytest.raises(ValueError, match="out must not share memory with x"):
        same(shared, out=shared)
    grads.parameters["bias_ih_l0"] = grads.parameters["bias_hh_l0"]
    with pytest.raises(ValueError, match=r"bias_hh_l0.*must not share memory with.*bias_ih_l0"):
        layer.backward(tape, grads=grads)
    layer.parameters["bias_ih_l0"] = np.zeros(20, "f4")
    with pytest.raises(TypeError, match=r"parameters.'bias_ih_l0'. must be a "):
        layer(x)


def test_errors_say_the_same_on_the_cpu_and_on_a_device(device: TestDevice, rng: np.random.Generator) -> None:
    """Their sentences are one list; only what the caller can do about it differs, behind a semicolon."""
    inputs = make_inputs(CASE, rng)

    def without_a_parameter(layer: Any, put: Any) -> None:
        del layer.parameters["weight_hh_l0"]
        layer(put(inputs.x))

    def with_another_parameter(layer: Any, put: Any) -> None:
        layer.parameters["weight"] = put(inputs.x)
        layer(put(inputs.x))

    bad: list[Callable[[Any, Any], Any]] = [
        lambda layer, put: layer(put(inputs.x[..., :2])),
        lambda layer, put: layer(put(inputs.x[0, 0])),
        lambda layer, put: layer(put(inputs.x.astype("f8"))),
        lambda layer, put: layer(put(np.zeros((6, 4, 6), "f4"))[..., ::2]),
        lambda layer, put: layer(put(inputs.x), put(inputs.state[0])),
        lambda layer, put: layer(put(inputs.x), (put(inputs.state[0]),)),
        lambda layer, put: layer(put(inputs.x), (put(inputs.state[0]), put(inputs.state[1][:2]))),
        lambda layer, put: layer(put(inputs.x), lengths=[1, 2, 3]),
        lambda layer, put: layer(put(inputs.x), lengths=np.ones(4)),
        lambda layer, put: layer(put(inputs.x), lengths=4),
        lambda layer, put: layer(put(inputs.x[:, 0]), lengths=[3]),
        lambda layer, put: layer(put(inputs.x), reset=put(np.zeros((5, 4), bool))),
        lambda layer, put: layer(put(inputs.x), out=put(inputs.dy[:5])),
        lambda layer, put: layer.backward(make_layer(CASE, device=layer.device).forward(put(inputs.x))[2]),
        lambda layer, put: layer.backward(layer.forward(put(inputs.x))[2], grads=fr.Gradients(0, 0, {})),
        lambda layer, put: layer.backward(layer.forward(put(inputs.x))[2], grads=fr.Gradients(0, 0, 3)),
        without_a_parameter,
        with_another_parameter,
    ]
    for call in bad:
        said = []
        for place, put in (("cpu", np.array), ("cuda", device.put)):
            with pytest.raises((TypeError, ValueError)) as raised:
                call(make_layer(CASE, device=place), put)
            said.append((raised.type, str(raised.value).partition(";")[0]))
        kind = type(device.put(inputs.x)).__name__  # the one word that differs: what an array is called
        assert said[0] == (said[1][0], said[1][1].replace(f"not {kind}", "not ndarray"))


def test_arrays_of_another_device_are_refused_by_name(device: TestDevice, rng: np.random.Generator) -> None:
    if device.arrays.count() < 2:
        pytest.skip("there is one CUDA device only")
    inputs = make_inputs(CASE, rng)
    layers = [make_layer(CASE, device=f"cuda:{index}") for index in (0, 1)]
    results = []
    for index, layer in enumerate(layers):
        x = device.put(inputs.x, index)
        y = layer(x)[0]
        assert device.arrays.index_of(y) == index
        results.append(device.get(y))
        other = 1 - index
        with pytest.raises(TypeError, match=f"x must be on cuda:{index}, not on cuda:{other}"):
            layer(device.put(inputs.x, other))
    assert_same(*results)


# ---- memory held by the caller, and capture ----


def training_step(layer: Any, x: Any, state: Any, dy: Any, out: Any) -> tuple[Any, ...]:
    y, final, tape = layer.forward(x, state, out=out)
    grads = layer.backward(tape, dy)
    return y, final, grads.x, grads.state, grads.parameters


@pytest.mark.parametrize("recompute", [None, 2])
def test_buffers_are_written_again(device: TestDevice, recompute: int | None, rng: np.random.Generator) -> None:
    layer, inputs = make_layer(CASE, device="cuda"), make_inputs(CASE, rng)
    x, state, dy, flags = device.put((inputs.x, inputs.state, inputs.dy, rng.random((6, 4)) < 0.3))
    lengths = device.put(np.array([6, 3, 0, 2]))
    buffers = layer.buffers(6, 4, recompute=recompute)
    for options in ({}, {"lengths": lengths}, {"reset": flags}, {"lengths": lengths, "reset": flags}):
        y, _, tape = layer.forward(x, state, **options, recompute=recompute)
        expected = device.get((y, layer.backward(tape, dy).parameters))
        y, final, tape = layer.forward(x, state, **options, recompute=recompute, out=buffers)
        grads = layer.backward(tape, dy)
        assert y is buffers.y and final is buffers.state and grads.x is buffers.gradients.x
        assert_same(device.get((y, grads.parameters)), expected)
        assert layer(x, state, **options, out=buffers)[0] is buffers.y
        assert_same(device.get(buffers.y), expected[0])
    with pytest.raises(ValueError, match="out must be Buffers that this object made"):
        layer.forward(x[:5], out=buffers)
    with pytest.raises(ValueError, match="out must be Buffers that this object made"):
        make_layer(CASE, device="cuda")(x, out=buffers)
    with pytest.raises(ValueError, match="training=True"):
        layer.forward(x, out=layer.buffers(6, 4, training=False))


def test_under_capture_memory_must_be_held(cuda_host_module: Any, rng: np.random.Generator) -> None:
    with stand_in(cuda_host_module) as device:
        layer, inputs = make_layer(CASE, device="cuda"), make_inputs(CASE, rng)
        x, dy, lengths = device.put((inputs.x, inputs.dy, np.array([6, 3, 0, 2])))
        tape = layer.forward(x)[2]
        buffers = layer.buffers(6, 4)
        weight, targets = device.put((rng.standard_normal((7, 10)).astype("f4"), rng.integers(0, 7, (6, 4))))
        held = fr.readout_buffers(buffers.y, weight, None)
        norm = fr.norm_buffers(buffers.gradients.parameters)
        plain = fr.GRU(3, 5, device="cuda")
        stepper, x_t = plain.stream(4), x[0]
        y_t = device.empty((4, 5), np.float32)
        allocated = len(device.arrays.bands)
        cuda_host_module.set_capturing(True)
        refused = [
            lambda: layer(x),
            lambda: layer(x, out=buffers.y),
            lambda: layer.forward(x),
            lambda: layer.backward(tape, dy),
            lambda: fr.linear_cross_entropy(buffers.y, weight, None, targets),
            lambda: fr.clip_grad_norm(buffers.gradients, 1.0),
            lambda: stepper.step(x_t),
        ]
        for call in refused:
            with pytest.raises(ValueError, match=r"out.* while a graph is captured"):
                call()
        with pytest.raises(ValueError, match="lengths must be a device array while"):
            layer(x, lengths=[1, 2, 3, 4], out=buffers)
        y, _, tape = layer.forward(x, lengths=lengths, out=buffers)
        loss, readout = fr.linear_cross_entropy_forward(y, weight, None, targets, out=held)
        layer.backward(tape, fr.linear_cross_entropy_backward(readout)[0])
        fr.clip_grad_norm(buffers.gradients, 1.0, out=norm)
        stepper.step(x_t, out=y_t)
        assert len(device.arrays.bands) == allocated
        assert np.isfinite(device.get(loss)) and np.isfinite(device.get(norm.norm))


def test_work_goes_to_the_current_stream(cuda_host_module: Any, rng: np.random.Generator) -> None:
    seen: list[tuple[str, int, int]] = []

    class Watched:
        """The module, with what `forward` is given written down."""

        def __getattr__(self, name: str) -> Any:
            return getattr(cuda_host_module, name)

        class Net:
            def __init__(self, **settings: Any) -> None:
                self._net = cuda_host_module.Net(**settings)

            def __getattr__(self, name: str) -> Any:
                value = getattr(self._net, name)
                if name not in ("forward", "backward"):
                    return value

                def watched(index: int, stream: int, *args: Any, **options: Any) -> None:
                    seen.append((name, index, stream))
                    value(index, stream, *args, **options)

                return watched

    with stand_in(cuda_host_module) as device:
        device.arrays.native = Watched()
        inputs = make_inputs(CASE, rng)
        for index in (0, 1):
            layer = make_layer(CASE, device=f"cuda:{index}")
            layer.backward(layer.forward(device.put(inputs.x, index))[2])
    assert seen == [("forward", 0, 11), ("backward", 0, 11), ("forward", 1, 22), ("backward", 1, 22)]


# ---- what only a GPU can show ----


@pytest.mark.gpu
def test_streams_do_not_disturb_each_other(rng: np.random.Generator) -> None:
    device = real_device()
    import cupy

    case = Case("lstm", 2, 2, "float32", time=50, batch=32, input_size=64, hidden_size=96)
    layer = make_layer(case, device="cuda")
    batches = [device.put(make_inputs(case, rng)) for _ in range(4)]
    expected = [device.get(training_step(layer, b.x, b.state, b.dy, None)) for b in batches]
    streams = [cupy.cuda.Stream(non_blocking=True) for _ in batches]
    results = []
    cupy.cuda.Device().synchronize()
    for _ in range(3):
        results = []
        for stream, batch in zip(streams, batches, strict=True):
            with stream:
                results.append(training_step(layer, batch.x, batch.state, batch.dy, None))
    for stream, result, wanted in zip(streams, results, expected, strict=True):
        stream.synchronize()
        assert_same(device.get(result), wanted)


@pytest.mark.gpu
def test_threads_have_handles_of_their_own(rng: np.random.Generator) -> None:
    device = real_device()
    import cupy

    case = Case("gru", 1, 1, "float32", time=40, batch=16, input_size=64, hidden_size=128)
    layer = make_layer(case, device="cuda")
    batches = [device.put(make_inputs(case, rng)) for _ in range(4)]
    expected = [device.get(training_step(layer, b.x, b.state, b.dy, None)) for b in batches]
    results: list[Any] = [None] * len(batches)
    cupy.cuda.Device().synchronize()

    def work(number: int) -> None:
        with cupy.cuda.Stream(non_blocking=True) as stream:
            for _ in range(5):
                b = batches[number]
                results[number] = training_step(layer, b.x, b.state, b.dy, None)
            stream.synchronize()

    workers = [threading.Thread(target=work, args=(number,)) for number in range(len(batches))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for result, wanted in zip(results, expected, strict=True):
        assert_same(device.get(result), wanted)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_captured_training_step_replays(dtype: str, rng: np.random.Generator) -> None:
    device = real_device()
    import cupy

    layer, inputs = make_layer(CASE, device="cuda", dtype=dtype), make_inputs(CASE, rng)
    kind = layer.dtype
    x, dy, other = device.put((inputs.x.astype(kind), inputs.dy.astype(kind), (2 * inputs.x).astype(kind)))
    lengths = device.put(np.array([6, 3, 0, 2]))
    buffers, norm = layer.buffers(6, 4), None
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.Device().synchronize()  # what was copied on the default stream

    def step() -> None:
        _, _, tape = layer.forward(x, lengths=lengths, out=buffers)
        grads = layer.backward(tape, dy)
        fr.clip_grad_norm(grads, 0.5, out=norm)

    with stream:
        norm = fr.norm_buffers(buffers.gradients)
        step()  # loads the kernels and makes a cuBLAS handle
        stream.begin_capture()
        step()
        graph = stream.end_capture()
        for source in (x.copy(), other):
            x[...] = source
            graph.launch(stream)
            replayed = device.get((buffers.y, buffers.state, buffers.gradients.parameters, norm.norm))
            y, final, tape = layer.forward(x, lengths=lengths)
            grads = layer.backward(tape, dy)
            norm_now = fr.clip_grad_norm(grads, 0.5)
            assert_same(replayed, device.get((y, final, grads.parameters, norm_now)))


@pytest.mark.gpu
def test_replays_draw_fresh_dropout_masks(rng: np.random.Generator) -> None:
    device = real_device()
    import cupy

    layer, twin = (make_layer(CASE, device=where, dropout=0.5) for where in ("cuda", "cpu"))
    inputs = make_inputs(CASE, rng)
    x, buffers = device.put(inputs.x), layer.buffers(6, 4)
    cupy.cuda.Device().synchronize()
    with cupy.cuda.Stream(non_blocking=True) as stream:
        layer.forward(x, out=buffers)
        twin.forward(inputs.x)
        stream.begin_capture()
        layer.forward(x, out=buffers)
        graph = stream.end_capture()
        for _ in range(3):
            graph.launch(stream)
            np.testing.assert_allclose(device.get(buffers.y), twin.forward(inputs.x)[0], rtol=0, atol=1e-5)


@pytest.mark.gpu
def test_equal_from_run_to_run(rng: np.random.Generator) -> None:
    device = real_device()
    case = Case("lstm", 2, 2, "float32", time=60, batch=33, input_size=65, hidden_size=130)
    layer, batch = make_layer(case, device="cuda"), device.put(make_inputs(case, rng))
    first = device.get(training_step(layer, batch.x, batch.state, batch.dy, None))
    for _ in range(5):
        assert_same(device.get(training_step(layer, batch.x, batch.state, batch.dy, None)), first)
