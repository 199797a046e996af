"""Sequence-level distillation: the student learns what the teacher's beam search writes.

Behavioral cloning with the teacher as the demonstrator: the states are the teacher's own, never the
student's.
"""

from dataclasses import dataclass

from torch import Tensor

from agents.agent import Agent
from agents.divergences import cross_entropy, masked_mean
from textgen_env.expert import Expert
from textgen_env.models.sequence_model import SequenceModel
from textgen_env.types import Examples, Trajectories


@dataclass(frozen=True)
class SeqKD(Agent):
    """Replace each reference by the teacher's beam-search output and train on it.

    Roll-in: the teacher's written text as data. Label: its next token. Loss: cross-entropy.
    Differs from the paper in: nothing.

    Attributes:
        beam_size: hypotheses the teacher keeps, at least 1.

    Source: Kim and Rush 2016, section 3.2, arXiv:1606.07947.
    """

    beam_size: int = 5

    def prepare(self, examples: Examples, expert: Expert, max_steps: int) -> Examples:
        """The sources with what the teacher writes for them."""
        return expert.write(examples, max_steps=max_steps, beam_size=self.beam_size)

    def loss(self, trajectories: Trajectories, student: SequenceModel, expert: Expert) -> Tensor:
        """Cross-entropy on the teacher's tokens."""
        del expert
        logits = student.sequence_logits(trajectories.source, trajectories.actions)
        return masked_mean(cross_entropy(logits, trajectories.actions), trajectories.mask)
