"""Transformer encoder-decoder (Vaswani et al. 2017, arXiv:1706.03762), pre-norm, tied embeddings.

One matrix embeds source and target and makes the logits: it starts with standard deviation
width^-1/2 and is scaled by width^1/2 on the way in, so that logits have unit scale at the start.
Dropout acts where a sublayer joins the residual stream and on the embeddings, not inside attention
or between the two layers of the feed-forward net: on CPUs its random numbers are what costs.

The parts are those of `transformers`' Blenderbot layout (biased projections, ReLU, a final norm on
both sides) with M2M-100's sinusoids, counted from 1, so that an export is a copy of weights.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from textgen_env.models.config import ModelConfig
from textgen_env.models.kv_cache import KeyValueCache
from textgen_env.models.layers import Dropout, TiedEmbedding, attend
from textgen_env.types import SpecialTokens


@dataclass(frozen=True)
class TransformerConfig(ModelConfig):
    """Size of a Transformer.

    Attributes:
        vocab_size: V.
        width: width of the residual stream; divisible by `num_heads` and by 2.
        num_heads: H.
        feed_forward: inner width of the feed-forward nets.
        num_encoder_layers: layers that read the source.
        num_decoder_layers: layers that write the target.
        dropout: probability, in [0, 0.99].
    """

    vocab_size: int = 4000
    width: int = 256
    num_heads: int = 4
    feed_forward: int = 1024
    num_encoder_layers: int = 2
    num_decoder_layers: int = 2
    dropout: float = 0.1

    def __post_init__(self) -> None:
        if self.width % self.num_heads or self.width % 2 or self.width < 4:
            raise ValueError(
                f"width must be even, at least 4 and divisible by num_heads ({self.num_heads}), "
                f"got {self.width}"
            )

    def build(self, special: SpecialTokens | None = None) -> "Transformer":
        """Return a `Transformer` of this size."""
        return Transformer(self, special)


class Attention(nn.Module):
    """Multi-head attention over memories of the stream's own width."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def project(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values, (B, H, L, D) each, of `memory`, (B, L, width)."""
        keys, values = self.key_value(memory).chunk(2, dim=-1)
        return self._heads(keys), self._heads(values)

    def forward(
        self,
        hidden: Tensor,
        keys: Tensor,
        values: Tensor,
        mask: Tensor,
    ) -> Tensor:
        """What `hidden`, (B, T, width), reads from keys and values; `mask` True where it may."""
        read = attend(self._heads(self.query(hidden)), keys, values, mask)
        return self.out(read.transpose(1, 2).flatten(2))

    def _heads(self, flat: Tensor) -> Tensor:
        return flat.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class FeedForward(nn.Sequential):
    """Two linear layers with a ReLU between them."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__(nn.Linear(width, inner), nn.ReLU(), nn.Linear(inner, width))


class EncoderLayer(nn.Module):
    """Self-attention over the source, then the feed-forward net."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.width)
        self.attention = Attention(config.width, config.num_heads)
        self.feed_forward_norm = nn.LayerNorm(config.width)
        self.feed_forward = FeedForward(config.width, config.feed_forward)
        self.dropout = Dropout(config.dropout)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """(B, S, width) to the same; `mask` is (B, 1, 1, S)."""
        normed = self.attention_norm(hidden)
        keys, values = self.attention.project(normed)
        hidden = hidden + self.dropout(self.attention(normed, keys, values, mask))
        return hidden + self.dropout(self.feed_forward(self.feed_forward_norm(hidden)))


