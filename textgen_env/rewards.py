"""What a step earns: functions from a step of all episodes to a number for each row.

Rewards are computed where the state lives and never wait for the device, so metrics on text, such
as BLEU, are not here: they belong to evaluation.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from textgen_env.dynamics import State
from textgen_env.types import SpecialTokens


@dataclass(frozen=True)
class Step:
    """One step of B episodes, as a reward sees it.

    Attributes:
        state: after the step.
        written: (B,) int64, the token that the step appended, PAD where the episode was over.
        alive: (B,) bool, the episode was not over before the step.
        references: (B, R) int64, the data set's targets, PAD after the end token.
        special: the ids of padding, start and end.
        expert_logits: (B, V) float, the expert's for `written`, at the state before the step; None
            if it was not asked.
        policy_logits: (B, V) float, the policy's there; None if the environment was not told.
    """

    state: State
    written: Tensor
    alive: Tensor
    references: Tensor
    special: SpecialTokens
    expert_logits: Tensor | None = None
    policy_logits: Tensor | None = None

    @property
    def finished(self) -> Tensor:
        """(B,) bool, this step ended the episode."""
        return self.state.done & self.alive


Reward = Callable[[Step], Tensor]
"""A step -> (B,) float32, 0 where the episode was over before."""


def no_reward(step: Step) -> Tensor:
    """Always 0: for agents that learn from the expert alone."""
    return torch.zeros_like(step.alive, dtype=torch.float32)


def exact_match(step: Step) -> Tensor:
    """1 at the end of an episode whose text is the reference, end token included; else 0."""
    prefix, references = step.state.prefix, step.references
    shared = min(prefix.shape[1], references.shape[1])
    same = (prefix[:, :shared] == references[:, :shared]).all(1)
    nothing_else = step.state.length <= shared
    nothing_left = (references[:, shared:] == step.special.pad).all(1)
    return (same & nothing_else & nothing_left & step.finished).float()
