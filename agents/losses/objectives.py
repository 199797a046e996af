"""From trajectories to one number: the losses that several algorithms share.

What differs between algorithms is who wrote the prefixes, what is asked of the expert and which
divergence is taken: here these are arguments. No gradient flows into labels.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from textgen_agents.losses.divergences import (
    Divergence,
    by_parts,
    cross_entropy,
    forward_kl,
    masked_mean,
)
from textgen_env.experts.expert import Expert
from textgen_env.models.sequence_model import SequenceModel
from textgen_env.types import Examples, SpecialTokens, Trajectories, Writer


def data_actions(trajectories: Trajectories, special: SpecialTokens) -> Tensor:
    """(B, T) int64, what the data has at every state, whoever wrote; PAD where its text is over."""
    missing = trajectories.actions.shape[1] - trajectories.reference.shape[1]
    return F.pad(trajectories.reference, (0, missing), value=special.pad)


def labels_by_writer(trajectories: Trajectories, expert: Expert) -> Tensor:
    """(B, T) int64, the data's token on the data's prefixes, on others the expert's most probable.

    The data's choice and not what was written: noise may have put another token there.
    """
    data = data_actions(trajectories, expert.special)
    by_data = (trajectories.writer == Writer.DATA) & (data != expert.special.pad)
    return data.where(by_data, expert.best_actions(trajectories))


def token_loss(
    trajectories: Trajectories,
    student: SequenceModel,
    labels: Tensor,
    *,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Mean cross-entropy of the student on one token at every state, nats.

    Args:
        trajectories: the states.
        student: the model to be trained.
        labels: (B, T) int64; what stands outside the mask does not count.
        label_smoothing: share of the target spread evenly over V, in [0, 1).

    Source: Lin et al. 2020, eq. 5, arXiv:2009.07253.
    """
    logits = student.sequence_logits(trajectories.source, trajectories.actions)
    losses = cross_entropy(logits, labels, label_smoothing=label_smoothing)
    return masked_mean(losses, trajectories.mask)


@torch.no_grad()
def reference_loss(model: SequenceModel, examples: Examples, *, batch_size: int = 64) -> float:
    """Mean cross-entropy of a model on all tokens of the references, each after those before it.

    Args:
        model: in evaluation mode.
        examples: at least one.
        batch_size: examples looked at together.

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


def distribution_loss(
    trajectories: Trajectories,
    student: SequenceModel,
    expert: Expert,
    divergence: Divergence = forward_kl,
) -> Tensor:
    """Mean divergence of the student from the teacher at every state, nats.

    Args:
        trajectories: the states.
        student: the model to be trained.
        expert: is asked for its whole distribution.
        divergence: the paper's L_full, up to a constant, by default.

    Source: Lin et al. 2020, eq. 6, arXiv:2009.07253.
    """
    teacher_logits = expert.logits(trajectories)
    logits = student.sequence_logits(trajectories.source, trajectories.actions)
    return masked_mean(by_parts(divergence, logits, teacher_logits), trajectories.mask)


def loss_by_writer(
    trajectories: Trajectories,
    student: SequenceModel,
    expert: Expert,
    terms: Mapping[Writer, Divergence],
) -> Tensor:
    """Mean loss over all states, by another divergence at those of each writer, nats.

    Args:
        trajectories: the states.
        student: the model to be trained.
        expert: is asked for its whole distribution.
        terms: the divergence for each writer; what others wrote adds nothing but counts.
    """
    teacher_logits = expert.logits(trajectories)
    logits = student.sequence_logits(trajectories.source, trajectories.actions)
    losses = [
        by_parts(divergence, logits, teacher_logits).where(trajectories.writer == writer, 0.0)
        for writer, divergence in terms.items()
    ]
    return masked_mean(torch.stack(losses).sum(0), trajectories.mask)
