"""What each agent learns from: who writes, what the label is, what the loss is."""

import math
from dataclasses import replace
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.updates import (
    ON_HIDDEN_STATES,
    ROWS,
    assert_learn_the_same,
    collect,
    collect_batch,
    context_of,
    learn,
    loss_and_gradients,
    make,
)
from textgen_agents import AGENTS
from textgen_agents.agent import Agent, LearnsFrom
from textgen_agents.gkd import GKD
from textgen_agents.imitkd import ImitKD, ImitKDFull, ImitKDStar, ImitKDStarFull, ImitKDVariant
from textgen_agents.losses.labels import LabelledBatch, Top1, TopKWithTail
from textgen_agents.losses.objectives import token_loss
from textgen_agents.mle import MLE
from textgen_agents.rollouts.schedules import Constant, Exponential, Linear
from textgen_agents.seqkd import SeqKD, SeqKDFull
from textgen_agents.word_kd import WordKD
from textgen_env.experts.expert import NeuralExpert, NoExpert
from textgen_env.experts.queries import Queries
from textgen_env.generation.beam_search import decoder_of
from textgen_env.generation.decoding import decode_all
from textgen_env.generation.sampling import Sampling
from textgen_env.tasks.copy import CopyConfig, copy_task
from textgen_env.tasks.task import encode
from textgen_env.types import Trajectories, Writer, tensors

MIXED = {name: kind for name, kind in AGENTS.items() if kind in get_args(ImitKDVariant)}
ON_TEACHER_TEXT = [SeqKD, SeqKDFull, ImitKDStar, ImitKDStarFull]
ON_REFERENCES = [name for name, kind in AGENTS.items() if kind.prepare is Agent.prepare]
ASKED_ABOUT_NO_STATE = (LearnsFrom.REFERENCES, LearnsFrom.TEXTS)
QUERYING = [name for name, kind in AGENTS.items() if kind.queries_while_writing]
ALWAYS_QUERYING = sorted({*QUERYING} - {"dagger"})  # whose schedule ends the expert's part
ASKING_AFTERWARDS = {  # about the whole batch, when it is collected
    *("aggrevate", "mgsr", "diverse_cfg", "tvd_plus_plus", "every_expert_ka"),
}
ASKING_AGAIN = {"aggrevate", "mgsr", "diverse_cfg", "every_expert_ka"}  # or about other states
REWARDED = {"minillm", "sampled_reverse_kl", "aggrevate", "diverse_cfg", "tvd_plus_plus"}
LABELLED_BY_WRITER = {"imitkd", "imitkd_star"}
BY_DATA, BY_STUDENT, BY_COIN = Constant(1.0), Constant(0.0), Constant(0.5)


def writers_of_rows(trajectories):
    """Return the set of writers of each row's counted tokens."""
    return [
        set(row[mask].tolist())
        for row, mask in zip(trajectories.writer, trajectories.mask, strict=True)
    ]


def log_prob(logits, token):
    """Log softmax in double precision, by hand."""
    exponentials = [math.exp(logit) for logit in logits.tolist()]
    return math.log(exponentials[token] / sum(exponentials))


def test_imitkd_at_beta_1_is_mle(env, tiny_student):
    assert_learn_the_same(ImitKD(beta=BY_DATA), MLE(), env, tiny_student)


def test_imitkd_full_at_beta_1_is_word_kd(env, tiny_student):
    assert_learn_the_same(ImitKDFull(beta=BY_DATA), WordKD(), env, tiny_student)


@pytest.mark.parametrize("kind", [WordKD, ImitKDFull, GKD, SeqKDFull, ImitKDStarFull])
def test_a_label_of_all_tokens_is_the_distribution(env, tiny_student, kind):
    label = TopKWithTail(k=env.vocab_size)
    assert_learn_the_same(kind(label=label), kind(), env, tiny_student)


@pytest.fixture
def env_of_teacher_text(tiny_task, make_env, env, expert):
    return make_env(tiny_task, ROWS, expert, SeqKD().prepare(env.examples, expert, env.max_steps))


def test_imitkd_star_at_beta_1_is_seqkd(env_of_teacher_text, tiny_student):
    assert_learn_the_same(ImitKDStar(beta=BY_DATA), SeqKD(), env_of_teacher_text, tiny_student)


