from dataclasses import fields, replace

import pytest
import torch

from textgen_agents.losses.divergences import forward_kl
from textgen_env import dynamics
from textgen_env.envs.rewards import (
    NegativeDivergence,
    Step,
    exact_match,
    expert_log_prob,
    no_reward,
    rouge_l,
    sentence_bleu,
)
from textgen_env.envs.text_metrics import TokenTexts, token_bleu, token_rouge_l
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


METRICS = {sentence_bleu: token_bleu, rouge_l: token_rouge_l}


def rewards_of(reward, actions, reference, max_steps):
    """Return the reward of each of `actions`."""
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


def test_no_reward_is_0():
    assert rewards_of(no_reward, [3, 2], [3, 2], 4).tolist() == [0, 0]


@pytest.mark.parametrize("reward", [exact_match, no_reward, sentence_bleu, rouge_l])
def test_rewards_are_float32(reward):
    assert rewards_of(reward, [3, 2], [3, 2], 4).dtype == torch.float32


@pytest.mark.parametrize("reward", [sentence_bleu, rouge_l])
@pytest.mark.parametrize(
    ("actions", "max_steps", "written"),
    [
        ([3, 4, 5, 2, 2], 6, [3, 4, 5]),
        ([3, 4, 5], 3, [3, 4, 5]),  # truncated: the last token is a word
        ([3, 0, 5, 2], 6, [3, 0, 5]),  # a padding token that was written is a wrong word
        ([2], 6, []),
    ],
)
def test_a_text_is_scored_without_its_end_token_when_it_ends(reward, actions, max_steps, written):
    metric = METRICS[reward]
    texts = [
        TokenTexts(torch.tensor([row]).long(), torch.tensor([len(row)]))
        for row in (written, [3, 4])
    ]
    expected = torch.zeros(len(actions))
    ends = actions.index(2) if 2 in actions else len(actions) - 1
    expected[ends] = metric(*texts)
    torch.testing.assert_close(rewards_of(reward, actions, [3, 4, 2, 0], max_steps), expected)


def make_step(rows=40, device="cpu"):
    """Return a step in which some episodes end, some continue and some are already over."""
    generator = torch.Generator().manual_seed(5)
    state = dynamics.initial(torch.full((rows, 2), 2), 7, SPECIAL)
    actions = torch.randint(2, 6, (4, rows), generator=generator)
    for action in actions[:-1]:
        state = dynamics.transition(state, action, SPECIAL)
    alive = ~state.done
    state = dynamics.transition(state, actions[-1], SPECIAL)
    references = torch.randint(3, 6, (rows, 5), generator=generator)
    references[:, 3:] = torch.tensor([2, 0])
    expert_logits, policy_logits = 3 * torch.randn(2, rows, 6, generator=generator)
    written = actions[-1].where(alive, SPECIAL.pad)
    step = Step(state, written, alive, references, SPECIAL, expert_logits, policy_logits)
    assert {(bool(a), bool(d)) for a, d in zip(alive, state.done, strict=True)} == {
        (True, True), (True, False), (False, True)
    }  # fmt: skip
    return _step_on(step, device)


def _step_on(step, device):
    """Return the step with all tensors on `device`."""
    return replace(_fields_on(step, device), state=_fields_on(step.state, device))


def _fields_on(record, device):
    return replace(
        record,
        **{field.name: _tensor_on(getattr(record, field.name), device) for field in fields(record)},
    )


def _tensor_on(value, device):
    return value.to(device) if isinstance(value, torch.Tensor) else value


ALL = {
    "none": no_reward,
    "exact match": exact_match,
    "bleu": sentence_bleu,
    "rouge": rouge_l,
    "log-probability": expert_log_prob,
    "divergence": NegativeDivergence(forward_kl),
}


@pytest.mark.parametrize("name", ALL)
def test_the_reward_is_0_once_an_episode_is_over(name):
    step = make_step()
    earned = ALL[name](step)
    assert earned.shape == (40,)
    assert not earned[~step.alive].any()


@pytest.mark.parametrize("name", ["bleu", "rouge"])
def test_metrics_are_paid_at_the_end_only(name):
    step = make_step()
    earned = ALL[name](step)
    assert not earned[~step.finished].any()
    assert (earned > 0).any()


@pytest.mark.parametrize("name", ALL)
def test_no_reward_waits_for_the_device(name):
    """Use meta tensors, of which no value can be read."""
    assert ALL[name](make_step(device="meta")).is_meta


def test_scores_do_not_depend_on_which_rows_are_scored_together():
    """Score all rows, as on an accelerator, and mask those that have not ended."""
    step = make_step()
    length = step.state.length - step.state.terminated.long()
    references = TokenTexts(step.references, torch.full((40,), 3))
    for reward in (sentence_bleu, rouge_l):
        metric = METRICS[reward]
        scores = metric(TokenTexts(step.state.prefix, length), references)
        torch.testing.assert_close(reward(step), scores.where(step.finished, 0.0))


def test_the_experts_log_probability_of_what_was_written():
    step = make_step()
    earned = expert_log_prob(step)
    probabilities = step.expert_logits.double().softmax(-1)
    for row in step.alive.nonzero().squeeze(1).tolist():
        expected = probabilities[row, step.written[row]].log().item()
        assert earned[row].item() == pytest.approx(expected, rel=1e-5)
    assert (earned <= 0).all()


def test_expert_rewards_are_float32_for_a_bfloat16_expert():
    step = make_step()
    coarse = replace(step, expert_logits=step.expert_logits.bfloat16())
    for reward in (expert_log_prob, NegativeDivergence(forward_kl)):
        assert reward(coarse).dtype == torch.float32
        torch.testing.assert_close(reward(coarse), reward(step), rtol=0.05, atol=0.05)


def test_the_negative_divergence_takes_policy_and_expert_in_this_order():
    """Compare with KL(expert || policy), and with the reverse KL for swapped arguments."""
    step = make_step()
    expert, policy = step.expert_logits.double(), step.policy_logits.double()
    p, q = expert.softmax(-1), policy.softmax(-1)
    forward = -(p * (p / q).log()).sum(-1).where(step.alive, 0.0)
    reverse = -(q * (q / p).log()).sum(-1).where(step.alive, 0.0)
    assert not torch.allclose(forward, reverse, atol=0.1)
    swapped = NegativeDivergence(lambda policy, expert: forward_kl(expert, policy))
    torch.testing.assert_close(NegativeDivergence(forward_kl)(step), forward.float())
    torch.testing.assert_close(swapped(step), reverse.float())


@pytest.mark.parametrize("reward", [expert_log_prob, NegativeDivergence(forward_kl)])
def test_without_the_experts_answer_the_error_says_what_to_do(reward):
    with pytest.raises(ValueError, match="make the environment with ask_expert=True"):
        reward(replace(make_step(), expert_logits=None))


def test_without_the_policys_logits_the_error_says_what_to_do():
    with pytest.raises(ValueError, match="pass policy_logits to step"):
        NegativeDivergence(forward_kl)(replace(make_step(), policy_logits=None))
