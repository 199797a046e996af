"""Transformer encoder-decoder with pre-norm sublayers and tied embeddings.

Embeddings, encoder, initialization and dropout are those of `encoder_decoder.py`.

Source: Vaswani et al., "Attention Is All You Need", 2017, arXiv:1706.03762.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from textgen_env.models.encoder_decoder import (
    EncodedSource,
    EncoderDecoder,
    EncoderDecoderConfig,
    SourceDecoderLayer,
)
from textgen_env.models.kv_cache import KeyValueCache
from textgen_env.models.layers import Attention
from textgen_env.models.source_memory import SourceReader
from textgen_env.models.token_positions import TokenPositions
from textgen_env.types import SpecialTokens


@dataclass(frozen=True)
class TransformerConfig(EncoderDecoderConfig):
    """Size of a Transformer; its fields are those of `EncoderDecoderConfig`."""

    def build(self, special: SpecialTokens | None = None) -> "Transformer":
        """Return a `Transformer` of this size."""
        return Transformer(self, special)


class DecoderCache(Protocol):
    """Keys and values of the target and the source, as the step of a decoder layer uses them."""

    @property
    def source(self) -> SourceReader:
        """Keys and values of the source."""
        ...

    def write(self, layer: int, keys_values: Tensor, slots: Tensor) -> None:
        """Keep those of the next positions, (R * K, 2 * H * D), of one layer at `slots`."""
        ...

    def attend_to_target(self, layer: int, query: Tensor) -> Tensor:
        """Return the attention output over the target for `query`; both are (R * K, H * D)."""
        ...


class DecoderLayer(SourceDecoderLayer):
    """Decoder layer: causal self-attention, attention to the source, feed-forward network."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.width)
        self.attention = Attention(config.width, config.num_heads)
        self.add_source_sublayers(config)

    def forward(self, hidden: Tensor, positions: TokenPositions, source: EncodedSource) -> Tensor:
        """Return the layer's output, as the base class says."""
        steps = torch.arange(positions.shape[1], device=hidden.device)
        causal = steps <= steps[:, None]  # padding is at the end, so it is hidden too
        normed = self.attention_norm(hidden)
        keys, values = self.attention.project(normed, positions)
        hidden = hidden + self.dropout(self.attention(normed, positions, keys, values, causal))
        return self.read_source(hidden, positions, source)

    def step(self, hidden: Tensor, cache: DecoderCache, layer: int, slots: Tensor) -> Tensor:
        """Return the layer's output at the next K positions of each row, (R * K, width).

        Args:
            hidden: (R * K, width), the positions of a row side by side.
            cache: gets the keys and values of these positions.
            layer: index of this layer in the cache.
            slots: places of these positions in the cache, from `KeyValueCache.allocate_slots`.
        """
        normed = self.attention_norm(hidden)
        cache.write(layer, self.attention.key_value(normed), slots)
        query = self.attention.query(normed)
        hidden = hidden + self.attention.out(cache.attend_to_target(layer, query))
        return self.step_source(hidden, cache.source, layer)


class Transformer(EncoderDecoder):
    """Transformer encoder-decoder as a `SequenceModel`."""

    def __init__(self, config: TransformerConfig, special: SpecialTokens | None = None) -> None:
        super().__init__(config, partial(DecoderLayer, config), special)

    def start(self, source: Tensor, max_steps: int) -> KeyValueCache:
        """Encode the source and compute its keys and values for every decoder layer."""
        positions = self.position_embeddings(max_steps, source.device)
        return KeyValueCache.empty(self.source_memory(source), positions)

    def step(self, previous: Tensor, cache: KeyValueCache) -> tuple[Tensor, KeyValueCache]:
        """Return the logits (B, V) of the next token and the cache, which is written in place."""
        cache, slots = cache.allocate_slots(cache.length[:, None])
        positions = cache.position_embeddings.index_select(0, cache.length)
        hidden = self._decode(self.embed_next(previous, positions), cache, slots)
        return self.project(hidden), cache.advance()

    def step_block(
        self, tokens: Tensor, cache: KeyValueCache
    ) -> tuple[Tensor, list[KeyValueCache]]:
        """Return the logits after each of K tokens, (B, K, V), and the cache after each of them."""
        positions = cache.next_positions(tokens.shape[1])
        cache, slots = cache.allocate_slots(positions)
        embeddings = cache.position_embeddings.index_select(0, positions.flatten())
        hidden = self.embed_next(tokens.flatten(), embeddings)
        hidden, caches = self._decode(hidden, cache.as_block(positions), slots), []
        for _ in range(tokens.shape[1]):
            cache = cache.advance()
            caches.append(cache)
        return self.project(hidden).unflatten(0, tokens.shape), caches

    def _decode(self, hidden: Tensor, cache: KeyValueCache, slots: Tensor) -> Tensor:
        """Return the last hidden states, (R * K, width), as the layers' `step` makes them."""
        layers = cast("Iterator[DecoderLayer]", iter(self.decoder))
        for index, layer in enumerate(layers):
            hidden = layer.step(hidden, cache, index, slots)
        return self.decoder_norm(hidden)
