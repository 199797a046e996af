"""Sequence-level distillation: the student learns what the teacher's beam search writes.

Behavioral cloning with the teacher as the demonstrator: the states are the teacher's own, never the
student's. Three variants: its text (SeqKD), its distribution along its text (SeqKD + Full), and of
its hypotheses the one most like the reference (SeqInter).
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from textgen_agents.agent import Agent, LearnsFrom
from textgen_agents.losses.divergences import forward_kl
from textgen_agents.losses.labels import Dense, Label, LabelledBatch, check_smoothing
from textgen_agents.losses.objectives import loss_for, token_loss
from textgen_agents.rollouts.context import Context
from textgen_agents.rollouts.rollout import data_rollout
from textgen_env.bounds import check_at_least
from textgen_env.envs.text_metrics import TokenTexts, token_bleu
from textgen_env.experts.expert import Expert
from textgen_env.models.sequence_model import SequenceModel
from textgen_env.types import Examples, SpecialTokens

EXAMPLES_SCORED_TOGETHER = 256  # memory grows with the square of their length


@dataclass(frozen=True)
class SeqKD(Agent):
    """Training on the teacher's beam-search outputs in place of the references.

    Roll-in: the teacher's text as data. Label: its next token. Loss: cross-entropy.
    Differs from the paper in: beam search divides a hypothesis' score by its length.

    Attributes:
        beam_size: hypotheses the teacher keeps, at least 1.
        label_smoothing: share of the label spread evenly over the vocabulary, in [0, 1).

    Source: Kim and Rush 2016, section 3.2, arXiv:1606.07947.
    """

    learns_from = LearnsFrom.TEXTS
    student_writes = False
    learns_without_references = True
    beam_size: int = 5
    label_smoothing: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        check_smoothing(self.label_smoothing)
        check_at_least(self, beam_size=1)

    def prepare(self, examples: Examples, expert: Expert, max_steps: int) -> Examples:
        """Return the sources with the teacher's texts."""
        return expert.write(examples, max_steps=max_steps, beam_size=self.beam_size)

    def collect(self, context: Context) -> LabelledBatch:
        """Return the teacher's texts as prefixes."""
        return data_rollout(context)

    def loss(self, batch: LabelledBatch, student: SequenceModel, expert: Expert) -> Tensor:
        """Return the cross-entropy on the teacher's tokens."""
        del expert
        states = batch.trajectories
        return token_loss(states, student, states.actions, label_smoothing=self.label_smoothing)


@dataclass(frozen=True)
class SeqKDFull(Agent):
    """Distillation of the teacher's next-token distribution along its beam-search outputs.

    Roll-in: the teacher's text as data. Label: the teacher's distribution. Loss: forward KL.
    Differs from the paper in: beam search divides a hypothesis' score by its length ("SeqKD + Full"
    there).

    Attributes:
        beam_size: hypotheses the teacher keeps, at least 1.
        label: what the teacher is asked; less than its distribution is no longer the paper's.

    Source: Lin et al. 2020, section 4, arXiv:2009.07253.
    """

    student_writes = False
    learns_without_references = True
    beam_size: int = 5
    label: Label = field(default_factory=Dense, kw_only=True)

    def __post_init__(self) -> None:
        check_at_least(self, beam_size=1)

    def prepare(self, examples: Examples, expert: Expert, max_steps: int) -> Examples:
        """Return the sources with the teacher's texts."""
        return expert.write(examples, max_steps=max_steps, beam_size=self.beam_size)

    def labelled_data_share(self, progress: float) -> float:
        """Return 1: the teacher is asked about the data's text of every example."""
        del progress
        return 1.0

    def collect(self, context: Context) -> LabelledBatch:
        """Return the teacher's texts as prefixes."""
        return data_rollout(context)

    def loss(self, batch: LabelledBatch, student: SequenceModel, expert: Expert) -> Tensor:
        """Return the forward KL from the teacher's distribution."""
        return loss_for(self.label, forward_kl, batch.trajectories, student, expert)


@dataclass(frozen=True)
class SeqInter(Agent):
    """Training on the teacher's hypotheses that are most like the references.

    Roll-in: of the teacher's beam the text with the best sentence BLEU to the reference, as data.
    Label: its next token. Loss: cross-entropy.
    Differs from the paper in: BLEU is of tokens, not of words.

    Attributes:
        beam_size: hypotheses, at least 1.
        label_smoothing: share of the label spread evenly over the vocabulary, in [0, 1).

    Source: Kim and Rush 2016, section 3.3, arXiv:1606.07947.
    """

    learns_from = LearnsFrom.TEXTS
    student_writes = False
    expects_trained_student = True
    beam_size: int = 5
    label_smoothing: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        check_smoothing(self.label_smoothing)
        check_at_least(self, beam_size=1)

    def prepare(self, examples: Examples, expert: Expert, max_steps: int) -> Examples:
        """Return the sources with the chosen hypotheses; of equals the more probable one.

        Raises:
            ValueError: a source has no reference to choose by.
        """
        self.check_examples(examples, expert.special)
        hypotheses = expert.write_n_best(examples, max_steps=max_steps, beam_size=self.beam_size)
        parts = zip(
            hypotheses.split(EXAMPLES_SCORED_TOGETHER),
            examples.reference.split(EXAMPLES_SCORED_TOGETHER),
            strict=True,
        )
        chosen = [most_similar(texts, reference, expert.special) for texts, reference in parts]
        return replace(examples, reference=torch.cat(chosen))

    def collect(self, context: Context) -> LabelledBatch:
        """Return the chosen hypotheses as prefixes."""
        return data_rollout(context)

    def loss(self, batch: LabelledBatch, student: SequenceModel, expert: Expert) -> Tensor:
        """Return the cross-entropy on the chosen hypotheses' tokens."""
        del expert
        states = batch.trajectories
        return token_loss(states, student, states.actions, label_smoothing=self.label_smoothing)


def most_similar(hypotheses: Tensor, reference: Tensor, special: SpecialTokens) -> Tensor:
    """Return the hypothesis with the best sentence BLEU for each reference, (B, T) int64.

    Args:
        hypotheses: (B, C, T) int64; of equals the first is chosen.
        reference: (B, R) int64.
        special: ids of padding, start and end.
    """
    references = TokenTexts.of(reference, special)
    scores = [token_bleu(TokenTexts.of(text, special), references) for text in hypotheses.unbind(1)]
    rows = torch.arange(len(reference), device=reference.device)
    return hypotheses[rows, torch.stack(scores, 1).argmax(1)]
