"""Questions that look inside a teacher, and teachers that have no answer to them."""

import pytest
import torch

from textgen_env.experts.expert import ExpertError, NeuralExpert, NoExpert
from textgen_env.experts.white_box import (
    adapted_logits,
    answers_of_each,
    hidden_answers,
    mixture_answers,
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


def test_mixtures_answer_about_the_experts_view_and_a_state_counts_once(
    tiny_teacher, make_student, states
):
    models = (tiny_teacher, make_student())
    expert, weights = NeuralExpert(Ensemble(models)), torch.tensor([0.25, 0.75])
    log_weights = weights.log().expand(*states.actions.shape, 2)
    found = mixture_answers(expert, states, log_weights)
    each = torch.stack([NeuralExpert(model).logits(states).softmax(-1) for model in models], -1)
    torch.testing.assert_close(found, (each @ weights).log())
    hidden, log_probs = answers_of_each(expert, states)
    assert hidden.shape == (*states.actions.shape, 32)
    torch.testing.assert_close(log_probs, each.log().movedim(-1, 0))
    assert expert.queries.tokens == 2 * int(states.mask.sum())
    alone = torch.tensor([0.0, float("-inf")]).expand_as(log_weights)
    torch.testing.assert_close(mixture_answers(expert, states, alone), each[..., 0].log())


def test_equal_weights_are_the_ensemble_itself(tiny_teacher, make_student, states):
    expert = NeuralExpert(Ensemble((tiny_teacher, make_student())))
    halves = torch.full((*states.actions.shape, 2), 0.5).log()
    torch.testing.assert_close(mixture_answers(expert, states, halves), expert.logits(states))


@pytest.mark.parametrize("ask", [teacher_states, teacher_module])
def test_experts_that_are_no_single_model_are_refused(tiny_teacher, ask):
    with pytest.raises(ExpertError, match=r"^the expert must be a model in this .* got NoExpert: "):
        ask(NoExpert())
    for model in (Ensemble([tiny_teacher]), CutVocabulary(tiny_teacher, 9)):
        with pytest.raises(ExpertError, match=r"^the expert must .*, got \w+: use one model on"):
            ask(NeuralExpert(model))
