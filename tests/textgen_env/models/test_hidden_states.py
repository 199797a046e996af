"""Models that give their last hidden states, and those that do not."""

import pytest
import torch

from textgen_env.models.acceleration.cuda_graph import GraphedModel
from textgen_env.models.acceleration.prepacked import with_prepacked_weights
from textgen_env.models.ensemble import CutVocabulary, Ensemble
from textgen_env.models.hidden_states import frozen, hidden_states_of, with_hidden_states
from textgen_env.models.recurrent import Recurrent, RecurrentConfig
from textgen_env.models.transformer import Transformer, TransformerConfig

SOURCE = torch.tensor([[5, 6, 2], [7, 2, 0]])
ACTIONS = torch.tensor([[8, 9, 5, 2], [6, 2, 0, 0]])


@pytest.fixture(params=[Transformer, Recurrent])
def model(request):
    torch.manual_seed(0)
    size = {
        Transformer: TransformerConfig(20, 16, 2, 32),
        Recurrent: RecurrentConfig(20, 16),
    }[request.param]
    return request.param(size).eval().requires_grad_(False)


def test_the_logits_are_the_product_of_the_hidden_states(model):
    for each in (model, with_prepacked_weights(model)):
        hidden = with_hidden_states(each).hidden(SOURCE, ACTIONS)
        assert hidden.shape == (2, 4, 16)
        assert torch.equal(each.project(hidden), each.sequence_logits(SOURCE, ACTIONS))


def test_hidden_states_are_those_of_the_model_whose_steps_are_replayed(model):
    assert with_hidden_states(GraphedModel(model, lambda work: work)) is model


def test_models_whose_logits_are_more_than_a_product_have_none(model):
    assert with_hidden_states(Ensemble([model, model])) is None
    assert with_hidden_states(CutVocabulary(model, 10)) is None


def test_gradients_reach_the_weights_through_states_and_logits(model):
    model.requires_grad_(True)
    direct = model.sequence_logits(SOURCE, ACTIONS).square().sum()
    expected = torch.autograd.grad(direct, list(model.parameters()))
    hidden = with_hidden_states(model).hidden(SOURCE, ACTIONS)
    found = torch.autograd.grad(model.project(hidden).square().sum(), list(model.parameters()))
    torch.testing.assert_close(found, expected)


def test_embeddings_are_those_of_the_tokens_at_the_width_of_the_states(model):
    embedded = model.embed(ACTIONS)
    assert embedded.shape == (2, 4, model.width)
    assert torch.equal(embedded, model.embedding.weight[ACTIONS])


def test_a_frozen_model_passes_gradients_on_and_gets_none(model):
    model.requires_grad_(True)
    model.decoder.requires_grad_(False)
    trained = [weight.requires_grad for weight in model.parameters()]
    states = torch.randn(2, 4, 16, requires_grad=True)
    with frozen(model):
        logits = model.project(states)
    logits.sum().backward()
    torch.testing.assert_close(states.grad, model.embedding.weight.sum(0).expand(2, 4, 16))
    assert all(weight.grad is None for weight in model.parameters())
    assert [weight.requires_grad for weight in model.parameters()] == trained


def test_a_model_is_trained_again_after_an_error_in_the_block(model):
    model.requires_grad_(True)
    with pytest.raises(IndexError), frozen(model):
        model.embed(torch.tensor([20]))
    assert all(weight.requires_grad for weight in model.parameters())


def test_a_model_without_states_is_refused_by_its_role(model):
    assert hidden_states_of(model, "student") is model
    with pytest.raises(ValueError, match=r"^teacher must have hidden states .*, got Ensemble: use"):
        hidden_states_of(Ensemble([model, model]), "teacher")
