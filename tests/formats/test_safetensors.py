"""Layers and cells in safetensors files."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from cases import CLIP, LAYERS

import fusedrnn as fr

numpy_files = pytest.importorskip("safetensors.numpy")

from fusedrnn import safetensors  # noqa: E402

MODULES = [
    fr.LSTM(5, 6, 3, peephole=True, coupled=True, bidirectional=True, dropout=0.5, clip=CLIP),
    fr.RNN(5, 6, nonlinearity="relu", bias=False, batch_first=True, reverse=True, dtype="float64"),
    fr.GRU(1, 1, 2, reset_after=False),
    *[getattr(fr, kind)(3, 4, **options) for kind, options in LAYERS.values()],
    *[getattr(fr, kind + "Cell")(3, 4, bias=False, clip=2.0, **options) for kind, options in LAYERS.values()],
]


@pytest.mark.parametrize("module", MODULES, ids=repr)
def test_saved_and_loaded(module: Any, tmp_path: Any) -> None:
    path = tmp_path / "module.safetensors"
    safetensors.save(module, path)
    again = safetensors.load(str(path))
    assert repr(again) == repr(module)
    assert list(again.parameters) == list(module.parameters)
    for name, array in module.parameters.items():
        assert again.parameters[name].dtype == array.dtype
        np.testing.assert_array_equal(again.parameters[name], array)


def test_the_state_dict_of_a_torch_module(tmp_path: Any) -> None:
    torch = pytest.importorskip("torch")
    module, path = torch.nn.LSTM(3, 4, 2, bidirectional=True), tmp_path / "torch.safetensors"
    pytest.importorskip("safetensors.torch").save_file(module.state_dict(), path)
    layer = safetensors.load(path, fr.LSTM(3, 4, 2, bidirectional=True))
    for name, array in layer.parameters.items():
        np.testing.assert_array_equal(array, getattr(module, name).detach().numpy())
    wide = fr.LSTM(3, 4, 2, bidirectional=True, dtype="float64")
    with pytest.raises(TypeError, match=r"torch.safetensors.*must be an array of float64.*convert=True"):
        safetensors.load(path, wide)
    np.testing.assert_array_equal(
        safetensors.load(path, wide, convert=True).parameters["bias_hh_l1"], layer.parameters["bias_hh_l1"]
    )
    with pytest.raises(ValueError, match="the metadata must have 'fusedrnn'"):
        safetensors.load(path)


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_a_part_of_a_file_in_sixteen_bits(kind: str, tmp_path: Any) -> None:
    torch = pytest.importorskip("torch")
    module, path = torch.nn.GRU(3, 4).to(getattr(torch, kind)), tmp_path / "model.safetensors"
    tensors = {f"a.rnn.{name}": tensor for name, tensor in module.state_dict().items()}
    tensors |= {"a.rnn2.weight": torch.zeros(3), "scale": torch.zeros(2, dtype=torch.bfloat16)}
    pytest.importorskip("safetensors.torch").save_file(tensors, path)
    layer = fr.GRU(3, 4, seed=0)
    before = {name: array.copy() for name, array in layer.parameters.items()}
    with pytest.raises(TypeError, match=rf"model.safetensors.*a.rnn.*float32, not of {kind}.*convert=True"):
        safetensors.load(path, layer, prefix="a.rnn.")
    for prefix, message in (("", r"missing: \['bias_hh_l0|missing"), ("a.", "prefix may be one of"), ("b.", "missing")):
        with pytest.raises(ValueError, match=message):
            safetensors.load(path, layer, prefix=prefix, convert=True)
    for name, array in layer.parameters.items():
        np.testing.assert_array_equal(array, before[name])
    assert safetensors.load(path, layer, prefix="a.rnn.", convert=True) is layer
    for name, array in layer.parameters.items():
        np.testing.assert_array_equal(array, getattr(module, name).detach().float().numpy())
    with pytest.raises(TypeError, match="prefix must be a string"):
        safetensors.load(path, layer, prefix=None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="prefix must be '' unless a module is given"):
        safetensors.load(path, prefix="a.rnn.")
    with pytest.raises(TypeError, match="convert must be True or False"):
        safetensors.load(path, layer, convert=1)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_a_layers_file_that_was_narrowed(kind: str, tmp_path: Any) -> None:
    torch = pytest.importorskip("torch")
    layer, path = fr.LSTM(3, 4, 2, seed=0), tmp_path / "layer.safetensors"
    safetensors.save(layer, path)
    with safetensors.safe_open(path, "np") as file:
        metadata = file.metadata()
    narrow = {name: torch.tensor(array).to(getattr(torch, kind)) for name, array in layer.parameters.items()}
    pytest.importorskip("safetensors.torch").save_file(narrow, path, metadata)
    with pytest.raises(TypeError, match=f"layer.safetensors.*float32, not of {kind}; pass convert=True"):
        safetensors.load(path)
    loaded = safetensors.load(path, convert=True)
    assert loaded.dtype == np.float32
    for name, array in loaded.parameters.items():
        np.testing.assert_array_equal(array, narrow[name].float().numpy())


def test_what_cannot_be_saved(tmp_path: Any) -> None:
    path = tmp_path / "file"
    with pytest.raises(TypeError, match="module must be a layer or cell of fusedrnn, not dict"):
        safetensors.save({}, path)
    layer = fr.GRU(2, 3)
    layer.parameters["bias_ih_l0"] = np.zeros(4, np.float32)
    with pytest.raises(ValueError, match=r"parameters\['bias_ih_l0'\]"):
        safetensors.save(layer, path)
    assert not path.exists()
    with pytest.raises(OSError, match="cannot be written"):
        safetensors.save(fr.GRU(2, 3), tmp_path / "none" / "file")


def test_what_cannot_be_loaded(tmp_path: Any) -> None:
    path = tmp_path / "file"
    with pytest.raises(FileNotFoundError):
        safetensors.load(path)
    path.write_bytes(b"no such file")
    with pytest.raises(ValueError, match="file' must be a safetensors file"):
        safetensors.load(path)
    with pytest.raises(TypeError, match="module must be a layer or cell"):
        safetensors.load(path, 3)
    safetensors.save(fr.GRU(2, 3), path)
    with pytest.raises(ValueError, match=r"file': mapping\['weight_ih_l0'\] must have shape"):
        safetensors.load(path, fr.GRU(3, 3))


@pytest.mark.parametrize(
    ("described", "arrays", "message"),
    [
        ("no JSON", {}, "must be what fusedrnn.safetensors.save writes"),
        (json.dumps([1]), {}, "must be what fusedrnn.safetensors.save writes"),
        (json.dumps({"class": "info", "options": {}}), {}, "must be a layer or cell of fusedrnn, not 'info'"),
        (json.dumps({"class": ["LSTM"], "options": {}}), {}, "must be a layer or cell of fusedrnn, not"),
        (json.dumps({"class": "LSTM", "options": {"seed": 1}}), {}, "options .'seed'. are none of LSTM"),
        (json.dumps({"class": "LSTM", "options": {}}), {}, "there must be a matrix 'weight_ih_l0'"),
        (json.dumps({"class": "LSTM", "options": {"clip": -1}}), {"ih": (4, 2), "hh": (4, 1)}, "clip must lie in"),
        (json.dumps({"class": "LSTM", "options": {}}), {"ih": (1, 10**6), "hh": (1, 10**6)}, "must be .G.H, H."),
        (json.dumps({"class": "LSTM", "options": {}}), {"ih": (0, 10**13), "hh": (4, 1)}, "must have 4 rows, not 0"),
        (json.dumps({"class": "LSTM", "options": {}}), {"ih": (4, 2), "hh": (4, 1)}, "missing: .'bias_ih_l0'|names"),
    ],
)
def test_files_that_lie(described: str, arrays: dict[str, Any], message: str, tmp_path: Any) -> None:
    tensors = {f"weight_{name}_l0": np.zeros(shape, np.float32) for name, shape in arrays.items()}
    if "missing" in message:
        tensors["extra"] = np.zeros(1, np.float32)
    numpy_files.save_file(tensors, tmp_path / "file", {"fusedrnn": described})
    with pytest.raises(ValueError, match=message) as caught:
        safetensors.load(tmp_path / "file")
    assert "file" in str(caught.value)