def test_imitkd_star_full_at_beta_1_is_seqkd_full(env_of_teacher_text, tiny_student):
    star, cloned = ImitKDStarFull(beta=BY_DATA), SeqKDFull()
    assert_learn_the_same(star, cloned, env_of_teacher_text, tiny_student)


@pytest.mark.parametrize("kind", ON_TEACHER_TEXT)
def test_they_prepare_what_the_teachers_beam_search_writes(env, expert, kind):
    prepared = kind(beam_size=2).prepare(env.examples, expert, env.max_steps)
    written = expert.write(env.examples, max_steps=env.max_steps, beam_size=2)
    assert torch.equal(prepared.reference, written.reference)
    assert torch.equal(prepared.source, env.examples.source)


@pytest.mark.parametrize("kind", MIXED.values())
def test_the_two_differ_once_the_student_writes(env, tiny_student, kind):
    _, data_loss, _ = learn(kind(beta=BY_DATA), env, tiny_student)
    _, loss, _ = learn(kind(beta=BY_STUDENT), env, tiny_student)
    assert loss != data_loss


@pytest.mark.parametrize("kind", MIXED.values())
def test_at_beta_0_the_student_writes_every_token(env, tiny_student, kind):
    trajectories = collect(kind(beta=BY_STUDENT), env, tiny_student)
    assert trajectories.writer[trajectories.mask].eq(Writer.STUDENT).all()


def test_imitkd_at_beta_0_has_the_teachers_best_tokens_as_labels(env, expert, tiny_student):
    agent = ImitKD(beta=BY_STUDENT)
    trajectories, loss, _ = learn(agent, env, tiny_student)
    labelled = Trajectories(
        source=trajectories.source,
        actions=expert.best_actions(trajectories),
        writer=trajectories.writer,
        mask=trajectories.mask,
        reference=trajectories.reference,
    )
    logits = tiny_student.sequence_logits(trajectories.source, trajectories.actions)
    losses = -logits.log_softmax(-1).gather(-1, labelled.actions[..., None]).squeeze(-1)
    torch.testing.assert_close(loss, losses[trajectories.mask].mean())


def test_imitkd_labels_each_prefix_by_its_writer(env, expert, tiny_student):
    agent = ImitKD(beta=BY_COIN)
    trajectories, loss, _ = learn(agent, env, tiny_student)
    with torch.no_grad():
        student = tiny_student.sequence_logits(trajectories.source, trajectories.actions)
        teacher = expert.model.sequence_logits(trajectories.source, trajectories.actions)
    losses = []
    for row, column in trajectories.mask.nonzero().tolist():
        label = trajectories.actions[row, column]
        if trajectories.writer[row, column] == Writer.STUDENT:
            label = teacher[row, column, 2:].argmax() + 2  # never padding or start
        losses.append(-log_prob(student[row, column], int(label)))
    assert loss.item() == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_imitkd_asks_about_the_students_rows_alone(env, expert, tiny_student):
    batch = collect_batch(ImitKD(beta=BY_COIN), env, tiny_student)
    states = batch.trajectories
    by_student = states.writer == Writer.STUDENT
    asked = expert.queries.tokens
    _, gradients = loss_and_gradients(ImitKD(), batch, tiny_student, expert)
    asked = expert.queries.tokens - asked
    assert 0 < asked == int((by_student & states.mask).sum()) < int(states.mask.sum())
    tiny_student.zero_grad()
    labels = expert.best_actions(states).where(by_student, states.actions)
    token_loss(states, tiny_student, labels).backward()
    of_all = {name: parameter.grad for name, parameter in tiny_student.named_parameters()}
    torch.testing.assert_close(gradients, of_all, rtol=0, atol=1e-6)


def test_imitkd_asks_nothing_where_the_data_writes_all(env, expert, tiny_student):
    learn(ImitKD(beta=BY_DATA), env, tiny_student)
    assert not expert.queries.tokens


