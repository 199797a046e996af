"""An expert that is a function of the state: a rule, a program, anything that knows what to write.

What is best by the data set's reference is in `reference_expert.py`.
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

It is called for states of any B, E and T, prefixes PAD after `length`. The source is the expert's
view. It may answer anything below V where a text is over.
"""

SURE = 30.0  # nats above all other tokens: these share 1.5e-8 at 160,000 tokens and stay finite


@dataclass(frozen=True)
class SourceCache:
    """What an expert remembers that reads all but its view of the source from the state.

    Attributes:
        source: (B, E) int64.
    """

    source: Tensor

    def select_rows(self, index: Tensor) -> Self:
        """The rows at `index`."""
        return type(self)(self.source.index_select(0, index))

    def reset_rows(self, mask: Tensor, fresh: Self, index: Tensor) -> Self:
        """Row index[i] of `fresh` as row i where `mask` is True."""
        return type(self)(fresh.select_rows(index).source.where(mask[:, None], self.source))


class ScriptedExpert(Expert):
    """Knows the best action at every state and is (almost) sure of it.

    Its logits give the action all but about 1e-13 V of the mass and are finite, so that every
    divergence from it is.

    Args:
        script: the state -> the best action.
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
        """V of its logits."""
        return self._vocab_size

    @torch.no_grad()
    def best_actions(self, trajectories: Trajectories) -> Tensor:
        """(B, T) int64; the script is called once, for all states."""
        start = time.perf_counter()
        rows, steps = trajectories.actions.shape
        prefixes = _prefixes(trajectories.actions, self.special)
        length = torch.arange(steps, device=prefixes.device).repeat(rows)
        source = trajectories.expert_view.repeat_interleave(steps, 0)
        actions = self.script(source, prefixes.flatten(0, 1), length)
        self.count(trajectories.mask.sum(), start)
        return actions.view(rows, steps)

    def logits(self, trajectories: Trajectories) -> Tensor:
        """(B, T, V) float32."""
        return self._sure_of(self.best_actions(trajectories))

    def start(self, source: Tensor, max_steps: int) -> SourceCache:
        """The sources."""
        return SourceCache(source)

    @torch.no_grad()
    def step(
        self, state: State, previous: Tensor, cache: SourceCache
    ) -> tuple[Tensor, SourceCache]:
        """The script's answer; a state is counted for every episode that is not over."""
        start = time.perf_counter()
        actions = self.script(cache.source, state.prefix, state.length)
        self.count(state.alive.sum(), start)
        return self._sure_of(actions), cache

    @torch.no_grad()
    def write(self, examples: Examples, *, max_steps: int, beam_size: int) -> Examples:
        """What the script writes; it is sure, so that every beam size gives the same."""
        start = time.perf_counter()
        state = dynamics.initial(examples.expert_view, max_steps, self.special)
        for _ in range(max_steps):
            actions = self.script(state.source, state.prefix, state.length)
            state = dynamics.transition(state, actions, self.special)
            if bool(state.done.all()):
                break
        self.count(state.length.sum(), start)
        return replace(examples, reference=state.prefix)

    def _sure_of(self, actions: Tensor) -> Tensor:
        logits = torch.zeros(*actions.shape, self._vocab_size, device=actions.device)
        return logits.scatter_(-1, actions[..., None], SURE)


def _prefixes(actions: Tensor, special: SpecialTokens) -> Tensor:
    """(B, T, T) int64: [:, t] is what was written before step t, PAD after it."""
    steps = actions.shape[1]
    written = torch.ones(steps, steps, dtype=torch.bool, device=actions.device).tril(-1)
    return actions[:, None, :].where(written, special.pad)
