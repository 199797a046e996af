"""Pretrained models that give their last hidden states, and those that do not."""

import pytest
import torch

from tests.support.pretrained import FAMILIES, SHARED_POSITIONS, SLIDING, TEXTS, save_family
from textgen_env.models.acceleration.prepacked import with_prepacked_weights
from textgen_env.models.hidden_states import with_hidden_states
from textgen_env.models.huggingface.hidden_states import PLAIN_HEADS
from textgen_env.models.storage import load_model, load_tokenizer
from textgen_env.tasks.task import encode_sources

EVERY = {**FAMILIES, "mistral": SLIDING, "m2m_100": SHARED_POSITIONS}


@pytest.mark.parametrize("name", EVERY)
def test_the_logits_are_the_product_of_the_hidden_states(name, tmp_path):
    model = load_model(save_family(EVERY[name], tmp_path))
    source = encode_sources(TEXTS, load_tokenizer(tmp_path))
    actions = torch.randint(5, 25, (len(TEXTS), 6), generator=torch.Generator().manual_seed(0))
    assert (with_hidden_states(model) is None) == (name not in PLAIN_HEADS)
    for each in (model, with_prepacked_weights(model)):
        states = with_hidden_states(each)
        if states is not None:
            with torch.no_grad():
                hidden = states.hidden(source, actions)
                assert hidden.shape == (len(TEXTS), 6, 32)
                logits = each.sequence_logits(source, actions)
                assert torch.equal(states.project(hidden), logits)
                assert states.width == 32
                assert states.embed(actions).shape == hidden.shape


@pytest.mark.parametrize("name", ["bart", "gpt2", "llama"])
def test_gradients_reach_the_weights_through_states_and_logits(name, tmp_path):
    model = load_model(save_family(EVERY[name], tmp_path))
    source = encode_sources(TEXTS, load_tokenizer(tmp_path))
    actions = torch.randint(5, 25, (len(TEXTS), 6), generator=torch.Generator().manual_seed(0))
    states = with_hidden_states(model)
    weights = list(states.parameters())
    options = {"allow_unused": True, "materialize_grads": True}
    direct = model.sequence_logits(source, actions).square().mean()
    expected = torch.autograd.grad(direct, weights, **options)
    found = states.project(states.hidden(source, actions)).square().mean()
    torch.testing.assert_close(torch.autograd.grad(found, weights, **options), expected)


def test_every_type_that_is_said_to_have_a_plain_head_is_tested():
    assert set(EVERY) >= PLAIN_HEADS


def test_adapters_have_no_hidden_states(tmp_path):
    folder = save_family(FAMILIES["llama"], tmp_path)
    assert with_hidden_states(load_model(folder, lora_rank=2)) is None