def test_the_teachers_token_on_data_prefixes_too_is_imitkd_full_with_its_best_token(
    env, expert, tiny_student
):
    agent = ImitKDFull(beta=BY_COIN, label=Top1())
    states, loss, gradients = learn(agent, env, tiny_student)
    base, _, _ = learn(ImitKD(beta=BY_COIN), env, tiny_student)
    assert torch.equal(states.actions, base.actions)
    assert {Writer.DATA, Writer.STUDENT} <= set(states.writer[states.mask].tolist())
    tiny_student.zero_grad()
    expected = token_loss(states, tiny_student, expert.best_actions(states))
    expected.backward()
    found = {name: parameter.grad for name, parameter in tiny_student.named_parameters()}
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(gradients, found)


def test_under_noise_imitkd_labels_data_with_the_reference(noisy_env, tiny_student):
    trajectories, loss, _ = learn(ImitKD(beta=BY_COIN), noisy_env, tiny_student)
    best = noisy_env.expert.best_actions(trajectories)
    logits = tiny_student.sequence_logits(trajectories.source, trajectories.actions)
    losses, slips = [], 0
    for row, column in trajectories.mask.nonzero().tolist():
        label = best[row, column]
        reference = trajectories.reference[row].tolist()
        if trajectories.writer[row, column] == Writer.DATA and column < len(reference):
            label = reference[column] or label  # the expert's once the data's text is over
            slips += int(label != trajectories.actions[row, column])
        losses.append(-log_prob(logits[row, column].detach(), int(label)))
    assert slips > 5
    assert loss.item() == pytest.approx(sum(losses) / len(losses), rel=1e-5)


@pytest.mark.parametrize("name", AGENTS)
def test_noise_reaches_only_agents_that_step_the_environment(
    noisy_env, env, tiny_student, name, monkeypatch
):
    steps, step = [], noisy_env.step
    monkeypatch.setattr(noisy_env, "step", lambda actions: steps.append(1) or step(actions))
    agent = make(name)
    written = collect(agent, noisy_env, tiny_student).actions
    assert steps or written.equal(collect(agent, env, tiny_student).actions)
    assert not steps or name not in ("mle", "word_kd", "seqkd", "kid")


@pytest.mark.parametrize("agent", [WordKD(), SeqKDFull(), ImitKDFull(beta=BY_COIN)])
def test_full_labels_are_the_teachers_distribution_on_every_prefix(
    env, expert, tiny_student, agent
):
    trajectories, loss, _ = learn(agent, env, tiny_student)
    with torch.no_grad():
        student = tiny_student.sequence_logits(trajectories.source, trajectories.actions)
        teacher = expert.model.sequence_logits(trajectories.source, trajectories.actions)
    losses = []
    for row, column in trajectories.mask.nonzero().tolist():
        for token in range(student.shape[-1]):
            p = log_prob(teacher[row, column], token)
            losses.append(math.exp(p) * (p - log_prob(student[row, column], token)))
    expected = sum(losses) / int(trajectories.mask.sum())
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_mle_smooths_its_labels(env, tiny_student):
    trajectories, loss, _ = learn(MLE(label_smoothing=0.2), env, tiny_student)
    logits = tiny_student.sequence_logits(trajectories.source, trajectories.actions)
    log_probs = logits.log_softmax(-1)[trajectories.mask]
    picked = log_probs.gather(-1, trajectories.actions[trajectories.mask][:, None])
    expected = -(0.8 * picked.mean() + 0.2 * log_probs.mean())
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("beam_size", [1, 4])
def test_seqkd_learns_what_the_teacher_writes(
    tiny_task, make_env, make_table_model, tiny_student, beam_size
):
    teacher = make_table_model(tiny_task, 3)
    agent, expert = SeqKD(beam_size=beam_size), NeuralExpert(teacher)
    gold = encode(tiny_task.train, tiny_task)
    prepared = agent.prepare(gold, expert, tiny_task.max_target_length)
    env = make_env(tiny_task, ROWS, expert, prepared)
    indices = torch.arange(ROWS)
    trajectories = agent.collect(context_of(env, tiny_student, indices)).trajectories
    written = decode_all(
        teacher, gold.source[:ROWS], tiny_task.max_target_length, decoder=decoder_of(beam_size)
    )
    assert torch.equal(trajectories.source, gold.source[:ROWS])
    width = int(trajectories.mask.sum(1).max())
    assert torch.equal(trajectories.actions[:, :width], written[:, :width])
    logits = tiny_student.sequence_logits(trajectories.source, written)
    losses = -logits.log_softmax(-1).gather(-1, written[..., None]).squeeze(-1)
    loss = agent.loss(LabelledBatch(trajectories), tiny_student, expert)
    torch.testing.assert_close(loss, losses[written != teacher.special.pad].mean())


