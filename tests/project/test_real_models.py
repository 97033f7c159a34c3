"""Published models out of their wheels, beside what runs them there: each is skipped where its wheel is not installed.

CONTRIBUTING.md says how to install them. None of the packages is imported: they would import torch, nltk or OpenCV.
"""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
import warnings
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bitwise import assert_same

import fusedrnn as fr

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
EPS = float(np.finfo(np.float32).eps)


def package(name: str) -> Path:
    """Where an installed package lies; it is not imported."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"the wheel of {name} is not installed")
    return Path(next(iter(spec.submodule_search_locations)))


def sounds(rng: np.random.Generator, seconds: float) -> np.ndarray:
    """Vowel-like buzzes and noise by turns, in [-1, 1], at 16 kHz."""
    time = np.arange(int(16000 * seconds)) / 16000
    buzz = sum(np.sin(2 * np.pi * 140 * k * time * (1 + 0.02 * np.sin(4 * time))) / k for k in range(1, 20))
    noise = rng.standard_normal(len(time))
    turns = np.sin(2 * np.pi * 1.3 * time)
    return (0.2 * np.where(turns > 0.2, buzz, 0) + 0.02 * noise).astype(np.float32).clip(-1, 1)


@pytest.fixture
def voice_activity(monkeypatch: pytest.MonkeyPatch) -> Any:
    package("silero_vad")
    for name in ("onnx", "onnxruntime", "matplotlib", "tqdm"):
        pytest.importorskip(name)
    if not EXAMPLES.is_dir():
        pytest.skip("the examples are not here")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import voice_activity

    return voice_activity


def test_silero_vad(voice_activity: Any, rng: np.random.Generator) -> None:
    model = voice_activity.model_file()
    ours, theirs = voice_activity.VoiceActivity(model), voice_activity.Onnxruntime(model)
    audio = sounds(rng, 6.4)
    probabilities = np.array([[run(frame) for run in (ours, theirs)] for frame in audio.reshape(-1, 512)])
    assert np.abs(probabilities[:, 0] - probabilities[:, 1]).max() <= 1e-5
    assert np.ptp(probabilities[:, 1]) > 0.1  # the sounds were not all one to it


def test_the_lstm_of_silero_vad_by_steps_and_as_a_whole(voice_activity: Any, rng: np.random.Generator) -> None:
    arrays = voice_activity.initializers(voice_activity.model_file())
    cell, layer = fr.LSTMCell(128, 128), fr.LSTM(128, 128)
    cell.load_parameters(arrays, prefix="model.decoder.rnn.")
    layer.load_parameters({f"{name}_l0": array for name, array in cell.parameters.items()})
    x = rng.standard_normal((20, 1, 128), dtype=np.float32)
    stepper, state, steps = layer.stream(), None, []
    for row in x:
        state = cell(row, state)
        assert_same(stepper.step(row), state[0])
        steps.append(state[0])
    assert_same(layer(x)[0], np.stack(steps))


def test_the_example_says_what_it_found(voice_activity: Any, rng: np.random.Generator, tmp_path: Path) -> None:
    with wave.open(str(tmp_path / "sound.wav"), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes((sounds(rng, 2.0) * 32767).astype("<i2").tobytes())
    command = [sys.executable, str(EXAMPLES / "voice_activity.py"), "--audio", "sound.wav", "--output", "picture.png"]
    done = subprocess.run([*command, "--quick"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "largest difference of the probabilities" in done.stdout and "onnxruntime" in done.stdout
    assert (tmp_path / "picture.png").read_bytes()[:4] == b"\x89PNG"
    (tmp_path / "sound.wav").write_bytes(b"no sound")
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: sound.wav cannot be read") and len(done.stderr.splitlines()) == 1


def test_the_example_without_the_wheel(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("matplotlib", "tqdm"):
        pytest.importorskip(name)
    if not EXAMPLES.is_dir():
        pytest.skip("the examples are not here")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import voice_activity

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert voice_activity.main([]) == 2
    assert capsys.readouterr().err == (
        "error: silero-vad's wheel is not installed; pip install --no-deps silero-vad==6.2.3\n"
    )


def test_the_bidirectional_lstm_of_ddddocr(rng: np.random.Generator) -> None:
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    from fusedrnn.onnx import from_onnx

    model = onnx.load(package("ddddocr") / "common.onnx")
    node = next(node for node in model.graph.node if node.op_type == "LSTM")
    layer = from_onnx(model)
    if isinstance(layer, dict):
        (layer,) = layer.values()
    assert (layer.hidden_size, layer.bidirectional) == (512, True)
    for name in (node.input[0], *node.output):
        model.graph.output.add().name = name
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    image = rng.random((1, 1, 64, 160), dtype=np.float32)
    x, y, h, c = session.run([node.input[0], *node.output], {"input1": image})
    ours, state = layer(x)
    theirs = y.transpose(0, 2, 1, 3).reshape(ours.shape)
    # Sums of 2048 and 512 terms in two orders; |h| < 1.
    near = 8 * EPS * np.sqrt(layer.input_size + layer.hidden_size)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=near)
    np.testing.assert_allclose(state[0], h, rtol=0, atol=near)
    np.testing.assert_allclose(state[1], c, rtol=0, atol=near * max(1.0, float(np.abs(c).max())))


def g2p() -> Any:
    """g2p-en's own network, without what it looks words up in: some methods of its class, and its weights."""
    root = package("g2p_en")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an escape in a string there that is none
        tree = ast.parse((root / "g2p.py").read_text())
    (whole,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "G2p")
    kept = {"load_variables", "sigmoid", "grucell", "gru", "encode", "predict"}
    methods = [node for node in whole.body if isinstance(node, ast.FunctionDef) and node.name in kept]
    assert len(methods) == len(kept)
    letters = [node for node in ast.walk(whole) if isinstance(node, ast.Assign)]
    names = {"self.graphemes", "self.phonemes", "self.g2idx", "self.idx2p"}
    lists = [node for node in letters if ast.unparse(node.targets[0]) in names]
    namespace: dict[str, Any] = {"np": np, "os": __import__("os"), "dirname": str(root)}
    class_body = ast.ClassDef("G2p", [], [], methods, [])  # type: ignore[call-arg, unused-ignore]
    if hasattr(class_body, "type_params"):
        class_body.type_params = []
    exec(compile(ast.fix_missing_locations(ast.Module([class_body], [])), "g2p.py", "exec"), namespace)
    network = namespace["G2p"]()
    exec(compile(ast.Module(lists, []), "g2p.py", "exec"), {"self": network})
    network.load_variables()
    return network


