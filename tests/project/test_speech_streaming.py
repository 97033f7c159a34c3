"""The streaming speech example: the transducer's gradients, and what its listener writes."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
if not EXAMPLES.is_dir():
    pytest.skip("the examples are not here", allow_module_level=True)
pytest.importorskip("matplotlib")
pytest.importorskip("tqdm")
sys.path.insert(0, str(EXAMPLES))

import speech_streaming  # noqa: E402
from log_mel import heard_until  # noqa: E402
from speech_batches import Batch  # noqa: E402
from transducer import BLANK, MOST, Listener, Transducer, one_hot, padded  # noqa: E402

import fusedrnn as fr  # noqa: E402

INPUTS, CLASSES = 6, 5


def model(dropout: float = 0.0) -> Transducer:
    return Transducer(INPUTS, CLASSES, hidden=8, layers=2, dropout=dropout, predictor=7, joint=9, seed=0)


def drawn(rng: np.random.Generator) -> Batch:
    steps, counts = np.array([11, 7, 9]), np.array([4, 0, 2])
    x = rng.standard_normal((11, 3, INPUTS)).astype(np.float32)
    return Batch(x, steps, rng.integers(1, CLASSES, counts.sum()), counts)


def test_targets_side_by_side(rng: np.random.Generator) -> None:
    batch = drawn(rng)
    targets = padded(batch)
    assert targets.shape == (3, 4) and targets[1].tolist() == [0] * 4
    np.testing.assert_array_equal(np.concatenate([targets[0], targets[2, :2]]), batch.targets)
    x = one_hot(targets, CLASSES)
    assert x.shape == (5, 3, CLASSES) and not x[0].any()
    np.testing.assert_array_equal(x[1:].argmax(axis=2), targets.T)


def test_gradients_are_those_of_the_loss(rng: np.random.Generator) -> None:
    transducer, batch = model(), drawn(rng)
    _, gradients = transducer.gradients(batch)
    for name, group in transducer.parameters.items():
        for key, array in group.items():
            gradient, before, losses = gradients[name][key], array.copy(), []
            length = float(np.sqrt(np.vdot(gradient, gradient)))
            assert length > 0, f"{name}.{key}"
            for step in (0.01, -0.01):
                array[...] = before + np.float32(step / length) * gradient
                losses.append(transducer.gradients(batch)[0])
            array[...] = before
            # Losses near 10 are rounded to some 1e-6 over 0.02; the third derivative brings 0.01**2 / 6 of itself.
            assert (losses[0] - losses[1]) / 0.02 == pytest.approx(length, rel=1e-3, abs=3e-4), f"{name}.{key}"


def test_a_listener_writes_what_the_layers_make_the_most_probable(rng: np.random.Generator) -> None:
    transducer = model()
    for group in (transducer.heard, transducer.written, transducer.joint):
        group["weight"] *= 4  # so that it neither stays silent nor never stops
    listener = Listener(transducer)
    numbers = 0
    for _ in range(3):
        x = rng.standard_normal((40, 1, INPUTS)).astype(np.float32) * 3
        listener.reset()
        found = [listener(each[0]) for each in x]
        written: list[int] = []
        heard = fr.linear(transducer.encoder(x)[0], **transducer.heard)
        for step, labels in enumerate(found):
            for label in [*labels, *([BLANK] if len(labels) < MOST else [])]:
                p = transducer.predictor(one_hot(np.array([written], np.int64).reshape(1, -1), CLASSES))[0][-1]
                joined = np.tanh(heard[step] + fr.linear(p, transducer.written["weight"]))
                assert fr.linear(joined, **transducer.joint).argmax() == label
                written += [label] if label != BLANK else []
        numbers += len(written)
    assert 0 < numbers < 3 * 40 * MOST


def test_delays_of_labels_that_match() -> None:
    labels, steps = np.array([3, 9, 4]), np.array([10, 12, 20])
    ends = np.array([0.1, 0.2, 0.3])
    found = speech_streaming.delays_of(labels, steps, np.array([3, 1, 4]), ends)
    np.testing.assert_allclose(found, heard_until(np.array([10, 20])) - ends[[0, 2]])


def test_a_network_that_wrote_nothing_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    heard = speech_streaming.Heard(0.6, 1.0, np.zeros(0), np.ones(3))
    speech_streaming.report({"silent": heard})
    assert capsys.readouterr().out.splitlines()[2].split() == ["silent", "60.0", "100.0", "-", "1000000"]
    assert len(speech_streaming.misses({"silent": heard}, (0.5,), quick=False)) == 2
    assert speech_streaming.misses({"silent": heard}, (1.0,), quick=True) == []


def test_without_flite(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert speech_streaming.main(["--quick", "--output", str(tmp_path / "streaming.png")]) == 2
    assert "apt install flite" in capsys.readouterr().err
