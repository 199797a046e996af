"""Keys and values of the source for every decoder layer, which `start` computes once.

It is the part of a decoder's cache that no step changes. Rows made by `repeat_rows` share it: with
K rows to a source, the tensors have B rows where the rest of the cache has R = B * K.
"""

from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor

from textgen_env.models.cache_ops import host_sync_is_free, pad_to, scatter_rows_, trim_to
from textgen_env.models.layers import attend_cached


class SourceReader(Protocol):
    """Keys and values of the source, as the step of a decoder layer reads them."""

    def attend(self, layer: int, query: Tensor) -> Tensor:
        """Return the attention output of one layer for `query`; both are (R, H * D)."""
        ...


@dataclass(frozen=True)
class SourceMemory:
    """Keys and values of all layers in one tensor; its second dimension has keys, then values.

    Attributes:
        keys_values: (N, 2, B, H, S, D).
        bias: (B, H, K, S), added to attention scores: 0 at the source's tokens and -inf at padding.
            Each head has a copy, because adding a broadcast tensor is slower on CPUs.
    """

    keys_values: Tensor
    bias: Tensor

    @classmethod
    def masked(cls, keys_values: Tensor, mask: Tensor) -> Self:
        """Return the memory of sources with (B, S) bool `mask`, True at their tokens."""
        bias = torch.zeros_like(mask, dtype=keys_values.dtype)
        bias = bias.masked_fill(~mask, float("-inf"))[:, None, None]
        return cls(keys_values, bias.repeat(1, keys_values.shape[3], 1, 1))

    def attend(self, layer: int, query: Tensor) -> Tensor:
        """Return the attention output of one layer for `query`; both are (R, H * D)."""
        return attend_cached(query, self.keys_values[layer], self.bias)

    def select_rows(self, index: Tensor) -> Self:
        """Return the memory of the rows at `index`.

        Args:
            index: (J,) int64, rows of the cache; lists all copies of a row side by side, or none.
        """
        copies = self.bias.shape[2]
        sources = index if copies == 1 else index[::copies] // copies
        return type(self)(
            self.keys_values.index_select(2, sources), self.bias.index_select(0, sources)
        )

    def repeat_rows(self, count: int) -> Self:
        """Return the memory for `count` copies of each row, which share it."""
        return type(self)(self.keys_values, self.bias.repeat(1, 1, count, 1))

    def reset_rows(self, mask: Tensor, fresh: Self, index: Tensor) -> Self:
        """Return the memory with row i replaced by row index[i] of `fresh` where `mask` is True.

        It is then trimmed to the widest source, if the host can read the widths for free.

        Args:
            mask: (B,) bool.
            fresh: K rows.
            index: (B,) int64 in [0, K).
        """
        width = fresh.keys_values.shape[4]
        keys_values, bias = pad_to(self.keys_values, width, dim=4), pad_to(self.bias, width, dim=3)
        bias.masked_fill_(mask[:, None, None, None], float("-inf"))
        scatter_rows_(keys_values[..., :width, :], fresh.keys_values, mask, index, dim=2)
        scatter_rows_(bias[..., :width], fresh.bias, mask, index)
        if host_sync_is_free(mask.device):
            longest = int((bias[:, 0, 0] == 0).sum(-1).max())
            keys_values = trim_to(keys_values, longest, dim=4)
            bias = trim_to(bias, longest, dim=3)
        return type(self)(keys_values, bias)
