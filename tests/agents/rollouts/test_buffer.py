"""The buffer against a list of rows: what it holds, what it draws, whom it asks."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.toy import SPECIAL
from textgen_agents.losses.labels import Dense, LabelledBatch, Sampled, Top1, TopKWithTail
from textgen_agents.rollouts.buffer import Buffer
from textgen_env.experts.expert import NeuralExpert
from textgen_env.types import Trajectories, Writer

CAPACITY, SLOTS = 10, 4
LABELS = [Top1(), TopKWithTail(k=3), Dense(), Sampled(k=3)]


@pytest.fixture(scope="module")
def expert(tiny_task, make_table_model):
    return NeuralExpert(make_table_model(tiny_task, 3))


@pytest.fixture(scope="module")
def env(tiny_task, make_env):
    return make_env(tiny_task, SLOTS)


@pytest.fixture
def make_buffer(env):
    def make(label=LABELS[0], capacity=CAPACITY):
        return Buffer(env, capacity=capacity, label=label)

    return make


def written(env, lengths, seed=0):
    """Trajectories of these lengths, whose words and writers are drawn by `seed`."""
    generator = torch.Generator().manual_seed(seed)
    shape = len(lengths), max(lengths)
    mask = torch.arange(shape[1]) < torch.tensor(lengths)[:, None]
    words = torch.randint(SPECIAL.end + 1, env.vocab_size, shape, generator=generator)
    indices = torch.randint(len(env.examples), (shape[0],), generator=generator)
    examples = env.examples.select(indices).trimmed(SPECIAL)
    trajectories = Trajectories(
        source=examples.source,
        actions=words.masked_fill(~mask, SPECIAL.pad),
        writer=torch.randint(len(Writer), shape, generator=generator).masked_fill(~mask, 0),
        mask=mask,
        reference=examples.reference,
    )
    return LabelledBatch(trajectories)


def labelled(batch, expert, label):
    """Experience with what the expert says row by row."""
    return LabelledBatch(batch.trajectories, label.ask(batch.trajectories, expert))


def rows_of(experience):
    """Each row as text, writers, source and reference, with its answers at counted states."""
    states, rows = experience.trajectories, []
    for row in range(len(states)):
        mask = states.mask[row]
        assert states.actions[row][~mask].eq(SPECIAL.pad).all()
        tokens = [
            tuple(part[row][part[row] != SPECIAL.pad].tolist())
            for part in (states.source, states.reference)
        ]
        own = [tuple(part[row][mask].tolist()) for part in (states.actions, states.writer)]
        kept = [part[row][mask].flatten() for part in experience.labels.values()]
        digits = [tuple(f"{number:.4f}" for number in part.tolist()) for part in kept]
        rows.append((*tokens, *own, *digits))
    return rows


def everything(buffer):
    return buffer.draw(len(buffer), torch.Generator().manual_seed(0))


@settings(deadline=None)
@given(
    batches=st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=SLOTS), max_size=8),
    label=st.sampled_from(LABELS),
)
def test_it_holds_the_last_rows_with_their_answers(env, expert, batches, label):
    buffer, expected = Buffer(env, capacity=CAPACITY, label=label), []
    for seed, lengths in enumerate(batches):
        states = written(env, lengths, seed)
        buffer.add(states, expert)
        expected = (expected + rows_of(labelled(states, expert, label)))[-CAPACITY:]
        assert rows_of(buffer.latest(len(lengths))) == expected[-len(lengths) :]
        assert sorted(rows_of(everything(buffer))) == sorted(expected)
        assert len(buffer) == len(expected)
        assert buffer.full == (len(expected) == CAPACITY)


@pytest.mark.parametrize("label", LABELS)
def test_answers_are_those_of_the_row_they_come_with(env, expert, make_buffer, label):
    buffer = make_buffer(label)
    for seed in range(5):
        buffer.add(written(env, [6, 2, 3, 1], seed), expert)
    drawn = buffer.draw(7, torch.Generator().manual_seed(0))
    for part in (drawn, drawn.select(torch.tensor([4, 0, 3])).trimmed(SPECIAL)):
        states = part.trajectories
        for name, answer in label.ask(states, expert).items():
            kept = part.labels[name]
            assert kept.shape == answer.shape
            torch.testing.assert_close(kept[states.mask], answer[states.mask])


def test_the_expert_is_asked_once_about_what_is_added_and_never_again(env, expert, make_buffer):
    buffer, before, states = make_buffer(), expert.queries.tokens, 0
    for seed in range(6):
        buffer.add(written(env, [3, 5, 1, 2], seed), expert)
        states += 3 + 5 + 1 + 2
        drawn = buffer.draw(9, torch.Generator())
        assert drawn.expert(expert).best_actions(drawn.trajectories) is not None
    assert expert.queries.tokens - before == states


@pytest.mark.parametrize("label", LABELS)
def test_answers_that_are_known_are_not_asked_for(env, expert, make_buffer, label, monkeypatch):
    buffer, states = make_buffer(label), written(env, [3, 6, 1, 2])
    monkeypatch.setattr("textgen_agents.rollouts.buffer.ROWS_PER_QUERY", 3)
    known = labelled(states, expert, Dense())
    asked = expert.queries.tokens
    buffer.add(known, expert)
    assert expert.queries.tokens == asked
    assert rows_of(buffer.latest(4)) == rows_of(labelled(states, expert, label))


def test_what_has_no_answers_is_asked_about(env, expert):
    experience = written(env, [3, 1])
    assert experience.expert(expert) is expert
    assert experience.select(torch.tensor([1])).trimmed(SPECIAL).trajectories.actions.shape == (
        1,
        1,
    )


def test_a_short_row_leaves_nothing_of_the_long_one_before_it(env, expert, make_buffer):
    buffer = make_buffer(capacity=SLOTS)
    buffer.add(written(env, [6, 6, 6, 6]), expert)
    buffer.add(written(env, [1, 2, 1, 1], seed=1), expert)
    drawn = everything(buffer).trajectories
    assert drawn.mask.sum(1).sort().values.tolist() == [1, 1, 1, 2]
    assert drawn.actions.shape == (SLOTS, 2)
    assert buffer.stored["actions"][:, 2:].eq(SPECIAL.pad).all()
    assert not buffer.stored["mask"][:, 2:].any()


def test_it_stays_where_it_was_made(env, expert, make_buffer):
    buffer = make_buffer(Dense())
    buffer.add(written(env, [1, 1]), expert)
    places = {name: rows.data_ptr() for name, rows in buffer.stored.items()}
    for seed in range(9):
        buffer.add(written(env, [6, 2, 3, 1], seed), expert)
    assert places == {name: rows.data_ptr() for name, rows in buffer.stored.items()}
    assert {len(rows) for rows in buffer.stored.values()} == {CAPACITY}


@pytest.mark.parametrize("count", [1, 6, 7, 20])
def test_each_row_is_drawn_once_before_any_comes_twice(env, expert, make_buffer, count):
    buffer = make_buffer()
    buffer.add(written(env, [6, 5]), expert)
    buffer.add(written(env, [6, 5, 4, 3], seed=1), expert)
    rows = rows_of(buffer.latest(6))
    drawn = rows_of(buffer.draw(count, torch.Generator().manual_seed(1)))
    times = [drawn.count(row) for row in rows]
    assert sum(times) == count
    assert max(times) - min(times) <= 1


def test_all_rows_are_drawn_alike(env, expert, make_buffer):
    buffer, times = make_buffer(), torch.zeros(CAPACITY)
    for seed in range(5):
        buffer.add(written(env, [3, 2, 4], seed), expert)
    held = rows_of(everything(buffer))
    generator = torch.Generator().manual_seed(0)
    for _ in range(400):
        for row in rows_of(buffer.draw(3, generator)):
            times[held.index(row)] += 1
    torch.testing.assert_close(times, torch.full((CAPACITY,), 120.0), rtol=0, atol=45)  # 5 sigma


def test_draws_depend_on_the_generator_alone(env, expert, make_buffer):
    buffer = make_buffer()
    buffer.add(written(env, [6, 5, 4, 3]), expert)

    def drawn(seed):
        return rows_of(buffer.draw(4, torch.Generator().manual_seed(seed)))

    before = torch.get_rng_state()
    assert drawn(0) == drawn(0)
    assert any(drawn(seed) != drawn(0) for seed in range(1, 5))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("batches", [0, 1, 5])
def test_a_buffer_goes_on_from_its_state(env, expert, make_buffer, label, batches):
    unbroken, resumed = make_buffer(label), make_buffer(label)
    for seed in range(batches):
        unbroken.add(written(env, [4, 2, 3, 1], seed), expert)
    state = {name: rows.clone() for name, rows in unbroken.state_dict().items()}
    resumed.load_state_dict(state)
    for buffer in (unbroken, resumed):
        buffer.add(written(env, [6, 2, 1], 7), expert)
    one, other = everything(unbroken), everything(resumed)
    assert rows_of(one) == rows_of(other)
    assert {rows.dtype for rows in one.labels.values()} == {
        rows.dtype for rows in other.labels.values()
    }


def test_it_holds_at_least_what_is_collected_together(env, make_buffer):
    make_buffer(capacity=SLOTS)
    with pytest.raises(ValueError, match=r"capacity must be at least 4, .* got 3: use a larger"):
        make_buffer(capacity=SLOTS - 1)


def test_of_several_processes_each_holds_a_share(env, expert):
    share = Buffer(env, capacity=11, label=LABELS[0], processes=2)
    assert share.capacity == 5
    with pytest.raises(ValueError, match=r"capacity must be at least 8, .* got 7: use a larger"):
        Buffer(env, capacity=7, label=LABELS[0], processes=2)


def test_rows_of_a_buffer_of_another_size_are_refused(env, expert, make_buffer):
    """As after a run in one process that goes on in two."""
    whole = make_buffer()
    whole.add(written(env, [3, 5, 1, 2]), expert)
    with pytest.raises(ValueError, match="capacity of 5 rows, got 10: resume with as many"):
        Buffer(env, capacity=10, label=LABELS[0], processes=2).load_state_dict(whole.state_dict())


def test_of_one_view_one_is_kept(env, expert, make_buffer):
    buffer = make_buffer()
    buffer.add(written(env, [3, 5, 1, 2]), expert)
    drawn = everything(buffer).trajectories
    assert drawn.expert_view is drawn.source
    twice = {**buffer.state_dict(), "expert_source": buffer.stored["source"].clone()}
    older = make_buffer()
    older.load_state_dict(twice)
    assert "expert_source" not in older.stored | buffer.stored


def drawn(env, lengths, seed=0):
    """Rows as of `written`, each token of which has a log-probability of its own."""
    states = written(env, lengths, seed).trajectories
    log_prob = -torch.arange(1.0, states.mask.numel() + 1).view_as(states.actions) - 100 * seed
    return LabelledBatch(replace(states, behavior_log_prob=log_prob.where(states.mask, 0.0)))


def test_log_probabilities_of_draws_are_kept_with_their_rows(env, expert, make_buffer):
    buffer = make_buffer()
    buffer.add(written(env, [3, 1]), expert)
    assert everything(buffer).trajectories.behavior_log_prob is None
    rows = drawn(env, [2, 6, 1], 1)
    buffer.add(rows, expert)
    assert torch.equal(
        buffer.latest(3).trajectories.behavior_log_prob, rows.trajectories.behavior_log_prob
    )
    resumed = make_buffer()
    resumed.load_state_dict(buffer.state_dict())
    for each in (buffer, resumed):
        each.add(written(env, [6] * 4, 2), expert)
        each.add(written(env, [6] * 4, 3), expert)
        latest = each.latest(10).trajectories
        assert torch.equal(
            latest.behavior_log_prob[1, :2], rows.trajectories.behavior_log_prob[2, :2]
        )
        assert latest.behavior_log_prob[2:].eq(0).all(), "nothing is left of the rows before"
