"""What a pretrained decoder remembers, row by row, in the form in which `transformers` asks for it.

Rows advance in lock step: a step fills one slot of every row, the newest one last. What a row has
not written is hidden by a mask: the padding left of a short prompt, and what stood there before the
row began anew. So rows of different ages stand side by side and distances between slots are
distances in the text, which is all that relative positions need.

`transformers`' own dynamic cache copies everything at every step, and its static one has one length
for all rows.
"""

from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Cache, DynamicCache, EncoderDecoderCache
from transformers.cache_utils import CacheLayerMixin

from textgen_env.models.cache_ops import each_tensor, host_sync_is_free, scatter_rows_

ROOM = 16  # slots added at a time


class Counting(Enum):
    """Where a model's positions come from.

    Attributes:
        SLOTS: they are given with every step, or are distances only.
        ROWS: the model counts on from what it is told of the cache's length, row by row.
        TOGETHER: it counts on from one length, so that all rows must have the same.
    """

    SLOTS = "slots"
    ROWS = "rows"
    TOGETHER = "together"


@dataclass(frozen=True)
class RowCache:
    """The memory of R rows. H, D and their number may differ from layer to layer.

    Attributes:
        written: keys, then values, of each layer, (R, H, L, D); slots from `used` on are room.
        source: keys, then values, of the source for each layer, (R, H, S, D); none without encoder.
        source_mask: (R, S) bool, True at the source's tokens; (R, 0) without encoder.
        seen: (R, L) bool, slots that a row may look at.
        length: (R,) int64, position of each row's next token.
        opening: (R,) int64, what stands for the start token.
        slot: (R,) int64, the slot of the next token, in all rows the same.
        used: slots in use, which is that slot as the host knows it.
        window: slots that a row needs at most.
        counting: where the model's positions come from.
    """

    written: tuple[Tensor, ...]
    source: tuple[Tensor, ...]
    source_mask: Tensor
    seen: Tensor
    length: Tensor
    opening: Tensor
    slot: Tensor
    used: int
    window: int
    counting: Counting

    @classmethod
    def begun(
        cls,
        cache: DynamicCache | EncoderDecoderCache,
        prompt: Tensor,
        prompt_mask: Tensor,
        *,
        source_mask: Tensor,
        max_steps: int,
        counting: Counting,
    ) -> Self:
        """The memory of a prompt, (R, P) with its mask, that `cache` has read.

        Its last token is read again at the first step, so that this is a step as all others.
        """
        own, source = cache, ()
        if isinstance(cache, EncoderDecoderCache):
            own, source = cache.self_attention_cache, _tensors(cache.cross_attention_cache)
        read = prompt.shape[1] - 1
        # `transformers` takes a lone token in slot 0 for a prompt and lets it see all room: nothing
        # is ever written or seen in that slot then.
        empty = int(read == 0)
        used = empty + read
        return cls(
            written=tuple(F.pad(t[:, :, :read], (0, 0, empty, 0)) for t in _tensors(own)),
            source=source,
            source_mask=source_mask,
            seen=F.pad(prompt_mask[:, :read], (empty, 0)),
            length=prompt_mask.sum(1) - 1,
            opening=prompt[:, -1].clone(),
            slot=torch.full_like(prompt[:, 0], used),
            used=used,
            window=prompt.shape[1] + max_steps,
            counting=counting,
        )

    def reserve(self) -> Self:
        """The cache with a slot for the next token."""
        if self.used < self.seen.shape[1]:
            return self
        kept = min(self.used, self.window)  # what is older no row looks at any more
        first = self.used - kept
        # A step that is recorded has one shape: room is made at once where steps are.
        more = ROOM if host_sync_is_free(self.seen.device) else max(ROOM, self.window - kept)
        return replace(
            self,
            written=tuple(F.pad(t[:, :, first:], (0, 0, 0, more)) for t in self.written),
            seen=F.pad(self.seen[:, first:], (0, more)),
            slot=torch.full_like(self.slot, kept),
            used=kept,
        )

    def opened(self) -> Self:
        """The cache with a slot for the next token of each row, which the row may look at."""
        cache = self.reserve()
        cache.seen.index_fill_(1, cache.slot[:1], True)
        return cache

    @property
    def visible(self) -> Tensor:
        """(R, L) bool, the slots that hold something, the one that `opened` gave among them."""
        return self.seen

    def for_transformers(self) -> Cache:
        """A view of this memory that a model of `transformers` reads and writes one step of."""
        slot = self.slot[:1]
        positions = {
            Counting.SLOTS: slot,
            Counting.ROWS: self.length[:, None],
            Counting.TOGETHER: self.length[:1],
        }
        own = _Rows(_layers(self.written, slot), positions[self.counting], slot)
        if not self.source:
            return own
        read = Cache(layers=_layers(self.source, self.source_mask.shape[1]))
        return EncoderDecoderCache(own, read)

    def advanced(self) -> Self:
        """The cache after a step.

        A row that is full may be stepped on, as one that is over and waits for the others is: its
        position stays in what the model knows.
        """
        length = (self.length + 1).clamp(max=self.window - 1)
        return replace(self.moved(), length=length, slot=self.slot + 1)

    def moved(self) -> Self:
        """The cache as after a step in all that the host alone knows; no tensor changes."""
        return replace(self, used=self.used + 1)

    def select_rows(self, index: Tensor) -> Self:
        """A cache whose row i is a copy of row index[i]."""
        return each_tensor(self, lambda tensor: tensor.index_select(0, index))

    def repeat_rows(self, count: int) -> Self:
        """A cache with `count` copies of each row, side by side."""
        return each_tensor(self, lambda tensor: tensor.repeat_interleave(count, 0))

    def reorder_rows(self, index: Tensor) -> Self:
        """A cache whose row i is a copy of row index[i], a row of the same source."""
        return replace(
            self,
            written=tuple(tensor.index_select(0, index) for tensor in self.written),
            seen=self.seen.index_select(0, index),
            length=self.length.index_select(0, index),
        )

    def reset_rows(self, mask: Tensor, fresh: Self, index: Tensor) -> Self:
        """The cache with row index[i] of `fresh` as its row i where `mask`, (B,) bool, is True.

        Raises:
            ValueError: the rows would differ in length, and the model has one for all.
        """
        if self.counting is Counting.TOGETHER and fresh.used != self.used:
            raise ValueError(
                "rows must all begin together, for this kind of model counts one position for all "
                "of them: use autoreset mode DISABLED, got a row that begins after "
                f"{self.used - fresh.used} steps of the others"
            )
        assert fresh.used <= self.used, "fresh rows are stepped no further"
        own = slice(self.used - fresh.used, self.used)  # so that the newest slots meet
        for old, new in zip(self.written, fresh.written, strict=True):
            scatter_rows_(old[:, :, own], new[:, :, : fresh.used], mask, index)
        width = fresh.source_mask.shape[1]  # may be less than what the others were read with
        for old, new in zip(self.source, fresh.source, strict=True):
            scatter_rows_(old[:, :, :width], new, mask, index)
        self.source_mask.masked_fill_(mask[:, None], False)
        scatter_rows_(self.source_mask[:, :width], fresh.source_mask, mask, index)
        self.seen.masked_fill_(mask[:, None], False)
        scatter_rows_(self.seen[:, own], fresh.seen[:, : fresh.used], mask, index)
        for name in ("length", "opening"):
            scatter_rows_(getattr(self, name), getattr(fresh, name), mask, index)
        return self


