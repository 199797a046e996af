"""DAgger: student and expert write together, and everything written so far is learned from.

Where the expert is queried at every step its answers are recorded, so that it is asked about each
state once; where the student writes alone the expert is asked in one pass afterwards. No gradient
flows through the writing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from textgen_agents.agent import Agent, LearnsFrom
from textgen_agents.losses.divergences import forward_kl
from textgen_agents.losses.labels import Dense, Label, LabelledBatch, Top1
from textgen_agents.losses.objectives import loss_for
from textgen_agents.rollouts.behaviors import Gated, token_mask, token_sampler
from textgen_agents.rollouts.buffer import Buffer, check_capacity
from textgen_agents.rollouts.context import Context
from textgen_agents.rollouts.rollout import rollout, student_rollout
from textgen_agents.rollouts.schedules import Constant, Indicator, Schedule
from textgen_env.bounds import check_at_least, check_finite
from textgen_env.envs.vector_env import TextGenVectorEnv
from textgen_env.experts.expert import Expert
from textgen_env.generation.sampling import Sampling
from textgen_env.models.sequence_model import SequenceModel


@dataclass(frozen=True)
class DAgger(Agent):
    """Imitation of the expert at all states that it and the student have come to so far.

    Roll-in: each token by the expert with probability beta, else by the student; the rows are added
    to the buffer, and as many are drawn from it. Label: the expert's most probable token, as it was
    when the state was written. Loss: cross-entropy; with another label forward KL.
    Differs from the paper in: the oldest rows are replaced once the buffer is full, and the student
    goes on learning between rollouts, where it is trained anew on everything after each of a few.

    Attributes:
        capacity: rows kept, at least those that are collected together. Each of several processes
            keeps its share.
        label: what is kept of the expert's answers.
        beta: progress -> probability that the expert writes a token.
        sampling: how the student writes; None for greedy.
        block: neighboring tokens that share a draw, at least 1.
        batches_per_rollout: M, batches written together; where the expert is queried at every step,
            its logits at all of their states are held until labels are made of them.

    Source: Ross et al. 2011, algorithm 3.1, arXiv:1011.0686.
    """

    learns_from = LearnsFrom.TOKENS
    queries_while_writing = True
    learns_without_references = True
    capacity: int = 8192
    label: Label = field(default_factory=Top1)
    beta: Schedule = field(default_factory=Indicator)
    sampling: Sampling | None = None
    block: int = 1
    batches_per_rollout: int = 4

    def __post_init__(self) -> None:
        check_finite(self, "capacity")
        check_capacity(self.capacity)
        check_at_least(self, "1 is a draw for each token", block=1)
        check_at_least(self, batches_per_rollout=1)

    def check_expert(self, expert: Expert) -> None:
        """Raise, before any training, unless the expert gives the label, and all if it writes."""
        self.label.check(expert)
        if self.beta != Constant(0.0):
            Dense().check(expert)

    def make_buffer(self, env: TextGenVectorEnv, processes: int = 1) -> Buffer:
        """Return an empty buffer for this process."""
        return Buffer(env, capacity=self.capacity, label=self.label, processes=processes)

    def coefficients(self, progress: float) -> Mapping[str, float]:
        """Return beta at `progress`, to be logged."""
        return {"beta": self.beta(progress)}

    def collect(self, context: Context) -> LabelledBatch:
        """Write prefixes by student and expert, aggregate them, and draw from the aggregate."""
        assert context.buffer is not None, "`make_buffer` makes one"
        context.buffer.add(self._write(context), context.env.expert)
        return context.buffer.draw(len(context.indices), context.generator)

    def loss(self, batch: LabelledBatch, student: SequenceModel, expert: Expert) -> Tensor:
        """Return the forward KL from the label: cross-entropy where that is one token."""
        return loss_for(self.label, forward_kl, batch.trajectories, student, expert)

    def _write(self, context: Context) -> LabelledBatch:
        """Write prefixes, with the expert's logits if it writes too."""
        beta = self.beta(context.progress)
        if not beta:
            return student_rollout(context, self.sampling)
        mixture = Gated(
            gate=token_mask(context, beta, self.block),
            student=token_sampler(self.sampling, context),
            expert=token_sampler(None, context),
        )
        return rollout(context, mixture, record_expert_logits=True)
