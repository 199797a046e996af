"""Pure transition functions of the text-generation MDP, on batches of episodes.

No function here waits for the device: control flow depends on shapes alone, never on values.
"""

from dataclasses import dataclass, fields
from functools import cached_property

import torch
from torch import Tensor

from textgen_env.types import SpecialTokens

Observation = dict[str, Tensor]


@dataclass(frozen=True)
class State:
    """State of B episodes.

    Attributes:
        source: (B, S) int64 source token ids, PAD after each row's end token.
        source_length: (B,) int64, the number of source tokens that are not PAD.
        prefix: (B, T) int64 tokens written so far, PAD after `length`.
        length: (B,) int64, the number of tokens written.
        terminated: (B,) bool, True where the end token was written.
        truncated: (B,) bool, True where T tokens were written and the last was not the end token.
    """

    source: Tensor
    source_length: Tensor
    prefix: Tensor
    length: Tensor
    terminated: Tensor
    truncated: Tensor

    @cached_property
    def done(self) -> Tensor:
        """Mask of the episodes that are over, (B,) bool."""
        return self.terminated | self.truncated

    @cached_property
    def alive(self) -> Tensor:
        """Mask of the episodes that are not over, (B,) bool."""
        return ~self.done


def initial(source: Tensor, max_steps: int, special: SpecialTokens) -> State:
    """Return the state of episodes in which nothing has been written; `max_steps` is T."""
    rows = source.shape[0]
    no_row = torch.zeros(rows, dtype=torch.bool, device=source.device)
    return State(
        source=source,
        source_length=(source != special.pad).sum(1),
        prefix=source.new_full((rows, max_steps), special.pad),
        length=source.new_zeros(rows),
        terminated=no_row,
        truncated=no_row,
    )


def transition(state: State, action: Tensor, special: SpecialTokens) -> State:
    """Append `action`, (B,) int64, to every episode that is not over, and keep the others."""
    max_steps = state.prefix.shape[1]
    # An episode that is over takes PAD, which changes nothing after the end token or at the limit.
    written = action.where(state.alive, special.pad)
    position = torch.arange(max_steps, device=written.device) == state.length[:, None]
    length = state.length + state.alive
    terminated = state.terminated | (written == special.end)
    return State(
        source=state.source,
        source_length=state.source_length,
        prefix=written[:, None].where(position, state.prefix),
        length=length,
        terminated=terminated,
        truncated=(length == max_steps) & ~terminated,
    )


def select_rows(state: State, index: Tensor) -> State:
    """Return the episodes at `index`, (K,) int64, in that order."""
    return State(**{field.name: getattr(state, field.name)[index] for field in fields(State)})


def replace_rows(state: State, mask: Tensor, fresh: State) -> State:
    """Return the rows of `fresh` where `mask`, (B,) bool, is True, those of `state` elsewhere."""
    rows = mask[:, None]
    return State(
        source=fresh.source.where(rows, state.source),
        source_length=fresh.source_length.where(mask, state.source_length),
        prefix=fresh.prefix.where(rows, state.prefix),
        length=fresh.length.where(mask, state.length),
        terminated=fresh.terminated.where(mask, state.terminated),
        truncated=fresh.truncated.where(mask, state.truncated),
    )


def observation(state: State) -> Observation:
    """Return the observation of a policy, all int64.

    It holds the source, (B, S), the prefix, (B, T), and their lengths, (B,) each.
    """
    return {
        "source": state.source,
        "source_length": state.source_length,
        "prefix": state.prefix,
        "length": state.length,
    }
