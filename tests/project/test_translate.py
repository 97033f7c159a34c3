"""The translation example: its pairs, the model's gradients, and that it says what is missing."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
if not EXAMPLES.is_dir():
    pytest.skip("the examples are not here", allow_module_level=True)
pytest.importorskip("matplotlib")
pytest.importorskip("safetensors")
pytest.importorskip("tqdm")
sys.path.insert(0, str(EXAMPLES))

import translate  # noqa: E402
from encoder_decoder import EncoderDecoder  # noqa: E402
from parallel_text import SPECIAL, Pairs, Vocabulary, batch, messages, numbers  # noqa: E402

import fusedrnn as fr  # noqa: E402


def drawn(generator: np.random.Generator, rows: int, symbols: int) -> list[list[int]]:
    return [generator.integers(SPECIAL, symbols, generator.integers(1, 9)).tolist() for _ in range(rows)]


def test_a_vocabulary_gives_back_what_it_encodes() -> None:
    vocabulary = Vocabulary(["vier", "elf"])
    assert len(vocabulary) == SPECIAL + len(set("vierelf"))
    assert vocabulary.decode(vocabulary.encode("fliv")) == "fliv"
    codes, lengths = batch([[5, 4], [3, 4, 6]])
    assert codes.T.tolist() == [[5, 4, 0], [3, 4, 6]] and lengths.tolist() == [2, 3]


def test_numbers_in_both_languages() -> None:
    pytest.importorskip("num2words")
    pairs = numbers(100, seed=0, digits=2)  # all that there are
    german = dict(zip(pairs.written(), pairs.target, strict=True))
    assert len(german) == 100
    assert (german["zero"], german["forty two"], german["ninety nine"]) == ("null", "zweiundvierzig", "neunundneunzig")


def test_messages_in_both_languages() -> None:
    pytest.importorskip("django")
    pairs = messages(40)
    assert dict(zip(pairs.written(), pairs.target, strict=True))["Monday"] == "Montag"
    assert len(pairs) > 400 and max(map(len, pairs.target)) <= 40
    assert not any(sign in text for text in (*pairs.written(), *pairs.target) for sign in "%{<\n")


def test_batches_hold_every_pair_once_a_round() -> None:
    target = ["x" * (1 + k % 7) for k in range(200)]
    corpus = translate.Corpus(Pairs([["a"]] * 200, target, " "), held_out=10, seed=0)
    assert len(corpus.training) == 190
    cut = corpus.batches(3, seed=0)  # a round of 190 pairs takes 3 batches
    assert sorted(np.concatenate(cut).tolist()) == list(range(190))
    assert len(corpus.batches(7, seed=0)) == 7


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("attention", [True, False])
def test_gradients_are_those_of_the_loss(attention: bool, dropout: float, rng: np.random.Generator) -> None:
    model = EncoderDecoder((9, 8), hidden=7, embedding=5, dropout=dropout, attention=attention, seed=0)
    sources, targets = drawn(rng, 6, 9), drawn(rng, 6, 8)
    before = {name: {key: array.copy() for key, array in group.items()} for name, group in model.parameters.items()}
    model.generator = np.random.default_rng(1)
    _, gradients = model.train_batch(sources, targets)
    for name, group in before.items():
        for key, array in group.items():
            gradient = gradients[name][key]
            length = float(np.sqrt(np.vdot(gradient, gradient)))
            assert length > 0, f"{name}.{key}"
            losses = []
            for step in (0.01, -0.01):
                model.parameters[name][key][...] = array + np.float32(step / length) * gradient
                model.generator = np.random.default_rng(1)  # the same numbers dropped
                losses.append(model.train_batch(sources, targets)[0])
            model.parameters[name][key][...] = array
            # Losses near 2 are rounded to some 1e-7 over 0.02; the third derivative brings 0.01**2 / 6 of itself.
            assert (losses[0] - losses[1]) / 0.02 == pytest.approx(length, rel=1e-3, abs=3e-5), f"{name}.{key}"


@pytest.mark.parametrize("attention", [True, False])
def test_steps_of_a_search_are_those_of_training(attention: bool, rng: np.random.Generator) -> None:
    """The log-probability that a beam gives its best translation is what training takes for the same one."""
    model = EncoderDecoder((9, 8), hidden=7, embedding=5, dropout=0.0, attention=attention, seed=0)
    for source in drawn(rng, 3, 9):
        found = fr.beam_search(model._step, model._decoding([source]), np.array([1]), end=2, beam_width=3, max_steps=12)
        tokens, log_probability = found[0][0]
        if tokens[-1] == 2 and len(tokens) > 1:
            loss, _ = model.train_batch([source], [tokens[:-1].tolist()])
            assert -loss * len(tokens) == pytest.approx(log_probability, rel=1e-5)
        weights = model.attend(source, [3, 4]) if attention else np.ones((3, 1))
        np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-6)


def test_exact_matches_and_buckets() -> None:
    table = translate.Table(["a", "bb", "ccc", "dddd"], translate.exact)
    table.add("with attention, greedy", ["a", "xx", "ccc", "dddd"])
    table.add("without attention, greedy", ["a", "bb", "ccc", "x"])
    assert table.spans == ["1-1", "2-2", "3-3", "4-4"]
    assert table.rows["with attention, greedy"] == [0.75, 1, 0, 1, 1]
    assert len(translate.misses(table, "numbers")) == 1  # too few
    assert translate.misses(table, "quick") == []


def test_chrf_is_between_0_and_1() -> None:
    pytest.importorskip("sacrebleu")
    assert translate.chrf(["Montag"], ["Montag"]) == pytest.approx(1)
    assert 0 < translate.chrf(["Monday"], ["Montag"]) < 0.6


@pytest.mark.parametrize(
    ("corpus", "absent"), [("numbers", "num2words"), ("messages", "django"), ("messages", "sacrebleu")]
)
def test_what_is_missing(
    corpus: str, absent: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if absent == "sacrebleu":
        pytest.importorskip("django")
    monkeypatch.setitem(sys.modules, absent, None)
    assert translate.main(["--corpus", corpus, "--output", str(tmp_path / "translate.png")]) == 2
    assert f"pip install {absent}" in capsys.readouterr().err


def test_one_that_has_not_learned_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("num2words")
    output = tmp_path / "translate.png"
    assert translate.main(["--quick", "--steps", "2", "--output", str(output)]) == 1
    assert output.read_bytes().startswith(b"\x89PNG")
    assert "wanted at least 0.5" in capsys.readouterr().err
