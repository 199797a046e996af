"""Objectives: means over the counted actions of a batch, as several agents minimize them.

The writers of the prefixes, the label and the divergence are arguments here: they are what
algorithms differ in. No gradient flows into labels.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from textgen_agents.losses.divergences import (
    Divergence,
    cross_entropy,
    masked_mean,
)
from textgen_agents.losses.labels import Label, LabelledBatch
from textgen_agents.losses.state_chunks import StateChunk, mean_over_states
from textgen_env.experts.expert import Expert
from textgen_env.generation.decoding import check_logits, logits_from
from textgen_env.models.sequence_model import SequenceModel
from textgen_env.types import Examples, SpecialTokens, Trajectories, Writer


def data_actions(trajectories: Trajectories, special: SpecialTokens) -> Tensor:
    """Return the reference's token at every state, (B, T) int64; PAD after the reference's end."""
    missing = trajectories.actions.shape[1] - trajectories.reference.shape[1]
    return F.pad(trajectories.reference, (0, missing), value=special.pad)


def labels_by_writer(trajectories: Trajectories, expert: Expert) -> Tensor:
    """Return the label of base ImitKD for every state, (B, T) int64.

    It is the reference's token on prefixes of the data and the expert's most probable token on
    others. The reference counts and not what was written, where noise may have put another token.
    The expert is asked about the rows that need it alone.
    """
    data = data_actions(trajectories, expert.special)
    by_data = (trajectories.writer == Writer.DATA) & (data != expert.special.pad)
    rows = (trajectories.mask & ~by_data).any(1).nonzero().squeeze(1)
    if not len(rows):
        return data
    answers = expert.best_actions(trajectories.select(rows))
    return data.index_copy(0, rows, data[rows].where(by_data[rows], answers))


def mean_over_actions(losses: Tensor, trajectories: Trajectories) -> Tensor:
    """Return the mean over the actions that count, each loss times its action's weight.

    The denominator is the number of actions, whatever their weights.

    Args:
        losses: (B, T) float.
        trajectories: with mask and weights.
    """
    if trajectories.weight is not None:
        losses = losses * trajectories.weight
    return masked_mean(losses, trajectories.mask)


def token_loss(
    trajectories: Trajectories,
    student: SequenceModel,
    labels: Tensor,
    *,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Return the mean cross-entropy of the student on one token at every state, nats.

    Args:
        trajectories: the states.
        student: the model to be trained.
        labels: (B, T) int64; those outside the mask do not count.
        label_smoothing: share of the target spread evenly over V, in [0, 1).

    Source: Lin et al. 2020, eq. 5, arXiv:2009.07253.
    """

    def losses(at: StateChunk) -> Tensor:
        tokens = at.labels["tokens"]
        return cross_entropy(at.student_logits, tokens, label_smoothing=label_smoothing)

    return mean_over_states(losses, LabelledBatch(trajectories, {"tokens": labels}), student)


@torch.no_grad()
def reference_loss(model: SequenceModel, examples: Examples, *, batch_size: int = 64) -> float:
    """Return the mean cross-entropy of a model on the references, each token after its prefix.

    Args:
        model: in evaluation mode.
        examples: at least one.
        batch_size: examples of one forward pass.

    Returns:
        Nats an action.
    """
    total, count = 0.0, 0
    for rows in torch.arange(len(examples)).split(batch_size):
        batch = examples.select(rows).trimmed(model.special)
        states = Trajectories.from_examples(batch, model.special)
        actions = int(states.mask.sum())
        total += actions * float(token_loss(states, model, states.actions))
        count += actions
    return total / count


def loss_for(
    label: Label,
    divergence: Divergence,
    trajectories: Trajectories,
    student: SequenceModel,
    expert: Expert,
) -> Tensor:
    """Return the mean divergence of the student from the expert's label at every state, nats.

    Args:
        label: what the expert is asked; with `Top1`, forward KL is the cross-entropy on its token.
        divergence: of the student from the label.
        trajectories: the states.
        student: the model to be trained.
        expert: the teacher, or its recorded answers.

    Source: Lin et al. 2020, eq. 6 with `Dense` and `forward_kl`, arXiv:2009.07253.
    """

    def losses(at: StateChunk) -> Tensor:
        return label.losses(at.student_logits, divergence, at.labels)

    return mean_over_states(losses, LabelledBatch(trajectories), student, expert, label)


def loss_by_writer(
    trajectories: Trajectories,
    student: SequenceModel,
    expert: Expert,
    terms: Mapping[Writer, Divergence],
) -> Tensor:
    """Return the mean loss over all states, with a divergence for each writer, nats.

    Args:
        trajectories: the states.
        student: the model to be trained.
        expert: is asked for its whole distribution.
        terms: the divergence for each writer; the states of other writers add 0 but count.
    """

    def losses(at: StateChunk) -> Tensor:
        parts = [
            divergence(at.student_logits, at.teacher_logits).where(at.writer == writer, 0.0)
            for writer, divergence in terms.items()
        ]
        return torch.stack(parts).sum(0)

    return mean_over_states(losses, LabelledBatch(trajectories), student, expert)


@torch.no_grad()
def check_finite_logits(
    trajectories: Trajectories, student: SequenceModel, expert: Expert | None
) -> None:
    """Raise unless the logits of student and expert are finite at every state that counts.

    Args:
        trajectories: states at which both are asked.
        student: in any mode.
        expert: None where none is needed; one that gives no logits is not asked.

    Raises:
        LogitsError: those of one of them are not; it names whose.
    """
    with logits_from("student"):
        logits = student.sequence_logits(trajectories.source, trajectories.actions)
        check_logits(logits[trajectories.mask])
    if expert is not None and expert.largest_k is None:
        with logits_from("teacher"):
            check_logits(expert.logits(trajectories)[trajectories.mask])


def remedy_of_loss(
    trajectories: Trajectories, student: SequenceModel, expert: Expert | None
) -> str:
    """Return the remedy of a loss that is not finite, which names whose logits are not.

    The arguments are those of `check_finite_logits`.
    """
    try:
        check_finite_logits(trajectories, student, expert)
    except ValueError as error:
        return str(error)
    return "try a lower learning_rate"
