"""Every Python block of the README runs, but for the one that lists signatures."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fusedrnn as fr

README = Path(__file__).resolve().parents[2] / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE) if README.is_file() else []


def needs_of(block: str, directory: Path) -> dict[str, Any]:
    """What a block takes for granted: a model of torch's, one of Keras's, a file of ONNX's."""
    names: dict[str, Any] = {}
    if re.search(r"\bmodel\b", block):
        torch = pytest.importorskip("torch")
        names["model"] = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.GRU(4, 5))
    if "keras_layer" in block:
        keras = pytest.importorskip("keras")
        names["keras_layer"] = keras.layers.LSTM(4)
        names["keras_layer"].build((None, 5, 3))
    if "model.onnx" in block:
        onnx = pytest.importorskip("onnx")
        from fusedrnn.onnx import to_onnx

        onnx.save(to_onnx(fr.LSTM(3, 4)), directory / "model.onnx")
    if "safetensors" in block:
        pytest.importorskip("safetensors")
        names["layer"] = fr.LSTM(3, 4)
    return names


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_a_block_runs(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    block = BLOCKS[number]
    if "fr.GRU(..., " in block:
        pytest.skip("signatures")
    monkeypatch.chdir(tmp_path)
    exec(compile(block, f"README.md, Python block {number}", "exec"), needs_of(block, tmp_path))


def test_what_the_blocks_say() -> None:
    if not BLOCKS:
        pytest.skip("README.md is not here")
    text = README.read_text()
    for said in ("np.savez(", "load_parameters(np.load(", "seed=None", "y, state = ", "y, state, tape = "):
        assert said in text, said


def test_a_wrong_width_says_what_to_do() -> None:
    layer, cell = fr.LSTM(3, 4), fr.GRUCell(3, 4, dtype="float64")
    x = np.zeros((5, 2, 3))
    advice = r"^x must be an array of float32, not of float64; pass x\.astype\(np\.float32\), .*dtype=\"float64\"$"
    for call in (layer, layer.forward):
        with pytest.raises(TypeError, match=advice):
            call(x)
    with pytest.raises(
        TypeError, match=r"float64, not of float32; pass x\.astype\(np\.float64\), .*dtype=\"float32\"$"
    ):
        cell(x[0].astype(np.float32))
    with pytest.raises(TypeError, match=r"float32, not of float16; pass x\.astype\(np\.float32\)$"):
        layer(x.astype(np.float16))
    with pytest.raises(TypeError, match=r"x_t.*astype\(np\.float32\)"):
        layer.stream(2).step(x[0])
    tape = layer.forward(x.astype(np.float32))[2]
    with pytest.raises(TypeError, match=r"dy.*astype\(np\.float32\)"):
        layer.backward(tape, np.zeros((5, 2, 4)))


def test_why_there_is_no_cuda() -> None:
    why = fr.info()["cuda"]
    if "no CUDA module" not in why:
        pytest.skip("this build has a CUDA module")
    assert "FUSEDRNN_CUDA=ON pip install '.[cuda13]'" in why
    with pytest.raises(ValueError, match=r"FUSEDRNN_CUDA=ON pip install '\.\[cuda13\]'"):
        fr.LSTM(2, 2, device="cuda")
