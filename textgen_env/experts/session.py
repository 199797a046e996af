"""An expert queried step by step while episodes are being written.

It holds the expert's cache and nothing else: the episodes, and the order of the examples that
refill their slots, belong to the caller.
"""

from torch import Tensor

from textgen_env.dynamics import State
from textgen_env.experts.expert import Expert
from textgen_env.models.sequence_model import AnyCache


class ExpertSession:
    """An expert that is queried at every step of B episodes, and its cache of them.

    Args:
        expert: the oracle.
        source: (B, E) int64, the expert's view of the sources, PAD after each row's end token.
        max_steps: T, the most tokens of an episode.

    Attributes:
        cache: the expert's cache, a row for each episode; every step replaces it.
    """

    def __init__(self, expert: Expert, source: Tensor, max_steps: int) -> None:
        self._expert = expert
        self.cache: AnyCache = expert.start(source, max_steps)

    def step(self, state: State, previous: Tensor) -> Tensor:
        """Return the expert's (B, V) logits of the next token at `state`, without gradient.

        Args:
            state: the episodes as they are, a row for each row of the cache.
            previous: (B,) int64, the tokens written last; the start token in new episodes.
        """
        logits, self.cache = self._expert.step(state, previous, self.cache)
        return logits

    def select_rows(self, index: Tensor) -> None:
        """Keep only the episodes at `index`, (K,) int64, in that order."""
        self.cache = self.cache.select_rows(index)

    def reset_rows(self, mask: Tensor, fresh: AnyCache, index: Tensor) -> None:
        """Begin new episodes in the rows of `mask`: row i takes row index[i] of `fresh`.

        Args:
            mask: (B,) bool, the rows that begin a new episode.
            fresh: K rows of the expert's cache, stepped no further than the session's own.
            index: (B,) int64 in [0, K), where `mask` is False too.
        """
        self.cache = self.cache.reset_rows(mask, fresh, index)
