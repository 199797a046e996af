"""Questions that look inside a teacher: its hidden states, and its logits with gradient.

They are for agents that train modules beside the teacher. The teacher itself is not changed, and no
gradient reaches its weights. What is asked counts as other queries do.
"""

import time

import torch
from torch import Tensor, nn

from textgen_env.experts.expert import Expert, ExpertError, NeuralExpert
from textgen_env.models.adapters import Adapters, trainable_module
from textgen_env.models.hidden_states import HiddenStates, with_hidden_states
from textgen_env.types import Trajectories

REMEDY = "use one model on this disk, with the student's vocabulary, or choose another agent"


def check_white_box(expert: Expert) -> NeuralExpert:
    """Return `expert` as a teacher that is a model in this process.

    Raises:
        ExpertError: it is none, or is asked for kept labels only.
    """
    if not isinstance(expert, NeuralExpert):
        raise ExpertError(
            f"the expert must be a model in this process, got {type(expert).__name__}: {REMEDY}"
        )
    return expert


def teacher_states(expert: Expert) -> HiddenStates:
    """Return the teacher as a model with hidden states.

    Raises:
        ExpertError: the expert has none.
    """
    model = check_white_box(expert).model
    states = with_hidden_states(model)
    if states is None:
        raise ExpertError(
            "the expert must have hidden states whose product with its head are its logits, got "
            f"{type(model).__name__}: {REMEDY}"
        )
    return states


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
