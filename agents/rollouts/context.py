"""The context of a collection: the examples, the environment and the student of one rollout."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from textgen_agents.rollouts.buffer import Buffer
from textgen_env.envs.vector_env import TextGenVectorEnv
from textgen_env.models.sequence_model import SequenceModel


def _of_one_process(values: Tensor) -> Tensor:
    return values


@dataclass(frozen=True)
class Context:
    """Everything that an agent collects a batch with.

    Attributes:
        indices: (B,) int64, the example of each slot.
        env: the environment that is stepped, in autoreset mode DISABLED, with B slots.
        student: the policy as it is now.
        progress: share of training done, in [0, 1].
        generator: source of every random choice of the collection; on the CPU.
        buffer: the batches kept so far, from `Agent.make_buffer`; None where none are.
        gather: (K,) values of this process -> those of all processes that share the update.
        max_written: (B,) int64, tokens after which a text ends that the data has not written alone;
            None for no such limit.
        calibration: what `Agent.calibrate` has found on the run's first batch; None before that.
    """

    indices: Tensor
    env: TextGenVectorEnv
    student: SequenceModel
    progress: float = 0.0
    generator: torch.Generator = field(default_factory=torch.Generator)
    buffer: Buffer | None = None
    gather: Callable[[Tensor], Tensor] = _of_one_process
    max_written: Tensor | None = None
    calibration: float | None = None
