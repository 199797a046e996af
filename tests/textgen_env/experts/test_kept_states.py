"""Answers of a teacher that are kept: the same as asked, found in any batch, bounded."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from tests.support.toy import SPECIAL, TabularModel, random_sources
from textgen_env.experts.expert import NeuralExpert
from textgen_env.experts.kept_states import KeptStatesExpert, KeptTexts
from textgen_env.models.transformer import Transformer, TransformerConfig
from textgen_env.types import Examples, Trajectories

WIDTH, TEXTS = 16, 23


@pytest.fixture
def teacher():
    torch.manual_seed(0)
    return Transformer(TransformerConfig(30, WIDTH, 2, 32)).double().eval().requires_grad_(False)


@pytest.fixture
def examples():
    return Examples(random_sources(TEXTS, 7), random_sources(TEXTS, 12).flip(0))


@pytest.fixture
def keep(teacher, examples, tmp_path):
    """Return the texts that fit into so many bytes, and an expert that keeps their answers."""

    def make(max_bytes=1e9, model=teacher, given=examples):
        texts = KeptTexts.that_fit(given, model, SPECIAL, max_bytes)
        passes = []
        texts.write(tmp_path / "states", model, 5, lambda: passes.append(None))
        assert len(passes) == -(-len(texts) // 5)
        assert (tmp_path / "states").stat().st_size == texts.num_bytes
        return texts, KeptStatesExpert(NeuralExpert(model), texts.read(tmp_path / "states"))

    return make


def trajectories_of(examples):
    return Trajectories.from_examples(examples, SPECIAL)


def test_kept_answers_are_the_teachers_own(keep, teacher, examples):
    _, expert = keep()
    asked = NeuralExpert(teacher)
    for rows in torch.randperm(TEXTS, generator=torch.Generator().manual_seed(1)).split(7):
        states = trajectories_of(examples.select(rows).trimmed(SPECIAL))
        kept, wanted = expert.logits(states)[states.mask], asked.logits(states)[states.mask]
        torch.testing.assert_close(kept, wanted, rtol=0, atol=1e-12)
        best, others = expert.best_actions(states), asked.best_actions(states)
        assert torch.equal(best[states.mask], others[states.mask])
        some, of_others = (each.top_k(states, 4).tokens for each in (expert, asked))
        assert torch.equal(some[states.mask], of_others[states.mask])
    assert expert.queries.tokens == 0


def test_other_texts_are_asked_about_and_counted_in_the_same_batch(keep, teacher, examples):
    """A text with another last token, of another source, or that goes on, is another one."""
    _, expert = keep()
    states = trajectories_of(examples)
    actions, source = F.pad(states.actions, (0, 2)), states.source.clone()
    mask, changed = F.pad(states.mask, (0, 2)), torch.tensor([3, 8, 13])
    length = states.mask.sum(1)
    actions[3, length[3] - 1] = 9
    source[8, 0] = 3 if source[8, 0] != 3 else 4
    actions[13, length[13]], mask[13, length[13]] = 7, True
    states = replace(
        states, actions=actions, source=source, mask=mask, writer=F.pad(states.writer, (0, 2))
    )
    torch.testing.assert_close(
        expert.logits(states)[mask], NeuralExpert(teacher).logits(states)[mask], rtol=0, atol=1e-12
    )
    assert expert.queries.tokens == int(mask[changed].sum())
    assert expert.queries.forwards == 1


def test_padding_of_source_and_text_does_not_matter(keep, examples):
    _, expert = keep()
    states = trajectories_of(
        Examples(F.pad(examples.source, (0, 3)), F.pad(examples.reference, (0, 4)))
    )
    logits = expert.logits(states)
    assert logits.shape == (TEXTS, 16, 30)
    assert logits[states.mask].abs().sum(-1).min() > 0
    assert logits[~states.mask].abs().max() == 0
    assert expert.queries.tokens == 0


def test_the_expert_reads_its_own_view(keep, teacher, examples):
    two_views = replace(examples, expert_source=examples.source.flip(0))
    _, expert = keep(given=two_views)
    states = trajectories_of(two_views)
    kept, wanted = (each.logits(states)[states.mask] for each in (expert, NeuralExpert(teacher)))
    torch.testing.assert_close(kept, wanted, rtol=0, atol=1e-12)
    assert expert.queries.tokens == 0
    expert.logits(trajectories_of(examples))
    assert expert.queries.tokens > 0


def test_no_more_is_kept_than_fits(keep, teacher, examples):
    state = 8 * WIDTH
    budgets = (0, 10 * state, 40 * state, 1e9)
    sizes = [KeptTexts.that_fit(examples, teacher, SPECIAL, budget) for budget in budgets]
    assert [len(texts) for texts in sizes] == sorted(len(texts) for texts in sizes)
    assert len(sizes[0]) == 0
    assert 0 < len(sizes[2]) < len(sizes[3]) == TEXTS
    assert all(texts.num_bytes <= most for texts, most in zip(sizes, budgets, strict=True))
    _, expert = keep(40 * state)
    states = trajectories_of(examples)
    kept, wanted = (each.logits(states)[states.mask] for each in (expert, NeuralExpert(teacher)))
    torch.testing.assert_close(kept, wanted, rtol=0, atol=1e-12)
    assert expert.queries.tokens == int(states.mask.sum()) - sizes[2].num_states


def test_a_text_that_is_there_twice_is_kept_once(keep, examples):
    twice = examples.select(torch.arange(TEXTS).repeat(2))
    assert len(keep(given=twice)[0]) == TEXTS


def test_states_keep_the_teachers_precision(keep, teacher, examples):
    """In bfloat16 too: the same product with the same states."""
    low = teacher.bfloat16()
    texts, expert = keep(model=low)
    assert texts.num_bytes == 2 * WIDTH * texts.num_states
    states = trajectories_of(examples)
    kept, wanted = (each.logits(states)[states.mask] for each in (expert, NeuralExpert(low)))
    assert kept.dtype == torch.bfloat16
    torch.testing.assert_close(kept, wanted, rtol=0.05, atol=0.05)


def test_steps_and_texts_are_the_teachers(keep, teacher, examples):
    _, expert = keep()
    asked = NeuralExpert(teacher)
    written = expert.write(examples, max_steps=6, beam_size=2).reference
    assert torch.equal(written, asked.write(examples, max_steps=6, beam_size=2).reference)
    prefix, length = examples.reference[:, :6], torch.ones(TEXTS, dtype=torch.int64)
    completed = expert.complete(examples.source, prefix, length)
    assert torch.equal(completed, asked.complete(examples.source, prefix, length))
    assert expert.queries.tokens == asked.queries.tokens > 0


def test_a_teacher_without_hidden_states_is_refused(keep):
    _, expert = keep()
    with pytest.raises(ValueError, match=r"inner must .*, got one of TabularModel: query"):
        KeptStatesExpert(NeuralExpert(TabularModel()), expert.kept)
