"""How text grows: pure tensor functions from a state and an action to the next state.

No function here waits for the device: nothing depends on values, only on shapes.
"""

from dataclasses import dataclass, fields
from functools import cached_property

import torch
from torch import Tensor

from textgen_env.types import SpecialTokens

Observation = dict[str, Tensor]


@dataclass(frozen=True)
class State:
    """B episodes.

    Attributes:
        source: (B, S) int64 source token ids, PAD after each row's end token.
        source_length: (B,) int64, source tokens that are not PAD.
        prefix: (B, T) int64 tokens written so far, PAD after `length`.
        length: (B,) int64, tokens written.
        terminated: (B,) bool, the end token was written.
        truncated: (B,) bool, T tokens were written and the last one was not the end token.
    """

    source: Tensor
    source_length: Tensor
    prefix: Tensor
    length: Tensor
    terminated: Tensor
    truncated: Tensor

    @cached_property
    def done(self) -> Tensor:
        """(B,) bool, the episode is over."""
        return self.terminated | self.truncated

    @cached_property
    def alive(self) -> Tensor:
        """(B,) bool, it is not."""
        return ~self.done


def initial(source: Tensor, max_steps: int, special: SpecialTokens) -> State:
    """Episodes in which nothing has been written; `max_steps` is T."""
    rows = source.shape[0]
    nobody = torch.zeros(rows, dtype=torch.bool, device=source.device)
    return State(
        source=source,
        source_length=(source != special.pad).sum(1),
        prefix=source.new_full((rows, max_steps), special.pad),
        length=source.new_zeros(rows),
        terminated=nobody,
        truncated=nobody,
    )


def transition(state: State, action: Tensor, special: SpecialTokens) -> State:
    """Append `action`, (B,) int64, to every episode that is not over; the others stay."""
    max_steps = state.prefix.shape[1]
    # PAD in an episode that is over: it changes nothing behind the end, nor beyond the limit.
    written = action.where(state.alive, special.pad)
    here = torch.arange(max_steps, device=written.device) == state.length[:, None]
    length = state.length + state.alive
    terminated = state.terminated | (written == special.end)
    return State(
        source=state.source,
        source_length=state.source_length,
        prefix=written[:, None].where(here, state.prefix),
        length=length,
        terminated=terminated,
        truncated=(length == max_steps) & ~terminated,
    )


def select_rows(state: State, index: Tensor) -> State:
    """The episodes at `index`, (K,) int64."""
    return State(**{field.name: getattr(state, field.name)[index] for field in fields(State)})


def replace_rows(state: State, mask: Tensor, fresh: State) -> State:
    """The rows of `fresh` where `mask`, (B,) bool, is True, and those of `state` elsewhere."""
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
    """What a policy sees, all int64: source (B, S) and prefix (B, T) with their lengths, (B,)."""
    return {
        "source": state.source,
        "source_length": state.source_length,
        "prefix": state.prefix,
        "length": state.length,
    }
