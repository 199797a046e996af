"""The one interface between models and everything else.

A model is either asked step by step (`start`, then `step` for each token) or for all positions of a
finished sequence at once (`sequence_logits`). Both give the same logits. The environment, the
expert, the decoding engine and the agents use these three methods and nothing else of a model.
"""

from typing import Any, Protocol, Self

from torch import Tensor

from textgen_env.types import SpecialTokens


class Cache(Protocol):
    """What a model remembers between two steps, a row for each sequence."""

    def select_rows(self, index: Tensor) -> Self:
        """A cache whose row i is a copy of row index[i]; `index` is (K,) int64, for any K.

        After `repeat_rows`, `index` lists the copies of a row all or none, and side by side.
        """
        ...

    def repeat_rows(self, count: int) -> Self:
        """A cache with `count` copies of each row, side by side: row i is a copy of row i // count.

        They may share what is the same as long as their source is; called once, right after
        `start`.
        """
        ...

    def reorder_rows(self, index: Tensor) -> Self:
        """A cache whose row i is a copy of row index[i], one of the copies of the same row as i.

        That is, after `repeat_rows(count)`, index[i] // count == i // count; `index` is (B,) int64.
        It gives what `select_rows` gives and need not move what the copies share.
        """
        ...

    def reset_rows(self, mask: Tensor, fresh: Self, index: Tensor) -> Self:
        """The cache with row index[i] of `fresh` as its row i wherever `mask` is True.

        The cache itself must not be used again: its memory may have been written over. `fresh` is
        only read.

        Args:
            mask: (B,) bool, the rows that begin anew.
            fresh: K rows, from `start` on sources no wider than those that this cache began with,
                with the same `max_steps`, and stepped no further than this cache.
            index: (B,) int64 in [0, K), where `mask` is False too.
        """
        ...


AnyCache = Any  # a `Cache` of the model's own class, which its `step` takes and gives


class SequenceModel(Protocol):
    """A distribution over target sequences given a source."""

    @property
    def special(self) -> SpecialTokens:
        """The ids of padding, start and end."""
        ...

    @property
    def vocab_size(self) -> int:
        """V."""
        ...

    def start(self, source: Tensor, max_steps: int) -> AnyCache:
        """Read the source once and make room for `max_steps` steps.

        Args:
            source: (B, S) int64, PAD after each row's end token.
            max_steps: T, the most steps that will be taken.
        """
        ...

    def step(self, previous: Tensor, cache: AnyCache) -> tuple[Tensor, AnyCache]:
        """Logits of the next token, (B, V), and the cache after this step.

        The cache passed in must not be used again: its memory may have been written over.

        Args:
            previous: (B,) int64, the token written last; the start token at the first step.
            cache: from `start` or from the step before.
        """
        ...

    def sequence_logits(self, source: Tensor, actions: Tensor) -> Tensor:
        """Logits (B, T, V) for every action given the source and the actions before it.

        Args:
            source: (B, S) int64, PAD after each row's end token.
            actions: (B, T) int64, PAD after the end of each row.
        """
        ...
