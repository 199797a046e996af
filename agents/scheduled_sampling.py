"""Scheduled sampling: the data's tokens as labels, on prefixes that are partly the student's.

No teacher is asked. The label does not depend on the prefix, so it may be wrong after a mistake of
the student: the known inconsistency of this method, which an expert's labels do not have. Where the
student writes alone most labels are wrong, so that by default half of the tokens stay the data's.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from textgen_agents.agent import Agent, LearnsFrom
from textgen_agents.losses.labels import LabelledBatch, check_smoothing
from textgen_agents.losses.objectives import data_actions, token_loss
from textgen_agents.rollouts.behaviors import (
    Gated,
    StepView,
    token_mask,
    token_sampler,
)
from textgen_agents.rollouts.context import Context
from textgen_agents.rollouts.rollout import rollout
from textgen_agents.rollouts.schedules import ReverseSigmoid, Schedule
from textgen_env.bounds import check_at_least
from textgen_env.experts.expert import Expert
from textgen_env.generation.sampling import Sampling
from textgen_env.models.sequence_model import SequenceModel


@dataclass(frozen=True)
class ScheduledSampling(Agent):
    """Training on the references with some of the student's own tokens in the prefixes.

    Roll-in: each token by the data with probability beta, else by the student; texts end where the
    data's do; beta falls from 1 to 1/2 along an inverse sigmoid. Label: the data's token at that
    position, whoever wrote the prefix. Loss: cross-entropy.
    Differs from the paper in: the student's token is its most probable one by default, and never
    the end token; the inverse sigmoid falls with the share of training that is done and ends at
    1/2, where the paper's falls with the number of updates towards 0.

    Attributes:
        beta: progress -> probability that the data writes.
        block: neighboring tokens that share a draw, at least 1.
        sampling: how the student writes; None for greedy.
        label_smoothing: share of the label spread evenly over the vocabulary, in [0, 1).

    Source: Bengio et al. 2015, section 2.4, arXiv:1506.03099.
    """

    learns_from = LearnsFrom.REFERENCES
    beta: Schedule = field(default_factory=lambda: ReverseSigmoid(final=0.5))
    block: int = 1
    sampling: Sampling | None = None
    label_smoothing: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        check_smoothing(self.label_smoothing)
        check_at_least(self, "1 is a draw for each token", block=1)

    def coefficients(self, progress: float) -> Mapping[str, float]:
        """Return beta at `progress`, to be logged."""
        return {"beta": self.beta(progress)}

    def collect(self, context: Context) -> LabelledBatch:
        """Write prefixes of the references' lengths by data and student."""
        special = context.env.special
        by_draw = token_mask(context, self.beta(context.progress), self.block)

        def gate(view: StepView, proposal: Tensor) -> Tensor:
            ends = (proposal == special.end) | (view.data_action == special.end)
            over = view.data_action == special.pad  # if noise has written over the data's end
            return over | (by_draw(view, proposal) & ~ends)

        return rollout(context, Gated(gate, token_sampler(self.sampling, context)))

    def loss(self, batch: LabelledBatch, student: SequenceModel, expert: Expert) -> Tensor:
        """Return the cross-entropy on the data's tokens; the end token after the data's text."""
        special = expert.special
        labels = data_actions(batch.trajectories, special)
        labels = labels.masked_fill(labels == special.pad, special.end)
        return token_loss(batch.trajectories, student, labels, label_smoothing=self.label_smoothing)
