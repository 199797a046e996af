"""Labels of the k most probable tokens, with all others taken together as one."""

from dataclasses import dataclass

import torch
from torch import Tensor

from textgen_env.types import check_shape


@dataclass(frozen=True)
class TopK:
    """Top-k label: the k most probable next tokens at every state, and the tail as one bucket.

    The k probabilities and the tail sum to 1: a divergence between two such labels is a divergence
    between distributions.

    Attributes:
        tokens: (B, T, k) int64, by decreasing probability.
        log_probs: (B, T, k) float32, nats.
        tail_log_prob: (B, T) float32, nats, of all other tokens together; -inf if k is V.
    """

    tokens: Tensor
    log_probs: Tensor
    tail_log_prob: Tensor

    def __post_init__(self) -> None:
        check_shape("tokens", self.tokens, (None, None, None))
        check_shape("log_probs", self.log_probs, tuple(self.tokens.shape))
        check_shape("tail_log_prob", self.tail_log_prob, tuple(self.tokens.shape[:2]))


def top_k_and_tail(logits: Tensor, k: int) -> dict[str, Tensor]:
    """Return the `k` most probable tokens and the tail's probability, by the names of `TopK`.

    Args:
        logits: (..., V) float.
        k: from 1 to V.

    Raises:
        ValueError: `k` below 1 or above V.
    """
    vocab_size = logits.shape[-1]
    if not 1 <= k <= vocab_size:
        raise ValueError(f"k must be from 1 to {vocab_size}, the size of the vocabulary, got {k}")
    # One minus the sum of the k probabilities would round a small tail to 0.
    values, tokens = logits.float().topk(k)
    tail = logits.float().scatter(-1, tokens, float("-inf")).logsumexp(-1)
    normalizer = torch.logaddexp(values.logsumexp(-1), tail)
    return {
        "tokens": tokens,
        "log_probs": values - normalizer[..., None],
        "tail_log_prob": tail - normalizer,
    }
