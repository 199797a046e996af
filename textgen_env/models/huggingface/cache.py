"""Key-value cache of a pretrained decoder, row by row, in the form that `transformers` reads.

All rows advance together: a step fills one slot in every row, and the newest slot is the last. A
mask hides slots that a row has not written: padding to the left of a short prompt, and slots from
before the row was reset. So rows of different lengths can share a batch, and the distance between
two slots is the distance between two tokens, as relative positions require. For the same reason the
slots of a row that goes back further than others move to the right.

The caches of `transformers` are not used: the dynamic one copies everything at every step, and the
static one has one length for all rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Cache, DynamicCache, EncoderDecoderCache
from transformers.cache_utils import CacheLayerMixin

from textgen_env.models.cache_ops import (
    CAPACITY_INCREMENT,
    host_sync_is_free,
    map_tensors,
    scatter_rows_,
)


class PositionMode(Enum):
    """Way in which a model learns the position of the next token.

    Attributes:
        GIVEN: positions are passed with every step, or only distances between slots matter.
        PER_ROW: the model counts from the cache's length, which may differ from row to row.
        SHARED: the model counts from one length, so all rows must have the same.
    """

    GIVEN = "given"
    PER_ROW = "per row"
    SHARED = "shared"


@dataclass(frozen=True)
class RowCache:
    """Keys and values of R rows; H, D and the number of each may differ from layer to layer.

    Attributes:
        target: keys, then values, of each layer, (R, H, L, D); slots from `used` on are free.
        source: keys, then values, of each layer, (R, H, S, D); empty without an encoder.
        source_mask: (R, S) bool, True at the source's tokens; (R, 0) without an encoder.
        visible: (R, L) bool, True at slots that a row attends to.
        length: (R,) int64, position of each row's next token.
        first_input: (R,) int64, token that the decoder reads in place of the start token.
        slot: (R,) int64, index of the next slot, the same in all rows.
        used: the same index on the host, which is the number of slots in use.
        max_slots: largest number of slots that a row attends to.
        position_mode: way in which the model learns positions.
    """

    target: tuple[Tensor, ...]
    source: tuple[Tensor, ...]
    source_mask: Tensor
    visible: Tensor
    length: Tensor
    first_input: Tensor
    slot: Tensor
    used: int
    max_slots: int
    position_mode: PositionMode

    @classmethod
    def from_prompt(
        cls,
        cache: DynamicCache | EncoderDecoderCache,
        prompt: Tensor,
        prompt_mask: Tensor,
        *,
        source_mask: Tensor,
        max_steps: int,
        position_mode: PositionMode,
    ) -> Self:
        """Return the cache of a prompt that the model has read.

        The prompt's last token is left out and read again by the first step, so that this step is
        like all others.

        Args:
            cache: filled by the model.
            prompt: (R, P) int64, padded on the left.
            prompt_mask: (R, P) bool, False at padding.
            source_mask: (R, S) bool, True at the source's tokens; (R, 0) without an encoder.
            max_steps: largest number of steps that will be taken.
            position_mode: way in which the model learns positions.
        """
        target_cache, source = cache, ()
        if isinstance(cache, EncoderDecoderCache):
            target_cache = cache.self_attention_cache
            source = _keys_and_values(cache.cross_attention_cache)
        read = prompt.shape[1] - 1
        # `transformers` takes a lone token in slot 0 for a prompt and lets it attend to all free
        # slots, so slot 0 then stays empty and hidden.
        empty = int(read == 0)
        used = empty + read
        return cls(
            target=tuple(
                F.pad(tensor[:, :, :read], (0, 0, empty, 0))
                for tensor in _keys_and_values(target_cache)
            ),
            source=source,
            source_mask=source_mask,
            visible=F.pad(prompt_mask[:, :read], (empty, 0)),
            length=prompt_mask.sum(1) - 1,
            first_input=prompt[:, -1].clone(),
            slot=torch.full_like(prompt[:, 0], used),
            used=used,
            max_slots=prompt.shape[1] + max_steps,
            position_mode=position_mode,
        )

    def reserve(self, count: int = 1) -> Self:
        """Return the cache with free slots for the next `count` tokens."""
        if self.used + count <= self.visible.shape[1]:
            return self
        kept = min(self.used, self.max_slots)  # no row attends to older slots
        first, added = self.used - kept, max(CAPACITY_INCREMENT, count)
        # On accelerators a step is recorded for one shape, so all capacity is reserved at once.
        if not host_sync_is_free(self.visible.device):
            added = max(added, self.max_slots - kept)
        return replace(
            self,
            target=tuple(
                F.pad(tensor[:, :, first : self.used], (0, 0, 0, added)) for tensor in self.target
            ),
            visible=F.pad(self.visible[:, first : self.used], (0, added)),
            slot=torch.full_like(self.slot, kept),
            used=kept,
        )

    def allocate_slots(self, count: int = 1) -> Self:
        """Return the cache with free slots for the next `count` tokens, visible to every row."""
        cache = self.reserve(count)
        cache.visible.index_fill_(1, cache.next_slots(count), True)
        return cache

    def next_slots(self, count: int) -> Tensor:
        """Return the slots of the next tokens, (count,) int64, the same in all rows."""
        return self.slot[:1] + torch.arange(count, device=self.slot.device)

    def next_positions(self, count: int) -> Tensor:
        """Return the positions of each row's next tokens, (R, count) int64."""
        return self.length[:, None] + torch.arange(count, device=self.length.device)

    def for_transformers(self, count: int) -> Cache:
        """Return a view of this cache that a model of `transformers` reads `count` tokens with."""
        first, slots = self.slot[:1], self.next_slots(count)
        positions = {
            PositionMode.GIVEN: first,
            PositionMode.PER_ROW: self.length[:, None],
            PositionMode.SHARED: self.length[:1],
        }
        layers = _cache_layers(self.target, slots)
        target = _TargetCache(layers, positions[self.position_mode], first)
        if not self.source:
            return target
        source = Cache(layers=_cache_layers(self.source, self.source_mask.shape[1]))
        return EncoderDecoderCache(target, source)

    def advance(self) -> Self:
        """Return the cache after a step.

        A row at the limit may be stepped further, as finished rows are while others continue. Its
        position then stays within the model's range.
        """
        length = (self.length + 1).clamp(max=self.max_slots - 1)
        return replace(self.advance_host_state(), length=length, slot=self.slot + 1)

    def advance_host_state(self) -> Self:
        """Return the cache with its host-side values as after a step; tensors do not change."""
        return replace(self, used=self.used + 1)

    def rewind(self, history: Sequence[Self], index: Tensor) -> Self:
        """Return a cache whose row i is as it was in history[index[i]]; `index` is (R,) int64.

        Raises:
            ValueError: the rows would differ in length, and the model has one length for all.
        """
        length = torch.stack([each.length for each in history]).gather(0, index[None]).squeeze(0)
        furthest = int(index.max())
        used, moved = self.used + furthest - (len(history) - 1), furthest - index
        cache = replace(self, length=length, slot=torch.full_like(self.slot, used), used=used)
        if bool(moved.any()):
            if self.position_mode is PositionMode.SHARED:
                raise ValueError(
                    "rows must all keep as many tokens, because this kind of model counts one "
                    f"position for all of them, got {sorted(set(index.tolist()))}: decode one "
                    "source at a time"
                )
            cache = cache._moved_right(moved)
        free = torch.arange(cache.visible.shape[1], device=index.device) >= used
        return replace(cache, visible=cache.visible & ~free)

    def _moved_right(self, distance: Tensor) -> Self:
        """Return the cache with the slots of row i moved by distance[i], and hidden before it."""
        slots = torch.arange(self.visible.shape[1], device=distance.device) - distance[:, None]
        origin = slots.clamp(min=0)
        return replace(
            self,
            target=tuple(
                tensor.gather(2, origin[:, None, :, None].expand_as(tensor))
                for tensor in self.target
            ),
            visible=self.visible.gather(1, origin) & (slots >= 0),
        )

    def select_rows(self, index: Tensor) -> Self:
        """Return a cache whose row i is a copy of row index[i]; `index` is (K,) int64."""
        return map_tensors(lambda tensor: tensor.index_select(0, index), self)

    def repeat_rows(self, count: int) -> Self:
        """Return a cache with `count` copies of each row, side by side."""
        return map_tensors(lambda tensor: tensor.repeat_interleave(count, 0), self)

    def reorder_rows(self, index: Tensor) -> Self:
        """Return a cache whose row i is a copy of row index[i], where both have the same source."""
        return replace(
            self,
            target=tuple(tensor.index_select(0, index) for tensor in self.target),
            visible=self.visible.index_select(0, index),
            length=self.length.index_select(0, index),
        )

    def reset_rows(self, mask: Tensor, fresh: Self, index: Tensor) -> Self:
        """Return the cache with row i replaced by row index[i] of `fresh` where `mask` is True.

        Sources and prompts of `fresh` may be longer than those this cache began with.

        Args:
            mask: (B,) bool.
            fresh: K rows.
            index: (B,) int64 in [0, K).

        Raises:
            ValueError: the rows would differ in length, and the model has one length for all.
        """
        if self.position_mode is PositionMode.SHARED and fresh.used != self.used:
            raise ValueError(
                "rows must all begin together, because this kind of model counts one position for "
                f"all of them: a row begins after {self.used - fresh.used} steps of the others; "
                "use autoreset mode DISABLED"
            )
        cache = self._with_room_for(fresh)
        newest = slice(cache.used - fresh.used, cache.used)  # both caches end at the same slot
        for own, new in zip(cache.target, fresh.target, strict=True):
            scatter_rows_(own[:, :, newest], new[:, :, : fresh.used], mask, index)
        width = fresh.source_mask.shape[1]  # may be less than the width of this cache's sources
        for own, new in zip(cache.source, fresh.source, strict=True):
            scatter_rows_(own[:, :, :width], new, mask, index)
        cache.source_mask.masked_fill_(mask[:, None], False)
        scatter_rows_(cache.source_mask[:, :width], fresh.source_mask, mask, index)
        cache.visible.masked_fill_(mask[:, None], False)
        scatter_rows_(cache.visible[:, newest], fresh.visible[:, : fresh.used], mask, index)
        scatter_rows_(cache.length, fresh.length, mask, index)
        scatter_rows_(cache.first_input, fresh.first_input, mask, index)
        return cache

    def _with_room_for(self, fresh: Self) -> Self:
        """Return the cache with room for sources and prompts as long as those of `fresh`."""
        cache = self
        if (wider := fresh.source_mask.shape[1] - self.source_mask.shape[1]) > 0:
            cache = replace(
                cache,
                source=tuple(F.pad(tensor, (0, 0, 0, wider)) for tensor in cache.source),
                source_mask=F.pad(cache.source_mask, (0, wider)),
            )
        if (later := fresh.used - self.used) > 0:  # hidden slots before the first
            cache = replace(
                cache,
                target=tuple(F.pad(tensor, (0, 0, later, 0)) for tensor in cache.target),
                visible=F.pad(cache.visible, (later, 0)),
                slot=cache.slot + later,
                used=fresh.used,
            )
        if fresh.max_slots > cache.max_slots:
            cache = replace(cache, max_slots=fresh.max_slots)
        return cache


