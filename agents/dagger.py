"""DAgger: student and expert write together, and all that was written so far is learned from.

While the expert goes along, its answers are noted, so that it is asked about each state once; where
the student writes alone, it is asked in one pass afterwards. No gradient flows through the writing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from textgen_agents.bases import WithBuffer, noted_rollout
from textgen_agents.losses.labels import Dense, label_loss
from textgen_agents.rollouts.behaviors import Gated, check_block, coins_for, token_sampler
from textgen_agents.rollouts.buffer import Buffer, LabelledBatch
from textgen_agents.rollouts.rollout import student_or_data
from textgen_agents.rollouts.schedules import Constant, Indicator, Schedule
from textgen_env.envs.vector_env import TextGenVectorEnv
from textgen_env.experts.expert import Expert
from textgen_env.generation.decoding import Sampling
from textgen_env.models.sequence_model import SequenceModel
from textgen_env.types import Trajectories


@dataclass(frozen=True)
class DAgger(WithBuffer):
    """Learn what the expert says at all states that it and the student came to so far.

    Roll-in: a coin for each token, expert with probability beta, student otherwise;
    `batches_per_rollout` batches are written together, added to the buffer, and as many rows are
    drawn from it. Label: the expert's most probable token, as it was when the state was written.
    Loss: cross-entropy; with another label forward KL.
    Differs from the paper in: the oldest rows go once the buffer is full, and the student goes on
    learning between rollouts, there it is trained anew on everything after each of a few.

    Attributes:
        beta: progress -> probability that the expert writes a token.
        sampling: how the student writes; None for greedy.
        block: neighboring tokens that share a coin, at least 1.
        pool: batches written together; where the expert goes along, its logits at all of their
            states are held until labels are made of them.

    Source: Ross et al. 2011, algorithm 3.1, arXiv:1011.0686.
    """

    beta: Schedule = field(default_factory=Indicator)
    sampling: Sampling | None = None
    block: int = 1
    batches_per_rollout: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_block(self.block)

    def check_expert(self, expert: Expert) -> None:
        """Raise, before any training, unless it gives the label, and all where it goes along."""
        super().check_expert(expert)
        if self.beta != Constant(0.0):
            Dense().check(expert)

    def coefficients(self, progress: float) -> Mapping[str, float]:
        """The present beta."""
        return {"beta": self.beta(progress)}

    def collect(
        self,
        indices: Tensor,
        env: TextGenVectorEnv,
        student: SequenceModel,
        progress: float,
        generator: torch.Generator,
    ) -> Trajectories:
        """Prefixes by student and expert, as a coin for each token says."""
        return self._write(indices, env, student, progress, generator).trajectories

    def experience(
        self,
        indices: Tensor,
        env: TextGenVectorEnv,
        student: SequenceModel,
        progress: float,
        generator: torch.Generator,
        buffer: Buffer | None,
    ) -> LabelledBatch:
        """Rows of the buffer, to which what is written now was added."""
        assert buffer is not None, "`make_buffer` makes one"
        buffer.add(self._write(indices, env, student, progress, generator), env.expert)
        return buffer.draw(len(indices), generator)

    def loss(self, trajectories: Trajectories, student: SequenceModel, expert: Expert) -> Tensor:
        """Forward KL from the label, which is cross-entropy where that is one token."""
        return label_loss(trajectories, student, expert, self.label)

    def _write(
        self,
        indices: Tensor,
        env: TextGenVectorEnv,
        student: SequenceModel,
        progress: float,
        generator: torch.Generator,
    ) -> LabelledBatch:
        """What is written now, with the expert's logits if it went along."""
        beta = self.beta(progress)
        sampling = self.sampling
        if not beta:
            return LabelledBatch(
                student_or_data(
                    indices, env, student, beta=0.0, sampling=sampling, generator=generator
                )
            )
        mixture = Gated(
            gate=coins_for(env, beta, generator, self.block),
            student=token_sampler(sampling, env, generator),
            expert=token_sampler(None, env, generator),
        )
        return noted_rollout(env, mixture, indices, student)
