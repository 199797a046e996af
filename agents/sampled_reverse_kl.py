"""Reverse KL of the written tokens alone, as an advantage with importance sampling.

The student's texts are learned from as in reinforcement learning, with the teacher's and the
student's log-probability of each written token in place of a reward: the expected gradient at a
state is that of the whole reverse KL, at the price of one number of the teacher's for each token.
Left out: consequences of a token for later ones (the discount is 0), a baseline, the ratio's lower
clip.
"""

from dataclasses import dataclass, field

from torch import Tensor

from textgen_agents.agent import Agent
from textgen_agents.losses.divergences import cross_entropy
from textgen_agents.losses.labels import LabelledBatch
from textgen_agents.losses.state_chunks import StateChunk, mean_over_states
from textgen_agents.rollouts.context import Context
from textgen_agents.rollouts.rollout import student_rollout
from textgen_env.bounds import check_at_least
from textgen_env.experts.expert import Expert
from textgen_env.generation.sampling import Sampling
from textgen_env.models.sequence_model import SequenceModel

LARGEST_ADVANTAGE = 100.0  # nats, either way; of a token that one of the two cannot write


@dataclass(frozen=True)
class SampledReverseKL(Agent):
    """Policy gradient whose reward for a token is what the teacher thinks of it.

    Roll-in: the student draws every text. Label: the teacher's log-probability of each written
    token.
    Loss: with p the teacher, q the student and m the distribution that the token a was drawn from,
    -w A log q(a), where A = -(log q(a) - log p(a)) and w = min(q(a) / m(a), `ratio_clip`) are held
    fixed. Its value is w (log q(a) - log p(a)), an estimate of KL(q || p) that may be negative.
    Differs from the source in: q in A is the student as it is now, not as it was when it wrote, so
    that the expected gradient is that of the reverse KL however old the text is; the ratio is
    clipped.

    Attributes:
        sampling: how the student writes.
        ratio_clip: largest importance weight, at least 1; infinity does not clip.
        batches_per_rollout: M, batches whose texts are written together. A text is learned from up
            to M - 1 updates after it was written, which w makes up for.

    Source: Lu and Thinking Machines Lab 2025, "On-Policy Distillation",
        https://thinkingmachines.ai/blog/on-policy-distillation/; the clip: Ionides 2008,
        "Truncated importance sampling".
    """

    expects_trained_student = True
    learns_without_references = True
    learning_rate_factor = 0.1
    sampling: Sampling = field(default_factory=Sampling)
    ratio_clip: float = 2.0
    batches_per_rollout: int = 1

    def __post_init__(self) -> None:
        check_at_least(self, batches_per_rollout=1)
        if not self.ratio_clip >= 1:
            raise ValueError(
                f"ratio_clip must be at least 1, got {self.ratio_clip}; infinity does not clip"
            )

    def collect(self, context: Context) -> LabelledBatch:
        """Draw every text from the student."""
        return student_rollout(context, self.sampling)

    def loss(self, batch: LabelledBatch, student: SequenceModel, expert: Expert) -> Tensor:
        """Return the surrogate whose gradient is that of the written tokens' reverse KL."""
        states = batch.trajectories
        written = LabelledBatch(states, {"behavior_log_prob": states.action_log_prob})
        return mean_over_states(self.losses, written, student, expert)

    def losses(self, at: StateChunk) -> Tensor:
        """Return the surrogate of each written token, (K,) float32."""
        log_prob = -cross_entropy(at.student_logits, at.actions)
        advantage = -cross_entropy(at.teacher_logits, at.actions) - log_prob.detach()
        return truncated_surrogate(
            log_prob,
            at.labels["behavior_log_prob"],
            advantage.clamp(-LARGEST_ADVANTAGE, LARGEST_ADVANTAGE),
            ratio_clip=self.ratio_clip,
        )


def truncated_surrogate(
    log_prob: Tensor, behavior_log_prob: Tensor, advantage: Tensor, *, ratio_clip: float
) -> Tensor:
    """Return a loss whose gradient is that of -w A log q, with its weight and advantage held fixed.

    With w = min(q / m, ratio_clip). In expectation over tokens drawn from m it is the policy
    gradient of A under q, as far as nothing is clipped. An advantage that is the same for all
    tokens of a state, as a divergence of the state is, has expected gradient 0: it teaches nothing.

    Args:
        log_prob: (...) float, nats, log q of the written tokens, with gradient.
        behavior_log_prob: (...) float, nats, log m of these tokens when they were written.
        advantage: (...) float, A; no gradient flows into it.
        ratio_clip: largest weight, at least 1.

    Returns:
        (...) float, of the value -w A.
    """
    fixed = log_prob.detach()
    weight = (fixed - behavior_log_prob).exp().clamp(max=ratio_clip)
    return -weight * advantage.detach() * (log_prob - fixed).exp()
