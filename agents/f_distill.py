"""f-distill: an f-divergence of whole texts as a sum over steps, each on the texts of its side.

KL is an expectation over the teacher's texts, reverse KL over the student's, Jensen-Shannon and
total variation over both. The teacher's texts are written once, the student's anew for every batch.
No gradient flows through the writing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor

from textgen_agents.agent import Agent
from textgen_agents.losses.divergences import (
    Divergence,
    forward_kl,
    reverse_kl,
    skewed_kl,
    skewed_reverse_kl,
    total_variation,
)
from textgen_agents.losses.labels import LabelledBatch
from textgen_agents.losses.objectives import loss_by_writer
from textgen_agents.rollouts.context import Context
from textgen_agents.rollouts.rollout import data_rollout, student_rollout
from textgen_env.bounds import check_at_least
from textgen_env.experts.expert import Expert
from textgen_env.generation.sampling import Sampling
from textgen_env.models.sequence_model import SequenceModel
from textgen_env.types import Examples, Writer


@dataclass(frozen=True)
class KL:
    """KL(teacher || student), on the teacher's texts."""

    @property
    def terms(self) -> Mapping[Writer, Divergence]:
        """Forward KL on the teacher's texts."""
        return {Writer.DATA: forward_kl}


@dataclass(frozen=True)
class RKL:
    """KL(student || teacher), on the student's texts."""

    @property
    def terms(self) -> Mapping[Writer, Divergence]:
        """Reverse KL on the student's texts."""
        return {Writer.STUDENT: reverse_kl}


@dataclass(frozen=True)
class JS:
    """Weighted Jensen-Shannon divergence, one half on the texts of each writer.

    With p the teacher, q the student, w the weight and m = w p + (1 - w) q: w KL(p || m) on the
    teacher's texts and (1 - w) KL(q || m) on the student's.

    Attributes:
        teacher_weight: w, in (0, 1); 1 - beta in the paper.
    """

    teacher_weight: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.teacher_weight < 1:
            raise ValueError(
                f"teacher_weight must be in (0, 1), got {self.teacher_weight}; at the ends use KL "
                "or RKL"
            )

    @property
    def terms(self) -> Mapping[Writer, Divergence]:
        """Both halves, doubled, because each is a mean over half of the states."""
        weight = self.teacher_weight

        def on_teacher_text(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
            return 2 * weight * skewed_kl(student_logits, teacher_logits, skew=weight)

        def on_student_text(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
            other = 1 - weight
            return 2 * other * skewed_reverse_kl(student_logits, teacher_logits, skew=other)

        return {Writer.DATA: on_teacher_text, Writer.STUDENT: on_student_text}


@dataclass(frozen=True)
class TVD:
    """Total variation on the texts of both writers: a difference of probabilities, not nats."""

    @property
    def terms(self) -> Mapping[Writer, Divergence]:
        """Total variation on both: the mean over all states is half the sum of both means."""
        return {Writer.DATA: total_variation, Writer.STUDENT: total_variation}


Kind = KL | RKL | JS | TVD


@dataclass(frozen=True)
class FDistill(Agent):
    """Distillation step by step on the teacher's texts, on the student's, or on both.

    Roll-in: for each example a text that the teacher has written before training, by beam search,
    and one drawn from the student's 40 most probable tokens, if the kind has a term for it; both
    come into the same batch. Label: the teacher's distribution. Loss: the kind's term on each text;
    one mean over the states of both.
    Differs from the paper in: the mean is over all states, so that a side with longer texts weighs
    more; beam search divides a hypothesis' score by its length.

    Attributes:
        sampling: how the student draws; `top_k` may be above the size of the vocabulary.
        kind: the divergence.
        beam_size: hypotheses the teacher keeps, at least 1.

    Source: Wen et al. 2023, section 3, arXiv:2307.15190.
    """

    expects_trained_student = True
    learns_without_references = True
    sampling: Sampling = field(default_factory=lambda: Sampling(top_k=40))
    kind: Kind = field(default_factory=JS)
    beam_size: int = 5

    def __post_init__(self) -> None:
        check_at_least(self, beam_size=1)

    def prepare(self, examples: Examples, expert: Expert, max_steps: int) -> Examples:
        """Return the sources with the teacher's texts, if a term is about them."""
        if Writer.DATA not in self.kind.terms:
            return examples
        return expert.write(examples, max_steps=max_steps, beam_size=self.beam_size)

    def labelled_data_share(self, progress: float) -> float:
        """Return 1 if a term is about the teacher's text of every example, else 0."""
        del progress
        return float(Writer.DATA in self.kind.terms)

    def collect(self, context: Context) -> LabelledBatch:
        """Return the texts of each writer that the kind has a term for, of the same examples."""
        batches = []
        if Writer.DATA in self.kind.terms:
            batches.append(data_rollout(context))
        if Writer.STUDENT in self.kind.terms:
            sampling = _fitted(self.sampling, context.env.vocab_size)
            batches.append(student_rollout(context, sampling))
        return LabelledBatch.cat(batches, context.env.special)

    def loss(self, batch: LabelledBatch, student: SequenceModel, expert: Expert) -> Tensor:
        """Return the mean of each writer's term on its own prefixes."""
        return loss_by_writer(batch.trajectories, student, expert, self.kind.terms)


def _fitted(sampling: Sampling, vocab_size: int) -> Sampling:
    """Return `sampling` from all tokens where there are fewer than it names."""
    if sampling.top_k is None or sampling.top_k <= vocab_size:
        return sampling
    return replace(sampling, top_k=vocab_size)
