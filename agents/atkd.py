"""ATKD: tokens that the teacher is sure of are taught by what it says about the others."""

from dataclasses import dataclass

import torch
from torch import Tensor

from textgen_agents.agent import Agent
from textgen_agents.losses.divergences import chunked
from textgen_agents.losses.labels import LabelledBatch
from textgen_agents.losses.state_chunks import StateChunk, mean_over_states
from textgen_agents.losses.topk import atkd_split, rest_prob
from textgen_agents.rollouts.behaviors import Gated, token_mask, token_sampler
from textgen_agents.rollouts.context import Context
from textgen_agents.rollouts.rollout import rollout
from textgen_env.bounds import check_at_least, check_shares
from textgen_env.experts.expert import Expert
from textgen_env.generation.sampling import Sampling
from textgen_env.models.sequence_model import SequenceModel


@dataclass(frozen=True)
class ATKD(Agent):
    """Distillation that treats tokens the teacher is sure of otherwise than those it doubts.

    Roll-in: each token by student or teacher, who write their most probable one.
    Label: the teacher's distribution. Loss: with w the `easy_weight`, where the teacher's doubt
    about the token written is below the median, 2 w times the forward KL among all other tokens;
    elsewhere 2 (1 - w) times the sum of that and the one about writing the token or not.
    Differs from the paper in: a draw for each token of each text (its program: for each position of
    the whole batch); one mean over all tokens (there one over each half).

    Attributes:
        sampling: how the student writes; None for greedy.
        expert_sampling: how the teacher writes; None for greedy.
        student_fraction: probability that the student writes a token, in [0, 1].
        easy_weight: w, in [0, 1].
        block: neighboring tokens that share a draw, at least 1.

    Source: Zhong et al. 2024, arXiv:2402.11890.
    """

    queries_while_writing = True
    expects_trained_student = True
    learns_without_references = True
    sampling: Sampling | None = None
    expert_sampling: Sampling | None = None
    student_fraction: float = 0.5
    easy_weight: float = 0.2
    block: int = 1

    def __post_init__(self) -> None:
        check_shares(self, "student_fraction", "easy_weight")
        check_at_least(self, "1 is a draw for each token", block=1)

    def collect(self, context: Context) -> LabelledBatch:
        """Write each token by student or teacher, and keep the teacher's distribution."""
        behavior = Gated(
            gate=token_mask(context, 1 - self.student_fraction, self.block),
            student=token_sampler(self.sampling, context),
            expert=token_sampler(self.expert_sampling, context),
        )
        batch = rollout(context, behavior, record_expert_logits=True)
        states, logits = batch.trajectories, batch.labels["logits"]
        doubt = chunked(rest_prob, logits, states.actions)
        easy = doubt < context.gather(doubt[states.mask]).median()  # of the whole update
        return LabelledBatch(states, {**batch.labels, "easy": easy})

    def loss(self, batch: LabelledBatch, student: SequenceModel, expert: Expert) -> Tensor:
        """Return the mean of the losses of easy and of hard tokens."""
        return mean_over_states(self.losses, batch, student, expert)

    def losses(self, at: StateChunk) -> Tensor:
        """Return the loss of each token, as it is easy or hard, (K,) float32."""
        easy, weight = at.labels["easy"], self.easy_weight
        about, others = atkd_split(at.student_logits, at.teacher_logits, at.actions)
        return 2 * torch.where(easy, weight * others, (1 - weight) * (about + others))
