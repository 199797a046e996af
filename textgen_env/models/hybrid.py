"""Transformer encoder under a recurrent decoder, whose step costs the same at every position.

The unit sru_pp is the exception: it attends to the positions before, in a narrow width. A decoder
layer is the Transformer's with a recurrent unit in place of self-attention, the rest under the same
names: a Transformer's embeddings, encoder and other sublayers fit in by name. The decoder's input
is the Transformer's too, position embeddings included. A recurrent unit can do without them, but
sublayers that come from a teacher expect what they read there.

Embeddings, encoder, initialization and dropout are those of `encoder_decoder.py`.

Source: Kim et al., "From Research to Production and Back: Ludicrously Fast Neural Machine
Translation", 2019, doi:10.18653/v1/D19-5632, where a layer is normed after each sublayer.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Self, cast

import torch
from torch import Tensor, nn

from textgen_env.models.cache_ops import host_sync_is_free, scatter_rows_, select_states
from textgen_env.models.encoder_decoder import (
    EncodedSource,
    EncoderDecoder,
    EncoderDecoderConfig,
    SourceDecoderLayer,
)
from textgen_env.models.layers import at_least_float32
from textgen_env.models.recurrent_units import UNITS, UnitName
from textgen_env.models.source_memory import SourceMemory, SourceReader
from textgen_env.models.token_positions import TokenPositions
from textgen_env.models.unit_memory import StepMemory, UnitMemory
from textgen_env.types import SpecialTokens


@dataclass(frozen=True)
class HybridConfig(EncoderDecoderConfig):
    """Size of a hybrid; its other fields are those of `EncoderDecoderConfig`.

    Attributes:
        unit: recurrent unit of the decoder: ssru has 2 products of width^2 a step, sru 3, gru 6;
            sru_pp has 1.1 and attends to the steps before.
    """

    unit: UnitName = "ssru"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.unit not in UNITS:
            raise ValueError(f"unit must be one of {', '.join(UNITS)}, got {self.unit!r}")
        if self.width < (smallest := UNITS[self.unit].MIN_WIDTH):
            raise ValueError(
                f"width must be at least {smallest} for unit {self.unit}, got {self.width}"
            )

    def build(self, special: SpecialTokens | None = None) -> "Hybrid":
        """Return a `Hybrid` of this size."""
        return Hybrid(self, special)


@dataclass(frozen=True)
class HybridCache:
    """Decoder states, and the source's keys and values for attention.

    Attributes:
        states: (N, R, D), float32 or wider, the state of each decoder layer.
        memory: (N, 2, R, 1, T, M), keys and values of the target for units that attend, written in
            place up to `length`; M is 0 for other units.
        source: keys and values of the source, which rows made by `repeat_rows` share.
        position_embeddings: (T, width), added to the embeddings of tokens; T is the step limit.
        length: (R,) int64, number of tokens read in each row.
    """

    states: Tensor
    memory: Tensor
    source: SourceMemory
    position_embeddings: Tensor
    length: Tensor

    def reserve(self) -> Self:
        """Return the cache itself, because it has room for all steps."""
        return self

    def advance_host_state(self) -> Self:
        """Return the cache itself, because nothing on the host depends on the step."""
        return self

    def unit_memory(self, layer: int) -> UnitMemory:
        """Return the memory of one layer's unit at the next steps."""
        return UnitMemory(self.memory[layer], self.length)

    def advance(self, states: Tensor) -> Self:
        """Return the cache after a step; a row at the limit stays at its last position."""
        last = len(self.position_embeddings) - 1
        return replace(self, states=states, length=(self.length + 1).clamp(max=last))

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
            states=self.states.repeat_interleave(count, 1),
            memory=self.memory.repeat_interleave(count, 2),
            source=self.source.repeat_rows(count),
            length=self.length.repeat_interleave(count),
        )

    def reorder_rows(self, index: Tensor) -> Self:
        """Return a cache whose row i is a copy of row index[i], where both have the same source."""
        return replace(
            self,
            states=self.states.index_select(1, index),
            memory=self.memory.index_select(2, index),
            length=self.length.index_select(0, index),
        )

    def rewind(self, history: Sequence[Self], index: Tensor) -> Self:
        """Return a cache whose row i is as it was in history[index[i]]; `index` is (R,) int64.

        What units have written to memory since is not read, and is overwritten by further steps.
        """
        length = torch.stack([each.length for each in history]).gather(0, index[None])
        states = select_states([each.states for each in history], index)
        return replace(self, states=states, length=length.squeeze(0))

    def reset_rows(self, mask: Tensor, fresh: Self, index: Tensor) -> Self:
        """Return the cache with row i replaced by row index[i] of `fresh` where `mask` is True.

        Args:
            mask: (B,) bool.
            fresh: K rows.
            index: (B,) int64 in [0, K).
        """
        if host_sync_is_free(mask.device) and not mask.any():
            return self
        scatter_rows_(self.states, fresh.states, mask, index, dim=1)
        scatter_rows_(self.memory, fresh.memory, mask, index, dim=2)
        scatter_rows_(self.length, fresh.length, mask, index)
        return replace(self, source=self.source.reset_rows(mask, fresh.source, index))


