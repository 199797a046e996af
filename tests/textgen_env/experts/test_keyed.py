"""An expert that asks one of two: each row's answers are those of the expert that its key names."""

from dataclasses import replace

import pytest
import torch

from tests.support.toy import SPECIAL
from textgen_agents.rollouts.behaviors import by_example, token_sampler
from textgen_agents.rollouts.context import Context
from textgen_agents.rollouts.rollout import rollout
from textgen_env import dynamics
from textgen_env.experts.expert import ExpertError, NeuralExpert
from textgen_env.experts.keyed import KeyedExpert
from textgen_env.generation.sampling import Sampling
from textgen_env.tasks.prompts import with_expert_keys
from textgen_env.tasks.task import encode
from textgen_env.types import Trajectories

ONE, TWO = "w0", "w1 w1"  # keys of one and of two tokens


def key_of(pair):
    """Name an expert by the number of words of the source."""
    return ONE if len(pair.source.split()) % 2 else TWO


@pytest.fixture(scope="module")
def models(tiny_task, make_table_model):
    return make_table_model(tiny_task, 3), make_table_model(tiny_task, 4)


@pytest.fixture
def keyed(tiny_task, models):
    experts = {key: NeuralExpert(model) for key, model in zip((ONE, TWO), models, strict=True)}
    return KeyedExpert(experts, tiny_task.tokenizer)


@pytest.fixture(scope="module")
def examples(tiny_task):
    return encode(with_expert_keys(tiny_task, key_of).train, tiny_task)


@pytest.fixture(scope="module")
def is_first(tiny_task):
    return torch.tensor([key_of(pair) == ONE for pair in tiny_task.train])


def expected_of(models, is_first, answer_of):
    """Return what each row's own expert alone answers, on sources without a key."""
    first, second = (answer_of(NeuralExpert(model)) for model in models)
    return first.where(is_first.view(-1, *[1] * (first.dim() - 1)), second)


def test_keys_stand_before_what_the_expert_reads(tiny_task, examples, keyed, is_first):
    assert torch.equal(examples.source, encode(tiny_task.train, tiny_task).source)
    assert torch.equal(keyed.chosen(examples.expert_view) == 0, is_first)
    assert 10 < is_first.sum() < 54, "the test wants rows of both"


def test_distributions_are_those_of_the_named_expert(tiny_task, models, keyed, examples, is_first):
    states = Trajectories.from_examples(examples, SPECIAL)
    bare = Trajectories.from_examples(encode(tiny_task.train, tiny_task), SPECIAL)
    expected = expected_of(models, is_first, lambda expert: expert.logits(bare))
    torch.testing.assert_close(keyed.logits(states), expected)
    best = expected_of(models, is_first, lambda expert: expert.best_actions(bare))
    assert torch.equal(keyed.best_actions(states), best)
    answer = keyed.top_k(states, 3)
    for name in ("tokens", "log_probs", "tail_log_prob"):
        each = expected_of(models, is_first, lambda e, n=name: getattr(e.top_k(bare, 3), n))
        torch.testing.assert_close(getattr(answer, name), each)
    assert keyed.queries.tokens == 3 * states.mask.sum()


def test_texts_are_those_of_the_named_expert(tiny_task, models, keyed, examples, is_first):
    bare, steps = encode(tiny_task.train, tiny_task), tiny_task.max_target_length
    written = keyed.write(examples, max_steps=steps, beam_size=2)
    expected = expected_of(
        models, is_first, lambda e: e.write(bare, max_steps=steps, beam_size=2).reference
    )
    assert torch.equal(written.reference, expected)
    assert torch.equal(written.expert_view, examples.expert_view)
    best = keyed.write_n_best(examples, max_steps=steps, beam_size=2)
    expected = expected_of(
        models, is_first, lambda e: e.write_n_best(bare, max_steps=steps, beam_size=2)
    )
    assert torch.equal(best, expected)
    generator = torch.Generator().manual_seed(0)
    drawn = keyed.sample(examples, max_steps=steps, sampling=Sampling(top_k=1), generator=generator)
    greedy = expected_of(
        models, is_first, lambda e: e.write(bare, max_steps=steps, beam_size=1).reference
    )
    assert torch.equal(drawn.reference, greedy)


def test_stepped_beside_a_rollout_it_says_the_same(tiny_task, make_env, models, keyed, examples):
    env = make_env(tiny_task, 20, keyed, examples)
    context = Context(torch.arange(20), env, models[0])
    behavior = by_example(torch.ones(20).bool(), token_sampler(Sampling(), context), env.max_steps)
    batch = rollout(context, behavior, record_expert_logits=True)
    states, asked = batch.trajectories, keyed.queries.tokens
    assert asked == states.mask.sum(), "answers about rows of the other count nothing"
    expected = keyed.logits(states)
    torch.testing.assert_close(batch.labels["logits"][states.mask], expected[states.mask])


def test_a_slot_that_is_refilled_may_have_another_expert(models, keyed, examples, is_first):
    rows = torch.cat([is_first.nonzero()[:2], (~is_first).nonzero()[:2]]).squeeze(1)
    view = examples.expert_view[rows]
    cache, fresh = keyed.start(view, 6), keyed.start(view.flip(0), 6)
    mask, index = torch.tensor([True, False, True, False]), torch.tensor([0, 0, 3, 0])
    reset = cache.reset_rows(mask, fresh, index)
    assert reset.chosen.tolist() == [1, 0, 0, 1]
    twice = reset.repeat_rows(2).reorder_rows(torch.tensor([1, 0, 2, 3, 4, 5, 6, 7]))
    assert twice.chosen.tolist() == [1, 1, 0, 0, 0, 0, 1, 1]
    state = dynamics.initial(examples.source[rows], 6, SPECIAL)
    logits, _ = keyed.step(state, torch.full((4,), SPECIAL.start), reset)
    shown = Trajectories.from_examples(
        replace(examples.select(rows), expert_source=view[[3, 1, 0, 3]]), SPECIAL
    )
    torch.testing.assert_close(logits[[0, 1, 3]], keyed.logits(shown)[[0, 1, 3], 0])


def test_rows_without_a_key_are_named(keyed, examples):
    spoiled = examples.expert_view.clone()
    spoiled[5, 0] = 9
    states = Trajectories.from_examples(replace(examples, expert_source=spoiled), SPECIAL)
    with pytest.raises(ExpertError, match=r"one of the keys w0, w1 w1, got 1 rows that do not"):
        keyed.logits(states)


def test_the_least_of_what_the_experts_give_is_what_it_gives(keyed, monkeypatch):
    assert keyed.largest_k is None
    monkeypatch.setattr(NeuralExpert, "largest_k", 7)
    assert keyed.largest_k == 7


def test_experts_that_do_not_fit_together_are_refused(tiny_task, models, make_table_model):
    first, second = map(NeuralExpert, models)
    with pytest.raises(ValueError, match="experts must be at least one, all with the same"):
        KeyedExpert({}, tiny_task.tokenizer)
    with pytest.raises(ValueError, match="experts must be at least one, all with the same"):
        KeyedExpert({ONE: first, TWO: NeuralExpert(models[1], 8)}, tiny_task.tokenizer)
    with pytest.raises(
        ValueError, match="keys must not begin with one another, got 'w1' and 'w1 w2'"
    ):
        KeyedExpert({"w1": first, "w1 w2": second}, tiny_task.tokenizer)
    with pytest.raises(ValueError, match="keys must have at least one token, got ''"):
        KeyedExpert({"": first}, tiny_task.tokenizer)
