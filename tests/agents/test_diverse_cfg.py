"""A guided teacher's distribution, and a reward for texts of one source that differ."""

import copy
import math
from collections import Counter
from dataclasses import replace

import pytest
import torch

from tests.support.toy import SPECIAL, record
from tests.support.updates import ROWS, collect_batch, context_of, loss_and_gradients
from textgen_agents.diverse_cfg import DiverseCFG, bigram_cosine, guided_logits
from textgen_agents.gkd import GKD
from textgen_agents.losses.labels import LabelledBatch
from textgen_agents.rollouts.rollout import student_rollout
from textgen_env.experts.expert import ExpertError, NeuralExpert
from textgen_env.generation.sampling import Sampling
from textgen_env.types import Trajectories


def trained(agent, env, student):
    """Train `student` and return it."""
    optimizer = torch.optim.Adam(student.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(0)
    for update in range(180):
        optimizer.param_groups[0]["lr"] = 0.1 if update < 120 else 0.01
        indices = torch.randint(len(env.examples), (env.num_envs,), generator=generator)
        batch = agent.collect(context_of(env, student, indices, seed=generator))
        optimizer.zero_grad()
        agent.loss(batch, student, batch.expert(env.expert)).backward()
        optimizer.step()
    return student


def drawn(env, student):
    """Return texts of the student for the first examples."""
    return student_rollout(context_of(env, student, seed=1), Sampling()).trajectories


def distinct_2(states, copies):
    """Return the share of different bigrams among those of the texts of each source."""
    shares = []
    for rows in states.actions.view(copies, -1, states.actions.shape[1]).transpose(0, 1):
        texts = [[token for token in row if token] for row in rows.tolist()]
        pairs = Counter(pair for text in texts for pair in zip([1, *text], text, strict=False))
        shares.append(len(pairs) / sum(pairs.values()))
    return sum(shares) / len(shares)


@pytest.mark.slow
def test_the_student_becomes_the_guided_teacher_and_the_reward_spreads_its_texts(
    tiny_task, make_env, make_table_model
):
    """The experiment with a known answer: tables of bigrams, whose guided law has a closed form."""
    teacher = make_table_model(tiny_task, 4)
    with torch.no_grad():
        teacher.tables *= 0.5  # so that guidance leaves more than one token
        teacher.tables[2] = 0  # of positions
    expert = NeuralExpert(teacher)
    env = make_env(tiny_task, 64, expert)
    copies = 8
    some = env.examples.select(torch.arange(8).repeat(copies))
    held = make_env(tiny_task, 64, expert, some)
    found = {}
    for weight in (0.0, 10.0):
        student = trained(DiverseCFG(diversity_weight=weight), env, copy.deepcopy(teacher))
        states = drawn(held, student)
        first, previous = states.source[:, :1], states.actions.roll(1, 1)
        previous[:, 0] = SPECIAL.start
        with_source, without = teacher.tables[0, first], teacher.tables[0, SPECIAL.end]
        closed = without + 3 * (with_source - without) + teacher.tables[1, previous]
        q = student.sequence_logits(states.source, states.actions).detach()
        p, q = (each.double().softmax(-1) for each in (closed.detach(), q))
        gap = 0.5 * (p - q).abs().sum(-1)
        found[weight] = float(gap[states.mask].mean()), distinct_2(states, copies)
    assert found[0.0][0] < 0.02
    assert found[10.0][1] > found[0.0][1] + 0.05


@pytest.mark.parametrize("guidance", [0.0, 1.0, 3.0])
def test_guidance_in_closed_form(tiny_task, make_env, make_table_model, guidance):
    teacher = make_table_model(tiny_task, 4)
    env = make_env(tiny_task, ROWS, NeuralExpert(teacher))
    states = Trajectories.from_examples(env.examples, env.special)
    without = teacher.sequence_logits(torch.full_like(states.source[:, :1], 2), states.actions)
    plain = teacher.sequence_logits(states.source, states.actions)
    found = guided_logits(states, env.expert, guidance)
    torch.testing.assert_close(found, (1 - guidance) * without + guidance * plain)
    torch.testing.assert_close(
        guided_logits(replace(states, expert_source=states.source), env.expert, guidance), found
    )


def test_guided_by_1_and_unrewarded_it_is_gkd_by_reverse_kl(env, expert, tiny_student):
    batch = collect_batch(DiverseCFG(guidance=1.0), env, tiny_student)
    plain = DiverseCFG(guidance=1.0, diversity_weight=0.0)
    loss, gradients = loss_and_gradients(plain, batch, tiny_student, batch.expert(expert))
    texts = LabelledBatch(batch.trajectories)
    expected = loss_and_gradients(GKD(teacher_weight=1), texts, tiny_student, expert)
    torch.testing.assert_close((loss, gradients), expected)


def test_the_cosine_against_counts():
    one, other = record([3, 4, 3, 4, 2], [5, 2], [3, 3, 3]), record([3, 4, 2], [6, 2], [3, 3, 3])
    found = bigram_cosine(one, other, SPECIAL)
    expected = []
    for left, right in zip(one.actions.tolist(), other.actions.tolist(), strict=True):
        a, b = (
            Counter(zip([1, *text], text, strict=False))
            for text in ([token for token in row if token] for row in (left, right))
        )
        product = sum(a[pair] * b[pair] for pair in a)
        sizes = [math.sqrt(sum(n * n for n in counts.values())) for counts in (a, b)]
        expected.append(product / sizes[0] / sizes[1])
    assert found.tolist() == pytest.approx(expected)
    assert expected[1] == 0
    assert found[2] == 1


def test_the_gradient_of_the_reward(tiny_task, make_env, make_table_model):
    """By hand: the advantage is the same for all tokens of both texts, and 0 on average."""
    student = make_table_model(tiny_task, 3)
    env = make_env(tiny_task, ROWS, NeuralExpert(make_table_model(tiny_task, 4)))
    agent = DiverseCFG()
    batch = agent.collect(context_of(env, student))
    states, advantage = batch.trajectories, batch.labels["advantage"]
    assert len(states) == 2 * ROWS
    assert torch.equal(advantage[:ROWS], advantage[ROWS:])
    assert advantage[:, 0].mean().abs() < 1e-6
    halves = [states.select(torch.arange(2 * ROWS).view(2, ROWS)[n]) for n in (0, 1)]
    variety = 1 - bigram_cosine(*halves, SPECIAL)
    torch.testing.assert_close(advantage[:ROWS, 0], variety - variety.mean())
    with_reward = agent.loss(batch, student, batch.expert(env.expert))
    without = DiverseCFG(diversity_weight=0.0).loss(batch, student, batch.expert(env.expert))
    log_q = student.sequence_logits(states.source, states.actions).double().log_softmax(-1)
    chosen = log_q.gather(-1, states.actions[..., None]).squeeze(-1)
    expected = -(advantage * chosen)[states.mask].sum() / states.mask.sum()
    torch.testing.assert_close((with_reward - without).double(), expected, atol=1e-5, rtol=1e-5)


def test_what_cannot_be_is_refused(expert, monkeypatch):
    with pytest.raises(ValueError, match=r"^guidance must be at least 0, got -1"):
        DiverseCFG(guidance=-1.0)
    with pytest.raises(ValueError, match=r"^diversity_weight must be at least 0, got -1"):
        DiverseCFG(diversity_weight=-1.0)
    monkeypatch.setattr(NeuralExpert, "largest_k", 1)
    with pytest.raises(ExpertError, match="must give the whole distribution"):
        DiverseCFG().check_expert(expert)
