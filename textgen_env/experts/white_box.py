"""Questions that look inside a teacher: its hidden states, its gates, its logits with gradient.

Agents that train modules beside the teacher, or choose among its experts, ask them. The teacher is
not changed, and no gradient reaches its weights. What is asked counts as other queries do.
"""

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from textgen_env.experts.expert import Expert, ExpertError, NeuralExpert
from textgen_env.models.adapters import Adapters, trainable_module
from textgen_env.models.gates import ChooseExperts, Gates, with_gates
from textgen_env.models.hidden_states import HiddenStates, with_hidden_states
from textgen_env.models.huggingface.layer_experts import ROUTED_MODELS
from textgen_env.models.sequence_model import SequenceModel
from textgen_env.types import Trajectories

ViewT = TypeVar("ViewT")
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
    wanted = "have hidden states whose product with its head are its logits"
    return _seen_as(with_hidden_states, expert, wanted)


def teacher_module(expert: Expert) -> nn.Module:
    """Return the teacher as a module through which gradients flow.

    Raises:
        ExpertError: the expert answers without gradient.
    """
    return _seen_as(trainable_module, expert, "answer with gradient")


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


def teacher_gates(expert: Expert) -> Gates:
    """Return the teacher as a mixture of experts.

    Raises:
        ExpertError: it is none whose gates can be replaced.
    """
    wanted = (
        "be a mixture of models with hidden states, or have experts in its layers as "
        f"{', '.join(sorted(ROUTED_MODELS))} have"
    )
    return _seen_as(with_gates, expert, wanted)


def fewest_experts(expert: Expert) -> int:
    """Return N of the teacher's gate with the fewest experts.

    Raises:
        ExpertError: no gate weighs two experts or more.
    """
    count = min(len(router) for router in teacher_gates(expert).routers)
    if count < 2:
        raise ExpertError(
            f"the expert must be a mixture of at least 2 models, got {count}: give more teachers "
            "with the same tokenizer (--further-teachers) or one with experts in its layers, or "
            "choose another agent"
        )
    return count


def gated_logits(
    expert: Expert,
    trajectories: Trajectories,
    routers: Sequence[Tensor],
    choose: ChooseExperts,
) -> Tensor:
    """Return the teacher's logits (B, T, V) under other gates, with gradient to `routers` alone.

    A state counts as one query, however many experts there are.

    Args:
        expert: the teacher.
        trajectories: the states.
        routers: matrix of each gate.
        choose: the experts that are used at a gate, as `Gates.gated_logits` takes it.
    """
    start, gates = time.perf_counter(), teacher_gates(expert)
    logits = gates.gated_logits(trajectories.expert_view, trajectories.actions, routers, choose)
    expert.count(trajectories.mask.sum(), start)
    return logits


def _seen_as(view: Callable[[SequenceModel], ViewT | None], expert: Expert, wanted: str) -> ViewT:
    """Return the teacher's model in a view of it.

    Args:
        view: returns None where a model has none.
        expert: the teacher.
        wanted: what the expert must do or be to have it, in words.

    Raises:
        ExpertError: the expert is no model in this process, or has no such view.
    """
    model = check_white_box(expert).model
    found = view(model)
    if found is None:
        raise ExpertError(f"the expert must {wanted}, got {type(model).__name__}: {REMEDY}")
    return found
