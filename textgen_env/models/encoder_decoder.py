"""Parts that encoder-decoders with a Transformer encoder share, whatever their decoder consists of.

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
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from textgen_env.bounds import check_at_least, check_finite
from textgen_env.models.config import ModelConfig, check_dropout
from textgen_env.models.layers import (
    Attention,
    Dropout,
    FeedForward,
    TiedEmbedding,
    check_source,
    sinusoids,
)
from textgen_env.models.source_memory import SourceMemory, SourceReader
from textgen_env.models.token_positions import TokenPositions
from textgen_env.types import SpecialTokens


@dataclass(frozen=True)
class EncoderDecoderConfig(ModelConfig):
    """Size of an encoder-decoder.

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


class EncoderLayer(nn.Module):
    """Encoder layer: self-attention over the source, then the feed-forward network."""

    def __init__(self, config: EncoderDecoderConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.width)
        self.attention = Attention(config.width, config.num_heads)
        self.feed_forward_norm = nn.LayerNorm(config.width)
        self.feed_forward = FeedForward(config.width, config.feed_forward)
        self.dropout = Dropout(config.dropout)

    def forward(self, hidden: Tensor, positions: TokenPositions, mask: Tensor) -> Tensor:
        """Return the layer's output, (K, width), for an input of the same shape.

        Args:
            hidden: (K, width).
            positions: its K positions of the (B, S) source.
            mask: (B, 1, 1, S) bool, True at the source's tokens.
        """
        normed = self.attention_norm(hidden)
        keys, values = self.attention.project(normed, positions)
        hidden = hidden + self.dropout(self.attention(normed, positions, keys, values, mask))
        return hidden + self.dropout(self.feed_forward(self.feed_forward_norm(hidden)))


@dataclass(frozen=True)
class EncodedSource:
    """Encoder's output.

    Attributes:
        memory: (K, width).
        positions: its K positions of the (B, S) source.
        mask: (B, S) bool, True at the source's tokens.
    """

    memory: Tensor
    positions: TokenPositions
    mask: Tensor


class SourceDecoderLayer(nn.Module, ABC):
    """Base of decoder layers: after a first sublayer of their own they read the source.

    A subclass creates its first sublayer, then calls `add_source_sublayers`: parameters stand, and
    are drawn, in the order in which they act.
    """

    @abstractmethod
    def forward(self, hidden: Tensor, positions: TokenPositions, source: EncodedSource) -> Tensor:
        """Return the layer's output, (K, width).

        Args:
            hidden: (K, width).
            positions: its K positions of the (B, T) prefixes.
            source: the encoder's output.
        """

    def add_source_sublayers(self, config: EncoderDecoderConfig) -> None:
        """Create the attention to the source and the feed-forward network."""
        self.source_norm = nn.LayerNorm(config.width)
        self.source_attention = Attention(config.width, config.num_heads)
        self.feed_forward_norm = nn.LayerNorm(config.width)
        self.feed_forward = FeedForward(config.width, config.feed_forward)
        self.dropout = Dropout(config.dropout)

    def read_source(
        self, hidden: Tensor, positions: TokenPositions, source: EncodedSource
    ) -> Tensor:
        """Return what `forward` does, given `hidden` with the first sublayer's output added."""
        keys, values = self.source_attention.project(source.memory, source.positions)
        mask = source.mask[:, None, None]
        context = self.source_attention(self.source_norm(hidden), positions, keys, values, mask)
        hidden = hidden + self.dropout(context)
        return hidden + self.dropout(self.feed_forward(self.feed_forward_norm(hidden)))

    def step_source(self, hidden: Tensor, source: SourceReader, layer: int) -> Tensor:
        """Return the layer's output at the next positions of R rows, (R, width).

        Args:
            hidden: (R, width), with the first sublayer's output added.
            source: keys and values of the source, which positions of one row share.
            layer: index of this layer in `source`.
        """
        query = self.source_attention.query(self.source_norm(hidden))
        hidden = hidden + self.source_attention.out(source.attend(layer, query))
        return hidden + self.feed_forward(self.feed_forward_norm(hidden))