class _CacheLayer(CacheLayerMixin):
    """Keys and values of one layer, written in place to `slots`; all are used if it is a number."""

    is_sliding = False

    def __init__(self, keys: Tensor, values: Tensor, slots: Tensor | int) -> None:
        super().__init__()
        self.keys, self.values, self.slots = keys, values, slots
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Do nothing, because keys and values are given at construction."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write the slots and return all there are.

        Free slots are returned too, because a mask hides them and products over a part of a tensor
        are slow.
        """
        assert self.keys is not None, "given at construction"
        assert self.values is not None, "given at construction"
        assert isinstance(self.slots, Tensor), "a source is encoded once, by `start`"
        self.keys.index_copy_(2, self.slots, key_states)
        self.values.index_copy_(2, self.slots, value_states)
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the number of slots and the offset of the first one."""
        return self.get_max_length(), 0

    def get_seq_length(self) -> Any:  # noqa: ANN401 - a tensor where steps fill slots
        """Return the number of slots in use."""
        return self.slots[:1] if isinstance(self.slots, Tensor) else self.slots

    def get_max_length(self) -> int:
        """Return the total number of slots."""
        assert self.keys is not None, "given at construction"
        return self.keys.shape[2]


class _TargetCache(Cache):
    """Layers of the target, whose reported length is the position from which models count."""

    def __init__(self, layers: list[Any], position: Tensor, slot: Tensor) -> None:
        super().__init__(layers=layers)
        self.position, self.slot = position, slot

    def get_seq_length(self, layer_idx: int = 0) -> Any:  # noqa: ANN401 - a tensor
        """Return the position of the next token, (1,), or (R, 1) if rows differ."""
        del layer_idx
        return self.position

    def get_query_offset(self, layer_idx: int = 0) -> Any:  # noqa: ANN401 - a tensor
        """Return the slot of the next token, (1,)."""
        del layer_idx
        return self.slot


def _cache_layers(tensors: tuple[Tensor, ...], slots: Tensor | int) -> list[Any]:
    """Return a layer for each pair of keys and values."""
    pairs = zip(tensors[::2], tensors[1::2], strict=True)
    return [_CacheLayer(keys, values, slots) for keys, values in pairs]


def _keys_and_values(cache: Cache) -> tuple[Tensor, ...]:
    """Return keys, then values, of each layer."""
    layers: list[Any] = cache.layers  # declared as layers of any kind
    return tuple(tensor for layer in layers for tensor in (layer.keys, layer.values))


def positions_of(mask: Tensor) -> Tensor:
    """Return the position of each token, (R, L) int64, counted from the first True of `mask`."""
    return (mask.cumsum(1) - 1).clamp(min=0)
