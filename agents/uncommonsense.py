"""UNcommonsense's imitation online: the expert mends whole texts of the student, which are kept.

The student writes a text, the expert reads it token by token and changes what it would not have
written, and the student learns all mended texts so far. Its offline twin, which learns what the
expert writes for the source alone, is `k` = 0.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from textgen_agents.agent import Agent, LearnsFrom
from textgen_agents.losses.labels import LabelledBatch, Top1
from textgen_agents.losses.objectives import token_loss
from textgen_agents.rollouts.behaviors import InTopK, StepView, TokenSampler, token_sampler
from textgen_agents.rollouts.buffer import Buffer, check_capacity
from textgen_agents.rollouts.context import Context
from textgen_agents.rollouts.rollout import rollout, student_rollout
from textgen_env.bounds import check_at_least, check_finite
from textgen_env.envs.vector_env import TextGenVectorEnv
from textgen_env.experts.expert import Expert
from textgen_env.generation.decoding import logits_from
from textgen_env.generation.sampling import Sampling
from textgen_env.models.sequence_model import SequenceModel
from textgen_env.types import SpecialTokens, Writer


@dataclass(frozen=True)
class UNcommonsense(Agent):
    """Cloning of the student's own texts, as the expert has mended them.

    Roll-in: the student writes a text; the expert reads it from the start and keeps each token that
    is among its k most probable after what was kept, and puts its most probable one in place of the
    others and after the text's end; the mended texts are added to the buffer, and as many are drawn
    from it. Label: the text's own token. Loss: cross-entropy.
    Differs from the paper in: a model of the student's kind mends by token, where the paper's
    expert, a large model, is shown the text and rewrites it freely; a round is a batch, not the
    data set; the student goes on learning between rounds, and the oldest texts are replaced once
    the buffer is full; k, which has no counterpart there, is 1 by choice.

    Attributes:
        k: the expert's tokens among which a token of the student's must be to stay, at least 0;
            at 0 every text is the expert's own, as it writes greedily.
        sampling: how the student writes; None for greedy.
        capacity: texts kept, at least those that are collected together. Each of several processes
            keeps its share.

    Source: Zhao et al. 2023, arXiv:2311.08469.
    """

    learns_from = LearnsFrom.TOKENS
    queries_while_writing = True
    expects_trained_student = True
    learns_without_references = True
    label = Top1()
    k: int = 1
    sampling: Sampling | None = None
    capacity: int = 8192

    def __post_init__(self) -> None:
        check_at_least(self, "0 keeps nothing of the student's", k=0)
        check_finite(self, "capacity")
        check_capacity(self.capacity)

    def make_buffer(self, env: TextGenVectorEnv, processes: int = 1) -> Buffer:
        """Return an empty buffer for this process."""
        return Buffer(env, capacity=self.capacity, label=self.label, processes=processes)

    def collect(self, context: Context) -> LabelledBatch:
        """Write by the student, let the expert mend, aggregate, and draw from the aggregate."""
        assert context.buffer is not None, "`make_buffer` makes one"
        context.buffer.add(self.mended(context), context.env.expert)
        drawn = context.buffer.draw(len(context.indices), context.generator)
        return LabelledBatch(drawn.trajectories)

    def loss(self, batch: LabelledBatch, student: SequenceModel, expert: Expert) -> Tensor:
        """Return the cross-entropy on the tokens of the mended texts."""
        del expert
        return token_loss(batch.trajectories, student, batch.trajectories.actions)

    def mended(self, context: Context) -> LabelledBatch:
        """Return new texts of the student as the expert has mended them, the tokens as labels."""
        draft = student_rollout(context, self.sampling).trajectories
        special = context.env.special
        behavior = Mending(draft.actions, InTopK(self.k), token_sampler(None, context), special)
        states = rollout(context, behavior, record_expert_logits=True).trajectories
        return LabelledBatch(states, {"best_actions": states.actions})


@dataclass(frozen=True)
class Mending:
    """Behavior that writes texts again, with the expert's tokens where it refuses theirs.

    Attributes:
        actions: (B, T) int64, the texts, PAD after their end.
        gate: decides which of their tokens stay.
        expert: chooses the tokens that replace the others.
        special: ids of padding, start and end.
    """

    actions: Tensor
    gate: InTopK
    expert: TokenSampler
    special: SpecialTokens

    def __call__(self, view: StepView) -> tuple[Tensor, Tensor]:
        """Return the actions and their writers, (K,) int64 each."""
        assert view.expert_logits is not None, "the rollout records them"
        last = self.actions.shape[1] - 1
        written = self.actions[view.rows, view.position.clamp(max=last)]
        is_over = (view.position > last) | (written == self.special.pad)
        stays = ~is_over & self.gate(view, written)
        with logits_from("teacher"):
            best, _ = self.expert(view.expert_logits)
        return written.where(stays, best), torch.where(stays, Writer.STUDENT, Writer.EXPERT)