@pytest.mark.parametrize("name", ON_REFERENCES)
def test_the_others_learn_from_gold_pairs(env, expert, name):
    assert make(name).prepare(env.examples, expert, 5) is env.examples
    assert expert.queries.tokens == 0


@pytest.mark.parametrize("kind", MIXED.values())
def test_a_row_has_one_writer(env, tiny_student, kind):
    trajectories = collect(kind(beta=BY_COIN), env, tiny_student)
    writers = writers_of_rows(trajectories)
    assert all(len(row) == 1 for row in writers)
    assert set().union(*writers) == {Writer.DATA, Writer.STUDENT}


@pytest.mark.parametrize("kind", MIXED.values())
def test_the_coin_is_as_the_schedule_says_at_that_progress(env, tiny_student, kind):
    agent = kind(beta=Linear(final=0.0))
    assert collect(agent, env, tiny_student, progress=0.0).writer.eq(Writer.DATA).all()
    assert collect(agent, env, tiny_student, progress=1.0).writer.eq(Writer.STUDENT).all()
    assert agent.coefficients(0.25) == {"beta": 0.75}


@pytest.mark.parametrize("kind", MIXED.values())
def test_the_papers_schedule_and_pool_are_the_defaults(kind):
    assert kind() == kind(beta=Exponential(base=200.0), sampling=None, batches_per_rollout=4)


@pytest.mark.parametrize("kind", MIXED.values())
def test_the_same_generator_gives_the_same_rollout(env, tiny_student, kind):
    agent = kind(beta=BY_COIN, sampling=Sampling(top_k=3))
    once, again = (collect(agent, env, tiny_student, seed=5) for _ in range(2))
    assert torch.equal(once.actions, again.actions)
    assert torch.equal(once.writer, again.writer)


@pytest.mark.parametrize("name", sorted(set(AGENTS) - ASKING_AGAIN))
def test_the_teacher_is_asked_once_at_each_state_that_it_labels(env, expert, tiny_student, name):
    trajectories, _, _ = learn(make(name), env, tiny_student)
    asks = AGENTS[name].learns_from not in ASKED_ABOUT_NO_STATE
    labelled = trajectories.mask
    if name in LABELLED_BY_WRITER:
        labelled = labelled & (trajectories.writer == Writer.STUDENT)
    assert expert.queries.tokens == (int(labelled.sum()) if asks else 0)
    steps = trajectories.actions.shape[1]
    assert expert.queries.forwards == (steps if name in ALWAYS_QUERYING else asks)


