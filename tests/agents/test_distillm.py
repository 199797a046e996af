"""DistiLLM: whose batches are learned from, how the student's share rises, and the divergence."""

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch

from textgen_agents.distillm import DistiLLM
from textgen_agents.losses.divergences import reverse_kl
from textgen_agents.losses.labels import Dense, LabelledBatch
from textgen_agents.losses.objectives import loss_for
from textgen_agents.rollouts.context import Context
from textgen_agents.rollouts.schedules import Constant, Linear
from textgen_agents.training.learner import Learner, LearnerConfig
from textgen_agents.training.regularizers import References
from textgen_agents.word_kd import WordKD
from textgen_env.experts.expert import NeuralExpert
from textgen_env.types import Writer

ROWS = 6
ALWAYS, NEVER, HALF = Constant(1.0), Constant(0.0), Constant(0.5)


@pytest.fixture
def expert(tiny_task, make_table_model):
    return NeuralExpert(make_table_model(tiny_task, 3))


@pytest.fixture
def env(tiny_task, make_env, expert):
    return make_env(tiny_task, ROWS, expert)


@pytest.fixture
def student(tiny_task, make_table_model):
    return make_table_model(tiny_task, 4)


def collect_batch(agent, env, student, buffer, seed=0, progress=0.5):
    generator = torch.Generator().manual_seed(seed)
    return agent.collect(Context(torch.arange(ROWS), env, student, progress, generator, buffer))


def learn(loss_of, student):
    student.zero_grad()
    loss = loss_of()
    loss.backward()
    return loss.detach(), student.tables.grad.clone()


@pytest.mark.parametrize("seed", range(4))
def test_with_skew_0_it_is_forward_kl_on_the_same_batch(env, expert, student, seed):
    agent = DistiLLM(student_fraction=0.5, skew=0.0, label=Dense())
    batch = collect_batch(agent, env, student, agent.make_buffer(env), seed)
    actual = learn(lambda: agent.loss(batch, student, batch.expert(expert)), student)
    expected = learn(lambda: WordKD().loss(batch, student, expert), student)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def test_with_skew_0_and_in_reverse_it_is_reverse_kl(env, expert, student):
    agent = DistiLLM(skew=0.0, reverse=True, label=Dense())
    states = collect_batch(agent, env, student, agent.make_buffer(env)).trajectories
    actual = agent.loss(LabelledBatch(states), student, expert)
    assert torch.equal(actual, loss_for(Dense(), reverse_kl, states, student, expert))


@pytest.mark.parametrize("reverse", [False, True])
def test_the_loss_by_hand(env, expert, student, reverse):
    """The 10 best and the tail against a mixture of both sides, of which 0.1 is the own."""
    agent = DistiLLM(reverse=reverse)
    states = collect_batch(agent, env, student, agent.make_buffer(env)).trajectories
    with torch.no_grad():
        teacher = expert.logits(states).double().softmax(-1)
        own = student.sequence_logits(states.source, states.actions).double().softmax(-1)
    losses = []
    for row, column in states.mask.nonzero().tolist():
        p, q = teacher[row, column], own[row, column]
        order = p.argsort(descending=True)
        p, q = (torch.cat([x[order[:10]], x[order[10:]].sum()[None]]) for x in (p, q))
        first, second = (q, p) if reverse else (p, q)
        mixture = 0.1 * first + 0.9 * second
        losses.append(
            sum(
                a * math.log(a / b)
                for a, b in zip(first.tolist(), mixture.tolist(), strict=True)
                if a > 0
            )
        )
    loss = agent.loss(LabelledBatch(states), student, expert)
    assert loss.item() == pytest.approx(sum(losses) / len(losses), rel=1e-4)


def test_without_a_share_of_the_students_it_learns_from_the_data(env, student):
    agent = DistiLLM(student_fraction=0.0)
    buffer = agent.make_buffer(env)
    batch = collect_batch(agent, env, student, buffer)
    assert torch.equal(batch.trajectories.actions, env.examples.reference[:ROWS])
    assert batch.trajectories.writer.eq(Writer.DATA).all()
    assert not batch.labels
    assert not buffer.added


def test_a_new_batch_of_the_students_is_labelled_stored_and_learned_from(env, expert, student):
    agent = DistiLLM(student_fraction=1.0, fresh=ALWAYS, capacity=2 * ROWS)
    buffer = agent.make_buffer(env)
    for seed in range(4):
        before = expert.queries.tokens
        batch = collect_batch(agent, env, student, buffer, seed)
        mask = batch.trajectories.mask
        assert batch.trajectories.writer[mask].eq(Writer.STUDENT).all()
        assert buffer.added == (seed + 1) * ROWS
        agent.loss(batch, student, batch.expert(expert))
        assert expert.queries.tokens - before == mask.sum()


