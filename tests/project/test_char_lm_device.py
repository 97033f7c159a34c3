"""The character model on the stand-in for a CUDA device learns what it learns on the CPU."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from devices import DeviceArray, stand_in

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def fake_cupy(arrays: Any) -> Any:
    """As much of CuPy as the example asks for, over the stand-in's arrays."""

    class Generator:
        def __init__(self, seed: int) -> None:
            self.generator = np.random.default_rng(seed)

        def random(self, shape: tuple[int, ...], dtype: Any) -> Any:
            return arrays.from_host(self.generator.random(shape, dtype))

    return types.SimpleNamespace(
        asarray=lambda a: a if isinstance(a, DeviceArray) else arrays.from_host(np.asarray(a)),
        asnumpy=arrays.to_host,
        arange=lambda n: arrays.from_host(np.arange(n)),
        random=types.SimpleNamespace(default_rng=Generator),
    )


def test_the_same_losses(cuda_host_module: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    if not EXAMPLES.is_dir():
        pytest.skip("the examples are not here")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from language_model import LanguageModel

    import fusedrnn as fr

    alphabet = "abcdefg\n"
    rng = np.random.default_rng(0)
    codes = rng.integers(0, len(alphabet), (33, 4))
    with stand_in(cuda_host_module) as device:
        monkeypatch.setitem(sys.modules, "cupy", fake_cupy(device.arrays))
        options = {"hidden": 12, "layers": 2, "embedding": 6, "seed": 3}
        models = [LanguageModel(alphabet, device=where, **options) for where in ("cpu", "cuda")]
        losses: list[list[float]] = []
        for model in models:
            optimizer, state, seen = fr.optim.Adam(model.parameters, lr=1e-2), None, []
            inputs, targets = model.on_device(codes[:-1]), model.on_device(codes[1:].copy())
            for x, y in fr.tbptt_windows(inputs, targets, window=8):
                loss, state, gradients = model.train_window(x, y, state)
                fr.clip_grad_norm(gradients, 0.3)
                optimizer.step(gradients)
                seen.append(loss)
            losses.append([*seen, model.bits_per_symbol(codes[:, 0])])
        np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
        assert all(isinstance(array, DeviceArray) for array in models[1].parameters.values())
        texts = ["".join(model.sample(20, 0.7, seed=1)) for model in models]
        assert texts[0] == texts[1]
        models[1].save(tmp_path / "model.safetensors")
        loaded = LanguageModel.load(tmp_path / "model.safetensors", device="cuda")
        assert loaded.bits_per_symbol(codes[:, 0]) == losses[1][-1]
