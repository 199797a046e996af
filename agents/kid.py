"""KID: references with the student's likely mistakes in them, at the price of one forward pass.

The student does not write on from its mistakes, so no environment is stepped: its token at each
position is guessed from the reference's prefix.
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from textgen_agents.agent import Agent
from textgen_agents.losses.divergences import reverse_kl
from textgen_agents.losses.labels import (
    Dense,
    Label,
    LabelledBatch,
    Labels,
    check_divergence,
    check_smoothing,
)
from textgen_agents.losses.objectives import data_actions, loss_for, token_loss
from textgen_agents.losses.state_chunks import StateChunk, label_states
from textgen_agents.rollouts.behaviors import bernoulli_mask
from textgen_agents.rollouts.context import Context
from textgen_agents.rollouts.rollout import data_rollout
from textgen_env.bounds import check_at_least, check_shares
from textgen_env.experts.expert import Expert
from textgen_env.generation.decoding import logits_from, next_action
from textgen_env.models.sequence_model import SequenceModel
from textgen_env.types import Writer


@dataclass(frozen=True)
class KID(Agent):
    """Training on references, and distillation along references that the student has spoiled.

    Roll-in: references, with `student_fraction` of the tokens replaced by the student's most
    probable one after the reference's prefix. Label: the reference's token after its own prefixes,
    the teacher's distribution on the spoiled ones. Loss: cross-entropy + `weight` * reverse KL,
    each a mean over positions.
    Differs from the paper in: a token is not hidden from the student before it is replaced, since
    the student has no mask token; the end token is neither replaced nor put in; the weight is a
    choice of ours.

    Attributes:
        student_fraction: probability that a token is replaced, in [0, 1].
        weight: of the reverse KL, at least 0.
        label: what the teacher is asked; less than its distribution is no longer the paper's.
        label_smoothing: share of the reference's token spread evenly over the vocabulary in the
            cross-entropy, in [0, 1).

    Source: Zhong et al. 2024, arXiv:2410.11371.
    """

    student_writes = False
    student_fraction: float = 0.2
    weight: float = 1.0
    label: Label = field(default_factory=Dense, kw_only=True)
    label_smoothing: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        check_smoothing(self.label_smoothing)
        check_divergence(self.label, reverse_kl)
        check_shares(self, "student_fraction")
        check_at_least(self, "0 is mle", weight=0)

    def collect(self, context: Context) -> LabelledBatch:
        """Return references with some of the student's tokens in them, from one forward pass."""
        env, states = context.env, data_rollout(context).trajectories

        def propose(at: StateChunk) -> Labels:
            with logits_from("student"):
                best = next_action(at.student_logits, special=env.special, mask=at.mask)
            return {"best": best}

        proposals = label_states(propose, LabelledBatch(states), context.student)["best"]
        count = len(states) * env.max_steps
        kept = bernoulli_mask(1 - self.student_fraction, count, context.generator)
        chosen = ~kept.view(len(states), -1)[:, : states.actions.shape[1]].to(env.device)
        ends = (states.actions == env.special.end) | (proposals == env.special.end)
        replaced = chosen & states.mask & ~ends
        spoiled = replace(
            states,
            actions=proposals.where(replaced, states.actions),
            writer=torch.where(replaced, Writer.STUDENT, Writer.DATA),
        )
        return LabelledBatch(spoiled)

    def loss(self, batch: LabelledBatch, student: SequenceModel, expert: Expert) -> Tensor:
        """Return cross-entropy on the references + weight * reverse KL on the spoiled texts."""
        states, smoothing = batch.trajectories, self.label_smoothing
        references = replace(states, actions=data_actions(states, student.special))
        divergence = loss_for(self.label, reverse_kl, states, student, expert)
        likelihood = token_loss(references, student, references.actions, label_smoothing=smoothing)
        return likelihood + self.weight * divergence
