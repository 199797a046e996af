"""Key-value cache of a Transformer decoder: keys and values of the target, beside the source's.

A step writes one position of each row in place, or several. Each row has a length of its own: rows
that started at different times can share a batch, and each can go back by itself. Capacity grows a
few positions at a time: products over a part of a larger tensor are slow on CPUs, and unused
capacity is copied with selected rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from textgen_env.models.cache_ops import (
    CAPACITY_INCREMENT,
    host_sync_is_free,
    pad_to,
    scatter_rows_,
    trim_to,
)
from textgen_env.models.layers import attend_cached
from textgen_env.models.source_memory import SourceMemory


@dataclass(frozen=True)
class KeyValueCache:
    """Keys and values of all layers in one tensor; its second dimension has keys, then values.

    Attributes:
        target: (N, 2, R, H, L, D), keys and values of the target so far; L is the capacity.
        target_bias: (R, H, 1, L), added to attention scores: 0 at written positions, else -inf.
            Each head has a copy, because adding a broadcast tensor is slower on CPUs.
        source: keys and values of the source, which rows made by `repeat_rows` share.
        position_embeddings: (T, width), added to the embeddings of tokens; T is the step limit.
        length: (R,) int64, number of tokens written in each row.
        max_length: upper bound of `length`, kept on the host.
    """

    target: Tensor
    target_bias: Tensor
    source: SourceMemory
    position_embeddings: Tensor
    length: Tensor
    max_length: int

    @classmethod
    def empty(cls, source: SourceMemory, position_embeddings: Tensor) -> Self:
        """Return the cache of encoded sources and empty targets.

        Args:
            source: keys and values of the sources.
            position_embeddings: (T, width), one for each step.
        """
        layers, planes, rows, heads, _, width = source.keys_values.shape
        return cls(
            target=source.keys_values.new_empty(layers, planes, rows, heads, 0, width),
            target_bias=source.keys_values.new_empty(rows, heads, 1, 0),
            source=source,
            position_embeddings=position_embeddings,
            length=source.keys_values.new_zeros(rows, dtype=torch.int64),
            max_length=0,
        )

    def reserve(self, count: int = 1) -> Self:
        """Return the cache with capacity for `count` more steps, unless it is at the limit."""
        capacity, limit = self.target.shape[4], len(self.position_embeddings)
        if self.max_length + count <= capacity or capacity == limit:
            return self
        # On accelerators a step is recorded for one shape, so all capacity is reserved at once.
        added = limit - capacity
        if host_sync_is_free(self.length.device):
            added = min(max(CAPACITY_INCREMENT, count), added)
        return replace(
            self,
            target=F.pad(self.target, (0, 0, 0, added)),
            target_bias=F.pad(self.target_bias, (0, added), value=float("-inf")),
        )

    def next_positions(self, count: int) -> Tensor:
        """Return the next positions of each row, (R, count) int64."""
        return self.length[:, None] + torch.arange(count, device=self.length.device)

    def allocate_slots(self, positions: Tensor) -> tuple[Self, Tensor]:
        """Make the next positions of each row visible.

        Args:
            positions: (R, K) int64, from the row's length on.

        Returns:
            The cache, and the slots for `write`: (R * K * 2 * H,) int64, indices of vectors of
            width D in one layer of `target`.
        """
        cache = self.reserve(positions.shape[1])
        rows, heads, _, capacity = cache.target_bias.shape
        first = torch.arange(0, cache.target_bias.numel(), capacity, device=self.length.device)
        keys = first.view(rows, 1, heads) + positions[..., None]
        cache.target_bias.view(-1).index_fill_(0, keys.view(-1), 0.0)
        return cache, torch.stack([keys, keys + cache.target_bias.numel()], dim=2).view(-1)

    def as_block(self, positions: Tensor) -> Self:
        """Return a view for attention in which each row has K queries, which share its source.

        Args:
            positions: (R, K) int64, where the queries stand; each sees those before it and itself.
        """
        bias = _visible_up_to(positions, self.target_bias)
        return replace(self, target_bias=bias, source=self.source.repeat_rows(positions.shape[1]))

    def write(self, layer: int, keys_values: Tensor, slots: Tensor) -> None:
        """Write keys and values, (R * K, 2 * H * D), of one layer to `allocate_slots`' slots."""
        width = self.target.shape[-1]
        self.target[layer].view(-1, width).index_copy_(0, slots, keys_values.view(-1, width))

    def attend_to_target(self, layer: int, query: Tensor) -> Tensor:
        """Return the attention output over the target for `query`; both are (R * K, H * D)."""
        return attend_cached(query, self.target[layer], self.target_bias)

    def advance(self) -> Self:
        """Return the cache after a step that has written position `length` of each row.

        A row at the limit may be stepped further, as finished rows are while others continue. Its
        last position is then overwritten.
        """
        last = len(self.position_embeddings) - 1
        return replace(self.advance_host_state(), length=(self.length + 1).clamp(max=last))

    def advance_host_state(self) -> Self:
        """Return the cache with its host-side values as after a step; tensors do not change."""
        return replace(self, max_length=min(self.max_length + 1, len(self.position_embeddings)))

    def rewind(self, history: Sequence[Self], index: Tensor) -> Self:
        """Return a cache whose row i is as it was in history[index[i]]; `index` is (R,) int64.

        What was written since stays in memory, but it is masked.
        """
        length = torch.stack([each.length for each in history]).gather(0, index[None]).squeeze(0)
        bias = _visible_up_to(length[:, None] - 1, self.target_bias)
        cache = replace(self, target_bias=bias, length=length)
        if not host_sync_is_free(length.device):
            return cache
        return replace(cache, max_length=int(length.max()))

    def select_rows(self, index: Tensor) -> Self:
        """Return a cache whose row i is a copy of row index[i].

        Args:
            index: (J,) int64; lists all copies of a row side by side, or none of them.
        """
        return replace(self.reorder_rows(index), source=self.source.select_rows(index))

    def repeat_rows(self, count: int) -> Self:
        """Return a cache with `count` copies of each row, side by side, which share its source."""
        return replace(
            self,
            target=self.target.repeat_interleave(count, 2),
            target_bias=self.target_bias.repeat_interleave(count, 0),
            source=self.source.repeat_rows(count),
            length=self.length.repeat_interleave(count),
        )

    def reorder_rows(self, index: Tensor) -> Self:
        """Return a cache whose row i is a copy of row index[i], where both have the same source."""
        return replace(
            self,
            target=self.target.index_select(2, index),
            target_bias=self.target_bias.index_select(0, index),
            length=self.length.index_select(0, index),
        )

    def reset_rows(self, mask: Tensor, fresh: Self, index: Tensor) -> Self:
        """Return the cache with row i replaced by row index[i] of `fresh` where `mask` is True.

        What the old rows wrote stays in memory, but it is masked.

        Args:
            mask: (B,) bool.
            fresh: K rows.
            index: (B,) int64 in [0, K).
        """
        if host_sync_is_free(mask.device) and not mask.any():
            return self
        capacity = fresh.target_bias.shape[-1]
        cache = replace(
            self,
            target=pad_to(self.target, capacity, dim=4),
            target_bias=pad_to(self.target_bias, capacity, dim=3),
            source=self.source.reset_rows(mask, fresh.source, index),
            max_length=max(self.max_length, fresh.max_length),
        )
        cache.target_bias.masked_fill_(mask[:, None, None, None], float("-inf"))
        scatter_rows_(cache.target_bias[..., :capacity], fresh.target_bias, mask, index)
        scatter_rows_(cache.target[..., :capacity, :], fresh.target, mask, index, dim=2)
        scatter_rows_(cache.length, fresh.length, mask, index)
        return cache._trim() if host_sync_is_free(mask.device) else cache

    def _trim(self) -> Self:
        """Return the cache without capacity that no row needs; the host reads the lengths.

        The maximum length is computed again. Otherwise the longest row that ever was would set the
        capacity until the end.
        """
        max_length = int(self.length.max())
        return replace(
            self,
            target=trim_to(self.target, max_length + 1, dim=4),
            target_bias=trim_to(self.target_bias, max_length + 1, dim=3),
            max_length=max_length,
        )


def _visible_up_to(positions: Tensor, like: Tensor) -> Tensor:
    """Return a bias, (R, H, K, L), that shows each query the positions up to its own.

    Args:
        positions: (R, K) int64; a query at -1 sees none.
        like: (R, H, ..., L), a bias of the same rows, heads and capacity.
    """
    _, heads, *_, capacity = like.shape
    hidden = torch.arange(capacity, device=like.device) > positions[..., None]
    bias = torch.zeros_like(hidden, dtype=like.dtype).masked_fill_(hidden, float("-inf"))
    return bias[:, None].repeat(1, heads, 1, 1)
