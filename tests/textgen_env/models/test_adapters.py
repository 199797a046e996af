"""Trained modules beside a frozen model: what they change, and where gradients go."""

import pytest
import torch
from torch import nn

from tests.support.pretrained import FAMILIES, TEXTS, save_family
from textgen_env.models.acceleration.cuda_graph import GraphedModel
from textgen_env.models.acceleration.prepacked import with_prepacked_weights
from textgen_env.models.adapters import Adapters, adaptable_matrices, trainable_module
from textgen_env.models.ensemble import Ensemble
from textgen_env.models.recurrent import Recurrent, RecurrentConfig
from textgen_env.models.storage import load_model, load_tokenizer
from textgen_env.models.transformer import Transformer, TransformerConfig
from textgen_env.tasks.task import encode_sources

SOURCE = torch.tensor([[5, 6, 2], [7, 2, 0]])
ACTIONS = torch.tensor([[8, 9, 5, 2], [6, 2, 0, 0]])


@pytest.fixture(params=[Transformer, Recurrent])
def model(request):
    torch.manual_seed(0)
    size = {
        Transformer: TransformerConfig(20, 16, 2, 32),
        Recurrent: RecurrentConfig(20, 16),
    }[request.param]
    return request.param(size).eval()


def randomized(adapters, seed=1):
    """Give the low-rank terms an effect."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for up in adapters.up:
            up.copy_(0.3 * torch.randn(up.shape, generator=generator))
    return adapters


def test_at_first_they_change_nothing(model):
    adapters = Adapters(model, 2, learns_temperature=True)
    adapted = adapters.sequence_logits(model, SOURCE, ACTIONS)
    assert torch.equal(adapted, model.sequence_logits(SOURCE, ACTIONS))
    assert adapted.requires_grad


def test_they_compute_with_the_sum_of_each_matrix_and_its_term(model):
    adapters = randomized(Adapters(model, 2, learns_temperature=True))
    with torch.no_grad():
        adapters.log_temperature.fill_(0.5)
    found = adapters.sequence_logits(model, SOURCE, ACTIONS)
    before = model.sequence_logits(SOURCE, ACTIONS)
    with torch.no_grad():
        for name, up, down in zip(adapters.names, adapters.up, adapters.down, strict=True):
            model.get_parameter(name).add_(up @ down)
        expected = model.sequence_logits(SOURCE, ACTIONS) / torch.tensor(0.5).exp()
    torch.testing.assert_close(found.detach(), expected)
    assert not torch.allclose(found, before)


def test_prepacked_models_are_adapted_too(model):
    """Their products would otherwise take the blocks that were made of the weights before."""
    adapters = randomized(Adapters(model, 2, learns_temperature=False))
    expected = adapters.sequence_logits(model, SOURCE, ACTIONS)
    packed = with_prepacked_weights(model)
    for each in (packed, GraphedModel(packed, lambda work: work)):
        found = adapters.sequence_logits(trainable_module(each), SOURCE, ACTIONS)
        assert torch.equal(found, expected)
    assert type(packed.decoder[0]) is not type(model.decoder[0]) or packed is not model


def test_gradients_reach_every_adapter_and_no_weight_of_the_model(model):
    adapters = randomized(Adapters(model, 2, learns_temperature=True))
    adapters.sequence_logits(model, SOURCE, ACTIONS).square().sum().backward()
    assert all(parameter.grad.any() for parameter in adapters.parameters())
    assert all(weight.grad is None and weight.requires_grad for weight in model.parameters())


def test_matrices_are_adapted_and_embeddings_are_not(model):
    names = adaptable_matrices(model)
    assert "embedding.weight" not in names
    assert all(model.get_parameter(name).dim() == 2 for name in names)
    linear = [n for n, module in model.named_modules() if isinstance(module, nn.Linear)]
    assert {f"{name}.weight" for name in linear} <= set(names)


@pytest.mark.parametrize("name", ["bart", "gpt2", "llama", "t5"])
def test_pretrained_models_are_adapted(name, tmp_path):
    model = load_model(save_family(FAMILIES[name], tmp_path))
    source = encode_sources(TEXTS, load_tokenizer(tmp_path))
    actions = torch.randint(5, 25, (len(TEXTS), 6), generator=torch.Generator().manual_seed(0))
    adapters = Adapters(model, 1, learns_temperature=False)
    before = model.sequence_logits(source, actions)
    torch.testing.assert_close(adapters.sequence_logits(model, source, actions), before)
    found = randomized(adapters).sequence_logits(model, source, actions)
    assert not torch.allclose(found, before)
    found.square().mean().backward()
    assert all(up.grad.any() for up in adapters.up)
    assert all(weight.grad is None for weight in model.parameters())


def test_models_that_are_no_single_module_have_none(model):
    assert trainable_module(Ensemble([model, model])) is None
