"""Layers shared by models: attention, tied embeddings and dropout.

On CPUs attention is written as two matrix products, and dropout draws one random byte for each
element. Both are much faster there than PyTorch's own.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def check_source(source: Tensor) -> None:
    """Raise `ValueError` unless each row of (B, S) `source` has a token to read."""
    if not source.shape[1]:
        raise ValueError(
            f"source must have at least one column, got shape {tuple(source.shape)}: an empty text "
            "is its end token"
        )


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


class TiedEmbedding(nn.Embedding):
    """Token embedding whose matrix also computes the logits."""

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
