"""MiniLLM: the reverse KL of whole texts by policy gradient, with one step's part exact.

What a token costs now is known exactly, summed over the vocabulary; what it leads to is known from
the text that was written. It is for a student that writes already: the rewards of a poor one's
tokens are all far below zero, so that it learns to end its texts at once. Left out: several passes
over one rollout, whose clipped ratio would follow the student as it changes (here each rollout is
used for one update); the loss on pre-training text; the scaling of rewards.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from textgen_agents.bases import WithExpert
from textgen_agents.losses.divergences import cross_entropy, masked_mean, reverse_kl
from textgen_agents.rollouts.behaviors import Behavior, Gated, coins_for, token_sampler
from textgen_env.envs.vector_env import TextGenVectorEnv
from textgen_env.experts.expert import Expert
from textgen_env.generation.decoding import Sampling
from textgen_env.models.sequence_model import SequenceModel
from textgen_env.types import Trajectories

LARGEST_REWARD = 100.0  # nats, either way; the authors'


@dataclass(frozen=True)
class MiniLLM(WithExpert):
    """Lower the reverse KL from the teacher, now and in the rest of the text.

    Roll-in: a coin for each token, a draw of the teacher with probability `beta`, of the student
    otherwise. Label: the teacher's distribution, and its log-probability of what comes after.
    Loss: with p the teacher, q the student, m = beta p + (1 - beta) q what was drawn from,
    w = q / m and R the mean of log p - log q over the later tokens: w KL(q || p) - w' R, where the
    gradient flows through KL and through w', which is w, clipped where R would push it further.
    Differs from the paper in: what the module says is left out; later rewards are discounted as in
    the authors' program.

    Attributes:
        beta: probability that the teacher writes a token, in [0, 1).
        discount: of a reward for each token in between, in [0, 1].
        clip_range: how far w may be from 1 and still be changed, at least 0.

    Source: Gu et al. 2024, section 2.2 and algorithm 1, arXiv:2306.08543.
    """

    beta: float = 0.2
    discount: float = 0.95
    clip_range: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.beta < 1:
            raise ValueError(
                f"beta must be in [0, 1), got {self.beta}; at 1 the student would write nothing: "
                "use f_distill"
            )
        if not 0 <= self.discount <= 1:
            raise ValueError(f"discount must be in [0, 1], got {self.discount}")
        if not self.clip_range >= 0:
            raise ValueError(f"clip_range must be at least 0, got {self.clip_range}")

    def behavior(self, env: TextGenVectorEnv, generator: torch.Generator) -> Behavior:
        """Student and expert write, as a coin for each token says."""
        return Gated(
            gate=coins_for(env, self.beta, generator),
            student=token_sampler(Sampling(), env, generator),
            expert=token_sampler(Sampling(), env, generator),
        )

    def loss(self, trajectories: Trajectories, student: SequenceModel, expert: Expert) -> Tensor:
        """Exact reverse KL of this token, policy gradient for those after it."""
        teacher_logits = expert.logits(trajectories)
        logits = student.sequence_logits(trajectories.source, trajectories.actions)
        log_prob = -cross_entropy(logits, trajectories.actions)
        then = log_prob.detach()  # but for dropout the student is as it was when it wrote
        reward = -cross_entropy(teacher_logits, trajectories.actions) - then
        reward = reward.clamp(-LARGEST_REWARD, LARGEST_REWARD)
        weight = 1 / (1 - self.beta + self.beta * reward.exp())
        ratio = weight * (log_prob - then).exp()
        clipped = ratio.clamp(1 - self.clip_range, 1 + self.clip_range)
        later = mean_later_reward(reward, trajectories.mask, self.discount)
        gain = torch.minimum(ratio * later, clipped * later)
        return masked_mean(weight * reverse_kl(logits, teacher_logits) - gain, trajectories.mask)


def mean_later_reward(reward: Tensor, mask: Tensor, discount: float) -> Tensor:
    """(B, T), at each step the discounted sum of the rewards after it / their number; 0 if none.

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
