"""What the speech examples compute besides the network: features, voices, edits, an n-gram model."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
if not EXAMPLES.is_dir():
    pytest.skip("the examples are not here", allow_module_level=True)
pytest.importorskip("matplotlib")
pytest.importorskip("tqdm")
sys.path.insert(0, str(EXAMPLES))

import fitting  # noqa: E402
import flite_speech  # noqa: E402
import speech  # noqa: E402
from flite_speech import PAUSE, Utterance  # noqa: E402
from log_mel import FILTERS, FOURIER, HOP, MELS, RATE, STACK, log_mel, moments, paced, stacked, warped  # noqa: E402
from phone_ngram import PhoneNgram  # noqa: E402
from phonemes import Phones, edits, error_rate  # noqa: E402
from speech_batches import Encoding, shuffled  # noqa: E402
from voices import Voices  # noqa: E402


def utterance(voice: str, frames: int, phones: tuple[str, ...], rng: np.random.Generator) -> Utterance:
    mixing = np.eye(MELS) + 0.1 * rng.standard_normal((MELS, MELS))
    features = (rng.standard_normal((frames, MELS)) @ mixing + rng.standard_normal(MELS)).astype(np.float32)
    return Utterance(voice, "", features, phones, np.linspace(0, frames * HOP / RATE, len(phones) + 1)[1:])


@pytest.mark.parametrize("hertz", [200, 1000, 5000])
def test_a_tone_is_in_its_band(hertz: int) -> None:
    tone = (8000 * np.sin(2 * np.pi * hertz * np.arange(RATE) / RATE)).astype(np.int16)
    features = log_mel(tone)
    assert features.shape == (RATE // HOP + 1, MELS) and features.dtype == np.float32
    assert (features[5:-5].argmax(axis=1) == FILTERS[round(hertz * FOURIER / RATE)].argmax()).all()


def test_a_frame_is_centred_on_its_sample() -> None:
    click = np.zeros(RATE, np.int16)
    click[40 * HOP] = 20000
    assert log_mel(click).sum(axis=1).argmax() == 40
    assert moments(np.array([20])) == pytest.approx((40 + (STACK - 1) / 2) * HOP / RATE)


def test_warps_and_paces_of_1_change_nothing(rng: np.random.Generator) -> None:
    x = rng.standard_normal((30, MELS)).astype(np.float32)
    np.testing.assert_array_equal(warped(x, 1.0), x)
    np.testing.assert_array_equal(paced(x, 1.0), x)
    assert paced(x, 2.0).shape == (15, MELS)
    ramp = np.tile(np.arange(MELS, dtype=np.float32), (3, 1))
    np.testing.assert_allclose(warped(ramp, 0.5)[0], np.arange(MELS) / 2)
    assert stacked(x[:29]).shape == (29 // STACK, STACK * MELS)


def test_voices_are_made_alike(rng: np.random.Generator) -> None:
    spoken = [utterance(voice, 400, (PAUSE,), rng) for voice in ("one", "two", "new")]
    voices = Voices(spoken, ("one", "two"))
    alike = [voices.alike(voices.centred(each), each.voice) for each in spoken]
    common = np.cov(alike[0].T)
    for each in alike:
        np.testing.assert_allclose(each.mean(axis=0), 0, atol=1e-4)
        np.testing.assert_allclose(np.cov(each.T), common, atol=1e-3)
    np.testing.assert_allclose(np.diag(common), 1, atol=1e-3)


def test_edits_are_levenshteins(rng: np.random.Generator) -> None:
    def by_recursion(a: tuple[int, ...], b: tuple[int, ...]) -> int:
        @cache
        def distance(i: int, j: int) -> int:
            if 0 in (i, j):
                return i + j
            same = distance(i - 1, j - 1) + (a[i - 1] != b[j - 1])
            return min(same, distance(i - 1, j) + 1, distance(i, j - 1) + 1)

        return distance(len(a), len(b))

    for _ in range(200):
        a, b = (rng.integers(0, 3, rng.integers(0, 9)) for _ in range(2))
        assert edits(a, b) == by_recursion(tuple(a.tolist()), tuple(b.tolist()))


def test_pauses_do_not_count(rng: np.random.Generator) -> None:
    said = utterance("one", 40, (PAUSE, "k", "ae", "t", PAUSE), rng)
    phones = Phones([said.phones])
    assert error_rate([phones.encode(("k", "ae", PAUSE, "t"))], [said], phones) == 0
    assert error_rate([phones.encode((PAUSE, "k", "t", "t"))], [said], phones) == pytest.approx(1 / 3)


def test_ngrams_are_probabilities(rng: np.random.Generator) -> None:
    sequences = [rng.integers(1, 5, 30).tolist() for _ in range(10)]
    ngram = PhoneNgram(sequences, 5)
    ngram.weight, ngram.bonus = 0.5, 1.0
    for prefix in ((), (1,), (1, 2, 3), (4, 4, 4, 4, 4), tuple(sequences[0][:7])):
        scores = [ngram.score(prefix, label) for label in range(5)]
        assert sum(np.exp((score - 1.0) / 0.5) for score in scores) == pytest.approx(1)
    assert ngram.score((), sequences[0][0]) > ngram.score((), 0)


def test_a_warp_of_a_voice_moves_its_bands_alone(rng: np.random.Generator) -> None:
    spoken = [utterance(voice, 40, (PAUSE,), rng) for voice in ("one", "new")]
    encoding = Encoding(Voices(spoken, ("one",)), Phones([(PAUSE,)]))
    changed = encoding._replace(warps={"new": 0.9})
    np.testing.assert_array_equal(changed.steps(spoken[0]), encoding.steps(spoken[0]))
    voices = encoding.voices
    wanted = stacked(voices.alike(warped(voices.centred(spoken[1]), 0.9), "new"))
    np.testing.assert_array_equal(changed.steps(spoken[1]), wanted)


def test_the_warp_that_scores_best_is_taken(monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    spoken = [utterance("new", 40, (PAUSE,), rng) for _ in range(2)]
    encoding = Encoding(Voices(spoken, ("new",)), Phones([(PAUSE,)]))
    best = encoding._replace(warps={"new": fitting.WARPS[2]}).steps(spoken[0])

    def distance(logits: np.ndarray, steps: np.ndarray, *_: object) -> tuple[list[np.ndarray], float]:
        return [], -float(np.abs(logits[: len(best), 0] - best).sum())

    monkeypatch.setattr(fitting, "beam_search", distance)
    ngram: Any = PhoneNgram([[1]], 2)
    model: Any = lambda batch: batch.x  # noqa: E731
    found = fitting.fit_warp("new", ngram, model, spoken, encoding)
    assert found.warps == {"new": fitting.WARPS[2]}


def test_ends_are_midway_between_labels() -> None:
    path = np.array([0, 3, 3, 0, 0, 2, 1, 0])
    np.testing.assert_allclose(speech.ends_of(path), moments(np.array([3.5, 5.5])))


def test_batches_hold_every_utterance_once(rng: np.random.Generator) -> None:
    spoken = [utterance("one", int(frames), (PAUSE, "k"), rng) for frames in rng.integers(20, 90, 17)]
    encoding = Encoding(Voices(spoken, ("one",)), Phones([spoken[0].phones]))
    cut = shuffled(spoken, 4, rng)
    assert sorted(id(each) for batch in cut for each in batch) == sorted(map(id, spoken))
    batch = encoding.batch(cut[0])
    for row, each in enumerate(cut[0]):
        steps = batch.steps[row]
        np.testing.assert_array_equal(batch.x[:steps, row], encoding.steps(each))
        assert steps == len(each.features) // STACK and (batch.x[steps:, row] == 0).all()


def test_sentences_are_words(rng: np.random.Generator) -> None:
    drawn = flite_speech.sentences(rng)
    assert len(drawn) == len(set(drawn)) >= 340
    assert all(" " in text and text[-1] in ".:;" for text in drawn)


def test_without_flite(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert speech.main(["--quick", "--output", str(tmp_path / "speech.png")]) == 2
    assert "apt install flite" in capsys.readouterr().err
