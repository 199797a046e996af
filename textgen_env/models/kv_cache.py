"""The Transformer decoder's memory: keys and values of what was written and of the source.

Preallocated; a step writes one position of each row in place. Lengths are per row, so rows that
started at different times stand side by side.
"""

from dataclasses import dataclass, replace
from typing import Self

from torch import Tensor


@dataclass(frozen=True)
class KeyValueCache:
    """Keys and values, all layers in one tensor each.

    Attributes:
        keys: (N, B, H, T, D) of the tokens written so far.
        values: (N, B, H, T, D).
        source_keys: (N, B, H, S, D), projected once by `start`.
        source_values: (N, B, H, S, D).
        source_mask: (B, S) bool, True where the source is no padding.
        length: (B,) int64, tokens written in each row.
        window: no row is longer than this; known to the host, so that attention reads no further.
    """

    keys: Tensor
    values: Tensor
    source_keys: Tensor
    source_values: Tensor
    source_mask: Tensor
    length: Tensor
    window: int

    def advanced(self) -> Self:
        """The cache after a step that has written position `length` of each row."""
        window = min(self.window + 1, self.keys.shape[3])
        return replace(self, length=self.length + 1, window=window)

    def select_rows(self, index: Tensor) -> Self:
        """A cache whose row i is a copy of row index[i]."""
        keys = self.keys.new_zeros(*self.keys.shape[:1], len(index), *self.keys.shape[2:])
        values = keys.new_zeros(keys.shape)
        written = slice(0, self.window)
        keys[:, :, :, written] = self.keys[:, :, :, written].index_select(1, index)
        values[:, :, :, written] = self.values[:, :, :, written].index_select(1, index)
        return replace(
            self,
            keys=keys,
            values=values,
            source_keys=self.source_keys.index_select(1, index),
            source_values=self.source_values.index_select(1, index),
            source_mask=self.source_mask.index_select(0, index),
            length=self.length.index_select(0, index),
        )

    def reset_rows(self, mask: Tensor, fresh: Self) -> Self:
        """A cache with the rows of `fresh` where `mask` is True, and its own elsewhere.

        What the old rows wrote stays in memory unseen: attention reads a row up to its length.
        """
        rows = mask[None, :, None, None, None]
        return replace(
            self,
            source_keys=fresh.source_keys.where(rows, self.source_keys),
            source_values=fresh.source_values.where(rows, self.source_values),
            source_mask=fresh.source_mask.where(mask[:, None], self.source_mask),
            length=fresh.length.where(mask, self.length),
        )
