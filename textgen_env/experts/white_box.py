"""Questions that look inside a teacher: its hidden states, its parts, its logits with gradient.

Agents that train modules beside the teacher, or choose among its parts, ask them. The teacher is
not changed, and no gradient reaches its weights. What is asked counts as other queries do.
"""

import time

import torch
from torch import Tensor, nn

from textgen_env.experts.expert import Expert, ExpertError, NeuralExpert
from textgen_env.models.adapters import Adapters, trainable_module
from textgen_env.models.ensemble import Ensemble
from textgen_env.models.hidden_states import HiddenStates, with_hidden_states
from textgen_env.models.sequence_model import SequenceModel
from textgen_env.types import Trajectories

REMEDY = "use one model on this disk, with the student's vocabulary, or choose another agent"


def check_white_box(expert: Expert) -> NeuralExpert:
    """Return `expert` as a teacher that is a model in this process.

    Raises:
        ExpertError: it is none.
    """
    if not isinstance(expert, NeuralExpert):
        raise ExpertError(
            f"the expert must be a model in this process, got {type(expert).__name__}: on this "
            "disk give a teacher, or choose an agent that learns from answers alone"
        )
    return expert


def teacher_states(expert: Expert) -> HiddenStates:
    """Return the teacher as a model with hidden states.

    Raises:
        ExpertError: the expert has none.
    """
    return _states_of(check_white_box(expert).model)


def teacher_module(expert: Expert) -> nn.Module:
    """Return the teacher as a module through which gradients flow.

    Raises:
        ExpertError: the expert answers without gradient.
    """
    model = check_white_box(expert).model
    module = trainable_module(model)
    if module is None:
        raise ExpertError(
            f"the expert must answer with gradient, got {type(model).__name__}: {REMEDY}"
        )
    return module


@torch.no_grad()
def hidden_answers(expert: Expert, trajectories: Trajectories) -> Tensor:
    """Return the teacher's last hidden states (B, T, D), float32, without gradient.

    Raises:
        ExpertError: the expert has none.
    """
    start, model = time.perf_counter(), teacher_states(expert)
    hidden = model.hidden(trajectories.expert_view, trajectories.actions)
    expert.count(trajectories.mask.sum(), start)
    return hidden.float()


def adapted_logits(expert: Expert, adapters: Adapters, trajectories: Trajectories) -> Tensor:
    """Return the teacher's logits (B, T, V) with gradient to `adapters` alone.

    Raises:
        ExpertError: the expert answers without gradient.
    """
    start, module = time.perf_counter(), teacher_module(expert)
    logits = adapters.sequence_logits(module, trajectories.expert_view, trajectories.actions)
    expert.count(trajectories.mask.sum(), start)
    return logits


def check_mixture(expert: Expert) -> None:
    """Raise `ExpertError` unless the teacher is a mixture of two models or more."""
    count = len(mixture_of(expert).models)
    if count < 2:
        raise ExpertError(
            f"the expert must be a mixture of at least 2 models, got {count}: give more teachers "
            "with the same tokenizer (--further-teachers), or choose another agent"
        )


def mixture_of(expert: Expert) -> Ensemble:
    """Return the teacher as a mixture, of one model where it is none.

    Raises:
        ExpertError: the expert is no model in this process.
    """
    model = check_white_box(expert).model
    return model if isinstance(model, Ensemble) else Ensemble((model,))


@torch.no_grad()
def mixture_answers(expert: Expert, trajectories: Trajectories, log_weights: Tensor) -> Tensor:
    """Return log-probabilities (B, T, V) of the teacher's models under weights of each state.

    A state counts as one query, however many models there are.

    Args:
        expert: the teacher.
        trajectories: the states.
        log_weights: (B, T, K), as `Ensemble.mixture` takes them.
    """
    start = time.perf_counter()
    states = trajectories.expert_view, trajectories.actions
    log_probs = mixture_of(expert).mixture(*states, log_weights)
    expert.count(trajectories.mask.sum(), start)
    return log_probs


def mixture_states(expert: Expert) -> list[HiddenStates]:
    """Return the models of a mixture as models with hidden states.

    Raises:
        ExpertError: one of them has none.
    """
    return [_states_of(model) for model in mixture_of(expert).models]


@torch.no_grad()
def answers_of_each(expert: Expert, trajectories: Trajectories) -> tuple[Tensor, Tensor]:
    """Return what each model of a mixture knows of each state, without gradient.

    A state counts as one query, however many models there are.

    Returns:
        Their hidden states side by side, (B, T, D), float32, where D is the sum of the widths; and
        their log-probabilities, (K, B, T, V), float32.
    """
    start, states = time.perf_counter(), (trajectories.expert_view, trajectories.actions)
    models = mixture_states(expert)
    hidden = [model.hidden(*states) for model in models]
    log_probs = [
        model.project(each).float().log_softmax(-1)
        for model, each in zip(models, hidden, strict=True)
    ]
    expert.count(trajectories.mask.sum(), start)
    return torch.cat([each.float() for each in hidden], -1), torch.stack(log_probs)


def _states_of(model: SequenceModel) -> HiddenStates:
    """Return `model` as one with hidden states, or raise `ExpertError`."""
    states = with_hidden_states(model)
    if states is None:
        raise ExpertError(
            "the expert must have hidden states whose product with its head are its logits, got "
            f"{type(model).__name__}: {REMEDY}"
        )
    return states
