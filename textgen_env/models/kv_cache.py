"""The Transformer decoder's memory: keys and values of what was written and of the source.

A step writes one position of each row in place. Lengths are per row, so rows that started at
different times stand side by side. Room is made a few positions at a time: products over a part of
a larger tensor are slow on CPUs (64 rows of 4 heads, 24 of 40 positions in bfloat16: 2.6 times the
time of 24 of 24), and rows that are selected or reordered carry little empty room with them.

Rows that come from one source by `repeat_rows` share what was read of it. With K of them to a
source the source's memory has B rows and the other tensors have R = B * K.
"""

import math
from dataclasses import dataclass, replace
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from textgen_env.models.cache_ops import host_sync_is_free, pad_to, scatter_rows_, trim_to

ROOM = 16  # positions added at a time


@dataclass(frozen=True)
class KeyValueCache:
    """Keys and values, in this order at the second dimension, all layers in one tensor.

    Attributes:
        written: (N, 2, R, H, L, D) of the tokens written so far; L grows with them.
        bias: (R, H, 1, L), added to attention's scores: 0 at what a row has written, else -inf.
            With a copy for each head: adding a tensor that must be broadcast takes 10 times the
            time.
        source: (N, 2, B, H, S, D), projected once by `start`.
        source_bias: (B, H, K, S), 0 at the source's tokens and -inf at padding.
        signals: (T, width), what is added to the embedding of a token by its position.
        length: (R,) int64, tokens written in each row.
        window: no row is longer than this; known to the host.
    """

    written: Tensor
    bias: Tensor
    source: Tensor
    source_bias: Tensor
    signals: Tensor
    length: Tensor
    window: int

    @classmethod
    def empty(cls, source: Tensor, source_mask: Tensor, signals: Tensor) -> Self:
        """A cache of sources that were read, (N, 2, B, H, S, D), and of targets not yet begun."""
        layers, planes, rows, heads, _, width = source.shape
        source_bias = torch.zeros_like(source_mask, dtype=source.dtype)
        source_bias = source_bias.masked_fill(~source_mask, float("-inf"))[:, None, None]
        return cls(
            written=source.new_empty(layers, planes, rows, heads, 0, width),
            bias=source.new_empty(rows, heads, 1, 0),
            source=source,
            source_bias=source_bias.repeat(1, heads, 1, 1),
            signals=signals,
            length=torch.zeros_like(source_mask[:, 0], dtype=torch.int64),
            window=0,
        )

    def reserve(self) -> Self:
        """The cache with a position that is free in every row, or all of them."""
        room, limit = self.written.shape[4], len(self.signals)
        if self.window < room or room == limit:
            return self
        # A step that is recorded has one shape: room is made at once where steps are.
        more = min(ROOM, limit - room) if host_sync_is_free(self.length.device) else limit - room
        return replace(
            self,
            written=F.pad(self.written, (0, 0, 0, more)),
            bias=F.pad(self.bias, (0, more), value=float("-inf")),
        )

    def opened(self) -> tuple[Self, Tensor]:
        """The cache with the next position of each row visible, and where `write` puts it."""
        cache = self.reserve()
        rows, heads, _, room = cache.bias.shape
        first = torch.arange(0, cache.bias.numel(), room, device=self.length.device)
        keys = first.view(rows, heads) + self.length[:, None]
        cache.bias.view(-1).index_fill_(0, keys.view(-1), 0.0)
        return cache, torch.stack([keys, keys + cache.bias.numel()], dim=1).view(-1)

    def write(self, layer: int, keys_values: Tensor, places: Tensor) -> None:
        """Put keys and values, (R, 2 * H * D), at `places`, (R * 2 * H,) int64 from `opened`."""
        width = self.written.shape[-1]
        self.written[layer].view(-1, width).index_copy_(0, places, keys_values.view(-1, width))

    def read(self, layer: int, query: Tensor) -> Tensor:
        """What `query`, (R, H * D), finds in what was written; the same shape."""
        return _attend(query, self.written[layer], self.bias)

    def read_source(self, layer: int, query: Tensor) -> Tensor:
        """What `query`, (R, H * D), finds in the source; the same shape."""
        return _attend(query, self.source[layer], self.source_bias)

    def advanced(self) -> Self:
        """The cache after a step that has written position `length` of each row.

        A row that is full may be stepped on, as one that is over and waits for the others is: its
        last position is written over.
        """
        return replace(self.moved(), length=(self.length + 1).clamp(max=len(self.signals) - 1))

    def moved(self) -> Self:
        """The cache as after a step in all that the host alone knows; no tensor changes."""
        return replace(self, window=min(self.window + 1, len(self.signals)))

    def select_rows(self, index: Tensor) -> Self:
        """A cache whose row i is a copy of row index[i]; of a source's rows all or none."""
        copies = self.source_bias.shape[2]
        sources = index if copies == 1 else index[::copies] // copies
        return replace(
            self.reorder_rows(index),
            source=self.source.index_select(2, sources),
            source_bias=self.source_bias.index_select(0, sources),
        )

    def repeat_rows(self, count: int) -> Self:
        """A cache with `count` copies of each row, side by side, that share its source."""
        return replace(
            self,
            written=self.written.repeat_interleave(count, 2),
            bias=self.bias.repeat_interleave(count, 0),
            source_bias=self.source_bias.repeat(1, 1, count, 1),
            length=self.length.repeat_interleave(count),
        )

    def reorder_rows(self, index: Tensor) -> Self:
        """A cache whose row i is a copy of row index[i], a row of the same source."""
        return replace(
            self,
            written=self.written.index_select(2, index),
            bias=self.bias.index_select(0, index),
            length=self.length.index_select(0, index),
        )

    def reset_rows(self, mask: Tensor, fresh: Self, index: Tensor) -> Self:
        """The cache with row index[i] of `fresh` as its row i where `mask`, (B,) bool, is True.

        What the old rows wrote stays in memory unseen.
        """
        if host_sync_is_free(mask.device) and not mask.any():
            return self
        room, width = fresh.bias.shape[-1], fresh.source.shape[4]
        cache = replace(
            self,
            written=pad_to(self.written, room, dim=4),
            bias=pad_to(self.bias, room, dim=3),
            source=pad_to(self.source, width, dim=4),
            source_bias=pad_to(self.source_bias, width, dim=3),
            window=max(self.window, fresh.window),
        )
        begun = mask[:, None, None, None]
        for bias in (cache.bias, cache.source_bias):
            bias.masked_fill_(begun, float("-inf"))
        scatter_rows_(cache.bias[..., :room], fresh.bias, mask, index)
        scatter_rows_(cache.written[..., :room, :], fresh.written, mask, index, dim=2)
        scatter_rows_(cache.source[..., :width, :], fresh.source, mask, index, dim=2)
        scatter_rows_(cache.source_bias[..., :width], fresh.source_bias, mask, index)
        scatter_rows_(cache.length, fresh.length, mask, index)
        return cache._narrowed() if host_sync_is_free(mask.device) else cache

    def _narrowed(self) -> Self:
        """The cache without the room that no row needs any more; the host looks how much that is.

        Rows that begin one after the other are of all ages, and the oldest sets the window: it is
        looked for anew, lest the longest text of all does so until the end.
        """
        window = int(self.length.max())
        tokens = int((self.source_bias[:, 0, 0] == 0).sum(-1).max())
        return replace(
            self,
            written=trim_to(self.written, window + 1, dim=4),
            bias=trim_to(self.bias, window + 1, dim=3),
            source=trim_to(self.source, tokens, dim=4),
            source_bias=trim_to(self.source_bias, tokens, dim=3),
            window=window,
        )


def _attend(query: Tensor, memory: Tensor, bias: Tensor) -> Tensor:
    """Attention of queries (B * K, H * D), K of them to a row of memory (2, B, H, L, D)."""
    _, rows, heads, room, width = memory.shape
    queries = query.view(rows, -1, heads, width).transpose(1, 2)  # (B, H, K, D)
    keys, values = memory.unbind()
    if query.device.type != "cpu":
        read = F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias)
        return read.transpose(1, 2).reshape(query.shape)
    queries = (queries * (1 / math.sqrt(width))).reshape(rows * heads, -1, width)
    scores = torch.bmm(queries, keys.view(-1, room, width).transpose(1, 2))
    # Softmax of bfloat16 takes up to 5 times as long if L is no multiple of 32.
    weights = scores.add_(bias.view(scores.shape)).softmax(-1, dtype=torch.float32)
    read = torch.bmm(weights.to(values.dtype), values.view(-1, room, width))
    return read.view(rows, heads, -1, width).transpose(1, 2).reshape(query.shape)