class HybridDecoderLayer(SourceDecoderLayer):
    """Decoder layer: recurrent unit, attention to the source, feed-forward network."""

    def __init__(self, config: HybridConfig) -> None:
        super().__init__()
        self.unit_norm = nn.LayerNorm(config.width)
        self.unit = UNITS[config.unit](config.width)
        self.add_source_sublayers(config)

    def forward(self, hidden: Tensor, positions: TokenPositions, source: EncodedSource) -> Tensor:
        """Return the layer's output, as the base class says."""
        outputs = self.unit(positions.scatter(self.unit_norm(hidden)))
        hidden = hidden + self.dropout(positions.gather(outputs))
        return self.read_source(hidden, positions, source)

    def step(
        self, hidden: Tensor, state: Tensor, memory: StepMemory, source: SourceReader, layer: int
    ) -> tuple[Tensor, Tensor]:
        """Return the layer's output at the next position of each row, and its unit's state.

        Args:
            hidden: (R, width).
            state: (R, width), the unit's state before this position.
            memory: what the steps before have left for the unit.
            source: keys and values of the source.
            layer: index of this layer in the source.

        Returns:
            (R, width) each.
        """
        output, state = self.unit.step(self.unit_norm(hidden), state, memory)
        return self.step_source(hidden + output, source, layer), state

    def step_block(
        self, hidden: Tensor, cache: HybridCache, source: SourceMemory, layer: int
    ) -> tuple[Tensor, Tensor]:
        """Return the layer's output at the next K positions, and its unit's states after each.

        Args:
            hidden: (R * K, width), the positions of a row side by side.
            cache: state before these positions.
            source: keys and values of the source, which the K positions share.
            layer: index of this layer in the cache and in the source.

        Returns:
            (R * K, width) and (R, K, width).
        """
        state, memory = cache.states[layer], cache.unit_memory(layer)
        inputs = self.unit_norm(hidden).unflatten(0, (len(state), -1))
        output, states = self.unit.step_block(inputs, state, memory)
        return self.step_source(hidden + output.flatten(0, 1), source, layer), states


class Hybrid(EncoderDecoder):
    """Transformer encoder with a recurrent decoder as a `SequenceModel`."""

    def __init__(self, config: HybridConfig, special: SpecialTokens | None = None) -> None:
        super().__init__(config, partial(HybridDecoderLayer, config), special)

    def start(self, source: Tensor, max_steps: int) -> HybridCache:
        """Encode the source and compute its keys and values for every decoder layer."""
        memory, shape = self.source_memory(source), (len(source), self.config.width)
        layers, new_zeros = len(self.decoder), memory.keys_values.new_zeros
        first = cast("HybridDecoderLayer", self.decoder[0])
        room = (len(source), 1, max_steps, first.unit.memory_width)
        return HybridCache(
            states=new_zeros(layers, *shape, dtype=at_least_float32(memory.keys_values.dtype)),
            memory=new_zeros(layers, 2, *room),
            source=memory,
            position_embeddings=self.position_embeddings(max_steps, source.device),
            length=torch.zeros_like(source[:, 0]),
        )

    def step(self, previous: Tensor, cache: HybridCache) -> tuple[Tensor, HybridCache]:
        """Return the logits (B, V) of the next token and the cache after this step."""
        positions = cache.position_embeddings.index_select(0, cache.length)
        hidden, states = self.embed_next(previous, positions), []
        layers = cast("Iterator[HybridDecoderLayer]", iter(self.decoder))
        for index, layer in enumerate(layers):
            state, memory = cache.states[index], cache.unit_memory(index)
            hidden, state = layer.step(hidden, state, memory, cache.source, index)
            states.append(state)
        return self.project(self.decoder_norm(hidden)), cache.advance(torch.stack(states))

    def step_block(self, tokens: Tensor, cache: HybridCache) -> tuple[Tensor, list[HybridCache]]:
        """Return the logits after each of K tokens, (B, K, V), and the cache after each of them."""
        count = tokens.shape[1]
        positions = cache.length[:, None] + torch.arange(count, device=tokens.device)
        embeddings = cache.position_embeddings.index_select(0, positions.flatten())
        hidden, states = self.embed_next(tokens.flatten(), embeddings), []
        source = cache.source.repeat_rows(count)
        layers = cast("Iterator[HybridDecoderLayer]", iter(self.decoder))
        for index, layer in enumerate(layers):
            hidden, after = layer.step_block(hidden, cache, source, index)
            states.append(after)
        logits, caches = self.project(self.decoder_norm(hidden)), []
        for each in torch.stack(states).unbind(2):
            cache = cache.advance(each)
            caches.append(cache)
        return logits.unflatten(0, tokens.shape), caches
