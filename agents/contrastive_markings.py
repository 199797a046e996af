"""Contrastive markings: the student's own tokens are marked right or wrong by the reference.

No teacher is asked and no human marks: a token of the student's text is right if it belongs to a
longest common subsequence with the reference. Right ones are made more probable on the student's
own prefix, wrong ones less.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from textgen_agents.agent import Agent, LearnsFrom
from textgen_agents.losses.divergences import LOG_ZERO, cross_entropy
from textgen_agents.losses.labels import LabelledBatch
from textgen_agents.losses.state_chunks import StateChunk, mean_over_states
from textgen_agents.losses.topk import log_rest_prob
from textgen_agents.rollouts.context import Context
from textgen_agents.rollouts.rollout import data_rollout, student_rollout
from textgen_env.bounds import check_at_least
from textgen_env.envs.text_metrics import TokenTexts, common_tokens
from textgen_env.experts.expert import Expert
from textgen_env.generation.sampling import Sampling
from textgen_env.models.sequence_model import SequenceModel
from textgen_env.types import SpecialTokens, Trajectories, Writer


@dataclass(frozen=True)
class ContrastiveMarkings(Agent):
    """Training on references and on the student's texts, marked by what they share with these.

    Roll-in: for each example the reference and a text of the student; both come into one batch.
    Label: the reference's tokens; for a token of the student, right or wrong. Loss: cross-entropy
    on the reference, `right_weight` times that of right tokens, and `wrong_weight` times the
    unlikelihood -log (1 - q) of wrong ones; one mean over the tokens of both texts.
    Differs from the paper in: texts are written for each batch, not once an epoch; wrong tokens are
    lowered by unlikelihood, whose gradient stays bounded, not by a negative weight; both weights,
    which nothing that was read gives, are 0.5 by choice; of several longest common subsequences
    the one counts that ends first in the student's text; the end token is a token like others.

    Attributes:
        sampling: how the student writes; None for greedy.
        right_weight: of the student's right tokens, at least 0.
        wrong_weight: of the student's wrong tokens, at least 0.

    Source: Berger et al. 2023, arXiv:2307.08416; unlikelihood: Welleck et al. 2020,
    arXiv:1908.04319.
    """

    learns_from = LearnsFrom.REFERENCES
    expects_trained_student = True
    sampling: Sampling | None = None
    right_weight: float = 0.5
    wrong_weight: float = 0.5

    def __post_init__(self) -> None:
        check_at_least(self, "0 leaves these tokens out", right_weight=0, wrong_weight=0)

    def collect(self, context: Context) -> LabelledBatch:
        """Return the references, then the student's texts with their right tokens marked."""
        parts = [data_rollout(context), student_rollout(context, self.sampling)]
        states = LabelledBatch.cat(parts, context.env.special).trajectories
        return LabelledBatch(states, {"right": right_tokens(states, context.env.special)})

    def loss(self, batch: LabelledBatch, student: SequenceModel, expert: Expert) -> Tensor:
        """Return the mean of likelihood and unlikelihood over the tokens of both texts."""
        del expert
        return mean_over_states(self.losses, batch, student)

    def losses(self, at: StateChunk) -> Tensor:
        """Return the loss of each token, by its writer and its mark, (K,) float32."""
        likelihood = cross_entropy(at.student_logits, at.actions)
        unlikelihood = -log_rest_prob(at.student_logits, at.actions).clamp(min=LOG_ZERO)
        marked = torch.where(
            at.labels["right"], self.right_weight * likelihood, self.wrong_weight * unlikelihood
        )
        return marked.where(at.writer == Writer.STUDENT, likelihood)


def right_tokens(states: Trajectories, special: SpecialTokens) -> Tensor:
    """Return a (B, T) bool mask of the tokens that a text shares with its reference, in order."""
    references = TokenTexts(states.reference, (states.reference != special.pad).sum(1))
    return common_tokens(TokenTexts(states.actions, states.mask.sum(1)), references)
