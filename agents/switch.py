"""SWITCH and AdaSwitch: the teacher takes over where the student diverges from it.

In SWITCH it writes single tokens, the more readily the longer the text; in AdaSwitch it writes the
rest of a text from the first leap on. The threshold for that is found on the first batch of a run,
so that the teacher writes the share of the tokens that it has in SWITCH's paper. No gradient flows
through the writing.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from textgen_agents.agent import Agent
from textgen_agents.losses.divergences import by_parts, forward_kl, generalized_jsd
from textgen_agents.losses.kl_mixtures import KLMixture
from textgen_agents.losses.labels import Dense, Label, LabelledBatch, check_divergence
from textgen_agents.losses.objectives import loss_for
from textgen_agents.rollouts.behaviors import BelowThreshold, Gated, OneWaySwitch, token_sampler
from textgen_agents.rollouts.calibration import calibrated_threshold
from textgen_agents.rollouts.context import Context
from textgen_agents.rollouts.rollout import rollout
from textgen_agents.rollouts.schedules import Exponential, Schedule
from textgen_env.bounds import check_at_least, check_shares
from textgen_env.experts.expert import Expert
from textgen_env.generation.sampling import Sampling
from textgen_env.models.sequence_model import SequenceModel

PAPER_SHARE = 0.53  # of the tokens, the teacher's in SWITCH's paper where its decay is to a tenth
SMALLEST_SHARE = 1e-9  # of a threshold, at a position where a schedule is 0
SMALLEST_MEAN = 1e-12  # nats, of divergences that a leap is measured by


@dataclass(frozen=True)
class Switch(Agent):
    """Distillation along texts in which the teacher writes where the two diverge.

    Roll-in: the student draws every token; where the Jensen-Shannon divergence of the two is above
    a threshold that falls with the position, the teacher draws instead.
    Label: the teacher's distribution. Loss: forward KL.
    Differs from the paper in: the first threshold, which is found by the paper's share of the
    teacher's tokens; the decay, to a tenth as there, runs to the length limit.

    Attributes:
        sampling: how the student writes; None for greedy.
        expert_sampling: how the teacher writes; None for greedy.
        threshold: nats at the first position, at least 0. At 0 the teacher writes all; the student
            does where the threshold stays above ln 2, the divergence's maximum, to the end. None
            for the one at which the teacher writes `expert_share`.
        expert_share: share of the tokens of the run's first batch that the teacher writes, in
            [0, 1]; of no meaning with a `threshold`.
        decay: position / length limit -> share of the threshold.
        label: what is learned of the teacher's distribution; less is no longer the paper's.
        divergence: mixture of forward and reverse KL in place of forward KL; None for forward KL.

    Source: Koo et al. 2025, arXiv:2410.19503.
    """

    queries_while_writing = True
    expects_trained_student = True
    learns_without_references = True
    sampling: Sampling | None = field(default_factory=Sampling)
    expert_sampling: Sampling | None = field(default_factory=Sampling)
    threshold: float | None = None
    expert_share: float = PAPER_SHARE
    decay: Schedule = field(default_factory=lambda: Exponential(base=10.0))
    label: Label = field(default_factory=Dense, kw_only=True)
    divergence: KLMixture | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        check_divergence(self.label, self.divergence or forward_kl)
        check_shares(self, "expert_share")
        if self.threshold is not None and not self.threshold >= 0:
            raise ValueError(
                f"threshold must be at least 0, got {self.threshold}; at 0 the teacher writes all"
            )

    def calibrate(self, context: Context) -> float:
        """Return the threshold: the one that is given, or the one found by the teacher's share."""
        if self.threshold is not None:
            return self.threshold
        return calibrated_threshold(context, self.expert_share, self.write, self.score)

    def collect(self, context: Context) -> LabelledBatch:
        """Write by the student, and by the teacher where they diverge above the threshold."""
        found = context.calibration
        return self.write(context, self.calibrate(context) if found is None else found)

    def write(self, context: Context, threshold: float) -> LabelledBatch:
        """Return texts written with `threshold` at the first position, and the teacher's logits."""
        env = context.env
        thresholds = threshold * self.shares(env.max_steps)
        behavior = Gated(
            gate=BelowThreshold(thresholds.float().to(env.device)),
            student=token_sampler(self.sampling, context),
            expert=token_sampler(self.expert_sampling, context),
        )
        return rollout(context, behavior, record_expert_logits=True)

    def score(self, context: Context, logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """Return the (B, T) divergence of each token over its position's share of the threshold."""
        shares = self.shares(context.env.max_steps).float().to(logits.device)
        return by_parts(generalized_jsd, logits, teacher_logits) / shares[: logits.shape[1]]

    def shares(self, steps: int) -> Tensor:
        """Return the share of the threshold at each of `steps` positions, (steps,) float64."""
        shares = [self.decay(step / steps) for step in range(steps)]
        return torch.tensor(shares, dtype=torch.float64).clamp(min=SMALLEST_SHARE)

    def loss(self, batch: LabelledBatch, student: SequenceModel, expert: Expert) -> Tensor:
        """Return the divergence from the teacher's distribution on all prefixes."""
        divergence = self.divergence or forward_kl
        return loss_for(self.label, divergence, batch.trajectories, student, expert)


@dataclass(frozen=True)
class AdaSwitch(Agent):
    """Distillation along texts that the student begins and the teacher may finish.

    Roll-in: the student draws tokens until the divergence from the teacher is `factor` times its
    recent mean; from that token on the teacher draws. Label: the teacher's distribution.
    Loss: forward KL.
    Differs from the paper in: `factor`, which is found by the share of the teacher's tokens that
    SWITCH's paper has, and `window`, a choice of ours.

    Attributes:
        sampling: how the student writes; None for greedy.
        expert_sampling: how the teacher writes; None for greedy.
        factor: multiple of the mean divergence, above 0, at which the teacher takes over; None for
            the one at which it writes `expert_share`.
        expert_share: share of the tokens of the run's first batch that the teacher writes, in
            [0, 1]; less where texts are hardly longer than `window`; of no meaning with a `factor`.
        window: number of divergences in that mean, at least 1; as many first tokens are the
            student's.
        label: what is learned of the teacher's distribution; less is no longer the paper's.
        divergence: mixture of forward and reverse KL in place of forward KL; None for forward KL.

    Source: Peng et al. 2025, arXiv:2510.07842.
    """

    queries_while_writing = True
    expects_trained_student = True
    learns_without_references = True
    sampling: Sampling | None = field(default_factory=Sampling)
    expert_sampling: Sampling | None = field(default_factory=Sampling)
    factor: float | None = None
    expert_share: float = PAPER_SHARE
    window: int = 5
    label: Label = field(default_factory=Dense, kw_only=True)
    divergence: KLMixture | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        check_divergence(self.label, self.divergence or forward_kl)
        if self.factor is not None and not self.factor > 0:
            raise ValueError(
                f"factor must be above 0, got {self.factor}; raise it to let the student write more"
            )
        check_shares(self, "expert_share")
        check_at_least(self, window=1)

    def calibrate(self, context: Context) -> float:
        """Return the factor: the one that is given, or the one found by the teacher's share."""
        if self.factor is not None:
            return self.factor
        return calibrated_threshold(context, self.expert_share, self.write, self.score)

    def collect(self, context: Context) -> LabelledBatch:
        """Write by the student up to the leap of the divergence, and by the teacher from it on."""
        found = context.calibration
        return self.write(context, self.calibrate(context) if found is None else found)

    def write(self, context: Context, factor: float) -> LabelledBatch:
        """Return texts in which `factor` times the mean is a leap, and the teacher's logits."""
        env = context.env
        behavior = Gated(
            gate=OneWaySwitch((env.num_envs, self.window), factor, env.device),
            student=token_sampler(self.sampling, context),
            expert=token_sampler(self.expert_sampling, context),
        )
        return rollout(context, behavior, record_expert_logits=True)

    def score(self, context: Context, logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """Return the (B, T) largest multiple of the recent mean up to each token."""
        del context
        divergence, window = by_parts(forward_kl, logits, teacher_logits), self.window
        multiple = torch.zeros_like(divergence)
        if divergence.shape[1] > window:
            mean = divergence[:, :-1].unfold(1, window, 1).mean(2).clamp(min=SMALLEST_MEAN)
            multiple[:, window:] = divergence[:, window:] / mean
        return multiple.cummax(1).values

    def loss(self, batch: LabelledBatch, student: SequenceModel, expert: Expert) -> Tensor:
        """Return the divergence from the teacher's distribution on all prefixes."""
        divergence = self.divergence or forward_kl
        return loss_for(self.label, divergence, batch.trajectories, student, expert)
