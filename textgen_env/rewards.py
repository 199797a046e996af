"""What an episode earns: functions from the state after a step to a number for each row."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from textgen_env.dynamics import State
from textgen_env.types import SpecialTokens

Reward = Callable[[State, Tensor, Tensor, SpecialTokens], Tensor]
"""(state, references (B, R), finished (B,): this step ended the episode, special) -> (B,) float32."""


def no_reward(state: State, references: Tensor, finished: Tensor, special: SpecialTokens) -> Tensor:
    """Always 0: for agents that learn from the expert alone."""
    del state, references, special
    return finished.float().zero_()


def exact_match(state: State, references: Tensor, finished: Tensor, special: SpecialTokens) -> Tensor:
    """1 at the end of an episode whose text is the reference, token by token; else 0."""
    width = max(state.prefix.shape[1], references.shape[1])
    written = F.pad(state.prefix, (0, width - state.prefix.shape[1]), value=special.pad)
    wanted = F.pad(references, (0, width - references.shape[1]), value=special.pad)
    return ((written == wanted).all(1) & finished).float()