class DecoderLayer(nn.Module):
    """Causal self-attention, attention to the source, then the feed-forward net."""

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
        """All positions at once: (B, T, width) to the same; `causal` is (T, T)."""
        normed = self.attention_norm(hidden)
        keys, values = self.attention.project(normed)
        hidden = hidden + self.dropout(self.attention(normed, keys, values, causal))
        return self._read_source(hidden, *self.source_attention.project(memory), source_mask)

    def step(self, hidden: Tensor, cache: KeyValueCache, layer: int, places: Tensor) -> Tensor:
        """One position of each row: (R, width) to the same; writes its keys and values."""
        normed = self.attention_norm(hidden)
        cache.write(layer, self.attention.key_value(normed), places)
        hidden = hidden + self.attention.out(cache.read(layer, self.attention.query(normed)))
        query = self.source_attention.query(self.source_norm(hidden))
        hidden = hidden + self.source_attention.out(cache.read_source(layer, query))
        return hidden + self.feed_forward(self.feed_forward_norm(hidden))

    def _read_source(self, hidden: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        read = self.source_attention(self.source_norm(hidden), keys, values, mask)
        hidden = hidden + self.dropout(read)
        return hidden + self.dropout(self.feed_forward(self.feed_forward_norm(hidden)))


class Transformer(nn.Module):
    """A `SequenceModel`; see the module's docstring for what is particular about it."""

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
        """V."""
        return self.config.vocab_size

    def start(self, source: Tensor, max_steps: int) -> KeyValueCache:
        """Encode the source and project its keys and values for every decoder layer."""
        memory, mask = self._encode(source)
        projected = [
            part
            for layer in self._decoder_layers()
            for part in layer.source_attention.project(memory)
        ]
        positions = torch.arange(max_steps, device=source.device)
        return KeyValueCache.empty(
            source=torch.stack(projected).unflatten(0, (-1, 2)),
            source_mask=mask,
            signals=sinusoids(positions, self.config.width).to(self.embedding.weight.dtype),
        )

    def step(self, previous: Tensor, cache: KeyValueCache) -> tuple[Tensor, KeyValueCache]:
        """Logits (B, V) of the next token; `cache` is written in place."""
        cache, places = cache.opened()
        signals = cache.signals.index_select(0, cache.length)
        hidden = self.embedding(previous) * math.sqrt(self.config.width) + signals
        for index, layer in enumerate(self._decoder_layers()):
            hidden = layer.step(hidden, cache, index, places)
        return self._logits(hidden), cache.advanced()

    def sequence_logits(self, source: Tensor, actions: Tensor) -> Tensor:
        """Logits (B, T, V) of every action."""
        memory, mask = self._encode(source)
        previous = F.pad(actions[:, :-1], (1, 0), value=self.special.start)
        positions = torch.arange(actions.shape[1], device=actions.device)
        hidden = self._embed(previous, positions)
        causal = positions <= positions[:, None]  # hides padding too, which stands at the end
        for layer in self.decoder:
            hidden = layer(hidden, causal, memory, mask[:, None, None])
        return self._logits(hidden)

    def _decoder_layers(self) -> Iterator[DecoderLayer]:
        """The decoder with the type that an `nn.ModuleList` does not know."""
        return cast("Iterator[DecoderLayer]", iter(self.decoder))

    def _encode(self, source: Tensor) -> tuple[Tensor, Tensor]:
        mask = source != self.special.pad
        hidden = self._embed(source, torch.arange(source.shape[1], device=source.device))
        for layer in self.encoder:
            hidden = layer(hidden, mask[:, None, None])
        return self.encoder_norm(hidden), mask

    def _embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        scaled = self.embedding(tokens) * math.sqrt(self.config.width)
        return self.dropout(scaled + sinusoids(positions, self.config.width).to(scaled.dtype))

    def _logits(self, hidden: Tensor) -> Tensor:
        return self.embedding.logits(self.decoder_norm(hidden))

    def _initialize(self) -> None:
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        nn.init.normal_(self.embedding.weight, std=self.config.width**-0.5)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)


def sinusoids(positions: Tensor, width: int) -> Tensor:
    """(..., width) float32 position signals: sines, then cosines, of `positions` counted from 1.

    Source: Vaswani et al. 2017, section 3.5, arXiv:1706.03762, in tensor2tensor's order.
    """
    half = width // 2
    exponents = torch.arange(half, device=positions.device, dtype=torch.float32) / (half - 1)
    angles = (positions + 1)[..., None].float() * torch.exp(-math.log(10000.0) * exponents)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
