"""Truncated distributions that tokens are drawn from."""

from dataclasses import dataclass

import torch
from torch import Tensor

from textgen_env.bounds import check_above, check_at_least, check_finite
from textgen_env.models.cache_ops import host_sync_is_free

NUCLEUS_CANDIDATES = 128  # tokens tried as the nucleus before all are sorted, which is slower


@dataclass(frozen=True)
class Sampling:
    """Sampling distribution: softmax(logits / temperature), truncated by `top_k`, then by `top_p`.

    Attributes:
        temperature: above 0; 1 samples from the model's own distribution.
        top_k: number of most probable tokens to sample from, at least 1; None for all.
        top_p: probability in (0, 1] of the nucleus, the smallest set of most probable tokens that
            reaches it after `top_k` and renormalization; None for all tokens.

    Source: Fan et al. 2018, arXiv:1805.04833 (top-k); Holtzman et al. 2020, section 3.1,
    arXiv:1904.09751 (nucleus).
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        check_above(self, "for the most probable token decode greedily", temperature=0)
        check_at_least(self, top_k=1)
        check_finite(self, "top_p")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1] or None, got {self.top_p}")


def candidates(logits: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor | None]:
    """Return the truncated sampling distribution and the token of each of its columns.

    Returns:
        (B, C) float32 unnormalized probabilities, and (B, C) int64 tokens, or None if the columns
        are all V tokens in order.

    Raises:
        ValueError: `top_k` above V.
    """
    if sampling.top_k is not None and sampling.top_k > logits.shape[-1]:
        raise ValueError(
            f"top_k must be at most the vocabulary's size ({logits.shape[-1]}), "
            f"got {sampling.top_k}"
        )
    logits, tokens = logits / sampling.temperature, None
    if sampling.top_k is not None:
        logits, tokens = logits.topk(sampling.top_k)
    probs = logits.softmax(-1)
    if sampling.top_p is None or sampling.top_p == 1:
        return probs, tokens
    if tokens is None:
        probs, tokens = _sort_nucleus(probs, sampling.top_p)
    before = probs.cumsum(-1) - probs  # probability of all more probable tokens
    return probs.where(before < sampling.top_p, 0.0), tokens


def _sort_nucleus(probs: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """Return probabilities and tokens of at least the nucleus, by decreasing probability."""
    if host_sync_is_free(probs.device) and probs.shape[-1] > NUCLEUS_CANDIDATES:
        top, tokens = probs.topk(NUCLEUS_CANDIDATES)
        if bool((top.sum(-1) >= top_p).all()):
            return top, tokens
    return probs.sort(-1, descending=True)


def sample_tokens(
    probs: Tensor, tokens: Tensor | None, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Sample (B,) int64 tokens from (B, C) unnormalized `probs` by inverting their cumulative sums.

    `torch.multinomial` would draw a random number for every candidate. The tokens come with their
    log-probabilities, (B,) float32, nats.
    """
    sums = probs.cumsum(-1)
    uniform = torch.rand(len(probs), 1, generator=generator, device=generator.device)
    # Rounding keeps the product below the last sum: the first sum above the product exists.
    index = torch.searchsorted(sums, uniform.to(sums.device) * sums[:, -1:], right=True)
    index = index.clamp_(max=sums.shape[-1] - 1)  # beyond the last where sums are not numbers
    log_probs = (probs.gather(1, index) / sums[:, -1:]).log()
    return (index if tokens is None else tokens.gather(1, index)).squeeze(1), log_probs.squeeze(1)
