"""Exposure bias: how close the student is to the teacher on its own prefixes, beside others'.

Both are compared at the states of a record of trajectories; what differs between two records is who
wrote the prefixes: the data, the student or the teacher.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from agents.divergences import forward_kl
from textgen_env.decoding import best_actions, decode_all
from textgen_env.expert import Expert
from textgen_env.models.sequence_model import SequenceModel
from textgen_env.types import Examples, Trajectories, Writer


@dataclass(frozen=True)
class Comparison:
    """Student beside teacher, by position in the text.

    Attributes:
        count: (T,) float64, states that were compared.
        agreement: (T,) float64, share of them at which both have the same most probable token, in
            [0, 1]; 0 where there is no state.
        divergence: (T,) float64, mean KL(teacher || student), nats; 0 where there is no state.
    """

    count: Tensor
    agreement: Tensor
    divergence: Tensor

    @property
    def mean_agreement(self) -> float:
        """Over all states, in [0, 1]."""
        return float((self.agreement * self.count).sum() / self.count.sum())

    @property
    def mean_divergence(self) -> float:
        """Over all states, nats."""
        return float((self.divergence * self.count).sum() / self.count.sum())


@torch.no_grad()
def compare(
    trajectories: Trajectories, student: SequenceModel, expert: Expert, *, batch_size: int = 64
) -> Comparison:
    """How the student's next token compares with the teacher's at every counted state.

    Args:
        trajectories: the states.
        student: in evaluation mode.
        expert: the teacher.
        batch_size: trajectories compared at a time.
    """
    steps, special = trajectories.actions.shape[1], expert.special
    sums = torch.zeros(3, steps, dtype=torch.float64)
    for rows in torch.arange(len(trajectories)).split(batch_size):
        batch = trajectories.select(rows).trimmed(special)
        logits = student.sequence_logits(batch.source, batch.actions)
        teacher_logits = expert.logits(batch)
        same = best_actions(logits, special) == best_actions(teacher_logits, special)
        figures = torch.ones_like(same), same, forward_kl(logits, teacher_logits)
        for total, figure in zip(sums, figures, strict=True):
            counted = figure.double().where(batch.mask, 0.0)
            total[: counted.shape[1]] += counted.sum(0).cpu()
    count, agreement, divergence = sums
    return Comparison(count, agreement / count.clamp(min=1), divergence / count.clamp(min=1))


def written_by(
    model: SequenceModel, examples: Examples, max_steps: int, *, writer: Writer
) -> Trajectories:
    """What `model` writes greedily for each source; as the expert, for its own view of it.

    Args:
        model: in evaluation mode.
        examples: the sources.
        max_steps: most tokens of a text.
        writer: which of the writers it is.
    """
    source = examples.expert_source if writer == Writer.EXPERT else examples.source
    actions = decode_all(model, source, max_steps)
    mask = actions != model.special.pad
    by = torch.full_like(actions, writer)
    return Trajectories.of(examples, actions, by, mask)


def excess_accumulated_error(own: Comparison, teachers: Comparison) -> Tensor:
    """(T,) float64 percent: how much faster errors accumulate on the student's own prefixes.

    With R(l) the mean divergences on the student's prefixes summed over the first l positions, and
    E(l) the same on the teacher's: 100 (R(l) - E(l)) / E(l). 0 means no exposure bias.

    Args:
        own: on the student's prefixes.
        teachers: on the teacher's.

    Source: Arora et al. 2022, section 4, arXiv:2204.01171; with the teacher in the place of the
        data as Gu et al. 2023, section 3.3, arXiv:2306.08543.
    """
    positions = min(len(own.count), len(teachers.count))
    accumulated = own.divergence[:positions].cumsum(0)
    inherent = teachers.divergence[:positions].cumsum(0)
    return 100 * (accumulated - inherent) / inherent
