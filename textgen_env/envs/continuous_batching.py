"""The order in which examples fill slots, and models that go along with slots that are refilled.

Which examples come next is known, but not when: only the device knows which slots have ended. So a
model's memory of the next K examples is held ready, and a slot that begins anew takes its row.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from textgen_env.dynamics import State
from textgen_env.experts.expert import Expert
from textgen_env.generation.decoding import next_action
from textgen_env.models.cache_ops import host_sync_is_free
from textgen_env.models.sequence_model import AnyCache

Start = Callable[[Tensor, int], AnyCache]
"""`start` of a `SequenceModel` or of an `Expert`."""
SourceAt = Callable[[Tensor], Tensor]
"""(K,) int64 places in the order of examples -> (K, S) their sources, as wide as the model asks."""

READ_AHEAD = 8  # examples held ready for every slot, and thus steps that they last for
MIN_DRAWS = 1 << 16  # examples drawn before the order repeats, at least


def shuffled_epochs(num_examples: int, generator: np.random.Generator) -> Tensor:
    """The order of examples for at least two epochs and `MIN_DRAWS` draws, (draws,) int64.

    Every example comes once an epoch, and epochs differ. They are drawn beforehand, because only
    the device knows how many examples have come.
    """
    epochs = max(2, -(-MIN_DRAWS // num_examples))
    order = np.tile(np.arange(num_examples), (epochs, 1))
    return torch.from_numpy(generator.permuted(order, axis=1).ravel())


def places(coming: Tensor, begun: Tensor) -> Tensor:
    """(B,) int64, the places in the order that slots take: one after the other the next ones.

    Args:
        coming: () int64, the place of the example that comes next.
        begun: (B,) bool, the slots that begin; elsewhere the result means nothing.
    """
    return coming + begun.cumsum(0) - 1


class PrefillPool:
    """A model's memory of the next K examples, for B slots that are refilled.

    At most B examples come at a step, so K = `READ_AHEAD` * B last for `READ_AHEAD` steps whatever
    happens. Then they are read anew from wherever the device is: B sources are read a step, more
    than are used, which is the price of never waiting. Where the host may look without waiting, it
    looks how far the order has come, and K = B are held until they are used up.

    Args:
        start: reads sources.
        source_at: the sources of the examples in their order; fewer than asked for where the order
            ends, if it does and the host may look: slots that begin after it take the last one.
        max_steps: T, the most tokens of an episode.
    """

    def __init__(self, start: Start, source_at: SourceAt, max_steps: int) -> None:
        self._start, self._source_at, self._max_steps = start, source_at, max_steps
        self._held: AnyCache | None = None
        self._first = torch.zeros((), dtype=torch.int64)  # place of the first row held
        self._used = 0  # rows used up, at most
        self._last = -1  # of the rows held

    def refill(self, cache: AnyCache, begun: Tensor, coming: Tensor) -> AnyCache:
        """The cache of the slots, with fresh rows for those that begin an episode.

        Args:
            cache: B rows, not to be used again.
            begun: (B,) bool, the slots that begin.
            coming: () int64, the place of the first example that they take.
        """
        slots, looks = len(begun), host_sync_is_free(begun.device)
        held = slots if looks else slots * READ_AHEAD
        self._used += slots
        if looks and self._held is not None and self._used > held:
            self._used = int(coming - self._first + begun.sum())
        if self._held is None or self._used > held:
            sources = self._source_at(coming + torch.arange(held, device=begun.device))
            self._held = self._start(sources, self._max_steps)
            self._first, self._used, self._last = coming, slots, len(sources) - 1
        index = (places(coming, begun) - self._first).clamp(0, self._last)
        return cache.reset_rows(begun, self._held, index)


class Adviser:
    """An expert that goes along with the episodes and says at every state what it would write.

    Attributes:
        logits: (B, V) float, the expert's at the state that is shown.
    """

    logits: Tensor

    def __init__(self, expert: Expert, source_at: SourceAt, max_steps: int) -> None:
        self._expert, self._source_at, self._max_steps = expert, source_at, max_steps
        self._special = expert.special
        self._cache: AnyCache | None = None

    def begin(self, state: State, source: Tensor, mask: Tensor) -> None:
        """Begin with `state` in the slots of `mask`, (B,) bool; `source`, (B, E), is read."""
        start = torch.full_like(state.length, self._special.start)
        cache = self._expert.start(source, self._max_steps)
        logits, cache = self._expert.step(state, start, cache)
        if self._cache is None:
            self.logits, self._cache = logits, cache
        else:
            same = torch.arange(len(mask), device=mask.device)
            self.logits = logits.where(mask[:, None], self.logits)
            self._cache = self._cache.reset_rows(mask, cache, same)
        # Only slots that are refilled come to it; another order needs another one.
        self._bank = PrefillPool(self._expert.start, self._source_at, self._max_steps)

    def follow(self, state: State, written: Tensor, begun: Tensor | None, coming: Tensor) -> None:
        """Go on to `state`, which the tokens `written`, (B,) int64, have led to.

        Args:
            state: what is shown.
            written: the step's tokens.
            begun: (B,) bool, the slots that have begun anew; None if none ever does.
            coming: () int64, the place of the first example that they have taken.
        """
        assert self._cache is not None, "begin comes before follow"
        if begun is not None:
            written = written.masked_fill(begun, self._special.start)
            self._cache = self._bank.refill(self._cache, begun, coming)
        self.logits, self._cache = self._expert.step(state, written, self._cache)

    def action(self, state: State) -> Tensor:
        """(B,) int64, the expert's most probable token at `state`; PAD where that is over."""
        best = next_action(self.logits, special=self._special)
        return best.masked_fill(state.done, self._special.pad)
