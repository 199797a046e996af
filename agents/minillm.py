"""MiniLLM: the reverse KL of whole texts by policy gradient, with the present step's part exact.

The cost of a token itself is summed over the vocabulary; the cost of its consequences is known from
the text that was written. The student must write already: the rewards of a poor one's tokens are
all far below zero, so that it learns to end its texts at once. Left out: several passes over one
rollout, whose clipped ratio would follow the student as it changes (here each rollout is used for
one update); the loss on pre-training text; the scaling of rewards.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from textgen_agents.agent import Agent
from textgen_agents.losses.divergences import cross_entropy, masked_mean, reverse_kl
from textgen_agents.losses.labels import LabelledBatch
from textgen_agents.rollouts.behaviors import Gated, token_mask, token_sampler
from textgen_agents.rollouts.context import Context
from textgen_agents.rollouts.rollout import rollout
from textgen_env.bounds import check_at_least, check_shares
from textgen_env.experts.expert import Expert
from textgen_env.generation.decoding import Sampling
from textgen_env.models.sequence_model import SequenceModel

LARGEST_REWARD = 100.0  # nats, either way; the authors'


@dataclass(frozen=True)
class MiniLLM(Agent):
    """Minimization of the reverse KL from the teacher, of each token and of the text after it.

    Roll-in: each token drawn by the teacher with probability `beta`, else by the student. Label:
    the teacher's distribution, and its log-probability of the tokens that come after.
    Loss: with p the teacher, q the student, m = beta p + (1 - beta) q the law that was drawn from,
    w = q / m and R the mean of log p - log q over the later tokens: w KL(q || p) - w' R, where the
    gradient flows through KL and through w', which is w, clipped where R would push it further.
    Differs from the paper in: what the module says is left out; later rewards are discounted as in
    the authors' program.

    Attributes:
        beta: probability that the teacher writes a token, in [0, 1).
        discount: factor of a reward for each token in between, in [0, 1].
        clip_range: largest distance of w from 1 at which it is still changed, at least 0.

    Source: Gu et al. 2024, section 2.2 and algorithm 1, arXiv:2306.08543.
    """

    queries_while_writing = True
    expects_trained_student = True
    learning_rate_factor = 0.1
    beta: float = 0.2
    discount: float = 0.95
    clip_range: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.beta < 1:
            raise ValueError(
                f"beta must be in [0, 1), got {self.beta}; at 1 the student would write nothing: "
                "use f_distill"
            )
        check_shares(self, "discount")
        check_at_least(self, clip_range=0)

    def collect(self, context: Context) -> LabelledBatch:
        """Draw each token by student or teacher, and keep the teacher's distribution."""
        behavior = Gated(
            gate=token_mask(context, self.beta),
            student=token_sampler(Sampling(), context),
            expert=token_sampler(Sampling(), context),
        )
        return rollout(context, behavior, record_expert_logits=True)

    def loss(self, batch: LabelledBatch, student: SequenceModel, expert: Expert) -> Tensor:
        """Return the exact reverse KL of each token and the policy gradient for those after it."""
        states = batch.trajectories
        teacher_logits = expert.logits(states)
        logits = student.sequence_logits(states.source, states.actions)
        log_prob = -cross_entropy(logits, states.actions)
        then = log_prob.detach()  # that of writing, but for dropout
        reward = -cross_entropy(teacher_logits, states.actions) - then
        reward = reward.clamp(-LARGEST_REWARD, LARGEST_REWARD)
        weight = 1 / (1 - self.beta + self.beta * reward.exp())
        ratio = weight * (log_prob - then).exp()
        clipped = ratio.clamp(1 - self.clip_range, 1 + self.clip_range)
        later = mean_later_reward(reward, states.mask, self.discount)
        gain = torch.minimum(ratio * later, clipped * later)
        return masked_mean(weight * reverse_kl(logits, teacher_logits) - gain, states.mask)


def mean_later_reward(reward: Tensor, mask: Tensor, discount: float) -> Tensor:
    """Return the discounted sum of the rewards after each step / their number; 0 if none, (B, T).

    Args:
        reward: (B, T) float.
        mask: (B, T) bool, the steps that count.
        discount: of a reward for each step between it and the one before it.
    """
    total, sums = torch.zeros_like(reward[:, 0]), []
    for now in reward.where(mask, 0.0).flip(1).unbind(1):
        sums.append(total)
        total = now + discount * total
    number = mask.sum(1, keepdim=True) - mask.cumsum(1)
    return torch.stack(sums, 1).flip(1) / number.clamp(min=1)