def test_what_is_used_again_is_neither_written_nor_asked_about(env, expert, student, monkeypatch):
    agent = DistiLLM(student_fraction=1.0, fresh=NEVER, capacity=2 * ROWS)
    buffer = agent.make_buffer(env)
    for seed in range(2):
        assert not buffer.full
        collect_batch(agent, env, student, buffer, seed)  # filled first
    assert buffer.full
    asked = expert.queries.tokens
    monkeypatch.setattr(type(student), "start", None)
    again = collect_batch(agent, env, student, buffer, seed=2)
    assert buffer.added == 2 * ROWS
    assert agent.loss(again, student, again.expert(expert)).isfinite()
    assert expert.queries.tokens == asked


def test_the_coin_is_as_the_shares_say(env, student, monkeypatch):
    agent = DistiLLM(student_fraction=0.6, fresh=Linear(), capacity=ROWS)
    buffer, kinds = agent.make_buffer(env), Counter()
    collect_batch(replace(agent, student_fraction=1.0), env, student, buffer)
    for seed in range(300):
        before = buffer.added
        batch = collect_batch(agent, env, student, buffer, seed, progress=0.75)
        new = buffer.added > before
        kinds["new" if new else "again" if batch.labels else "data"] += 1
    assert kinds["data"] / 300 == pytest.approx(0.4, abs=0.1)  # 3.5 standard deviations
    assert kinds["new"] / 300 == pytest.approx(0.15, abs=0.07)
    assert kinds["again"] / 300 == pytest.approx(0.45, abs=0.1)


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([], 0.2),
        ([3.0], 0.2),
        ([4.0, 3.0, 2.0], 0.2),
        ([3.0, 3.4], 0.2),
        ([3.0, 3.5], 0.5),
        ([3.0, 2.0, 2.75, 2.25], 0.5),  # no more than at the last rise
        ([3.0, 3.25, 3.5], 0.5),  # in two steps
        ([3.0, 2.0, 2.5, 3.0], 0.8),
        ([3.0, 2.0, 2.5, 2.25, 2.75], 0.8),  # above the lowest since the last rise
        ([1.0, 2.0, 3.0, 4.0, 5.0], 1.0),
    ],
)
def test_the_share_rises_where_validation_loss_does(losses, expected):
    agent = DistiLLM(student_fraction=0.2, rise=0.3, tolerance=0.5)
    adapted = agent.adapted(losses)
    assert adapted.student_fraction == pytest.approx(expected)
    assert replace(adapted, student_fraction=0.2) == agent
    assert adapted.coefficients(0.25) == {
        "student_fraction": adapted.student_fraction,
        "fresh": 0.75,
    }


@pytest.fixture
def train(tiny_task, make_env, make_student, tiny_teacher, tmp_path, monkeypatch):
    """agent, folder -> its figures by update, and the student's weights."""

    def run(agent, folder, losses=(0.0,) * 4):
        config = LearnerConfig(updates=12, batch_size=6, warmup=1, evaluate_every=4)
        env = make_env(tiny_task, 6, NeuralExpert(tiny_teacher))
        student, records, left = make_student(dropout=0.2), {}, iter(losses)
        learner = Learner(
            agent,
            student,
            env=env,
            folder=tmp_path / folder,
            config=config,
            precision=torch.float32,
            references=References(validation=env.examples),
        )
        monkeypatch.setattr(
            "textgen_agents.training.learner.reference_loss", lambda model, examples: next(left)
        )
        learner.train(lambda _: 0.0, lambda update, record: records.setdefault(update, record))
        return records, student.state_dict()

    return run


def test_the_learner_tells_it_what_validation_gave(train):
    losses = (6.0, 5.0, 5.2, 4.0)
    records, _ = train(DistiLLM(rise=0.25, student_fraction=0.25), "run", losses)
    shares = [records[update]["student_fraction"] for update in range(1, 13)]
    assert shares == [0.25] * 8 + [0.5] * 4


def test_a_loss_above_that_before_training_raises_the_share(train):
    """A student that was trained before may be worse at the first evaluation already."""
    records, _ = train(DistiLLM(rise=0.25, student_fraction=0.25), "run", (4.8, 5.0, 5.0, 5.0))
    shares = [records[update]["student_fraction"] for update in range(1, 13)]
    assert shares == [0.25] * 4 + [0.5] * 8


def test_a_buffer_that_nothing_comes_into_changes_nothing(train):
    agent = DistiLLM(student_fraction=0.0, rise=0.0, skew=0.0, label=Dense())
    _, weights = train(agent, "distillm")
    _, expected = train(WordKD(), "word_kd")
    for name, weight in expected.items():
        assert torch.equal(weights[name], weight), name


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"capacity": 0}, "capacity must be at least 1, got 0"),
        ({"student_fraction": 1.5}, r"student_fraction must be in \[0, 1\], got 1.5"),
        ({"rise": -0.1}, "rise must be at least 0, got -0.1"),
        ({"tolerance": -0.1}, "tolerance must be at least 0, got -0.1"),
        ({"skew": 1.0}, r"skew must be in \[0, 1\), got 1.0; 0.1 is the authors'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        DistiLLM(**setting)
