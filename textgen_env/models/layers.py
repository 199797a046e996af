"""Layers shared by models: attention, embeddings, feed-forward networks and dropout.

On CPUs attention is written as two matrix products, and dropout draws one random byte for each
element. Both are much faster there than PyTorch's own.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from textgen_env.models.token_positions import TokenPositions


def check_source(source: Tensor) -> None:
    """Raise `ValueError` unless each row of (B, S) `source` has a token to read."""
    if not source.shape[1]:
        raise ValueError(
            f"source must have at least one column, got shape {tuple(source.shape)}: an empty text "
            "is its end token"
        )


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """Return float32, or `dtype` itself if it is wider."""
    return torch.promote_types(dtype, torch.float32)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Compute scaled dot-product attention.

    Args:
        query: (B, H, T, D).
        key: (B, H, L, D).
        value: (B, H, L, D).
        mask: bool, broadcasts to (B, H, T, L), True at visible positions; each query needs one.

    Returns:
        (B, H, T, D).

    Source: Vaswani et al. 2017, eq. 1, arXiv:1706.03762.
    """
    if query.device.type != "cpu":
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    scores = (query * (1 / math.sqrt(query.shape[-1]))) @ key.transpose(-1, -2)
    bias = torch.zeros(mask.shape, dtype=scores.dtype).masked_fill(~mask, float("-inf"))
    return (scores + bias).softmax(-1).to(value.dtype) @ value


def attend_cached(query: Tensor, memory: Tensor, bias: Tensor) -> Tensor:
    """Return the attention output over cached keys and values.

    Args:
        query: (B * K, H * D), K queries for each row of `memory`.
        memory: (2, B, H, L, D), keys, then values.
        bias: (B, H, 1 or K, L), added to the scores.

    Returns:
        (B * K, H * D).
    """
    _, rows, heads, capacity, width = memory.shape
    queries = query.view(rows, -1, heads, width).transpose(1, 2)  # (B, H, K, D)
    keys, values = memory.unbind()
    if query.device.type != "cpu":
        attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias)
        return attended.transpose(1, 2).reshape(query.shape)
    queries = (queries * (1 / math.sqrt(width))).reshape(rows * heads, -1, width)
    scores = torch.bmm(queries, keys.view(-1, capacity, width).transpose(1, 2))
    # The softmax is in float32: in bfloat16 it is slow on CPUs for most capacities.
    precise = at_least_float32(scores.dtype)
    weights = scores.add_(bias.view(scores.shape)).softmax(-1, dtype=precise)
    attended = torch.bmm(weights.to(values.dtype), values.view(-1, capacity, width))
    return attended.view(rows, heads, -1, width).transpose(1, 2).reshape(query.shape)


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


class TiedEmbedding(nn.Embedding):
    """Token embedding whose matrix also computes the logits."""

    def reset_parameters(self) -> None:
        """Draw random weights, unless those of a file follow: on "meta" it imports a compiler."""
        if not self.weight.is_meta:
            super().reset_parameters()

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits, (..., V), of hidden vectors, (..., D)."""
        return F.linear(hidden, self.weight)


class Dropout(nn.Module):
    """Dropout that draws one random byte for each element on CPUs.

    Args:
        probability: probability that an element is zeroed, in [0, 0.99]. On CPUs it is rounded to a
            multiple of 1/256.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        if not 0 <= probability <= 0.99:
            raise ValueError(f"dropout must be in [0, 0.99], got {probability}")
        self.probability = probability

    def forward(self, hidden: Tensor) -> Tensor:
        """Return `hidden` with random elements zeroed and the others scaled to keep the mean."""
        if not self.training or self.probability == 0:
            return hidden
        if hidden.device.type != "cpu":
            return F.dropout(hidden, self.probability)
        threshold = round(256 * self.probability)
        words = torch.empty(-(-hidden.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
        random_bytes = words.view(torch.uint8)[: hidden.numel()].view(hidden.shape)
        kept = (random_bytes >= threshold).to(hidden.dtype)
        return hidden * kept.mul_(256 / (256 - threshold))


class Attention(nn.Module):
    """Multi-head attention whose queries, keys and values come from vectors of one width."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def project(self, memory: Tensor, positions: TokenPositions) -> tuple[Tensor, Tensor]:
        """Return the keys and the values, (B, H, L, D) each, of `memory`, (K, width).

        Args:
            memory: the vectors at `positions`.
            positions: K of a (B, L) batch; keys and values are 0 elsewhere.
        """
        keys, values = positions.scatter(self.key_value(memory)).chunk(2, dim=-1)
        return self._split_heads(keys), self._split_heads(values)

    def forward(
        self,
        hidden: Tensor,
        positions: TokenPositions,
        keys: Tensor,
        values: Tensor,
        mask: Tensor,
    ) -> Tensor:
        """Return the attention output, (K, width).

        Args:
            hidden: (K, width), the vectors that queries are computed from.
            positions: their K positions of a (B, T) batch.
            keys: (B, H, L, D).
            values: (B, H, L, D).
            mask: bool, broadcasts to (B, H, T, L), True where a position is visible.
        """
        queries = self._split_heads(positions.scatter(self.query(hidden)))
        attended = attend(queries, keys, values, mask).transpose(1, 2).flatten(2)
        return self.out(positions.gather(attended))

    def _split_heads(self, projected: Tensor) -> Tensor:
        return projected.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class FeedForward(nn.Sequential):
    """Feed-forward network: two linear layers with a ReLU between them."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__(nn.Linear(width, inner), nn.ReLU(), nn.Linear(inner, width))
