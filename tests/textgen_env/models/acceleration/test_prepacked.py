"""Tests of models with prepacked weights: same logits, shared weights, copies."""

import copy
import pickle

import pytest
import torch
from torch import nn

from tests.support.toy import attending, random_texts, stepped_logits
from textgen_env.models.acceleration.prepacked import (
    MIN_FLOAT32_ROWS,
    PrepackedLinear,
    with_prepacked_weights,
)
from textgen_env.models.hybrid import HybridConfig
from textgen_env.models.recurrent import Recurrent, RecurrentConfig
from textgen_env.models.transformer import Transformer, TransformerConfig

CONFIGS = {
    "transformer": lambda: Transformer(TransformerConfig(50, 32, 2, 64)),
    "recurrent": lambda: Recurrent(RecurrentConfig(50, 32)),
    "ssru": lambda: HybridConfig(50, 32, 2, 64, unit="ssru").build(),
    "sru_pp": lambda: attending(HybridConfig(50, 32, 2, 64, unit="sru_pp").build()),
    "gru": lambda: HybridConfig(50, 32, 2, 64, unit="gru").build(),
}
CLOSE = {torch.float32: {"rtol": 1e-4, "atol": 1e-5}, torch.bfloat16: {"rtol": 0.05, "atol": 0.1}}


@pytest.fixture(params=CONFIGS)
def model(request):
    torch.manual_seed(0)
    return CONFIGS[request.param]().eval()


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("rows", [1, MIN_FLOAT32_ROWS, 9])
def test_logits_are_those_of_the_model(model, dtype, rows):
    model = model.to(dtype)
    source, actions = random_texts(rows)
    prepacked = with_prepacked_weights(model)
    assert any(isinstance(module, PrepackedLinear) for module in prepacked.modules())
    with torch.no_grad():
        expected = model.sequence_logits(source, actions)
        torch.testing.assert_close(
            prepacked.sequence_logits(source, actions), expected, **CLOSE[dtype]
        )
    torch.testing.assert_close(stepped_logits(prepacked, source, actions), expected, **CLOSE[dtype])


def test_the_model_itself_stays_as_it_was_and_shares_its_weights(model):
    before = {name: (type(module), module) for name, module in model.named_modules()}
    prepacked = with_prepacked_weights(model)
    assert {name: (type(module), module) for name, module in model.named_modules()} == before
    pairs = zip(model.parameters(), prepacked.parameters(), strict=True)
    assert all(own is shared for own, shared in pairs)
    assert prepacked.state_dict().keys() == model.state_dict().keys()


def test_a_gradient_is_not_lost():
    layer = nn.Linear(3, 4)
    hidden = torch.randn(8, 3, requires_grad=True)
    with_prepacked_weights(layer)(hidden).sum().backward()
    torch.testing.assert_close(hidden.grad, layer.weight.detach().sum(0).expand(8, 3))


@pytest.mark.parametrize("again", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_answer_as_well(model, again):
    source, actions = random_texts(7)
    prepacked = with_prepacked_weights(model)
    torch.testing.assert_close(
        stepped_logits(again(prepacked), source, actions),
        stepped_logits(prepacked, source, actions),
    )


def test_models_that_cannot_be_prepacked_are_returned_unchanged():
    nothing = object()
    assert with_prepacked_weights(nothing) is nothing
    with torch.device("meta"):
        elsewhere = nn.Linear(2, 2)
    assert with_prepacked_weights(elsewhere) is elsewhere
