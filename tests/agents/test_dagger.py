"""DAgger: who writes each token, what is noted meanwhile, and what is learned from."""

import math

import pytest
import torch

from tests.support.updates import context_of
from textgen_agents.dagger import DAgger
from textgen_agents.imitkd import ImitKD, ImitKDFull
from textgen_agents.losses.labels import Dense, LabelledBatch, Top1, TopKWithTail
from textgen_agents.rollouts.buffer import Buffer
from textgen_agents.rollouts.context import Context
from textgen_agents.rollouts.schedules import Constant, Linear
from textgen_agents.training.learner import Learner, LearnerConfig
from textgen_env.experts.expert import NeuralExpert
from textgen_env.generation.decoding import greedy
from textgen_env.generation.sampling import Sampling
from textgen_env.types import Writer

ROWS = 12
BY_EXPERT, BY_STUDENT, BY_COIN = Constant(1.0), Constant(0.0), Constant(0.5)


@pytest.fixture
def expert(tiny_task, make_table_model):
    return NeuralExpert(make_table_model(tiny_task, 3))


@pytest.fixture
def env(tiny_task, make_env, expert):
    return make_env(tiny_task, ROWS, expert)


@pytest.fixture
def student(tiny_task, make_table_model):
    return make_table_model(tiny_task, 4)


def collect(agent, env, student, progress=0.5, seed=0):
    context = context_of(env, student, progress=progress, seed=seed)
    return agent._write(context).trajectories