class _Layer(CacheLayerMixin):
    """Keys and values of one layer, written in place."""

    is_sliding = False

    def __init__(self, keys: Tensor, values: Tensor, slot: Tensor | int) -> None:
        super().__init__()
        self.keys, self.values, self.slot = keys, values, slot
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing is left to be done."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """All slots, room too, which a mask hides: products over a part of them are slow."""
        assert self.keys is not None, "given at the start"
        assert self.values is not None, "given at the start"
        assert isinstance(self.slot, Tensor), "a source is read once, at the start"
        self.keys.index_copy_(2, self.slot, key_states)
        self.values.index_copy_(2, self.slot, value_states)
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """How many slots there will be, and the first one."""
        return self.get_max_length(), 0

    def get_seq_length(self) -> Any:  # noqa: ANN401 - a tensor where steps fill slots
        """Slots in use."""
        return self.slot

    def get_max_length(self) -> int:
        """Slots there are."""
        assert self.keys is not None, "given at the start"
        return self.keys.shape[2]


class _Rows(Cache):
    """Layers, and as their length the position from which models count on."""

    def __init__(self, layers: list[Any], position: Tensor, slot: Tensor) -> None:
        super().__init__(layers=layers)
        self.position, self.slot = position, slot

    def get_seq_length(self, layer_idx: int = 0) -> Any:  # noqa: ANN401 - one, or one for each row
        """The position of the next token: (1,), or (R, 1)."""
        del layer_idx
        return self.position

    def get_query_offset(self, layer_idx: int = 0) -> Any:  # noqa: ANN401 - a tensor
        """The slot of the next token, (1,)."""
        del layer_idx
        return self.slot


def _layers(tensors: tuple[Tensor, ...], slot: Tensor | int) -> list[Any]:
    """A layer for each pair of keys and values."""
    pairs = zip(tensors[::2], tensors[1::2], strict=True)
    return [_Layer(keys, values, slot) for keys, values in pairs]


def _tensors(cache: Cache) -> tuple[Tensor, ...]:
    """Keys, then values, of each layer."""
    layers: list[Any] = cache.layers  # declared as all kinds of memory
    return tuple(tensor for layer in layers for tensor in (layer.keys, layer.values))


def positions(mask: Tensor) -> Tensor:
    """(R, L) int64, the position of each token of a text that begins where `mask` does."""
    return (mask.cumsum(1) - 1).clamp(min=0)
