"""The gate of a mixture of models, and models that have none."""

import pytest
import torch

from textgen_env.models.ensemble import Ensemble
from textgen_env.models.gates import with_gates
from textgen_env.tasks.task import encode


@pytest.fixture
def models(tiny_teacher, make_student):
    return tiny_teacher, make_student()


@pytest.fixture
def states(tiny_task):
    examples = encode(tiny_task.train[:6], tiny_task)
    return examples.source, examples.reference


def use_all(gate):
    return torch.ones_like(gate, dtype=torch.bool)


def test_at_first_all_models_weigh_the_same(models, states):
    mixture = Ensemble(models)
    gates = with_gates(mixture)
    found = gates.gated_logits(*states, gates.routers, use_all)
    torch.testing.assert_close(found, mixture.sequence_logits(*states))
    assert not gates.trained


def test_the_router_reads_the_hidden_states_and_weighs_the_probabilities(models, states):
    gates = with_gates(Ensemble(models))
    router = torch.randn(gates.routers[0].shape, generator=torch.Generator().manual_seed(0))
    hidden = torch.cat([model.hidden(*states) for model in models], -1)
    weights = (hidden @ router.T).softmax(-1)
    each = torch.stack([model.sequence_logits(*states).softmax(-1) for model in models], -1)
    expected = (each * weights[..., None, :]).sum(-1).log()
    torch.testing.assert_close(gates.gated_logits(*states, [router], use_all), expected)


def test_a_model_that_is_not_used_says_nothing(models, states):
    gates = with_gates(Ensemble(models))
    for index, model in enumerate(models):
        only = torch.arange(2) == index
        found = gates.gated_logits(*states, gates.routers, only.expand_as)
        torch.testing.assert_close(found, model.sequence_logits(*states).log_softmax(-1))


def test_gradients_reach_the_router_alone(models, states):
    gates = with_gates(Ensemble(models))
    router = gates.routers[0].requires_grad_()
    gates.gated_logits(*states, [router], use_all)[..., 0].sum().backward()
    assert router.grad.any()
    assert all(weight.grad is None for model in models for weight in model.parameters())


def test_a_single_model_is_a_mixture_of_one_and_models_without_hidden_states_have_no_gate(
    tiny_task, tiny_teacher, make_table_model, states
):
    gates = with_gates(tiny_teacher)
    assert [router.shape for router in gates.routers] == [(1, tiny_teacher.width)]
    found = gates.gated_logits(*states, gates.routers, use_all)
    torch.testing.assert_close(found, tiny_teacher.sequence_logits(*states).log_softmax(-1))
    table = make_table_model(tiny_task, 0)
    assert with_gates(table) is None
    assert with_gates(Ensemble((tiny_teacher, table))) is None
