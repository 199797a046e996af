import math
from functools import cache

import pytest
import torch
from gymnasium.vector import AutoresetMode
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.toy import permitted
from textgen_env.envs.recovery import (
    SPECIAL_TOKENS,
    UNDO,
    RecoveryConfig,
    Slips,
    known_success,
    recovered,
    recovery_policy,
    recovery_task,
    resolved,
)
from textgen_env.envs.vector_env import TextGenVectorEnv
from textgen_env.tasks.copy import CopyConfig
from textgen_env.tasks.task import encode

A, B, C = UNDO + 1, UNDO + 2, UNDO + 3
PAD, END = SPECIAL_TOKENS.pad, SPECIAL_TOKENS.end
EPISODES = 4000
DEVIATIONS = 4.5  # standard deviations of a frequency: exceeded in one run of 150,000


def one_length(length, slip=0.2, num_words=4):
    """Return the configuration of texts of `length` words."""
    few = min(60, num_words**length - 2)
    return RecoveryConfig(CopyConfig(num_words, length, length, few, 1, 1), slip)


def make_env(config, num_envs):
    return TextGenVectorEnv(
        recovery_task(config),
        num_envs,
        reward=recovered,
        noise=config.slips,
        autoreset_mode=AutoresetMode.DISABLED,
    )


def never_undo(source, prefix, length):
    """Act as a perfect clone of the references: write the next word of the source in any state."""
    return source.gather(1, length.clamp(max=source.shape[1] - 1)[:, None]).squeeze(1)


def success(policy, config, seed=0):
    """Return the fraction of episodes that `policy` finishes with the reference."""
    env = make_env(config, EPISODES)
    observation, _ = env.reset(seed=seed)
    rewards = torch.zeros(EPISODES)
    for _ in range(env.max_steps):
        state = (observation[name] for name in ("source", "prefix", "length"))
        actions = permitted(env, policy(*state))
        observation, reward, terminated, truncated, _ = env.step(actions)
        rewards += reward
    assert (terminated | truncated).all()
    return rewards.mean().item()


def within(share, chance):
    return abs(share - chance) <= DEVIATIONS * math.sqrt(chance * (1 - chance) / EPISODES)


def text_by_hand(history):
    """Return the text that remains, computed with a stack."""
    text = []
    for token in history:
        if token == UNDO:
            text = text[:-1]
        elif token != PAD:
            text = [*text, token]
    return text


@settings(deadline=None)
@given(st.integers(1, 9).flatmap(lambda width: st.lists(
    st.lists(st.sampled_from([UNDO, UNDO, A, B]), max_size=width).map(
        lambda row: row + [PAD] * (width - len(row))
    ), min_size=1, max_size=5,
)))  # fmt: skip
def test_the_resolved_text_equals_a_stack(rows):
    for row, text in zip(rows, resolved(torch.tensor(rows)).tolist(), strict=True):
        expected = text_by_hand(row)
        assert text == expected + [PAD] * (len(row) - len(expected))


@pytest.mark.parametrize(
    ("history", "action"),
    [
        ([], A),
        ([A], B),
        ([A, C], UNDO),
        ([A, C, UNDO], B),
        ([A, C, B], UNDO),  # every word after a wrong one is wrong
        ([A, C, B, UNDO], UNDO),
        ([UNDO], A),
        ([A, B], END),
        ([A, B, C], UNDO),
    ],
)
def test_the_best_action(history, action):
    source, prefix = torch.tensor([[A, B, END]]), torch.full((1, 5), C)
    prefix[0, : len(history)] = torch.tensor(history)  # tokens after the length are ignored
    assert recovery_policy(source, prefix, torch.tensor([len(history)])).tolist() == [action]


