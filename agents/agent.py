"""What an algorithm is: where prefixes come from, and what is learned from them.

An agent is a frozen dataclass and thereby its own configuration. It holds no weights, no optimizer
and no loop.
"""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from textgen_env.expert import Expert
from textgen_env.models.sequence_model import SequenceModel
from textgen_env.types import Examples, Trajectories
from textgen_env.vector_env import TextGenVectorEnv


class Agent(Protocol):
    """One imitation-learning algorithm."""

    @property
    def pool(self) -> int:
        """M, the batches that are collected together: a rollout is up to M - 1 updates old."""
        ...

    def prepare(self, examples: Examples, expert: Expert | None) -> Examples:
        """The data to learn from, made once before training: gold pairs, or what the expert writes."""
        ...

    def coefficients(self, progress: float) -> Mapping[str, float]:
        """What a schedule says at `progress`, by name, to be logged: beta and the like."""
        ...

    def collect(
        self,
        indices: Tensor,
        env: TextGenVectorEnv,
        student: SequenceModel,
        progress: float,
        generator: torch.Generator,
    ) -> Trajectories:
        """Write prefixes for the examples at `indices`, (B,) int64, by stepping `env`."""
        ...

    def loss(
        self, trajectories: Trajectories, student: SequenceModel, expert: Expert | None
    ) -> Tensor:
        """Mean loss over the counted actions, scalar, in nats."""
        ...
