"""The T-maze of the example, and what its agent computes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
if not EXAMPLES.is_dir():
    pytest.skip("the examples are not here", allow_module_level=True)
pytest.importorskip("matplotlib")
sys.path.insert(0, str(EXAMPLES))

import recurrent_policy as policy  # noqa: E402
from t_maze import FORWARD, LEFT, RIGHT, TMazes  # noqa: E402

import fusedrnn as fr  # noqa: E402


def correct_actions(mazes: TMazes) -> np.ndarray:
    """What someone does who knows everything."""
    return np.where(mazes.place == mazes.length, mazes.side, FORWARD)


def test_who_reads_the_sign_gets_everything() -> None:
    mazes = TMazes(50, 2, 5, seed=0)
    signs, returns, lengths, ages = mazes.observe()[:, :2].copy(), [], [], np.zeros(50, int)
    for _ in range(100):
        observation, reward, ended = mazes.step(np.where(mazes.place == mazes.length, signs[:, 1] + LEFT, FORWARD))
        ages += 1
        returns += reward[ended].tolist()
        lengths += ages[ended].tolist()
        ages[ended] = 0
        assert (reward[~ended] == 0).all()
        assert (observation[:, :2].sum(axis=1) == ended).all(), "a sign is seen at the entrance alone"
        signs[ended] = observation[ended, :2]
    assert set(returns) == {1.0}
    assert set(lengths) == {3, 4, 5, 6}  # of the same batch, so that every window has resets in its midst


def test_the_maze_by_hand() -> None:
    mazes = TMazes(1, 1, 1, seed=0)
    assert mazes.observe().tolist() in ([[1, 0, 0]], [[0, 1, 0]])
    wrong = np.array([LEFT + RIGHT]) - mazes.side
    bump = mazes.step(wrong)  # there is no fork here
    assert bump.reward == np.float32(TMazes.BUMP) and not bump.ended and bump.observation.tolist() == [[0, 0, 0]]
    assert mazes.step(np.array([FORWARD])).observation.tolist() == [[0, 0, 1]]
    end = mazes.step(wrong)
    assert end.reward == -1 and end.ended
    for age in range(1, 1 + TMazes.PATIENCE * 2):
        step = mazes.step(np.array([LEFT if age == 1 else FORWARD]))
        assert step.ended == (age == TMazes.PATIENCE * 2)


def test_advantages_are_weighted_sums_of_errors() -> None:
    rng = np.random.default_rng(0)
    rewards, values, ended = rng.random((6, 4)), rng.random((7, 4)), rng.random((6, 4)) < 0.3
    expected = np.zeros((6, 4))
    for b in range(4):
        for t in range(6):
            weight = 1.0
            for k in range(t, 6):
                ahead = 0.0 if ended[k, b] else policy.DISCOUNT * values[k + 1, b]
                expected[t, b] += weight * (rewards[k, b] + ahead - values[k, b])
                if ended[k, b]:
                    break
                weight *= policy.DISCOUNT * policy.TRACE
    # Some dozens of sums and products of numbers of order 1.
    np.testing.assert_allclose(policy.generalized_advantages(rewards, values, ended), expected, rtol=0, atol=1e-14)


def loss(out: np.ndarray, actions: np.ndarray, advantages: np.ndarray, returns: np.ndarray) -> float:
    """As the example's documentation has it."""
    p = fr.softmax(np.ascontiguousarray(out[..., : policy.ACTIONS]))
    chosen = np.take_along_axis(p, actions[..., None], axis=-1)[..., 0]
    entropy = -(p * np.log(p)).sum(axis=-1)
    error = out[..., policy.ACTIONS] - returns
    return float(
        np.mean(
            -advantages * np.log(chosen) - policy.ENTROPY_WEIGHT * entropy + policy.VALUE_WEIGHT * error * error / 2
        )
    )


def test_gradient_of_the_heads() -> None:
    rng = np.random.default_rng(0)
    out, actions = rng.standard_normal((3, 2, policy.ACTIONS + 1)), rng.integers(0, policy.ACTIONS, (3, 2))
    advantages, returns = rng.standard_normal((2, 3, 2))
    nothing: Any = None
    values = np.concatenate([out[..., policy.ACTIONS], np.zeros((1, 2))])
    probabilities = fr.softmax(np.ascontiguousarray(out[..., : policy.ACTIONS]))
    window = policy.Window(nothing, nothing, nothing, nothing, probabilities, actions, values, nothing, nothing)
    found = policy.gradient_of_heads(window, advantages, returns)
    step = 1e-5
    for index in np.ndindex(out.shape):
        moved = [out.copy(), out.copy()]
        moved[0][index] += step
        moved[1][index] -= step
        higher, lower = (loss(each, actions, advantages, returns) for each in moved)
        # Central differences: rounding of the losses over the step, and a third derivative of order 1.
        assert found[index] == pytest.approx((higher - lower) / (2 * step), abs=1e-9)


@pytest.mark.parametrize("memory", [True, False])
@pytest.mark.parametrize("cell", list(policy.CELLS))
def test_the_layer_gives_what_the_stepper_gave(cell: str, memory: bool) -> None:
    """`learn` asserts it, over windows that carry the state, in which episodes end."""
    agent = policy.Agent(cell, memory, seed=0)
    rollouts = policy.Rollouts(agent, TMazes(16, 1, 4, seed=0))
    ended = 0
    for _ in range(4):
        window = rollouts.window(20)
        ended += int(window.ended.sum())
        assert window.resets.all() == (not memory)
        agent.learn(window)
    assert ended == len(rollouts.returns) > 0


@pytest.mark.slow
def test_a_memory_is_worth_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "curves.png"
    assert policy.main(["--quick", "--output", str(output)]) == 0
    assert output.read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    returns = {name: float(printed.split(name)[1].split()[0]) for name in ("random actions", "LSTM", "no memory")}
    assert returns["LSTM"] > policy.TARGET and max(returns["random actions"], returns["no memory"]) < 0.5


def test_one_that_has_not_learned_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert policy.main(["--quick", "--windows", "3", "--output", str(tmp_path / "curves.png")]) == 1
    assert f"wanted above {policy.TARGET}" in capsys.readouterr().err
