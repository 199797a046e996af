"""The order of examples that fill slots, and prefilled caches for slots that are refilled.

The order of the examples is known in advance, but only the device knows which slots have ended.
So the caches of the next K examples are prefilled, and a slot that begins an episode takes its row.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from textgen_env.models.cache_ops import host_sync_is_free
from textgen_env.models.sequence_model import AnyCache

Prefill = Callable[[Tensor, int], AnyCache]
"""(sources, max_steps) -> their cache: `start` of a `SequenceModel` or of an `Expert`."""
SourceAt = Callable[[Tensor], Tensor]
"""(K,) int64 positions in the order of examples -> (K, S) int64 sources, as the model reads."""

READ_AHEAD = 8  # prefilled examples for every slot, and thus steps that they last for
MIN_DRAWS = 1 << 16  # least number of examples drawn before the order repeats


def shuffled_epochs(num_examples: int, generator: np.random.Generator) -> Tensor:
    """Return an order of examples for at least two epochs and `MIN_DRAWS` draws, (draws,) int64.

    Every example comes once in each epoch, and epochs differ. The order is drawn in advance,
    because only the device knows how many examples have been taken.
    """
    epochs = max(2, -(-MIN_DRAWS // num_examples))
    order = np.tile(np.arange(num_examples), (epochs, 1))
    return torch.from_numpy(generator.permuted(order, axis=1).ravel())


def next_positions(first: Tensor, begun: Tensor) -> Tensor:
    """Return the (B,) int64 positions in the order of the examples that slots take, one by one.

    Args:
        first: () int64, the position of the next example.
        begun: (B,) bool, the slots that begin an episode; the result is undefined elsewhere.
    """
    return first + begun.cumsum(0) - 1


class PrefillPool:
    """Prefilled cache of the next K examples, from which B slots are refilled.

    At most B slots begin an episode at a step, so K = `READ_AHEAD` * B rows last for `READ_AHEAD`
    steps in any case. On an accelerator the pool is then prefilled anew, used up or not: B sources
    are read a step, more than are needed, and the host never waits for the device. On the CPU the
    pool counts the rows that were used, and K = B rows are kept until they are used up.

    Args:
        prefill: reads sources.
        source_at: gives the sources of the examples in their order. On the CPU it may give fewer
            than asked for, where the order ends: slots that begin later take the last one.
        max_steps: T, the most tokens of an episode.
    """

    def __init__(self, prefill: Prefill, source_at: SourceAt, max_steps: int) -> None:
        self._prefill, self._source_at, self._max_steps = prefill, source_at, max_steps
        self._cache: AnyCache | None = None
        self._first = torch.zeros((), dtype=torch.int64)  # position of the cache's first row
        self._used = 0  # rows used up, at most
        self._last = -1  # the cache's last row

    def refill(self, cache: AnyCache, begun: Tensor, first: Tensor) -> AnyCache:
        """Return the cache of the slots with prefilled rows for those that begin an episode.

        Args:
            cache: B rows; it must not be used again.
            begun: (B,) bool, the slots that begin an episode.
            first: () int64, the position of the first example that they take.
        """
        return cache.reset_rows(begun, *self.prefilled(begun, first))

    def prefilled(self, begun: Tensor, first: Tensor) -> tuple[AnyCache, Tensor]:
        """Return a cache of K rows and the (B,) int64 row of each slot that begins an episode.

        Args:
            begun: (B,) bool, the slots that begin an episode; other slots get any row.
            first: () int64, the position of the first example that they take.
        """
        slots, sync_is_free = len(begun), host_sync_is_free(begun.device)
        rows = slots if sync_is_free else slots * READ_AHEAD
        self._used += slots
        if sync_is_free and self._cache is not None and self._used > rows:
            self._used = int(first - self._first + begun.sum())
        if self._cache is None or self._used > rows:
            sources = self._source_at(first + torch.arange(rows, device=begun.device))
            self._cache = self._prefill(sources, self._max_steps)
            self._first, self._used, self._last = first, slots, len(sources) - 1
        return self._cache, (next_positions(first, begun) - self._first).clamp(0, self._last)
