from functools import partial

import pytest
import torch

from textgen_agents.losses.divergences import forward_kl
from textgen_env import dynamics
from textgen_env.experts.scripted import ScriptedExpert
from textgen_env.generation.sampling import Sampling
from textgen_env.types import Examples, SpecialTokens, Trajectories, Writer

SPECIAL = SpecialTokens()
SOURCE = torch.tensor([[3, 4, 5, 2], [6, 2, 0, 0], [7, 3, 2, 0]])
EXAMPLES = Examples(SOURCE, SOURCE)
ACTIONS = torch.tensor([[3, 9, 5, 2, 0], [6, 2, 0, 0, 0], [3, 3, 3, 3, 3]])
MASK = torch.tensor([4, 2, 5])[:, None] > torch.arange(5)


def copy_or_end(source, prefix, length):
    """Return the next source token, or the end token once the prefix differs from the source."""
    columns = torch.arange(prefix.shape[1])
    width = min(source.shape[1], prefix.shape[1])
    wrong = (prefix[:, :width] != source[:, :width]) & (columns[:width] < length[:, None])
    next_token = source.gather(1, length.clamp(max=source.shape[1] - 1)[:, None]).squeeze(1)
    return next_token.masked_fill(wrong.any(1) | (length >= source.shape[1]), SPECIAL.end)


@pytest.fixture
def expert():
    return ScriptedExpert(copy_or_end, vocab_size=10)


@pytest.fixture
def trajectories():
    writer = torch.full_like(ACTIONS, Writer.STUDENT)
    return Trajectories(SOURCE, ACTIONS, writer, MASK, SOURCE)


def test_labels_equal_those_computed_by_hand(expert, trajectories):
    labels = expert.best_actions(trajectories)
    assert labels[0].tolist()[:4] == [3, 4, 2, 2]
    assert labels[1].tolist()[:2] == [6, 2]
    assert labels[2].tolist() == [7, 2, 2, 2, 2]


def test_the_script_sees_only_actions_before_the_state(expert, trajectories):
    calls = []

    def spy(source, prefix, length):
        calls.append((source, prefix, length))
        return copy_or_end(source, prefix, length)

    ScriptedExpert(spy, 10).best_actions(trajectories)
    ((source, prefix, length),) = calls
    expected = [(row, step) for row in range(3) for step in range(5)]
    for index, (row, step) in enumerate(expected):
        assert source[index].tolist() == SOURCE[row].tolist()
        assert prefix[index].tolist() == [*ACTIONS[row, :step].tolist(), *[0] * (5 - step)]
        assert length[index] == step


def test_steps_give_the_labels_of_the_trajectories(expert, trajectories):
    labels = expert.best_actions(trajectories)
    state, previous = dynamics.initial(SOURCE, 5, SPECIAL), torch.full((3,), SPECIAL.start)
    cache = expert.start(SOURCE, 5)
    for step in range(5):
        logits, cache = expert.step(state, previous, cache)
        cache = cache.reset_rows(state.done, cache, torch.arange(3)).select_rows(torch.arange(3))
        alive = ~state.done
        assert torch.equal(logits.argmax(-1)[alive], labels[:, step][alive])
        previous = ACTIONS[:, step]
        state = dynamics.transition(state, previous, SPECIAL)
    assert expert.queries.tokens == 2 * int(MASK.sum())


def test_logits_are_nearly_deterministic_and_finite(trajectories):
    expert = ScriptedExpert(copy_or_end, vocab_size=160_000)
    logits = expert.logits(trajectories)
    assert logits.shape == (3, 5, 160_000)
    assert torch.equal(logits.argmax(-1), expert.best_actions(trajectories))
    assert (1 - logits[0, 0].double().softmax(-1).max()).item() == pytest.approx(1.5e-8, rel=0.05)
    other = torch.randn(160_000, generator=torch.Generator().manual_seed(0))
    assert forward_kl(other, logits).isfinite().all()
    assert forward_kl(logits, other.expand_as(logits)).isfinite().all()


@pytest.mark.parametrize("max_steps", [2, 4, 6])
def test_write_stops_at_the_end_token_or_the_limit(expert, max_steps):
    written = expert.write(EXAMPLES, max_steps=max_steps, beam_size=3)
    expected = torch.zeros(3, max(4, max_steps), dtype=torch.int64)
    expected[:, :4] = SOURCE
    assert torch.equal(written.reference, expected[:, :max_steps])
    assert torch.equal(written.source, SOURCE)
    assert expert.queries.tokens == int((written.reference != SPECIAL.pad).sum())
    assert expert.queries.forwards == 1


@pytest.mark.parametrize("max_steps", [3, 5])
def test_samples_and_n_best_equal_the_written_texts(expert, max_steps):
    written = expert.write(EXAMPLES, max_steps=max_steps, beam_size=4)
    drawn = expert.sample(
        EXAMPLES,
        max_steps=max_steps,
        sampling=Sampling(),
        generator=torch.Generator().manual_seed(0),
    )
    assert torch.equal(drawn.reference, written.reference)
    best = expert.write_n_best(EXAMPLES, max_steps=max_steps, beam_size=4)
    assert torch.equal(best, written.reference[:, None])


def test_each_query_is_counted_once(expert, trajectories):
    for ask in (expert.best_actions, expert.logits, partial(expert.top_k, k=2)):
        before = expert.queries
        ask(trajectories)
        assert expert.queries.tokens - before.tokens == int(MASK.sum())
        assert expert.queries.forwards - before.forwards == 1


def test_the_vocabulary_is_known(expert):
    assert expert.vocab_size == 10


def test_a_step_does_not_wait_for_the_device(expert):
    """Reading the value of a meta tensor would raise."""
    expert.script = lambda source, prefix, length: source[:, 0] + length
    source = SOURCE.to("meta")
    state = dynamics.initial(source, 5, SPECIAL)
    assert expert.step(state, source[:, 0], expert.start(source, 5))[0].is_meta
