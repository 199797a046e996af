"""MiniLLM: the reverse KL of whole texts by policy gradient, with the present step's part exact.

The cost of a token itself is summed over the vocabulary; the cost of its consequences is known from
the text that was written. The student must write already: of a poor one's texts, which are all far
from the teacher's, the short ones fare best. Left out: several passes over one rollout, whose
clipped ratio would follow the student as it changes (here each rollout is used for one update); the
loss on pre-training text; the scaling of rewards.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from textgen_agents.agent import Agent
from textgen_agents.losses.divergences import cross_entropy, reverse_kl
from textgen_agents.losses.labels import LabelledBatch, Labels
from textgen_agents.losses.state_chunks import StateChunk, label_states, mean_over_states
from textgen_agents.rollouts.behaviors import Gated, token_mask, token_sampler
from textgen_agents.rollouts.context import Context
from textgen_agents.rollouts.rollout import rollout
from textgen_env.bounds import check_at_least, check_shares
from textgen_env.experts.expert import Expert
from textgen_env.generation.sampling import Sampling
from textgen_env.models.sequence_model import SequenceModel
from textgen_env.types import Trajectories

LARGEST_REWARD = 100.0  # nats, either way; the authors'
SMALLEST_DEVIATION = 1e-4  # nats, of rewards; where all are alike there is nothing to learn


@dataclass(frozen=True)
class MiniLLM(Agent):
    """Minimization of the reverse KL from the teacher, of each token and of the text after it.

    Roll-in: each token drawn by the teacher with probability `beta`, else by the student. Label:
    the teacher's distribution, and its log-probability of the tokens that come after.
    Loss: with p the teacher, q the student, m = beta p + (1 - beta) q the law that was drawn from,
    w = q / m as it was when the text was written and R the mean of log p - log q over this and the
    later tokens: w KL(q || p) - w' A, where A is R less its mean and divided by its standard
    deviation, both over the whole batch of the update, and w' is w times what q has changed by,
    clipped where A would push it further.
    Differs from the paper in: what the module says is left out; the token's own reward in R, the
    discount and A are the authors' program's, where the paper has the sum of later rewards.

    Attributes:
        beta: probability that the teacher writes a token, in [0, 1).
        discount: factor of a reward for each token in between, in [0, 1].
        clip_range: largest distance of w' from 1 at which it is still changed, at least 0.

    Source: Gu et al. 2024, section 2.2 and algorithm 1, arXiv:2306.08543.
    """

    queries_while_writing = True
    expects_trained_student = True
    learns_without_references = True
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
        batch = rollout(context, behavior, record_expert_logits=True)
        found = label_states(log_probs_of_actions, batch, context.student)
        decided = self.decide(batch.trajectories, found, context.gather)
        return replace(batch, labels={**batch.labels, **decided})

    def decide(
        self, states: Trajectories, log_probs: Labels, gather: Callable[[Tensor], Tensor]
    ) -> Labels:
        """Return what the whole batch of an update says about each of its tokens, (B, T) each.

        Args:
            states: of the texts.
            log_probs: those of the tokens, as `log_probs_of_actions` names them, (B, T) each.
            gather: that of the context.
        """
        reward = log_probs["teacher"] - log_probs["student"]
        reward = reward.clamp(-LARGEST_REWARD, LARGEST_REWARD)
        value = mean_reward_to_go(reward, states.mask, self.discount)
        every = gather(value[states.mask])
        return {
            "log_prob": log_probs["student"],
            "weight": 1 / (1 - self.beta + self.beta * reward.exp()),
            "advantage": (value - every.mean()) / (every.std(correction=0) + SMALLEST_DEVIATION),
        }

    def loss(self, batch: LabelledBatch, student: SequenceModel, expert: Expert) -> Tensor:
        """Return the exact reverse KL of each token and the policy gradient for those after it."""
        return mean_over_states(self.losses, batch, student, expert)

    def losses(self, at: StateChunk) -> Tensor:
        """Return w KL(q || p) less the clipped gain of each token, (K,) float32."""
        weight, advantage = at.labels["weight"], at.labels["advantage"]
        log_prob = -cross_entropy(at.student_logits, at.actions)
        ratio = weight * (log_prob - at.labels["log_prob"]).exp()
        clipped = ratio.clamp(1 - self.clip_range, 1 + self.clip_range)
        gain = torch.minimum(ratio * advantage, clipped * advantage)
        return weight * reverse_kl(at.student_logits, at.teacher_logits) - gain


def log_probs_of_actions(at: StateChunk) -> Labels:
    """Return the log-probability of each token written, of either model, (K,) float32, nats."""
    return {
        "student": -cross_entropy(at.student_logits, at.actions),
        "teacher": -cross_entropy(at.teacher_logits, at.actions),
    }


def mean_reward_to_go(reward: Tensor, mask: Tensor, discount: float) -> Tensor:
    """Return the discounted sum of the rewards from each step on / their number, (B, T).

    Args:
        reward: (B, T) float.
        mask: (B, T) bool, the steps that count.
        discount: of a reward for each step between it and the one it is counted at.
    """
    total, sums = torch.zeros_like(reward[:, 0]), []
    for now in reward.where(mask, 0.0).flip(1).unbind(1):
        total = now + discount * total
        sums.append(total)
    number = mask.sum(1, keepdim=True) - mask.cumsum(1) + 1
    return torch.stack(sums, 1).flip(1) / number
