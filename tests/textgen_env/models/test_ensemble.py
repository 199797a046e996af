"""Tests of ensembles and cut vocabularies."""

import pytest
import torch

from textgen_env.experts.expert import NeuralExpert
from textgen_env.generation.beam_search import beam_search
from textgen_env.models.ensemble import CutVocabulary, Ensemble
from textgen_env.tasks.task import encode
from textgen_env.types import SpecialTokens, Trajectories


@pytest.fixture
def examples(tiny_task):
    return encode(tiny_task.validation, tiny_task)


@pytest.fixture
def models(tiny_task, tiny_teacher, make_table_model):
    """Return two models of different classes, so that exchanged caches are noticed."""
    return tiny_teacher, make_table_model(tiny_task, 3)


@torch.no_grad()
def test_the_ensembles_probabilities_are_the_mean_of_its_models(models, examples):
    logits = Ensemble(models).sequence_logits(examples.source, examples.reference)
    each = [model.sequence_logits(examples.source, examples.reference) for model in models]
    mean = sum(one.double().softmax(-1) for one in each) / 2
    torch.testing.assert_close(logits.double().exp(), mean, rtol=1e-5, atol=1e-9)
    assert logits.dtype == torch.float32


@torch.no_grad()
def test_improbable_tokens_stay_finite(models, examples):
    sure = models[1]
    sure.tables[..., 3] += 500  # the other tokens' probabilities are 0 in float32
    logits = Ensemble((sure, sure)).sequence_logits(examples.source, examples.reference)
    expected = sure.sequence_logits(examples.source, examples.reference).log_softmax(-1)
    assert expected.min() < -400
    torch.testing.assert_close(logits, expected)


@torch.no_grad()
def test_one_model_is_an_ensemble_of_itself(models, examples):
    logits = Ensemble(models[:1]).sequence_logits(examples.source, examples.reference)
    expected = models[0].sequence_logits(examples.source, examples.reference).log_softmax(-1)
    torch.testing.assert_close(logits, expected)


@torch.no_grad()
@pytest.mark.parametrize("count", [1, 2])
def test_an_ensemble_is_stepped_together(models, examples, count):
    """Step an ensemble with copies of each row, whose order changes after every step."""
    ensemble, rows = Ensemble(models), len(examples) * count
    source = examples.source.repeat_interleave(count, 0)
    actions = torch.randint(3, 8, (rows, 3), generator=torch.Generator().manual_seed(0))
    expected = ensemble.sequence_logits(source, actions)
    cache = ensemble.start(examples.source, 3).repeat_rows(count)
    order, previous = torch.arange(rows), torch.full((rows,), ensemble.special.start)
    swapped = order.view(-1, count).flip(1).flatten()
    for step in range(3):
        logits, cache = ensemble.step(previous, cache)
        torch.testing.assert_close(logits, expected[order, step], rtol=1e-4, atol=1e-5)
        cache, order = cache.reorder_rows(swapped), order[swapped]
        previous = actions[order, step]


@torch.no_grad()
def test_an_ensembles_rows_are_selected_and_reset(models, examples):
    ensemble, rows = Ensemble(models), torch.arange(len(examples))
    expected = ensemble.sequence_logits(examples.source, examples.reference)
    start = torch.full_like(rows, ensemble.special.start)
    _, cache = ensemble.step(start, ensemble.start(examples.source, 4))
    flipped, mask = rows.flip(0), rows % 2 == 0
    cache = cache.select_rows(flipped).reset_rows(
        mask, ensemble.start(examples.source, 4), torch.arange(len(mask))
    )
    logits, _ = ensemble.step(start.where(mask, examples.reference[flipped, 0]), cache)
    wanted = expected[:, 0].where(mask[:, None], expected[flipped, 1])
    torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-5)


def test_an_ensemble_makes_an_expert(models, examples):
    ensemble = Ensemble(models)
    expert = NeuralExpert(ensemble)
    trajectories = Trajectories.from_examples(examples, ensemble.special)
    assert expert.vocab_size == models[0].vocab_size
    assert not expert.logits(trajectories).requires_grad
    assert expert.queries.tokens == int(trajectories.mask.sum())
    written = expert.write(examples, max_steps=5, beam_size=3)
    alone = [beam_search(model, examples.source, 5, beam_size=3)[0] for model in models]
    assert not any(torch.equal(written.reference, one) for one in alone)


def test_an_ensemble_of_none_is_refused():
    with pytest.raises(ValueError, match="models must hold at least one, got none"):
        Ensemble(())


def test_unequal_vocabularies_are_refused_and_can_be_cut(models):
    cut = CutVocabulary(models[0], models[0].vocab_size - 1)
    with pytest.raises(ValueError, match=r"same vocabulary size.*CutVocabulary"):
        Ensemble((models[0], cut))
    assert Ensemble((cut, cut)).vocab_size == models[0].vocab_size - 1


def test_unequal_special_tokens_are_refused(models):
    models[1].special = SpecialTokens(pad=0, start=2, end=1)
    with pytest.raises(ValueError, match="same vocabulary size and special tokens"):
        Ensemble(models)


@pytest.mark.parametrize("size", [2, 1000])
def test_a_vocabulary_is_not_cut_below_the_special_tokens_nor_made_larger(models, size):
    with pytest.raises(ValueError, match=f"vocab_size must be above.*got {size}"):
        CutVocabulary(models[0], size)
