"""Transformer encoder-decoder with pre-norm sublayers and tied embeddings.

One matrix embeds source and target tokens and computes the logits. It is initialized with standard
deviation width^-1/2, and embeddings are multiplied by width^1/2, so that initial logits have unit
scale. Dropout acts on the embeddings and on each sublayer's output, before it is added to the
residual stream. There is no dropout on attention weights or inside the feed-forward network,
because drawing its random numbers is expensive on CPUs.

The layout is that of Blenderbot in the `transformers` library, so that an export copies weights:
biased projections, ReLU, a final norm on both sides. Sinusoids are M2M-100's, counted from 1.

Source: Vaswani et al., "Attention Is All You Need", 2017, arXiv:1706.03762.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from textgen_env.bounds import check_at_least, check_finite
from textgen_env.models.config import ModelConfig, check_dropout
from textgen_env.models.kv_cache import KeyValueCache
from textgen_env.models.layers import Dropout, TiedEmbedding, attend, check_source
from textgen_env.types import SpecialTokens


@dataclass(frozen=True)
class TransformerConfig(ModelConfig):
    """Size of a Transformer.

    Attributes:
        vocab_size: number of tokens, V.
        width: width of the residual stream; even, at least 4, and divisible by `num_heads`.
        num_heads: number of attention heads, H.
        feed_forward: inner width of the feed-forward networks.
        num_encoder_layers: number of encoder layers.
        num_decoder_layers: number of decoder layers.
        dropout: probability of dropout, in [0, 0.99].
    """

    vocab_size: int = 4000
    width: int = 256
    num_heads: int = 4
    feed_forward: int = 1024
    num_encoder_layers: int = 2
    num_decoder_layers: int = 2
    dropout: float = 0.1

    def __post_init__(self) -> None:
        check_at_least(self, vocab_size=1, num_heads=1, feed_forward=1)
        check_at_least(self, num_encoder_layers=1, num_decoder_layers=1)
        check_dropout(self)
        check_finite(self, "width")
        if self.width % self.num_heads or self.width % 2 or self.width < 4:
            raise ValueError(
                f"width must be even, at least 4 and divisible by num_heads ({self.num_heads}), "
                f"got {self.width}"
            )

    def build(self, special: SpecialTokens | None = None) -> "Transformer":
        """Return a `Transformer` of this size."""
        return Transformer(self, special)


class Attention(nn.Module):
    """Multi-head attention whose queries, keys and values come from vectors of one width."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def project(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Return the keys and the values, (B, H, L, D) each, of `memory`, (B, L, width)."""
        keys, values = self.key_value(memory).chunk(2, dim=-1)
        return self._split_heads(keys), self._split_heads(values)

    def forward(
        self,
        hidden: Tensor,
        keys: Tensor,
        values: Tensor,
        mask: Tensor,
    ) -> Tensor:
        """Return the attention output, (B, T, width).

        Args:
            hidden: (B, T, width), the vectors that queries are computed from.
            keys: (B, H, L, D).
            values: (B, H, L, D).
            mask: bool, broadcasts to (B, H, T, L), True where a position is visible.
        """
        attended = attend(self._split_heads(self.query(hidden)), keys, values, mask)
        return self.out(attended.transpose(1, 2).flatten(2))

    def _split_heads(self, projected: Tensor) -> Tensor:
        return projected.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class FeedForward(nn.Sequential):
    """Feed-forward network: two linear layers with a ReLU between them."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__(nn.Linear(width, inner), nn.ReLU(), nn.Linear(inner, width))


class EncoderLayer(nn.Module):
    """Encoder layer: self-attention over the source, then the feed-forward network."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.width)
        self.attention = Attention(config.width, config.num_heads)
        self.feed_forward_norm = nn.LayerNorm(config.width)
        self.feed_forward = FeedForward(config.width, config.feed_forward)
        self.dropout = Dropout(config.dropout)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Return the layer's output, (B, S, width), for an input of the same shape.

        Args:
            hidden: (B, S, width).
            mask: (B, 1, 1, S) bool, True at the source's tokens.
        """
        normed = self.attention_norm(hidden)
        keys, values = self.attention.project(normed)
        hidden = hidden + self.dropout(self.attention(normed, keys, values, mask))
        return hidden + self.dropout(self.feed_forward(self.feed_forward_norm(hidden)))


class DecoderLayer(nn.Module):
    """Decoder layer: causal self-attention, attention to the source, feed-forward network."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.width)
        self.attention = Attention(config.width, config.num_heads)
        self.source_norm = nn.LayerNorm(config.width)
        self.source_attention = Attention(config.width, config.num_heads)
        self.feed_forward_norm = nn.LayerNorm(config.width)
        self.feed_forward = FeedForward(config.width, config.feed_forward)
        self.dropout = Dropout(config.dropout)

    def forward(
        self, hidden: Tensor, causal: Tensor, memory: Tensor, source_mask: Tensor
    ) -> Tensor:
        """Return the layer's output at all positions, (B, T, width).

        Args:
            hidden: (B, T, width).
            causal: (T, T) bool, True where a position is not later than the query's.
            memory: (B, S, width), the encoder's output.
            source_mask: (B, 1, 1, S) bool, True at the source's tokens.
        """
        normed = self.attention_norm(hidden)
        keys, values = self.attention.project(normed)
        hidden = hidden + self.dropout(self.attention(normed, keys, values, causal))
        keys, values = self.source_attention.project(memory)
        context = self.source_attention(self.source_norm(hidden), keys, values, source_mask)
        hidden = hidden + self.dropout(context)
        return hidden + self.dropout(self.feed_forward(self.feed_forward_norm(hidden)))

    def step(self, hidden: Tensor, cache: KeyValueCache, layer: int, slots: Tensor) -> Tensor:
        """Return the layer's output at the next position of each row, (R, width).

        Args:
            hidden: (R, width).
            cache: written in place with the keys and values of this position.
            layer: index of this layer in the cache.
            slots: place of this position in the cache, from `KeyValueCache.allocate_slot`.
        """
        normed = self.attention_norm(hidden)
        cache.write(layer, self.attention.key_value(normed), slots)
        query = self.attention.query(normed)
        hidden = hidden + self.attention.out(cache.attend_to_target(layer, query))
        query = self.source_attention.query(self.source_norm(hidden))
        hidden = hidden + self.source_attention.out(cache.attend_to_source(layer, query))
        return hidden + self.feed_forward(self.feed_forward_norm(hidden))


