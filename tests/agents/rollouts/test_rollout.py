from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import textgen_agents.rollouts.rollout
from textgen_agents.rollouts.behaviors import by_example
from textgen_agents.rollouts.context import Context
from textgen_agents.rollouts.rollout import rollout, student_rollout
from textgen_env.generation.decoding import DROP_ROWS_BELOW, choose_action
from textgen_env.generation.sampling import Sampling
from textgen_env.types import Writer

ROWS = 10


def mixture(env, by_student):
    """Return a behavior that writes the rows of `by_student` greedily, and the others as data."""
    greedily = partial(choose_action, special=env.special)
    return by_example(by_student, greedily, env.max_steps)


def write(env, student, by_student, seed=0):
    indices = torch.randperm(len(env.examples), generator=torch.Generator().manual_seed(seed))
    indices = indices[: env.num_envs]
    behavior = mixture(env, torch.tensor(by_student))
    return rollout(Context(indices, env, student), behavior).trajectories, indices


@torch.no_grad()
def greedy(student, source, max_steps):
    """Return the token ids that `student` writes, with a whole forward pass for every token."""
    rows = []
    for row in source:
        written = []
        while len(written) < max_steps and student.special.end not in written:
            actions = torch.tensor([[*written, student.special.pad]])
            logits = student.sequence_logits(row[None, row != student.special.pad], actions)[0, -1]
            logits[[student.special.pad, student.special.start]] = float("-inf")
            written.append(int(logits.argmax()))
        rows.append(written)
    return rows


def counted_rows(trajectories):
    return [
        row[mask].tolist()
        for row, mask in zip(trajectories.actions, trajectories.mask, strict=True)
    ]


def text_rows(tokens, pad=0):
    return [row[row != pad].tolist() for row in tokens]


@pytest.fixture
def table_model(tiny_task, make_table_model):
    """Return a model that ends some of its texts early, some late and some never."""
    return make_table_model(tiny_task, 3)


def test_the_students_rows_are_its_greedy_text(tiny_task, make_env, table_model):
    trajectories, _ = write(make_env(tiny_task, ROWS), table_model, [True] * ROWS)
    expected = greedy(table_model, trajectories.source, tiny_task.max_target_length)
    assert counted_rows(trajectories) == expected
    assert len({len(row) for row in expected}) > 2, "the test wants texts of several lengths"


def test_a_neural_students_rows_are_its_greedy_text(tiny_task, make_env, tiny_student):
    trajectories, _ = write(make_env(tiny_task, ROWS), tiny_student, [True] * ROWS)
    expected = greedy(tiny_student, trajectories.source, tiny_task.max_target_length)
    assert counted_rows(trajectories) == expected


def test_the_datas_rows_are_the_references(tiny_task, make_env, table_model):
    env = make_env(tiny_task, ROWS)
    trajectories, indices = write(env, table_model, [False] * ROWS)
    assert counted_rows(trajectories) == text_rows(env.examples.reference[indices])
    assert trajectories.writer[trajectories.mask].eq(Writer.DATA).all()


def test_source_and_reference_are_the_examples(tiny_task, make_env, table_model):
    env = make_env(tiny_task, ROWS)
    trajectories, indices = write(env, table_model, [True, False] * (ROWS // 2))
    assert text_rows(trajectories.source) == text_rows(env.examples.source[indices])
    assert text_rows(trajectories.reference) == text_rows(env.examples.reference[indices])


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), by_student=st.lists(st.booleans(), min_size=1, max_size=6))
def test_the_record_is_what_the_environment_did(
    tiny_task, make_env, make_table_model, seed, by_student
):
    env = make_env(tiny_task, len(by_student))
    trajectories, indices = write(env, make_table_model(tiny_task, seed), by_student, seed)
    observation, _ = env.reset(options={"indices": indices})
    terminated = done = torch.zeros(len(by_student), dtype=torch.bool)
    for actions, mask in zip(trajectories.actions.T, trajectories.mask.T, strict=True):
        assert torch.equal(mask, ~done), "what is written before the end counts, and only that"
        assert actions[done].eq(env.special.pad).all()
        observation, _, terminated, truncated, _ = env.step(actions)
        done = terminated | truncated
    assert done.all(), "an episode is recorded to its end"
    written = observation["prefix"][:, : trajectories.actions.shape[1]]
    assert torch.equal(written, trajectories.actions)
    assert torch.equal(observation["length"], trajectories.mask.sum(1))
    last = trajectories.actions.gather(1, trajectories.mask.sum(1, keepdim=True) - 1).squeeze(1)
    assert torch.equal(last == env.special.end, terminated)


@pytest.mark.parametrize("sync_interval", [1, 2, 3, 100])
@pytest.mark.parametrize("seed", range(4))
def test_stopping_early_changes_nothing(
    tiny_task, make_env, make_table_model, monkeypatch, sync_interval, seed
):
    env, student = make_env(tiny_task, 2), make_table_model(tiny_task, seed)
    whole, _ = write(env, student, [True, False], seed)
    monkeypatch.setattr(
        textgen_agents.rollouts.rollout, "sync_interval", lambda device: sync_interval
    )
    stopped, _ = write(env, student, [True, False], seed)
    assert counted_rows(stopped) == counted_rows(whole)
    assert torch.equal(stopped.mask.sum(1), whole.mask.sum(1))


