import pytest
import torch

from textgen_env import dynamics
from textgen_env.rewards import Step, exact_match, no_reward
from textgen_env.types import SpecialTokens

SPECIAL = SpecialTokens()
CASES = {
    "equal": ([3, 4, 2], [3, 4, 2], 3, 1.0),
    "equal, with room to spare": ([3, 4, 2], [3, 4, 2], 6, 1.0),
    "equal, padded reference": ([3, 2], [3, 2, 0, 0, 0], 2, 1.0),
    "equal, reference wider than the limit": ([3, 2], [3, 2, 0, 0, 0], 3, 1.0),
    "another word": ([3, 5, 2], [3, 4, 2], 4, 0.0),
    "too short": ([3, 2], [3, 4, 2], 4, 0.0),
    "too long": ([3, 4, 5, 2], [3, 4, 2], 4, 0.0),
    "a padding token too many": ([3, 4, 0, 2], [3, 4, 2], 4, 0.0),
    "truncated before the end": ([3, 4], [3, 4, 2], 2, 0.0),
    "truncated, reference the same": ([3, 4], [3, 4], 2, 1.0),
    "longer than a reference without an end": ([3, 4, 2], [3, 4], 4, 0.0),
    "padding after a reference without an end": ([3, 4, 0, 0], [3, 4], 4, 0.0),
    "empty": ([2], [2], 4, 1.0),
}


def rewards_of(reward, actions, reference, max_steps):
    """What each of `actions` earns."""
    state = dynamics.initial(torch.tensor([[3, 2]]), max_steps, SPECIAL)
    earned = []
    for action in actions:
        before = state
        state = dynamics.transition(state, torch.tensor([action]), SPECIAL)
        written = torch.tensor([action]).where(~before.done, SPECIAL.pad)
        step = Step(state, written, ~before.done, torch.tensor([reference]), SPECIAL)
        earned.append(reward(step))
    return torch.cat(earned)


@pytest.mark.parametrize("case", CASES)
def test_exact_match_by_hand(case):
    actions, reference, max_steps, last = CASES[case]
    earned = rewards_of(exact_match, actions, reference, max_steps)
    assert earned.tolist() == [0.0] * (len(actions) - 1) + [last]


def test_a_match_is_paid_once():
    assert rewards_of(exact_match, [3, 2, 0, 2], [3, 2], 4).tolist() == [0, 1, 0, 0]


def test_no_reward_is_nothing():
    assert rewards_of(no_reward, [3, 2], [3, 2], 4).tolist() == [0, 0]


@pytest.mark.parametrize("reward", [exact_match, no_reward])
def test_rewards_are_float32(reward):
    assert rewards_of(reward, [3, 2], [3, 2], 4).dtype == torch.float32
