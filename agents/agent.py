"""What an algorithm is: where prefixes come from, and what is learned from them.

An agent is a frozen dataclass and thereby its own configuration. It holds no weights, no optimizer
and no loop. What most algorithms share are defaults here: gold data, prefixes written by the data.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor

from textgen_agents.losses.labels import Dense
from textgen_agents.rollouts.buffer import Buffer, LabelledBatch
from textgen_env.envs.vector_env import TextGenVectorEnv
from textgen_env.experts.expert import Expert
from textgen_env.models.sequence_model import SequenceModel
from textgen_env.types import Examples, Trajectories


class Agent(ABC):
    """One imitation-learning algorithm.

    Attributes:
        needs_expert: whether it asks the expert at all.
        needs_distribution: whether it asks for more than texts and the most probable token.
        pool: M, the batches that are collected together: a rollout is up to M - 1 updates old.
    """

    needs_expert: ClassVar[bool] = True
    needs_distribution: ClassVar[bool] = True
    batches_per_rollout: int = 1

    def check_expert(self, expert: Expert) -> None:
        """Raise, before any training, if the expert cannot give what will be asked of it.

        Raises:
            ExpertError: it does not know the whole distribution, and that is needed.
            ValueError: more tokens are wanted of it than there are.
        """
        if self.needs_expert and self.needs_distribution:
            Dense().check(expert)

    def prepare(self, examples: Examples, expert: Expert, max_steps: int) -> Examples:
        """The data to learn from, made once before training; by default the gold pairs."""
        del expert, max_steps
        return examples

    def make_buffer(self, env: TextGenVectorEnv, processes: int = 1) -> Buffer | None:
        """Where one of `processes` keeps what it collects in `env`; by default it is used once."""
        del env, processes
        return None

    def adapted(self, validation_losses: Sequence[float]) -> Self:
        """The algorithm after evaluations so far; by default it takes no notice.

        Args:
            validation_losses: mean cross-entropy on the references of validation pairs, nats, at
                each evaluation.
        """
        del validation_losses
        return self

    def coefficients(self, progress: float) -> Mapping[str, float]:
        """What a schedule says at `progress`, by name, to be logged."""
        del progress
        return {}

    def collect(
        self,
        indices: Tensor,
        env: TextGenVectorEnv,
        student: SequenceModel,
        progress: float,
        generator: torch.Generator,
    ) -> Trajectories:
        """Write prefixes for the examples at `indices`; by default they are the data's own.

        Args:
            indices: (B,) int64, B the environment's number of slots.
            env: steps what is written; in autoreset mode DISABLED.
            student: the policy as it is now, to act with, without gradient.
            progress: share of training done, in [0, 1].
            generator: of every random choice made here.
        """
        del student, progress, generator
        return Trajectories.from_examples(env.examples.select(indices), env.special)

    def experience(
        self,
        indices: Tensor,
        env: TextGenVectorEnv,
        student: SequenceModel,
        progress: float,
        generator: torch.Generator,
        buffer: Buffer | None,
    ) -> LabelledBatch:
        """Return what the updates of one rollout learn from; by default what is collected for them.

        The arguments are those of `collect`, and what `make_buffer` made with all that was added.
        """
        del buffer
        return LabelledBatch(self.collect(indices, env, student, progress, generator))

    @abstractmethod
    def loss(self, trajectories: Trajectories, student: SequenceModel, expert: Expert) -> Tensor:
        """Mean loss over the counted actions, scalar, in nats."""
