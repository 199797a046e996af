"""Diversity-rewarded distillation of guidance: a guided teacher's quality at the price of one pass.

A teacher's logits are extrapolated away from those that it gives without the source
(classifier-free guidance), which asks it twice at each step. The student learns the guided
distribution on its own texts; since guidance narrows it, two texts of one source are rewarded for
what they do not share. Left out: merging the weights of students of several rewards.
"""

from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from textgen_agents.agent import Agent
from textgen_agents.losses.divergences import cross_entropy, reverse_kl
from textgen_agents.losses.labels import LabelledBatch
from textgen_agents.losses.state_chunks import StateChunk, mean_over_states
from textgen_agents.rollouts.context import Context
from textgen_agents.rollouts.rollout import student_rollout
from textgen_env.bounds import check_at_least
from textgen_env.experts.expert import Expert
from textgen_env.generation.sampling import Sampling
from textgen_env.models.sequence_model import SequenceModel
from textgen_env.types import SpecialTokens, Trajectories


@dataclass(frozen=True)
class DiverseCFG(Agent):
    """Distillation of a guided teacher on the student's texts, with a reward for their variety.

    Roll-in: the student draws two texts of each source. Label: the teacher's guided distribution,
    the softmax of l0 + `guidance` (l - l0), with l its logits and l0 those after an empty source.
    Loss: reverse KL, minus `diversity_weight` times A log q of each token written, where A is 1
    less the cosine of the two texts, less its mean over the whole batch of the update.
    Differs from the paper in: texts are compared as counts of their bigrams, not by a learned
    embedding; an empty source stands for none, of which the teacher knows as much as it was
    trained to; the baseline of the reward. Guidance 3 and weight 1, which nothing that was read
    gives, are choices.

    Attributes:
        guidance: gamma, at least 0; 1 is the teacher itself, and 0 the teacher without a source.
        diversity_weight: of the reward, at least 0.
        sampling: how the student draws.

    Source: Cideron et al. 2024, arXiv:2410.06084; guidance: Ho and Salimans 2022, arXiv:2207.12598.
    """

    expects_trained_student = True
    learns_without_references = True
    guidance: float = 3.0
    diversity_weight: float = 1.0
    sampling: Sampling = field(default_factory=Sampling)

    def __post_init__(self) -> None:
        check_at_least(self, "1 is the teacher itself", guidance=0)
        check_at_least(self, "0 is no reward", diversity_weight=0)

    def collect(self, context: Context) -> LabelledBatch:
        """Return two texts of each source, guided logits, and the advantage of their variety."""
        env = context.env
        parts = [student_rollout(context, self.sampling) for _ in range(2)]
        states = LabelledBatch.cat(parts, env.special).trajectories
        logits = guided_logits(states, env.expert, self.guidance)
        rows = torch.arange(len(states), device=env.device)
        one, other = (states.select(half) for half in rows.chunk(2))
        variety = 1 - bigram_cosine(one, other, env.special)
        advantage = (variety - context.gather(variety).mean()).repeat(2)[:, None]
        return LabelledBatch(
            states, {"logits": logits, "advantage": advantage.expand(states.mask.shape)}
        )

    def loss(self, batch: LabelledBatch, student: SequenceModel, expert: Expert) -> Tensor:
        """Return the reverse KL from the guided teacher less the reward's policy gradient."""
        return mean_over_states(self.losses, batch, student, expert)

    def losses(self, at: StateChunk) -> Tensor:
        """Return the reverse KL of each state less the gain of its token, (K,) float32."""
        divergence = reverse_kl(at.student_logits, at.teacher_logits)
        gain = -at.labels["advantage"] * cross_entropy(at.student_logits, at.actions)
        return divergence - self.diversity_weight * gain


def guided_logits(states: Trajectories, expert: Expert, guidance: float) -> Tensor:
    """Return l0 + guidance (l - l0), (B, T, V) float32; it asks the expert twice.

    Args:
        states: of the texts.
        expert: reads its view of the sources, and an end token alone in place of them.
        guidance: 1 for the expert's own logits l, 0 for l0, those without source.
    """
    nothing = torch.full_like(states.source[:, :1], expert.special.end)
    without = expert.logits(replace(states, expert_source=nothing)).float()
    return without + guidance * (expert.logits(states).float() - without)


def bigram_cosine(one: Trajectories, other: Trajectories, special: SpecialTokens) -> Tensor:
    """Return the cosine of two texts as counts of their bigrams, (B,) float32, in [0, 1].

    A text begins with the start token and ends with the end token, if it was written.

    Args:
        one: a text of each of B sources.
        other: another of each.
        special: ids of padding, start and end.
    """
    cross = _shared_bigrams(one, other, special).float()
    own = [_shared_bigrams(each, each, special).float() for each in (one, other)]
    return cross / (own[0] * own[1]).sqrt()


def _shared_bigrams(one: Trajectories, other: Trajectories, special: SpecialTokens) -> Tensor:
    """Return the inner product of the counts of bigrams of two texts, (B,) int64."""
    equal = one.mask[:, :, None] & other.mask[:, None, :]
    for left, right in (
        (one.actions, other.actions),
        (_previous(one.actions, special), _previous(other.actions, special)),
    ):
        equal = equal & (left[:, :, None] == right[:, None, :])
    return equal.sum((1, 2))


def _previous(actions: Tensor, special: SpecialTokens) -> Tensor:
    """Return the token before each of (B, T) actions; the start token before the first."""
    return F.pad(actions[:, :-1], (1, 0), value=special.start)