@pytest.mark.parametrize(
    ("history", "reward"),
    [
        ([A, B, END], 1),
        ([A, C, UNDO, B, END], 1),
        ([A, END], 0),
        ([A, C, END], 0),
        ([A, B, C, END], 0),
        ([A, C, UNDO, B, C], 0),  # truncated
    ],
)
def test_the_reward_is_for_the_resolved_text(history, reward):
    config = RecoveryConfig(CopyConfig(3, 2, 2, 7, 1, 1), slip=0.0)
    env = make_env(config, 1)
    references = env.examples.reference.tolist()
    env.reset(seed=0, options={"indices": [references.index([A, B, END])]})
    rewards = [env.step(torch.tensor([token]))[1].item() for token in history]
    assert rewards == [0] * (len(history) - 1) + [reward]


def test_only_words_are_redrawn_and_uniformly():
    slips, generator = Slips(0.3, num_words=4), torch.Generator().manual_seed(0)
    written = slips(torch.full((EPISODES,), B), generator)
    for word in range(A, A + 4):
        chance = 0.3 / 4 + (0.7 if word == B else 0)
        assert within((written == word).float().mean().item(), chance)
    assert within((written != B).float().mean().item(), slips.error)
    for token in (*SPECIAL_TOKENS, UNDO):
        assert slips(torch.full((EPISODES,), token), generator).eq(token).all()


def test_tokens_have_the_ids_that_the_functions_assume():
    task = recovery_task(one_length(2))
    assert task.tokenizer.encode(["undo w0 w1"]) == [[UNDO, A, B]]
    assert task.tokenizer.special == SPECIAL_TOKENS
    assert not (encode(task.train, task).reference == UNDO).any(), "references never undo"
    assert (task.max_source_length, task.max_target_length) == (3, 5)


@pytest.mark.parametrize("length", [2, 4, 10])
@pytest.mark.parametrize("slip", [0.05, 0.3])
def test_the_success_of_both_policies_is_the_known_one(length, slip):
    config = one_length(length, slip)
    clone = known_success(length, length + 1, config.slips.error)
    assert clone == pytest.approx((1 - slip * (1 - 1 / 4)) ** length)
    assert within(success(never_undo, config), clone)
    best = known_success(length, 2 * length + 1, config.slips.error)
    assert best > clone
    assert within(success(recovery_policy, config), best)


def test_without_noise_both_policies_always_succeed():
    config = one_length(5, slip=0.0)
    assert success(never_undo, config) == success(recovery_policy, config) == 1
    assert known_success(5, 6, 0.0) == known_success(5, 11, 0.0) == 1


def best_of_all(length, max_steps, slip, num_words):
    """Compute the success of the best policy by exhaustive search over actions.

    A state is the number of right words, the number of tokens from the first wrong one on, and the
    number of steps left.
    """

    @cache
    def value(right, wrong, steps):
        if not steps:
            return 0.0
        undone = (
            value(right, wrong - 1, steps - 1) if wrong else value(max(0, right - 1), 0, steps - 1)
        )
        ended = float(right == length and not wrong)
        return max(undone, ended, word(right, wrong, steps, True), word(right, wrong, steps, False))

    def word(right, wrong, steps, chosen_right):
        if wrong or right == length:
            return value(right, wrong + 1, steps - 1)
        hit = slip / num_words + (1 - slip) * chosen_right
        return hit * value(right + 1, 0, steps - 1) + (1 - hit) * value(right, 1, steps - 1)

    return value(0, 0, max_steps)


@pytest.mark.parametrize(("length", "max_steps"), [(1, 2), (1, 5), (3, 4), (3, 7), (3, 8), (6, 13)])
@pytest.mark.parametrize("slip", [0.0, 0.1, 0.6])
def test_no_policy_is_better_than_the_best_one(length, max_steps, slip):
    known = known_success(length, max_steps, Slips(slip, 3).error)
    assert known == pytest.approx(best_of_all(length, max_steps, slip, 3), abs=1e-12)


@pytest.mark.parametrize("slip", [-0.1, 1.1])
def test_a_slip_must_be_a_probability(slip):
    with pytest.raises(ValueError, match=f"probability must be in \\[0, 1\\], got {slip}"):
        Slips(slip, 3)
