"""Scripted expert: an oracle given by a function from states to best actions.

An oracle that follows the data set's reference is in `dynamic_oracle.py`.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from textgen_env import dynamics
from textgen_env.dynamics import State
from textgen_env.experts.expert import Expert
from textgen_env.types import Examples, SpecialTokens, Trajectories

Script = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(source (B, E), prefix (B, T), length (B,)) -> (B,) int64, the best action at each state.

The function must accept any B, E and T. The source is the expert's view; prefixes are PAD after
`length`. At states of finished episodes it may return any token below V.
"""

BEST_ACTION_LOGIT = 30.0  # nats; all other logits are 0, so that log-probabilities stay finite


@dataclass(frozen=True)
class SourceCache:
    """Cache of an expert that needs only its view of the source besides the state.

    Attributes:
        source: (B, E) int64, PAD after each row's end token.
    """

    source: Tensor

    def select_rows(self, index: Tensor) -> Self:
        """Return the cache of the rows at `index`, (K,) int64."""
        return type(self)(self.source.index_select(0, index))

    def reset_rows(self, mask: Tensor, fresh: Self, index: Tensor) -> Self:
        """Return the cache with row index[i] of `fresh` as row i where `mask` is True."""
        return type(self)(fresh.select_rows(index).source.where(mask[:, None], self.source))


class ScriptedExpert(Expert):
    """Expert that computes the best action at every state with a function.

    Its distributions give the best action all but about 1e-13 V of the probability. Its logits are
    finite, and so is every divergence from them.

    Args:
        script: function from states to best actions.
        vocab_size: V.
        special: the ids of padding, start and end.
    """

    def __init__(
        self, script: Script, vocab_size: int, special: SpecialTokens | None = None
    ) -> None:
        super().__init__(special)
        self.script = script
        self._vocab_size = vocab_size

    @property
    def vocab_size(self) -> int:
        """V, the size of the expert's vocabulary."""
        return self._vocab_size

    @torch.no_grad()
    def best_actions(self, trajectories: Trajectories) -> Tensor:
        """Return (B, T) int64, the best action at every state, by one call of the script."""
        start = time.perf_counter()
        rows, steps = trajectories.actions.shape
        prefixes = _all_prefixes(trajectories.actions, self.special)
        length = torch.arange(steps, device=prefixes.device).repeat(rows)
        source = trajectories.expert_view.repeat_interleave(steps, 0)
        actions = self.script(source, prefixes.flatten(0, 1), length)
        self.count(trajectories.mask.sum(), start)
        return actions.view(rows, steps)

    def logits(self, trajectories: Trajectories) -> Tensor:
        """Return (B, T, V) float32 logits."""
        return self._logits_of(self.best_actions(trajectories))

    def start(self, source: Tensor, max_steps: int) -> SourceCache:
        """Return a cache that holds the sources."""
        return SourceCache(source)

    @torch.no_grad()
    def step(
        self, state: State, previous: Tensor, cache: SourceCache
    ) -> tuple[Tensor, SourceCache]:
        """Query the script; each episode that is not over counts as one query."""
        start = time.perf_counter()
        actions = self.script(cache.source, state.prefix, state.length)
        self.count(state.alive.sum(), start)
        return self._logits_of(actions), cache

    @torch.no_grad()
    def write(self, examples: Examples, *, max_steps: int, beam_size: int) -> Examples:
        """Follow the script; it is deterministic, so that the beam size has no effect."""
        start = time.perf_counter()
        state = dynamics.initial(examples.expert_view, max_steps, self.special)
        for _ in range(max_steps):
            actions = self.script(state.source, state.prefix, state.length)
            state = dynamics.transition(state, actions, self.special)
            if bool(state.done.all()):
                break
        self.count(state.length.sum(), start)
        return replace(examples, reference=state.prefix)

    def _logits_of(self, actions: Tensor) -> Tensor:
        """Return (..., V) float32 logits whose most probable tokens are `actions`."""
        logits = torch.zeros(*actions.shape, self._vocab_size, device=actions.device)
        return logits.scatter_(-1, actions[..., None], BEST_ACTION_LOGIT)


def _all_prefixes(actions: Tensor, special: SpecialTokens) -> Tensor:
    """Return (B, T, T) int64: [:, t] holds the actions before step t, PAD after them."""
    steps = actions.shape[1]
    before = torch.ones(steps, steps, dtype=torch.bool, device=actions.device).tril(-1)
    return actions[:, None, :].where(before, special.pad)