class EncoderDecoder(nn.Module):
    """Base of encoder-decoders as `SequenceModel`; subclasses add `start` and `step`.

    Args:
        config: size of the model.
        decoder_layer: function that makes a decoder layer.
        special: special tokens; None for those of tokenizers trained here.
    """

    def __init__(
        self,
        config: EncoderDecoderConfig,
        decoder_layer: Callable[[], SourceDecoderLayer],
        special: SpecialTokens | None,
    ) -> None:
        super().__init__()
        self.config = config
        self.special = special or SpecialTokens()
        self.embedding = TiedEmbedding(config.vocab_size, config.width)
        self.encoder = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_encoder_layers))
        self.encoder_norm = nn.LayerNorm(config.width)
        self.decoder = nn.ModuleList(decoder_layer() for _ in range(config.num_decoder_layers))
        self.decoder_norm = nn.LayerNorm(config.width)
        self.dropout = Dropout(config.dropout)
        self._initialize()

    @property
    def vocab_size(self) -> int:
        """Number of tokens in the vocabulary, V."""
        return self.config.vocab_size

    @property
    def width(self) -> int:
        """D, the width of the hidden states and of the embeddings."""
        return self.config.width

    def sequence_logits(self, source: Tensor, actions: Tensor) -> Tensor:
        """Return the logits (B, T, V) of every action."""
        hidden, positions = self._last_hidden(source, actions)
        return positions.scatter(self.project(hidden))

    def hidden(self, source: Tensor, actions: Tensor) -> Tensor:
        """Return the last hidden states, (B, T, width), after the final norm."""
        hidden, positions = self._last_hidden(source, actions)
        return positions.scatter(hidden)

    def project(self, hidden: Tensor) -> Tensor:
        """Return the logits (..., V) of last hidden states, (..., width)."""
        return self.embedding.logits(hidden)

    def embed(self, tokens: Tensor) -> Tensor:
        """Return the input embeddings (..., width) of tokens, (...) int64, without positions."""
        return self.embedding(tokens)

    def source_memory(self, source: Tensor) -> SourceMemory:
        """Encode the source and compute its keys and values for every decoder layer."""
        encoded = self._encode(source)
        layers = cast("Iterator[SourceDecoderLayer]", iter(self.decoder))
        projected = [
            part
            for layer in layers
            for part in layer.source_attention.project(encoded.memory, encoded.positions)
        ]
        return SourceMemory.masked(torch.stack(projected).unflatten(0, (-1, 2)), encoded.mask)

    def embed_next(self, previous: Tensor, position_embeddings: Tensor) -> Tensor:
        """Return the decoder's input of one step, (R, width).

        Args:
            previous: (R,) int64, the last token of each prefix.
            position_embeddings: (R, width), those of its position.
        """
        return self.embedding(previous) * math.sqrt(self.config.width) + position_embeddings

    def position_embeddings(self, count: int, device: torch.device) -> Tensor:
        """Return the embeddings of the first positions, (count, width), in the weights' dtype."""
        positions = sinusoids(torch.arange(count, device=device), self.config.width)
        return positions.to(self.embedding.weight.dtype)

    def _encode(self, source: Tensor) -> EncodedSource:
        """Return the encoder's output at the tokens of (B, S) `source`."""
        check_source(source)
        mask = source != self.special.pad
        positions = TokenPositions.of(mask)
        hidden = self._embed(source, positions)
        for layer in self.encoder:
            hidden = layer(hidden, positions, mask[:, None, None])
        return EncodedSource(self.encoder_norm(hidden), positions, mask)

    def _last_hidden(self, source: Tensor, actions: Tensor) -> tuple[Tensor, TokenPositions]:
        """Return the last hidden states before the actions, (K, width), and their positions.

        They are those of the actions, and of one more of each row that ends before the widest.
        """
        encoded = self._encode(source)
        # By the token before: the end token may have the id of padding.
        positions = TokenPositions.of(
            F.pad(actions != self.special.pad, (1, 0), value=True)[:, :-1]
        )
        previous = F.pad(actions, (1, 0), value=self.special.start)[:, :-1]
        hidden = self._embed(previous, positions)
        for layer in self.decoder:
            hidden = layer(hidden, positions, encoded)
        return self.decoder_norm(hidden), positions

    def _embed(self, tokens: Tensor, positions: TokenPositions) -> Tensor:
        """Return the vectors, (K, width), of the tokens (B, L) at K positions."""
        embedded = self.embedding(positions.gather(tokens)) * math.sqrt(self.config.width)
        order = torch.arange(tokens.shape[1], device=tokens.device)
        angles = sinusoids(order, self.config.width).to(embedded.dtype)
        places = positions.gather(order.expand_as(tokens))
        return self.dropout(embedded + angles.index_select(0, places))

    def _initialize(self) -> None:
        if self.embedding.weight.is_meta:
            return  # weights from a file follow
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        nn.init.normal_(self.embedding.weight, std=self.config.width**-0.5)
        for module in self.modules():
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
