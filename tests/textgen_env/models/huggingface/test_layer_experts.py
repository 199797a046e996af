"""Gates in the layers of pretrained models, beside what `transformers` computes with as many."""

import pytest
import torch

from tests.support.pretrained import FAMILIES, TEXTS, WITH_EXPERTS, save_family
from textgen_env.models.gates import with_gates
from textgen_env.models.huggingface.layer_experts import ROUTED_MODELS, LayerGates
from textgen_env.models.storage import load_model, load_tokenizer
from textgen_env.tasks.task import encode_sources


@pytest.fixture(params=WITH_EXPERTS)
def folder(request, tmp_path):
    return save_family(WITH_EXPERTS[request.param], tmp_path / request.param)


@pytest.fixture
def model(folder):
    return load_model(folder)


@pytest.fixture
def states(folder):
    """Return sources and actions of different lengths."""
    source = encode_sources(TEXTS, load_tokenizer(folder))
    actions = torch.randint(5, 25, (len(TEXTS), 6), generator=torch.Generator().manual_seed(0))
    return source, actions


def best(count):
    """Return a choice of the most probable experts."""

    def choose(logits):
        indices = logits.topk(count).indices
        return torch.zeros_like(logits, dtype=torch.bool).scatter(-1, indices, value=True)

    return choose


def own_logits(model, states, count):
    """Return the logits that `transformers` computes with `count` experts at each gate."""
    for router in LayerGates.of(model).modules:
        router.top_k = count
    return model.sequence_logits(*states)


@pytest.mark.parametrize("count", [1, 2, 3, "all"])
def test_the_most_probable_experts_are_those_that_transformers_uses(model, states, count):
    gates = with_gates(model)
    number = len(gates.routers[0]) if count == "all" else count
    found = gates.gated_logits(*states, gates.routers, best(number))
    torch.testing.assert_close(found, own_logits(model, states, number), atol=2e-4, rtol=1e-4)


def test_gradients_reach_the_routers_alone_and_are_those_of_the_model(model, states):
    gates = with_gates(model)
    routers = [router.requires_grad_() for router in gates.routers]
    gates.gated_logits(*states, routers, best(len(routers[0]))).square().sum().backward()
    assert all(weight.grad is None for weight in model.parameters())
    assert all(weight.requires_grad for weight in model.parameters())
    own_logits(model, states, len(routers[0])).square().sum().backward()
    for router, module in zip(routers, LayerGates.of(model).modules, strict=True):
        expected = module.weight.grad
        assert expected.any()
        torch.testing.assert_close(
            router.grad, expected, rtol=2e-3, atol=expected.abs().max() / 1e3
        )


def test_other_routers_and_choices_change_the_answer_and_leave_the_model_as_it_was(model, states):
    gates, before = with_gates(model), model.sequence_logits(*states)
    logits = gates.gated_logits(*states, gates.routers, best(1))
    turned = [router.flip(0) for router in gates.routers]
    assert not torch.allclose(logits, before, atol=0.01)
    assert not torch.allclose(logits, gates.gated_logits(*states, turned, best(1)), atol=0.01)
    assert torch.equal(model.sequence_logits(*states), before)


def test_each_gate_is_asked_about_all_positions_of_which_the_actions_are_the_last(model, states):
    gates, shapes = with_gates(model), []

    def choose(logits):
        shapes.append(tuple(logits.shape))
        return torch.ones_like(logits, dtype=torch.bool)

    gates.gated_logits(*states, gates.routers, choose)
    assert len(shapes) == len(gates.routers)
    assert {rows for rows, *_ in shapes} == {len(TEXTS)}
    assert min(positions for _, positions, _ in shapes) >= states[1].shape[1]
    assert {experts for *_, experts in shapes} == {len(router) for router in gates.routers}


def test_a_dense_model_has_no_gates_in_its_layers(tmp_path):
    assert LayerGates.of(load_model(save_family(FAMILIES["llama"], tmp_path))) is None


def test_every_type_that_is_said_to_have_gates_is_tested():
    assert set(WITH_EXPERTS) == ROUTED_MODELS


def test_a_model_in_bfloat16_answers_in_it(model, states):
    half = model.bfloat16()
    gates = with_gates(half)
    with torch.no_grad():
        found = gates.gated_logits(*states, gates.routers, best(2))
        expected = half.sequence_logits(*states)
    assert found.dtype == expected.dtype == torch.bfloat16
    apart = (found.float().log_softmax(-1) - expected.float().log_softmax(-1)).abs()
    assert apart.mean() < 0.1
