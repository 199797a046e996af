"""Interface between sequence models and everything that uses them.

A model answers in two ways, which give the same logits. It is stepped through a target token by
token (`start`, then `step` for each token), or it reads a finished target in one pass
(`sequence_logits`). Environments, experts, decoders and agents use these three methods and nothing
else of a model. Speculative decoding also reads several tokens in one pass and takes some of them
back (`BlockModel`, `RewindableCache`).
"""

from collections.abc import Sequence
from typing import Any, Protocol, Self, runtime_checkable

from torch import Tensor

from textgen_env.types import SpecialTokens


class Cache(Protocol):
    """State of a model between two steps, with one row for each sequence."""

    def select_rows(self, index: Tensor) -> Self:
        """Return a cache whose row i is a copy of row index[i].

        After `repeat_rows`, `index` must list all copies of a row side by side, or none of them.

        Args:
            index: (K,) int64, for any K.
        """
        ...

    def repeat_rows(self, count: int) -> Self:
        """Return a cache with `count` copies of each row: row i is a copy of row i // count.

        Copies may share what depends on the source alone. Call it at most once, right after
        `start`.
        """
        ...

    def reorder_rows(self, index: Tensor) -> Self:
        """Return a cache whose row i is a copy of row index[i], where both have the same source.

        The result equals that of `select_rows`, but what copies share need not be moved.

        Args:
            index: (B,) int64; after `repeat_rows(count)`, index[i] // count == i // count.
        """
        ...

    def reset_rows(self, mask: Tensor, fresh: Self, index: Tensor) -> Self:
        """Return the cache with row i replaced by row index[i] of `fresh` where `mask` is True.

        The cache itself must not be used afterwards, because its memory may be overwritten.
        `fresh` is only read.

        Args:
            mask: (B,) bool, rows to replace.
            fresh: cache of K rows from `start`, stepped no further than this cache. Its sources
                are no wider than those this cache began with, and its `max_steps` is the same.
            index: (B,) int64 in [0, K), also where `mask` is False.
        """
        ...


@runtime_checkable
class RewindableCache(Protocol):
    """Cache whose rows can go back to earlier steps, each to one of its own."""

    def rewind(self, history: Sequence[Self], index: Tensor) -> Self:
        """Return a cache whose row i is as it was in history[index[i]].

        None of the caches must be used afterwards, because the result may share their memory.

        Args:
            history: caches of the same rows before and after each of the last steps; the last one
                is this cache.
            index: (B,) int64 in [0, len(history)).
        """
        ...


AnyCache = Any  # a `Cache` of the model's own class, which its `step` takes and returns


class SequenceModel(Protocol):
    """Conditional distribution over target sequences given a source."""

    @property
    def special(self) -> SpecialTokens:
        """Ids of the padding, start and end tokens."""
        ...

    @property
    def vocab_size(self) -> int:
        """Number of tokens in the vocabulary, V."""
        ...

    def start(self, source: Tensor, max_steps: int) -> AnyCache:
        """Encode the source and return a cache with capacity for `max_steps` steps.

        Args:
            source: (B, S) int64, PAD after each row's end token.
            max_steps: T, the largest number of steps that will be taken.
        """
        ...

    def step(self, previous: Tensor, cache: AnyCache) -> tuple[Tensor, AnyCache]:
        """Return the logits of the next token, (B, V), and the cache after this step.

        The cache passed in must not be used afterwards, because its memory may be overwritten.

        Args:
            previous: (B,) int64, the last token of each prefix; the start token at the first step.
            cache: returned by `start` or by the previous step.
        """
        ...

    def sequence_logits(self, source: Tensor, actions: Tensor) -> Tensor:
        """Return the logits (B, T, V) of every action given the source and the actions before it.

        Those after the end of a row have no meaning: models need not compute them.

        Args:
            source: (B, S) int64, PAD after each row's end token.
            actions: (B, T) int64, PAD after the end of each row.
        """
        ...


@runtime_checkable
class BlockModel(SequenceModel, Protocol):
    """Model that reads several known tokens of every row in one pass."""

    def step_block(self, tokens: Tensor, cache: AnyCache) -> tuple[Tensor, Sequence[AnyCache]]:
        """Return the logits after each of K tokens, (B, K, V), and the cache after each of them.

        They are those of K calls of `step`, up to rounding. The caches share memory: of all but
        the last one `rewind` alone makes use.

        Args:
            tokens: (B, K) int64, the last token of each prefix, and those that may follow.
            cache: returned by `start`, by `step` or by `rewind`.
        """
        ...