def test_it_stops_when_every_row_is_done(tiny_task, make_env, table_model, monkeypatch):
    monkeypatch.setattr(textgen_agents.rollouts.rollout, "sync_interval", lambda device: 1)
    env = make_env(tiny_task, 3)
    lengths = (env.examples.reference != env.special.pad).sum(1)
    shortest = lengths.argsort()[:3]
    behavior = mixture(env, torch.zeros(3, dtype=torch.bool))
    trajectories = rollout(Context(shortest, env, table_model), behavior).trajectories
    assert trajectories.actions.shape[1] == lengths[shortest].max() < env.max_steps


def test_rows_that_are_done_are_not_stepped(tiny_task, make_env, table_model, monkeypatch):
    stepped, step = [], table_model.step

    def counting_step(previous, cache):
        stepped.append(len(previous))
        return step(previous, cache)

    monkeypatch.setattr(table_model, "step", counting_step)
    trajectories, _ = write(make_env(tiny_task, ROWS), table_model, [False] * ROWS)
    live = trajectories.mask.sum(0).tolist()
    assert min(stepped) < ROWS == max(stepped)
    assert all(DROP_ROWS_BELOW * ours <= theirs for ours, theirs in zip(stepped, live, strict=True))


@pytest.mark.parametrize("share", [0.0, 0.3])
@pytest.mark.parametrize("sync_interval", [1, 3])
def test_the_student_is_not_asked_about_rows_of_the_data(
    tiny_task, make_env, table_model, monkeypatch, share, sync_interval
):
    monkeypatch.setattr(
        textgen_agents.rollouts.rollout, "sync_interval", lambda device: sync_interval
    )
    by_student = torch.arange(ROWS) < share * ROWS
    env, indices = make_env(tiny_task, ROWS), torch.arange(ROWS)
    behavior = mixture(env, by_student)
    whole = rollout(Context(indices, env, table_model), behavior).trajectories
    stepped, step = [], table_model.step

    def counting_step(previous, cache):
        stepped.append(len(previous))
        return step(previous, cache)

    monkeypatch.setattr(table_model, "step", counting_step)
    context = Context(indices, env, table_model)
    skipping = rollout(context, behavior, by_data=~by_student).trajectories
    assert counted_rows(skipping) == counted_rows(whole)
    assert torch.equal(skipping.mask, whole.mask)
    assert torch.equal(skipping.writer[skipping.mask], whole.writer[whole.mask])
    assert max(stepped, default=0) == by_student.sum()


def test_a_row_does_not_depend_on_the_others(tiny_task, make_env, tiny_student):
    env = make_env(tiny_task, ROWS)
    together, indices = write(env, tiny_student, [True] * ROWS)
    alone = mixture(env, torch.tensor([True]))
    for row, index in enumerate(indices):
        context = Context(index[None], make_env(tiny_task, 1), tiny_student)
        single = rollout(context, alone).trajectories
        assert counted_rows(single)[0] == counted_rows(together)[row]


def test_no_gradient_is_recorded(tiny_task, make_env, make_table_model, monkeypatch):
    student = make_table_model(tiny_task, 0)
    recorded = []
    step = student.step

    def watched(previous, cache):
        recorded.append(torch.is_grad_enabled())
        return step(previous, cache)

    monkeypatch.setattr(student, "step", watched)
    write(make_env(tiny_task, 2), student, [True, True])
    assert recorded
    assert not any(recorded)


@pytest.mark.parametrize("sync_interval", [1, 2, 100])
def test_texts_have_the_log_probabilities_that_they_were_drawn_with(
    tiny_task, make_env, table_model, monkeypatch, sync_interval
):
    monkeypatch.setattr(
        textgen_agents.rollouts.rollout, "sync_interval", lambda device: sync_interval
    )
    env = make_env(tiny_task, ROWS)
    context = Context(torch.arange(ROWS), env, table_model)
    texts = student_rollout(context, Sampling()).trajectories
    logits = table_model.sequence_logits(texts.source, texts.actions).double()
    logits[..., :2] = float("-inf")
    expected = logits.log_softmax(-1).gather(-1, texts.actions[..., None]).squeeze(-1)
    assert len(set(texts.mask.sum(1).tolist())) > 1, "the test wants rows that end"
    torch.testing.assert_close(
        texts.behavior_log_prob, expected.where(texts.mask, 0.0).float(), rtol=1e-4, atol=1e-5
    )
    assert student_rollout(context, None).trajectories.behavior_log_prob is None


def test_a_token_that_noise_has_written_was_drawn_by_nobody(noisy_env, tiny_student):
    chosen, draws = [], torch.Generator().manual_seed(0)

    def behavior(view):
        action, log_prob = choose_action(view.student_logits, Sampling(), draws)
        chosen.append(action)
        return action, torch.full_like(action, Writer.STUDENT), log_prob

    with pytest.MonkeyPatch.context() as patch:  # all rows stay, so that choices have their places
        patch.setattr(textgen_agents.rollouts.rollout, "sync_interval", lambda device: 100)
        context = Context(torch.arange(noisy_env.num_envs), noisy_env, tiny_student)
        texts = rollout(context, behavior).trajectories
    replaced = (texts.actions != torch.stack(chosen, 1)) & texts.mask
    assert 5 < replaced.sum() < texts.mask.sum() - 5
    assert texts.behavior_log_prob[replaced].eq(0).all()
    assert texts.behavior_log_prob[texts.mask & ~replaced].lt(0).all()
