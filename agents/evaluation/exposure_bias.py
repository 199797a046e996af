"""Exposure bias: how close the student is to the teacher on its own prefixes, beside others'.

Both are compared at the states of a record of trajectories; what differs between two records is who
wrote the prefixes: the data, the student or the teacher. Each instrument is a function; all of them
together for one student are in `exposure_panel`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from textgen_agents.losses.divergences import cross_entropy, forward_kl
from textgen_env.experts.expert import Expert
from textgen_env.generation.decoding import Decoder, best_actions, decode_all, greedy
from textgen_env.models.sequence_model import SequenceModel
from textgen_env.types import Examples, SpecialTokens, Trajectories, Writer, trimmed

COMPARISON_BATCH_SIZE = 32  # texts whose logits, (B, T, V), are held at a time


@dataclass(frozen=True)
class TeacherComparison:
    """Student beside teacher, by position in the text.

    Attributes:
        count: (T,) float64, states that were compared.
        agreement: (T,) float64, share of them at which both have the same most probable token, in
            [0, 1]; 0 where there is no state.
        divergence: (T,) float64, mean KL(teacher || student), nats; 0 where there is no state.
        student_nll: (T,) float64, mean of -log q(action), with q the student, nats; as above.
        teacher_nll: (T,) float64, mean of -log p(action), with p the teacher, nats; as above.
    """

    count: Tensor
    agreement: Tensor
    divergence: Tensor
    student_nll: Tensor
    teacher_nll: Tensor

    @property
    def mean_agreement(self) -> float:
        """Over all states, in [0, 1]."""
        return self.mean(self.agreement)

    @property
    def mean_divergence(self) -> float:
        """Over all states, nats."""
        return self.mean(self.divergence)

    def mean(self, figure: Tensor) -> float:
        """Of one of the figures, over all states."""
        return float((figure * self.count).sum() / self.count.sum())


@torch.no_grad()
def compare_with_teacher(
    trajectories: Trajectories,
    student: SequenceModel,
    expert: Expert,
    *,
    batch_size: int = COMPARISON_BATCH_SIZE,
) -> TeacherComparison:
    """How the student compares with the teacher at every counted state, in one pass of either.

    Args:
        trajectories: the states.
        student: in evaluation mode.
        expert: the teacher.
        batch_size: trajectories compared at a time, those of like length together.

    Source: Arora et al. 2022, section 4, arXiv:2204.01171, for the divergence by who wrote the
        prefix; agreement is one minus the 0-1 loss of Ross et al. 2011, section 2,
        arXiv:1011.0686.
    """
    steps, special = trajectories.actions.shape[1], expert.special
    sums = torch.zeros(5, steps, dtype=torch.float64)
    for batch in _batches(trajectories, special, batch_size):
        logits = student.sequence_logits(batch.source, batch.actions)
        teacher_logits = expert.logits(batch)
        same = best_actions(logits, special) == best_actions(teacher_logits, special)
        divergence = forward_kl(logits, teacher_logits)
        surprises = (cross_entropy(each, batch.actions) for each in (logits, teacher_logits))
        figures = torch.ones_like(same), same, divergence, *surprises
        for total, figure in zip(sums, figures, strict=True):
            counted = figure.double().where(batch.mask, 0.0)
            total[: counted.shape[1]] += counted.sum(0).cpu()
    return TeacherComparison(sums[0], *sums[1:] / sums[0].clamp(min=1))


def written_by(
    model: SequenceModel,
    examples: Examples,
    max_steps: int,
    *,
    writer: Writer,
    decoder: Decoder = greedy,
    batch_size: int = 64,
) -> Trajectories:
    """What `model` writes for each source; as the expert, for its own view of it.

    Args:
        model: in evaluation mode.
        examples: the sources.
        max_steps: most tokens of a text.
        writer: which of the writers it is.
        decoder: how it writes.
        batch_size: texts written together.
    """
    source = examples.expert_source if writer == Writer.EXPERT else examples.source
    actions = decode_all(model, source, max_steps, decoder=decoder, batch_size=batch_size)
    return trajectories_of(examples, actions, writer, model.special)


def trajectories_of(
    examples: Examples, actions: Tensor, writer: Writer, special: SpecialTokens
) -> Trajectories:
    """Trajectories of the texts `actions`, (B, T) int64, one for each example, by one writer."""
    by = torch.full_like(actions, writer)
    return Trajectories.of(examples, actions, by, actions != special.pad)


def excess_accumulated_error(own: TeacherComparison, teachers: TeacherComparison) -> Tensor:
    """(T,) float64 percent: how much faster errors accumulate on the student's own prefixes.

    With R(l) the mean divergences on the student's prefixes summed over the first l positions, and
    E(l) the same on the teacher's: 100 (R(l) - E(l)) / E(l). 0 means no exposure bias; it is not
    finite where E(l) is 0. A teacher that is at a loss on strange prefixes hides it: its
    distribution is flat there, and a flat student is near to it. Then it may be negative.

    Args:
        own: on prefixes drawn from the student, three texts a source (`exposure_panel.NUM_DRAWS`).
        teachers: on prefixes drawn from the teacher, as many; positions that either lacks are left
            out.

    Source: Arora et al. 2022, section 4, arXiv:2204.01171; with the teacher in the place of the
        data as Gu et al. 2023, section 3.3, arXiv:2306.08543.
    """
    positions = min(int((texts.count > 0).sum()) for texts in (own, teachers))
    accumulated = own.divergence[:positions].cumsum(0)
    inherent = teachers.divergence[:positions].cumsum(0)
    return 100 * (accumulated - inherent) / inherent


def likelihood_risk(drawn: TeacherComparison) -> float:
    """How unlikely the student's texts are to the teacher: high where it writes what is wrong.

    The mean of -log p(action) over all tokens, with p the teacher: nats a token.

    Args:
        drawn: on texts drawn from the student.

    Source: Wen et al. 2023, section 4.3, arXiv:2307.15190; per token here, not per text.
    """
    return drawn.mean(drawn.teacher_nll)


def coverage_risk(drawn: TeacherComparison) -> float:
    """How unlikely the teacher's texts are to the student: high where it lacks what is right.

    The mean of -log q(action) over all tokens, with q the student: nats a token.

    Args:
        drawn: on texts drawn from the teacher.

    Source: Wen et al. 2023, section 4.3, arXiv:2307.15190; per token here, not per text.
    """
    return drawn.mean(drawn.student_nll)


def _batches(
    texts: Trajectories, special: SpecialTokens, batch_size: int
) -> Iterator[Trajectories]:
    """All texts, those of like length together, so that little of a batch is padding."""
    for rows in texts.mask.sum(1).argsort(stable=True).split(batch_size):
        yield texts.select(rows).trimmed(special)


def teacher_finishes(
    own: Trajectories, expert: Expert, share: float, *, batch_size: int = 64
) -> Tensor:
    """The student starts, the teacher goes on greedily: how far the student's prefixes mislead.

    Args:
        own: the student's texts, T the length limit.
        expert: the teacher.
        share: of each text's tokens, the first ones, that stay, in [0, 1]; to the nearest whole
            token, of two to the even number.
        batch_size: texts written at a time, those with sources of like length together.

    Returns:
        (B, T) int64, PAD after the end token.

    Source: Lin et al. 2020, table 1, arXiv:2009.07253, for any share.
    """
    special = expert.special
    kept = (share * own.mask.sum(1)).round().long()
    order = (own.expert_source != special.pad).sum(1).argsort(stable=True)
    finished = [
        expert.complete(trimmed(own.expert_source[rows], special), own.actions[rows], kept[rows])
        for rows in order.split(batch_size)
    ]
    return torch.cat(finished)[order.argsort()]


def length_ratio(texts: Trajectories, special: SpecialTokens) -> float:
    """Tokens written over tokens of the references, end tokens included; 1 is neither.

    Source: Papineni et al. 2002, "BLEU", section 2.2.2: c over r of its brevity penalty.
    """
    return float(texts.mask.sum() / (texts.reference != special.pad).sum())


def repetition_rate(texts: Trajectories, *, order: int = 4) -> float:
    """Share of a text's n-grams that occur in it before, mean over the texts, in [0, 1].

    With u different ones of t: 1 - u / t. A text too short for one repeats nothing.

    Args:
        texts: what was written.
        order: n, in tokens.

    Source: Welleck et al. 2020, "seq-rep-n", section 6, arXiv:1908.04319.
    """
    total = 0.0
    lengths = texts.mask.sum(1).tolist()
    for actions, length in zip(texts.actions.tolist(), lengths, strict=True):
        grams = [tuple(actions[i : i + order]) for i in range(length - order + 1)]
        total += 1 - len(set(grams)) / len(grams) if grams else 0.0
    return total / len(texts)
