"""IQ-Learn as a regularizer: the student's logits as values that agree from token to token.

Inverse reinforcement learning from the data alone. A logit is read as the value of an action, the
log of the sum of their exponentials as the value of a state; cross-entropy makes the data's actions
good, the regularizer keeps the reward that this implies small. Cross-entropy leaves open what is
added to all logits, so the values have an offset of their own; where the output layer has no bias
the logits could not supply it. Left out: the online version.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from textgen_agents.agent import Agent, LearnsFrom
from textgen_agents.losses.divergences import cross_entropy
from textgen_agents.losses.labels import LabelledBatch, check_smoothing
from textgen_agents.losses.objectives import mean_over_actions
from textgen_agents.rollouts.context import Context
from textgen_agents.rollouts.rollout import data_rollout
from textgen_env.bounds import check_at_least, check_shares
from textgen_env.experts.expert import Expert
from textgen_env.models.sequence_model import SequenceModel
from textgen_env.types import SpecialTokens, Trajectories


@dataclass(frozen=True)
class IQLearn(Agent):
    """Train on gold pairs, with soft values that obey the Bellman equation.

    Roll-in: data. Label: the data's next token. Loss: cross-entropy plus `td_weight` times the
    squared error of Q(s, a) = discount V(s') with Q the logit of the data's token plus c, V the
    logsumexp of all logits plus c, and V = 0 after the end token. The offset c is the one of least
    squared error on the whole batch of the update, computed when it is collected.
    Differs from the paper in: nothing is learned online, no warm-up by cross-entropy alone.

    Attributes:
        td_weight: of the squared errors, at least 0.
        discount: of the next state's value, in [0, 1].
        label_smoothing: share of the label spread evenly over the vocabulary, in [0, 1).

    Source: Wulfmeier et al. 2024, arXiv:2409.01369; Garg et al. 2021, arXiv:2106.12142.
    """

    learns_from = LearnsFrom.REFERENCES
    student_writes = False
    td_weight: float = 0.1
    discount: float = 1.0
    label_smoothing: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        check_smoothing(self.label_smoothing)
        check_at_least(self, "0 is mle", td_weight=0)
        check_shares(self, "discount")

    def collect(self, context: Context) -> LabelledBatch:
        """Return the references as prefixes, with the offset of the student's values."""
        batch = data_rollout(context)
        if not self.td_weight:
            return batch
        states = batch.trajectories
        with torch.no_grad():
            logits = context.student.sequence_logits(states.source, states.actions)
        error, effect, known = bellman_error(logits, states, self.discount, context.env.special)
        error, effect = (context.gather(each[known]) for each in (error, effect))
        square = effect.square().sum()
        offset = torch.where(square > 0, -(error * effect).sum() / square, 0.0)
        return LabelledBatch(states, {"offset": offset.expand(states.mask.shape)})

    def loss(self, batch: LabelledBatch, student: SequenceModel, expert: Expert) -> Tensor:
        """Return the cross-entropy on the data's tokens and the errors of the values along them."""
        states = batch.trajectories
        logits = student.sequence_logits(states.source, states.actions)
        losses = cross_entropy(logits, states.actions, label_smoothing=self.label_smoothing)
        if self.td_weight:
            error, effect, known = bellman_error(logits, states, self.discount, expert.special)
            penalty = (error + batch.labels["offset"] * effect).square().where(known, 0.0)
            losses = losses + self.td_weight * penalty
        return mean_over_actions(losses, states)


def bellman_error(
    logits: Tensor, states: Trajectories, discount: float, special: SpecialTokens
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the errors of Q(s, a) = discount V(s') along the texts, all (B, T).

    Args:
        logits: (B, T, V) float, the student's.
        states: of the texts.
        discount: of the next state's value, in [0, 1].
        special: the tokens that end and fill texts.

    Returns:
        The errors without an offset; by how much each grows with the offset; and a bool mask of
        those that are known: a text cut off at the limit has a next state that was not recorded.
    """
    logits, ended = logits.float(), states.actions == special.end
    chosen = logits.gather(-1, states.actions[..., None]).squeeze(-1)
    following = F.pad(logits.logsumexp(-1)[:, 1:], (0, 1))
    error = chosen - discount * following.masked_fill(ended, 0.0)
    effect = 1 - discount * (~ended).to(error.dtype)
    return error, effect, states.mask & (F.pad(states.mask[:, 1:], (0, 1)) | ended)