def test_the_gru_of_g2p() -> None:
    network = g2p()
    variables = network.variables
    layers = {}
    for part in ("enc", "dec"):
        names = {"weight_ih_l0": "w_ih", "weight_hh_l0": "w_hh", "bias_ih_l0": "b_ih", "bias_hh_l0": "b_hh"}
        parameters = {ours: variables[f"{part}_{theirs}"] for ours, theirs in names.items()}
        rows, inputs = parameters["weight_ih_l0"].shape
        layers[part] = fr.GRU(inputs, rows // 3, batch_first=True)
        layers[part].load_parameters(parameters)
    for word in ("recurrent", "a", "onomatopoeia", "fusedly", "x" * 40):
        x = network.encode(word)
        weights = [getattr(network, f"enc_{name}") for name in ("w_ih", "w_hh", "b_ih", "b_hh")]
        theirs = network.gru(x, x.shape[1], *weights)
        y, state = layers["enc"](x)
        near = 8 * EPS * np.sqrt(sum(array.shape[1] for array in weights[:2])) * len(word)
        np.testing.assert_allclose(y, theirs, rtol=0, atol=near)
        assert spelled(network, layers["dec"], state) == network.predict(word)


def spelled(network: Any, decoder: Any, state: np.ndarray) -> list[str]:
    """What the decoder says, greedily, from a state on: `predict` with a layer of ours and a readout."""
    found, previous = [], 2
    for _ in range(20):
        y, state = decoder(network.dec_emb[None, [previous]], state)
        previous = int(fr.linear(y[0, 0], network.fc_w, network.fc_b).argmax())
        if previous == 3:
            break
        found.append(network.idx2p[previous])
    return found
