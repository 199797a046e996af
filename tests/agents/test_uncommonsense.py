"""Texts of the student that the expert mends, and that are learned from ever after."""

import pytest
import torch

from tests.support.copying import CopyTable
from tests.support.updates import ROWS, context_of
from textgen_agents.losses.objectives import token_loss
from textgen_agents.rollouts.context import Context
from textgen_agents.rollouts.rollout import student_rollout
from textgen_agents.seqkd import SeqKD
from textgen_agents.uncommonsense import UNcommonsense
from textgen_env.experts.expert import ExpertError, NeuralExpert
from textgen_env.experts.scripted import ScriptedExpert
from textgen_env.tasks.copy import CopyConfig, copy_task
from textgen_env.types import Writer


def copy_the_source(source, prefix, length):
    return source.gather(1, length.clamp(max=source.shape[1] - 1)[:, None]).squeeze(1)


def changed_share(states):
    return float((states.writer[states.mask] == Writer.EXPERT).float().mean())


def test_the_share_that_the_expert_changes_falls_to_0(make_env):
    """The experiment with a known answer: an expert that mends wrong tokens only."""
    task = copy_task(CopyConfig(6, min_length=3, max_length=6, num_train=400))
    student = CopyTable(task.tokenizer.vocab_size, right=0.0)
    torch.nn.init.normal_(student.table, generator=torch.Generator().manual_seed(0))
    env = make_env(task, 32, ScriptedExpert(copy_the_source, task.tokenizer.vocab_size))
    agent, generator, shares = UNcommonsense(), torch.Generator().manual_seed(0), []
    optimizer, buffer = torch.optim.Adam(student.parameters(), lr=0.3), agent.make_buffer(env)
    for _ in range(12):
        indices = torch.randint(len(env.examples), (32,), generator=generator)
        context = Context(indices, env, student, 0.0, generator, buffer)
        shares.append(changed_share(agent.mended(context).trajectories))
        batch = agent.collect(context)
        for _ in range(3):
            optimizer.zero_grad()
            agent.loss(batch, student, env.expert).backward()
            optimizer.step()
    assert shares[0] > 0.5
    assert shares[-1] < 0.02


def test_every_text_is_mended_to_the_reference(make_env):
    task = copy_task(CopyConfig(6, min_length=3, max_length=6, num_train=400))
    student = CopyTable(task.tokenizer.vocab_size, right=0.0)
    torch.nn.init.normal_(student.table, generator=torch.Generator().manual_seed(0))
    env = make_env(task, 64, ScriptedExpert(copy_the_source, task.tokenizer.vocab_size))
    context = context_of(env, student)
    draft = student_rollout(context_of(env, student), None).trajectories
    states = UNcommonsense().mended(context).trajectories
    assert torch.equal(states.actions, env.examples.reference[:64, : states.actions.shape[1]])
    width = min(draft.actions.shape[1], states.actions.shape[1])
    kept = (draft.actions == states.actions[:, : draft.actions.shape[1]])[:, :width]
    by_student = states.writer == Writer.STUDENT
    mask = states.mask[:, :width]
    assert torch.equal(by_student[:, :width][mask], kept[mask])


def test_an_expert_that_keeps_nothing_writes_what_seqkd_learns(
    tiny_task, make_env, make_table_model
):
    """The offline twin."""
    student, expert = make_table_model(tiny_task, 3), NeuralExpert(make_table_model(tiny_task, 4))
    env = make_env(tiny_task, ROWS, expert)
    states = UNcommonsense(k=0).mended(context_of(env, student)).trajectories
    twin = SeqKD(beam_size=1).prepare(env.examples, expert, env.max_steps)
    width = states.actions.shape[1]
    assert torch.equal(states.actions, twin.reference[:ROWS, :width])
    assert states.writer[states.mask].eq(Writer.EXPERT).all()


def test_an_expert_that_keeps_everything_mends_nothing(tiny_task, make_env, make_table_model):
    student, expert = make_table_model(tiny_task, 3), NeuralExpert(make_table_model(tiny_task, 4))
    env = make_env(tiny_task, ROWS, expert)
    states = UNcommonsense(k=env.vocab_size).mended(context_of(env, student)).trajectories
    draft = student_rollout(context_of(env, student), None).trajectories
    assert torch.equal(states.actions, draft.actions)
    assert states.writer[states.mask].eq(Writer.STUDENT).all()


def test_between_them_the_texts_are_of_both(tiny_task, make_env, make_table_model):
    student, expert = make_table_model(tiny_task, 3), NeuralExpert(make_table_model(tiny_task, 4))
    env = make_env(tiny_task, ROWS, expert)
    states = UNcommonsense(k=3).mended(context_of(env, student)).trajectories
    best = expert.logits(states).argsort(-1, descending=True)[..., :3]
    kept = states.writer == Writer.STUDENT
    among = (best == states.actions[..., None]).any(-1)
    assert among[states.mask & kept].all()
    assert 0 < changed_share(states) < 1


def test_texts_of_earlier_batches_are_learned_again(tiny_task, make_env, expert, tiny_student):
    env, agent = make_env(tiny_task, 6, expert), UNcommonsense()
    buffer, generator = agent.make_buffer(env), torch.Generator().manual_seed(0)
    for first in (0, 6):
        indices = torch.arange(first, first + 6)
        batch = agent.collect(Context(indices, env, tiny_student, 0.0, generator, buffer))
    assert len(buffer) == 12
    assert len(batch) == 6
    earlier = (batch.trajectories.source[:, None, :2] == env.examples.source[:6, :2]).all(-1)
    assert earlier.any()
    states = batch.trajectories
    loss = agent.loss(batch, tiny_student, expert)
    torch.testing.assert_close(loss, token_loss(states, tiny_student, states.actions))


def test_what_cannot_be_is_refused(expert, monkeypatch):
    with pytest.raises(ValueError, match=r"^k must be at least 0, got -1"):
        UNcommonsense(k=-1)
    with pytest.raises(ValueError, match=r"^capacity must be at least 1, got 0"):
        UNcommonsense(capacity=0)
    monkeypatch.setattr(NeuralExpert, "largest_k", 1)
    with pytest.raises(ExpertError, match="must give the whole distribution"):
        UNcommonsense().check_expert(expert)
