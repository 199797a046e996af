"""SWITCH and AdaSwitch: the teacher takes over where the student diverges from it.

In SWITCH it writes single tokens, the more readily the longer the text; in AdaSwitch it writes the
rest of a text from the first leap on. No gradient flows through the writing.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from textgen_agents.agent import Agent
from textgen_agents.losses.divergences import forward_kl
from textgen_agents.losses.labels import Dense, Label, LabelledBatch
from textgen_agents.losses.objectives import loss_for
from textgen_agents.rollouts.behaviors import BelowThreshold, Gated, OneWaySwitch, token_sampler
from textgen_agents.rollouts.context import Context
from textgen_agents.rollouts.rollout import rollout
from textgen_agents.rollouts.schedules import Exponential, Schedule
from textgen_env.bounds import check_at_least
from textgen_env.experts.expert import Expert
from textgen_env.generation.decoding import Sampling
from textgen_env.models.sequence_model import SequenceModel


@dataclass(frozen=True)
class Switch(Agent):
    """Distillation along texts in which the teacher writes where the two diverge.

    Roll-in: the student draws every token; where the Jensen-Shannon divergence of the two is above
    a threshold that falls with the position, the teacher draws instead.
    Label: the teacher's distribution. Loss: forward KL.
    Differs from the paper in: the first threshold, which is a choice of ours; the decay, to a tenth
    as there, runs to the length limit.

    Attributes:
        sampling: how the student writes; None for greedy.
        expert_sampling: how the teacher writes; None for greedy.
        threshold: nats at the first position, at least 0: then the teacher writes all; at the
            divergence's maximum, ln 2, and above the student does.
        decay: position / length limit -> share of the threshold.
        label: what is learned of the teacher's distribution; less is no longer the paper's.

    Source: Koo et al. 2025, arXiv:2410.19503.
    """

    queries_while_writing = True
    expects_trained_student = True
    learns_without_references = True
    sampling: Sampling | None = field(default_factory=Sampling)
    expert_sampling: Sampling | None = field(default_factory=Sampling)
    threshold: float = 0.3
    decay: Schedule = field(default_factory=lambda: Exponential(base=10.0))
    label: Label = field(default_factory=Dense, kw_only=True)

    def __post_init__(self) -> None:
        if not self.threshold >= 0:
            raise ValueError(
                f"threshold must be at least 0, got {self.threshold}; at 0 the teacher writes all"
            )

    def collect(self, context: Context) -> LabelledBatch:
        """Write by the student, and by the teacher where they diverge above the threshold."""
        steps = context.env.max_steps
        thresholds = [self.threshold * self.decay(step / steps) for step in range(steps)]
        behavior = Gated(
            gate=BelowThreshold(torch.tensor(thresholds, device=context.env.device)),
            student=token_sampler(self.sampling, context),
            expert=token_sampler(self.expert_sampling, context),
        )
        return rollout(context, behavior, record_expert_logits=True)

    def loss(self, batch: LabelledBatch, student: SequenceModel, expert: Expert) -> Tensor:
        """Return the forward KL from the teacher's distribution on all prefixes."""
        return loss_for(self.label, forward_kl, batch.trajectories, student, expert)


@dataclass(frozen=True)
class AdaSwitch(Agent):
    """Distillation along texts that the student begins and the teacher may finish.

    Roll-in: the student draws tokens until the divergence from the teacher is `factor` times its
    recent mean; from that token on the teacher draws. Label: the teacher's distribution.
    Loss: forward KL.
    Differs from the paper in: `factor` and `window`, which are choices of ours.

    Attributes:
        sampling: how the student writes; None for greedy.
        expert_sampling: how the teacher writes; None for greedy.
        factor: multiple of the mean divergence, above 0, at which the teacher takes over.
        window: number of divergences in that mean, at least 1; as many first tokens are the
            student's.
        label: what is learned of the teacher's distribution; less is no longer the paper's.

    Source: Peng et al. 2025, arXiv:2510.07842.
    """

    queries_while_writing = True
    expects_trained_student = True
    learns_without_references = True
    sampling: Sampling | None = field(default_factory=Sampling)
    expert_sampling: Sampling | None = field(default_factory=Sampling)
    factor: float = 2.0
    window: int = 5
    label: Label = field(default_factory=Dense, kw_only=True)

    def __post_init__(self) -> None:
        if not self.factor > 0:
            raise ValueError(
                f"factor must be above 0, got {self.factor}; raise it to let the student write more"
            )
        check_at_least(self, window=1)

    def collect(self, context: Context) -> LabelledBatch:
        """Write by the student up to the leap of the divergence, and by the teacher from it on."""
        env = context.env
        behavior = Gated(
            gate=OneWaySwitch((env.num_envs, self.window), self.factor, env.device),
            student=token_sampler(self.sampling, context),
            expert=token_sampler(self.expert_sampling, context),
        )
        return rollout(context, behavior, record_expert_logits=True)

    def loss(self, batch: LabelledBatch, student: SequenceModel, expert: Expert) -> Tensor:
        """Return the forward KL from the teacher's distribution on all prefixes."""
        return loss_for(self.label, forward_kl, batch.trajectories, student, expert)