def collect_batch(agent, env, student, buffer, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return agent.collect(Context(torch.arange(ROWS), env, student, 0.5, generator, buffer))


def learn(agent, student, trajectories, expert):
    """Loss and gradient."""
    student.zero_grad()
    loss = agent.loss(LabelledBatch(trajectories), student, expert)
    loss.backward()
    return loss.detach(), student.tables.grad.clone()


@pytest.mark.parametrize("block", [1, 3])
def test_neighboring_tokens_may_share_a_coin(env, student, block):
    trajectories = collect(DAgger(beta=BY_COIN, block=block), env, student)
    writers = trajectories.writer.where(trajectories.mask, -1)
    mixed = [len(set(row.tolist()) - {-1}) > 1 for part in writers.split(block, 1) for row in part]
    assert not any(mixed)
    assert len(writers.unique()) == 3, "expert, student, and what does not count"


def test_a_block_of_nothing_is_refused():
    with pytest.raises(ValueError, match=r"^block must be at least 1, got 0"):
        DAgger(block=0)


@pytest.mark.parametrize("seed", range(5))
def test_at_beta_1_the_student_never_acts(env, expert, student, seed):
    trajectories = collect(DAgger(beta=BY_EXPERT), env, student, seed=seed)
    assert trajectories.writer[trajectories.mask].eq(Writer.EXPERT).all()
    text = greedy(expert.model, trajectories.source, env.max_steps)
    assert torch.equal(trajectories.actions, text[:, : trajectories.actions.shape[1]])


def test_at_beta_0_the_student_writes_alone_and_the_expert_does_not_go_along(env, expert, student):
    agent = DAgger(beta=BY_STUDENT)
    trajectories = collect(agent, env, student)
    assert trajectories.writer[trajectories.mask].eq(Writer.STUDENT).all()
    assert expert.queries.forwards == 0
    collect_batch(agent, env, student, agent.make_buffer(env))
    assert expert.queries.forwards == 1


@pytest.mark.parametrize("sampling", [None, Sampling(top_k=1)])
def test_each_token_is_the_best_one_of_who_wrote_it(env, expert, student, sampling):
    trajectories = collect(DAgger(beta=BY_COIN, sampling=sampling), env, student)
    own = student.sequence_logits(trajectories.source, trajectories.actions)
    own[..., : env.special.end] = float("-inf")
    by_student = trajectories.writer == Writer.STUDENT
    best = own.argmax(-1).where(by_student, expert.best_actions(trajectories))
    mask = trajectories.mask
    assert torch.equal(trajectories.actions[mask], best[mask])
    assert 0.3 < by_student[mask].float().mean() < 0.7
    assert any(len(set(row[m].tolist())) == 2 for row, m in zip(by_student, mask, strict=True))


def test_the_experts_token_is_its_best_one_however_the_student_draws(env, expert, student):
    trajectories = collect(DAgger(beta=BY_COIN, sampling=Sampling(temperature=3.0)), env, student)
    by_expert = trajectories.mask & (trajectories.writer == Writer.EXPERT)
    best = expert.best_actions(trajectories)
    assert torch.equal(trajectories.actions[by_expert], best[by_expert])


def test_a_texts_coins_do_not_depend_on_when_the_others_end(env, student, monkeypatch):
    agent = DAgger(beta=BY_COIN)
    kept = collect(agent, env, student)
    assert len(set(kept.mask.sum(1).tolist())) > 1, "the test wants texts of several lengths"
    monkeypatch.setattr("textgen_agents.rollouts.rollout.rows_to_keep", lambda done: None)
    assert torch.equal(collect(agent, env, student).actions, kept.actions)


@pytest.mark.parametrize("beta", [BY_EXPERT, BY_COIN, BY_STUDENT])
@pytest.mark.parametrize("label", [Top1(), TopKWithTail(k=3), Dense()])
def test_what_was_noted_is_what_the_expert_says_of_the_finished_texts(
    env, expert, student, beta, label
):
    agent = DAgger(beta=beta, label=label, capacity=ROWS)
    drawn = collect_batch(agent, env, student, agent.make_buffer(env))
    states = int(drawn.trajectories.mask.sum())
    assert expert.queries.tokens == states, "asked once about each state, though it went along"
    assert len(set(drawn.trajectories.mask.sum(1).tolist())) > 1, "rows end at different steps"
    mask = drawn.trajectories.mask
    for name, answer in label.ask(drawn.trajectories, expert).items():
        torch.testing.assert_close(drawn.labels[name][mask], answer[mask])


def test_the_teacher_is_never_asked_twice_about_a_state(
    tiny_task, make_env, expert, student, tmp_path, monkeypatch
):
    """In a whole training that starts with the expert writing and ends with the student alone."""
    agent = DAgger(beta=Linear(), capacity=30, batches_per_rollout=2)
    config = LearnerConfig(updates=12, batch_size=5, warmup=1, evaluate_every=4)
    added, add = [], Buffer.add

    def counting(self, batch, expert):
        added.append(int(batch.trajectories.mask.sum()))
        add(self, batch, expert)

    monkeypatch.setattr(Buffer, "add", counting)
    env = make_env(tiny_task, 10, expert)
    learner = Learner(
        agent, student, env=env, folder=tmp_path, config=config, precision=torch.float32
    )
    counters = learner.train(lambda _: 0.0, lambda *_: None)
    assert len(added) == 6
    assert sum(added) == expert.queries.tokens == counters.teacher_tokens


@pytest.mark.parametrize(
    ("label", "sibling"),
    [(Top1(), ImitKD(beta=BY_STUDENT)), (Dense(), ImitKDFull(beta=BY_STUDENT))],
)
def test_with_room_for_one_rollout_of_the_student_it_is_imitkd(
    env, expert, student, label, sibling
):
    agent = DAgger(beta=BY_STUDENT, capacity=ROWS, label=label)
    drawn = collect_batch(agent, env, student, agent.make_buffer(env))
    actual = learn(agent, student, drawn.trajectories, drawn.expert(expert))
    states = sibling.collect(context_of(env, student, progress=0.5)).trajectories
    expected = learn(sibling, student, states, expert)
    torch.testing.assert_close(actual, expected)


def test_it_learns_the_experts_tokens_on_rows_of_all_rollouts(env, expert, student):
    agent = DAgger(beta=BY_COIN, capacity=3 * ROWS)
    buffer = agent.make_buffer(env)
    for seed in range(2):
        collect_batch(agent, env, student, buffer, seed)
    drawn = collect_batch(agent, env, student, buffer, seed=2)
    texts = {tuple(row.tolist()) for row in drawn.trajectories.trimmed(env.special).actions}
    latest = collect(agent, env, student, seed=2).trimmed(env.special).actions
    assert texts - {tuple(row.tolist()) for row in latest}, "nothing older was drawn"
    with torch.no_grad():
        own = student.sequence_logits(drawn.trajectories.source, drawn.trajectories.actions)
        teacher = expert.model.sequence_logits(
            drawn.trajectories.source, drawn.trajectories.actions
        )
    losses = []
    for row, column in drawn.trajectories.mask.nonzero().tolist():
        best = int(teacher[row, column, env.special.end :].argmax()) + env.special.end
        exponentials = [math.exp(logit) for logit in own[row, column].tolist()]
        losses.append(-math.log(exponentials[best] / sum(exponentials)))
    loss, _ = learn(agent, student, drawn.trajectories, drawn.expert(expert))
    assert loss.item() == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_a_buffer_of_size_zero_is_refused():
    with pytest.raises(ValueError, match="capacity must be at least 1, got 0: use thousands, or"):
        DAgger(capacity=0)
