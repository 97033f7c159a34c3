"""What the caption example computes besides the network: scenes, captions, scores, and the moving baseline."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
if not EXAMPLES.is_dir():
    pytest.skip("the examples are not here", allow_module_level=True)
for package in ("matplotlib", "sklearn", "tqdm"):
    pytest.importorskip(package)
torch = pytest.importorskip("torch")
sys.path.insert(0, str(EXAMPLES))

import caption  # noqa: E402
import digit_scenes  # noqa: E402
from caption_teacher import DECAY, Teacher  # noqa: E402
from captioner import GRID, STRIDE, Captioner, Told  # noqa: E402
from digit_scenes import CANVAS, DIGITS, END, LONGEST, MOST, SIZE, WORDS, Digits, Scenes  # noqa: E402


@pytest.fixture
def scenes(rng: np.random.Generator) -> Scenes:
    """Of digits that are as bright as what they show is large, so that a scene can be read without a network."""
    labels = np.arange(10)
    images = np.broadcast_to((1 + labels[:, None, None]) / 16, (10, SIZE, SIZE)).astype(np.float32)
    return digit_scenes.draw(rng, Digits(images, labels), 200)


def told(scenes: Scenes, weights: np.ndarray) -> Told:
    words = np.full((LONGEST, scenes.words.shape[1]), END)
    words[: len(scenes.words)] = scenes.words
    return Told(words, weights)


def right_weights(scenes: Scenes) -> np.ndarray:
    """All of the weight in the middle of a caption's digit, at each word of the phrase that it begins."""
    weights = np.zeros((LONGEST, len(scenes.lengths), GRID * GRID))
    for b, words in enumerate(scenes.words.T):
        starts = np.flatnonzero(words >= digit_scenes.FIRST_DIGIT)
        for k, t in enumerate(starts):
            row, column = (scenes.corners[b, k] + SIZE // 2) // STRIDE
            weights[t:, b] = np.eye(GRID * GRID)[row * GRID + column]
    return weights


def test_digits_are_held_out() -> None:
    known, held_out = digit_scenes.split_digits(360, seed=3)
    assert len(known.labels) == 1797 - 360 and len(held_out.labels) == 360
    assert not {image.tobytes() for image in known.images} & {image.tobytes() for image in held_out.images}
    assert known.images.max() == 1 and known.images.min() == 0


def test_a_scene_shows_what_its_caption_says(scenes: Scenes) -> None:
    assert scenes.canvas.shape == (200, 1, CANVAS, CANVAS) and set(scenes.counts) == {2, MOST}
    names = {"top": 0, "left": 0, "bottom": 2, "right": 2}
    for b, count in enumerate(scenes.counts):
        left = scenes.canvas[b, 0].copy()
        phrases = digit_scenes.read(scenes.words[:, b]).replace(" and ", ", ").split(", ")
        assert len(phrases) == count
        thirds = []
        for phrase, (y, x) in zip(phrases, scenes.corners[b], strict=False):
            digit, _, _, *place = phrase.split()
            square = left[y : y + SIZE, x : x + SIZE]
            # Nothing else lies there.
            assert (square == np.float32((1 + DIGITS.index(digit)) / 16)).all()
            square[...] = 0
            row = next((names[word] for word in place if word in ("top", "bottom")), 1)
            column = next((names[word] for word in place if word in ("left", "right")), 1)
            assert (y // 6, x // 6) == (row, column)
            thirds.append((row, column))
        assert not left.any() and thirds == sorted(thirds)
        assert scenes.words[scenes.lengths[b] - 1, b] == END == WORDS.index(".")


def test_a_right_caption_and_right_looks_score_all(scenes: Scenes) -> None:
    assert caption.score(told(scenes, right_weights(scenes)), scenes) == (1, 1, 1)


def test_wrong_words_and_looks_score_less(scenes: Scenes) -> None:
    found = told(scenes, right_weights(scenes)[:, :, ::-1])
    found.words[scenes.lengths[0] - 1, 0] = WORDS.index("and")
    first = found.words[0, 1]
    found.words[0, 1] = WORDS.index("zero") if first != WORDS.index("zero") else WORDS.index("one")
    captions, digits, looks = caption.score(found, scenes)
    assert captions == pytest.approx(198 / 200)
    assert digits == pytest.approx(1 - 1 / scenes.counts.sum())
    assert looks < 0.5


def test_a_surprise_is_what_is_to_come_less_its_moving_mean() -> None:
    teacher = Teacher(Captioner("hard"), updates=2)
    losses = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 0.0]])
    to_come = torch.tensor([[9.0, 6.0], [8.0, 4.0], [5.0, 0.0]])
    assert torch.equal(teacher.surprise(losses), to_come)
    once = (1 - DECAY) * to_come.mean(dim=1)
    torch.testing.assert_close(teacher.surprise(losses), to_come - once[:, None])
    torch.testing.assert_close(teacher.baseline[:3], (1 + DECAY) * once)


@pytest.mark.parametrize("attention", ["soft", "hard", "none"])
def test_a_captioner_tells_what_its_training_pass_finds_likeliest(attention: str, scenes: Scenes) -> None:
    torch.manual_seed(0)
    model = Captioner(attention)
    found = model.tell(scenes.canvas[:5])
    assert found.words.shape == (LONGEST, 5) and found.attention.shape[:2] == (LONGEST, 5)
    np.testing.assert_allclose(found.attention.sum(axis=2), 1, rtol=1e-5)
    if attention == "hard":
        return  # the training pass would take expected values, or draw
    lengths = torch.full((5,), LONGEST)
    losses, _ = model.read(torch.from_numpy(scenes.canvas[:5]), torch.from_numpy(found.words), lengths, draws=False)
    others = torch.from_numpy((found.words + 1) % len(WORDS))
    for t in range(LONGEST):
        words = torch.from_numpy(found.words.copy())
        words[t] = others[t]
        worse, _ = model.read(torch.from_numpy(scenes.canvas[:5]), words, lengths, draws=False)
        assert (worse[t] >= losses[t]).all()
