"""IQ-Learn as a regularizer: the student's logits as values that agree from token to token.

Inverse reinforcement learning from the data alone. A logit is read as the value of an action, the
log of the sum of their exponentials as the value of a state; cross-entropy makes the data's actions
good, the regularizer keeps the reward that this implies small. Left out: the online version.
"""

from dataclasses import dataclass, field

import torch.nn.functional as F
from torch import Tensor

from textgen_agents.agent import Agent, LearnsFrom
from textgen_agents.losses.divergences import cross_entropy, masked_mean
from textgen_agents.losses.labels import LabelledBatch, check_smoothing
from textgen_agents.rollouts.context import Context
from textgen_agents.rollouts.rollout import data_rollout
from textgen_env.bounds import check_at_least, check_shares
from textgen_env.experts.expert import Expert
from textgen_env.models.sequence_model import SequenceModel


@dataclass(frozen=True)
class IQLearn(Agent):
    """Train on gold pairs, with soft values that obey the Bellman equation.

    Roll-in: data. Label: the data's next token. Loss: cross-entropy plus `td_weight` times the
    squared error of Q(s, a) = discount V(s') with Q the logit of the data's token, V the logsumexp
    of all logits, and V = 0 after the end token.
    Differs from the paper in: nothing is learned online, no warm-up by cross-entropy alone.

    Attributes:
        td_weight: of the squared errors, at least 0.
        discount: of the next state's value, in [0, 1].
        label_smoothing: share of the label spread evenly over the vocabulary, in [0, 1).

    Source: Wulfmeier et al. 2024, arXiv:2409.01369; Garg et al. 2021, arXiv:2106.12142.
    """

    learns_from = LearnsFrom.REFERENCES
    td_weight: float = 0.1
    discount: float = 1.0
    label_smoothing: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        check_smoothing(self.label_smoothing)
        check_at_least(self, "0 is mle", td_weight=0)
        check_shares(self, "discount")

    def collect(self, context: Context) -> LabelledBatch:
        """Return the references as prefixes."""
        return data_rollout(context)

    def loss(self, batch: LabelledBatch, student: SequenceModel, expert: Expert) -> Tensor:
        """Return the cross-entropy on the data's tokens and the errors of the values along them."""
        states = batch.trajectories
        actions, mask = states.actions, states.mask
        logits = student.sequence_logits(states.source, actions).float()
        ended = actions == expert.special.end
        chosen = logits.gather(-1, actions[..., None]).squeeze(-1)
        following = F.pad(logits.logsumexp(-1)[:, 1:], (0, 1))
        error = chosen - self.discount * following.masked_fill(ended, 0.0)
        # A text cut off at the limit has a next state that was not recorded: no error there.
        known = F.pad(mask[:, 1:], (0, 1)) | ended
        penalty = error.square().where(known, 0.0)
        losses = cross_entropy(logits, actions, label_smoothing=self.label_smoothing)
        return masked_mean(losses + self.td_weight * penalty, mask)
