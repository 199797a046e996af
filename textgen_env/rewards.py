"""What an episode earns: functions from the state after a step to a number for each row.

Rewards are computed where the state lives and never wait for the device, so metrics on text, such
as BLEU, are not here: they belong to evaluation.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from textgen_env.dynamics import State
from textgen_env.types import SpecialTokens

Reward = Callable[[State, Tensor, Tensor, SpecialTokens], Tensor]
"""(state after the step, references (B, R) int64, finished (B,) bool: this step ended the episode,
special) -> (B,) float32, 0 where the episode was over before."""


def no_reward(state: State, references: Tensor, finished: Tensor, special: SpecialTokens) -> Tensor:
    """Always 0: for agents that learn from the expert alone."""
    del state, references, special
    return torch.zeros_like(finished, dtype=torch.float32)


def exact_match(
    state: State, references: Tensor, finished: Tensor, special: SpecialTokens
) -> Tensor:
    """1 at the end of an episode whose text is the reference, end token included; else 0."""
    shared = min(state.prefix.shape[1], references.shape[1])
    same = (state.prefix[:, :shared] == references[:, :shared]).all(1)
    nothing_else = state.length <= shared
    nothing_left = (references[:, shared:] == special.pad).all(1)
    return (same & nothing_else & nothing_left & finished).float()
