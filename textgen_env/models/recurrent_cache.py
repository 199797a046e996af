"""Cache of a recurrent decoder with attention: its states, and the encoded source."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from textgen_env.models.cache_ops import (
    host_sync_is_free,
    pad_to,
    scatter_rows_,
    select_states,
    trim_to,
)


@dataclass(frozen=True)
class RecurrentCache:
    """Decoder states, and the source's keys and values for attention.

    On CPUs the source's tensors are in float32: attention with one query per row is slower there in
    bfloat16.

    Attributes:
        states: (N, B, D), the state of each decoder layer.
        source_keys: (B, S, D), the encoder's output.
        source_values: (B, S, D), a projection of the encoder's output, computed once by `start`.
        source_bias: (B, 1, S), added to attention scores: 0 at tokens and -inf at padding.
    """

    states: Tensor
    source_keys: Tensor
    source_values: Tensor
    source_bias: Tensor

    def reserve(self) -> Self:
        """Return the cache itself, because it does not grow."""
        return self

    def advance_host_state(self) -> Self:
        """Return the cache itself, because nothing on the host depends on the step."""
        return self

    def select_rows(self, index: Tensor) -> Self:
        """Return a cache whose row i is a copy of row index[i]; `index` is (K,) int64."""
        return replace(
            self,
            states=self.states.index_select(1, index),
            source_keys=self.source_keys.index_select(0, index),
            source_values=self.source_values.index_select(0, index),
            source_bias=self.source_bias.index_select(0, index),
        )

    def repeat_rows(self, count: int) -> Self:
        """Return a cache with `count` copies of each row, side by side."""
        rows = torch.arange(len(self.source_keys), device=self.source_keys.device)
        return self.select_rows(rows.repeat_interleave(count))

    def reorder_rows(self, index: Tensor) -> Self:
        """Return a cache whose row i is a copy of row index[i], where both have the same source."""
        return replace(self, states=self.states.index_select(1, index))

    def rewind(self, history: Sequence[Self], index: Tensor) -> Self:
        """Return a cache whose row i is as it was in history[index[i]]; `index` is (B,) int64."""
        return replace(self, states=select_states([each.states for each in history], index))

    def reset_rows(self, mask: Tensor, fresh: Self, index: Tensor) -> Self:
        """Return the cache with row i replaced by row index[i] of `fresh` where `mask` is True.

        Args:
            mask: (B,) bool.
            fresh: K rows.
            index: (B,) int64 in [0, K).
        """
        sync_is_free = host_sync_is_free(mask.device)
        if sync_is_free and not mask.any():
            return self
        width = fresh.source_bias.shape[2]
        keys = pad_to(self.source_keys, width, dim=1)
        values = pad_to(self.source_values, width, dim=1)
        bias = pad_to(self.source_bias, width, dim=2)
        bias.masked_fill_(mask[:, None, None], float("-inf"))
        scatter_rows_(self.states, fresh.states, mask, index, dim=1)
        scatter_rows_(keys[:, :width], fresh.source_keys, mask, index)
        scatter_rows_(values[:, :width], fresh.source_values, mask, index)
        scatter_rows_(bias[..., :width], fresh.source_bias, mask, index)
        if sync_is_free:
            source_width = int((bias == 0).sum(-1).max())
            keys, values = (trim_to(memory, source_width, dim=1) for memory in (keys, values))
            bias = trim_to(bias, source_width, dim=2)
        return replace(self, source_keys=keys, source_values=values, source_bias=bias)
