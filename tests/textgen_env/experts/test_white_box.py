"""Questions that look inside a teacher, and teachers that have no answer to them."""

import pytest
import torch

from textgen_env.experts.expert import ExpertError, NeuralExpert, NoExpert
from textgen_env.experts.white_box import (
    adapted_logits,
    gated_logits,
    hidden_answers,
    teacher_gates,
    teacher_module,
    teacher_states,
)
from textgen_env.models.adapters import Adapters
from textgen_env.models.ensemble import CutVocabulary, Ensemble
from textgen_env.tasks.task import encode
from textgen_env.types import Trajectories


@pytest.fixture
def states(tiny_task):
    examples = encode(tiny_task.train[:6], tiny_task)
    swapped = Trajectories.from_examples(examples, tiny_task.tokenizer.special)
    return Trajectories(
        **{**vars(swapped), "expert_source": swapped.source.flip(0), "weight": None}
    )


def test_hidden_answers_are_about_the_experts_view_and_count_as_queries(tiny_teacher, states):
    expert = NeuralExpert(tiny_teacher)
    hidden = hidden_answers(expert, states)
    assert not hidden.requires_grad
    assert torch.equal(tiny_teacher.project(hidden), NeuralExpert(tiny_teacher).logits(states))
    assert expert.queries.tokens == int(states.mask.sum())
    assert expert.queries.forwards == 1


def test_adapted_logits_are_about_the_experts_view_and_count_as_queries(tiny_teacher, states):
    expert = NeuralExpert(tiny_teacher)
    adapters = Adapters(tiny_teacher, 1, learns_temperature=True)
    logits = adapted_logits(expert, adapters, states)
    assert logits.requires_grad
    assert torch.equal(logits, NeuralExpert(tiny_teacher).logits(states))
    assert expert.queries.tokens == int(states.mask.sum())


def use_all(gate):
    return torch.ones_like(gate, dtype=torch.bool)


def test_gated_logits_are_about_the_experts_view_and_a_state_counts_once(
    tiny_teacher, make_student, states
):
    models = (tiny_teacher, make_student())
    expert, reference = NeuralExpert(Ensemble(models)), NeuralExpert(Ensemble(models))
    found = gated_logits(expert, states, teacher_gates(expert).routers, use_all)
    torch.testing.assert_close(found, reference.logits(states))
    assert expert.queries.tokens == int(states.mask.sum())
    assert expert.queries.forwards == 1


@pytest.mark.parametrize("ask", [teacher_states, teacher_module])
def test_experts_that_are_no_single_model_are_refused(tiny_teacher, ask):
    with pytest.raises(ExpertError, match=r"^the expert must be a model in this .* got NoExpert: "):
        ask(NoExpert())
    for model in (Ensemble([tiny_teacher]), CutVocabulary(tiny_teacher, 9)):
        with pytest.raises(ExpertError, match=r"^the expert must .*, got \w+: use one model on"):
            ask(NeuralExpert(model))
