"""Models that give their last hidden states, and those that do not."""

import pytest
import torch

from textgen_env.models.acceleration.cuda_graph import GraphedModel
from textgen_env.models.acceleration.prepacked import with_prepacked_weights
from textgen_env.models.ensemble import CutVocabulary, Ensemble
from textgen_env.models.hidden_states import with_hidden_states
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