@pytest.mark.parametrize("name", ALWAYS_QUERYING)
def test_what_it_said_while_going_along_are_the_labels_it_would_give_afterwards(
    tiny_task, make_env, make_table_model, name
):
    student, expert = make_table_model(tiny_task, 3), NeuralExpert(make_table_model(tiny_task, 4))
    agent, env = make(name), make_env(tiny_task, ROWS, expert)
    seen = collect_batch(agent, env, student)
    assert len(set(seen.trajectories.mask.sum(1).tolist())) > 1, "rows end at different steps"
    noted = loss_and_gradients(agent, seen, student, seen.expert(expert))
    asked = loss_and_gradients(agent, seen, student, expert)
    torch.testing.assert_close(noted, asked, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", sorted(set(AGENTS) - {*QUERYING, *ASKING_AFTERWARDS}))
def test_who_does_not_look_at_the_expert_does_not_step_it(env, expert, tiny_student, name):
    collect(make(name), env, tiny_student)
    assert expert.queries == Queries()


@pytest.mark.parametrize("name", AGENTS)
def test_gradients_reach_every_weight_of_the_student_and_none_of_the_teacher(
    env, expert, tiny_student, name
):
    _, _, gradients = learn(make(name), env, tiny_student)
    for parameter, gradient in gradients.items():
        assert gradient.isfinite().all(), parameter
        assert gradient.any(), parameter
    assert all(parameter.grad is None for parameter in expert.model.parameters())


@pytest.mark.parametrize("name", AGENTS)
def test_collecting_changes_nothing_and_records_no_gradient(env, tiny_student, name):
    before = {key: value.clone() for key, value in tiny_student.state_dict().items()}
    trajectories = collect(make(name), env, tiny_student, progress=1.0)
    assert not trajectories.actions.requires_grad
    assert all(parameter.grad is None for parameter in tiny_student.parameters())
    assert all(torch.equal(value, before[key]) for key, value in tiny_student.state_dict().items())


@pytest.mark.parametrize("name", AGENTS)
def test_padding_does_not_change_the_loss(env, tiny_student, name):
    agent = make(name)
    batch = collect_batch(agent, env, tiny_student, progress=1.0)
    trajectories = batch.trajectories
    more = {"source": 3, "reference": 1}  # columns; the others have two
    wide = Trajectories(
        **{
            field: torch.nn.functional.pad(rows, (0, more.get(field, 2)))
            for field, rows in tensors(trajectories).items()
        }
    )
    labels = {
        name: torch.nn.functional.pad(label, (*[0] * 2 * (label.dim() - 2), 0, 2))
        for name, label in batch.labels.items()
    }
    wide = LabelledBatch(wide, labels)
    loss = agent.loss(batch, tiny_student, batch.expert(env.expert))
    torch.testing.assert_close(agent.loss(wide, tiny_student, wide.expert(env.expert)), loss)


@pytest.mark.parametrize("name", [name for name in AGENTS if make(name).needs_expert])
def test_without_a_teacher_the_error_says_what_to_do(tiny_task, make_env, tiny_student, name):
    agent, env = make(name), make_env(tiny_task, ROWS, NoExpert())
    with pytest.raises(RuntimeError, match="give a teacher, or choose an agent that learns from"):
        learn(agent, make_env(tiny_task, ROWS, examples=prepare(agent, env)), tiny_student)


def prepare(agent, env):
    return agent.prepare(env.examples, env.expert, env.max_steps)


@st.composite
def tiny_tasks(draw):
    """Draw a copying task of a few examples."""
    return copy_task(
        CopyConfig(
            num_words=draw(st.integers(7, 9)),
            min_length=draw(st.integers(1, 2)),
            max_length=draw(st.integers(2, 4)),
            num_train=draw(st.integers(1, 6)),
            num_validation=1,
            num_test=1,
            seed=draw(st.integers(0, 100)),
        )
    )


@pytest.mark.parametrize("name", sorted(set(AGENTS) - ON_HIDDEN_STATES))
@settings(max_examples=20, deadline=None)
@given(
    task=tiny_tasks(),
    rows=st.integers(1, 5),
    progress=st.floats(0, 1),
    smoothing=st.floats(0, 0.99),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_agent_learns_on_any_task(  # noqa: PLR0913 - drawn by hypothesis
    make_env, make_table_model, name, task, rows, progress, smoothing, seed
):
    agent = make(name)
    if "label_smoothing" in vars(agent):
        agent = replace(agent, label_smoothing=smoothing)
    student, teacher = make_table_model(task, seed), make_table_model(task, seed + 1)
    expert = NeuralExpert(teacher)
    env = make_env(task, rows, expert)
    env = make_env(task, rows, expert, prepare(agent, env))
    seen = collect_batch(agent, env, student, progress, seed)
    trajectories = seen.trajectories
    lengths = trajectories.mask.sum(1)
    counted = torch.arange(trajectories.mask.shape[1]) < lengths[:, None]
    assert lengths.min() >= 1
    assert lengths.max() <= task.max_target_length
    assert torch.equal(trajectories.mask, counted), "what counts is a beginning of the row"
    assert trajectories.actions[~counted].eq(env.special.pad).all()
    assert trajectories.actions[counted].min() >= env.special.end, "neither padding nor start"
    assert name in {*QUERYING, "scheduled_sampling", "kid", "mgsr"} or all(
        len(row) == 1 for row in writers_of_rows(trajectories)
    )
    gold = Trajectories.from_examples(trajectories.examples, env.special)
    loss = agent.loss(seen, student, seen.expert(expert))
    added = MLE().loss(LabelledBatch(gold), student, expert)
    (loss + added).backward()
    assert loss.isfinite()
    assert name in REWARDED or loss >= 0, "rewards may be positive"
    assert added.isfinite()
    assert added >= 0
    assert student.tables.grad.isfinite().all()
    assert teacher.tables.grad is None