class Transformer(nn.Module):
    """Transformer encoder-decoder as a `SequenceModel`; the module docstring has its details."""

    def __init__(self, config: TransformerConfig, special: SpecialTokens | None = None) -> None:
        super().__init__()
        self.config = config
        self.special = special or SpecialTokens()
        self.embedding = TiedEmbedding(config.vocab_size, config.width)
        self.encoder = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_encoder_layers))
        self.encoder_norm = nn.LayerNorm(config.width)
        self.decoder = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_decoder_layers))
        self.decoder_norm = nn.LayerNorm(config.width)
        self.dropout = Dropout(config.dropout)
        self._initialize()

    @property
    def vocab_size(self) -> int:
        """Number of tokens in the vocabulary, V."""
        return self.config.vocab_size

    def start(self, source: Tensor, max_steps: int) -> KeyValueCache:
        """Encode the source and compute its keys and values for every decoder layer."""
        memory, mask = self._encode(source)
        projected = [
            part
            for layer in self._decoder_layers()
            for part in layer.source_attention.project(memory)
        ]
        positions = sinusoids(torch.arange(max_steps, device=source.device), self.config.width)
        return KeyValueCache.empty(
            source=torch.stack(projected).unflatten(0, (-1, 2)),
            source_mask=mask,
            position_embeddings=positions.to(self.embedding.weight.dtype),
        )

    def step(self, previous: Tensor, cache: KeyValueCache) -> tuple[Tensor, KeyValueCache]:
        """Return the logits (B, V) of the next token and the cache, which is written in place."""
        cache, slots = cache.allocate_slot()
        positions = cache.position_embeddings.index_select(0, cache.length)
        hidden = self.embedding(previous) * math.sqrt(self.config.width) + positions
        for index, layer in enumerate(self._decoder_layers()):
            hidden = layer.step(hidden, cache, index, slots)
        return self.project(self.decoder_norm(hidden)), cache.advance()

    def sequence_logits(self, source: Tensor, actions: Tensor) -> Tensor:
        """Return the logits (B, T, V) of every action."""
        return self.project(self.hidden(source, actions))

    def hidden(self, source: Tensor, actions: Tensor) -> Tensor:
        """Return the last hidden states (B, T, D), after the final norm."""
        memory, mask = self._encode(source)
        previous = F.pad(actions, (1, 0), value=self.special.start)[:, :-1]
        positions = torch.arange(actions.shape[1], device=actions.device)
        hidden = self._embed(previous, positions)
        causal = positions <= positions[:, None]  # padding is at the end, so it is hidden too
        for layer in self.decoder:
            hidden = layer(hidden, causal, memory, mask[:, None, None])
        return self.decoder_norm(hidden)

    def project(self, hidden: Tensor) -> Tensor:
        """Return the logits (..., V) of last hidden states, (..., D)."""
        return self.embedding.logits(hidden)

    def _decoder_layers(self) -> Iterator[DecoderLayer]:
        """Iterate over the decoder with the layers' type, which `nn.ModuleList` does not keep."""
        return cast("Iterator[DecoderLayer]", iter(self.decoder))

    def _encode(self, source: Tensor) -> tuple[Tensor, Tensor]:
        check_source(source)
        mask = source != self.special.pad
        hidden = self._embed(source, torch.arange(source.shape[1], device=source.device))
        for layer in self.encoder:
            hidden = layer(hidden, mask[:, None, None])
        return self.encoder_norm(hidden), mask

    def _embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        scaled = self.embedding(tokens) * math.sqrt(self.config.width)
        return self.dropout(scaled + sinusoids(positions, self.config.width).to(scaled.dtype))

    def _initialize(self) -> None:
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        nn.init.normal_(self.embedding.weight, std=self.config.width**-0.5)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)


def sinusoids(positions: Tensor, width: int) -> Tensor:
    """Return sinusoidal position embeddings: all sines, then all cosines.

    Args:
        positions: (...) int64, counted from 0; the angles are those of position + 1.
        width: even number of features, at least 4.

    Returns:
        (..., width) float32, in [-1, 1].

    Source: Vaswani et al. 2017, section 3.5, arXiv:1706.03762, in tensor2tensor's order.
    """
    half = width // 2
    exponents = torch.arange(half, device=positions.device, dtype=torch.float32) / (half - 1)
    angles = (positions + 1)[..., None].float() * torch.exp(-math.log(10000.0) * exponents)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
