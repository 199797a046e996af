"""Draws of tokens from an expert's distributions, the same whenever a state is asked about.

A frozen expert's answers never change, so draws must not either: a kept answer is that of a new
question, and a resumed run learns what it would have learned. Hence no generator is asked: each
state has a number of its own, made of its text, its position and a seed.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from textgen_env.types import SpecialTokens, Trajectories, check_shape

INCREMENT = 0x9E3779B97F4A7C15 - (1 << 64)  # of SplitMix64, whose three constants wrap around
FIRST_FACTOR = 0xBF58476D1CE4E5B9 - (1 << 64)
SECOND_FACTOR = 0x94D049BB133111EB - (1 << 64)
FRACTION_BITS = 53  # of a float64


@dataclass(frozen=True)
class Draws:
    """Tokens drawn from the expert's distribution at every state.

    Attributes:
        tokens: (B, T, k) int64; a token may come several times.
        log_probs: (B, T, k) float32, nats, the expert's of these tokens.
    """

    tokens: Tensor
    log_probs: Tensor

    def __post_init__(self) -> None:
        check_shape("tokens", self.tokens, (None, None, None))
        check_shape("log_probs", self.log_probs, tuple(self.tokens.shape))


def draw_systematically(logits: Tensor, uniforms: Tensor, k: int) -> dict[str, Tensor]:
    """Draw k tokens at every state by one uniform number u, at the quantiles (u + i) / k.

    A token of probability p is drawn k p times, rounded up or down, and in expectation exactly: the
    mean of a function over the draws is unbiased.

    Args:
        logits: (..., V) float, any dtype; computed in float32.
        uniforms: (...) float64 in [0, 1).
        k: number of draws, at least 1.

    Returns:
        The tokens and their log-probabilities, (..., k) each, by the names of `Draws`.

    Source: Kitagawa 1996, "Monte Carlo filter and smoother", appendix, for the quantiles.
    """
    quantiles = (torch.arange(k, device=uniforms.device) + uniforms[..., None]) / k
    log_probs = logits.float().log_softmax(-1)
    sums = log_probs.exp().cumsum(-1)
    largest = sums[..., -1:].nextafter(torch.zeros_like(sums[..., -1:]))
    points = torch.minimum((quantiles * sums[..., -1:]).float(), largest)
    tokens = torch.searchsorted(sums, points, right=True).clamp_(max=sums.shape[-1] - 1)
    return {"tokens": tokens, "log_probs": log_probs.gather(-1, tokens)}


def state_uniforms(trajectories: Trajectories, special: SpecialTokens, seed: int) -> Tensor:
    """Return a number in [0, 1) for each state, (B, T) float64, as if drawn for it.

    It depends on the row's source and actions, the position and the seed alone, and so neither on
    the other rows nor on padding.

    Args:
        trajectories: the states.
        special: ids of padding, start and end.
        seed: another one gives other numbers.

    Source: Steele et al. 2014, "Fast splittable pseudorandom number generators" (SplitMix64).
    """
    source, actions = trajectories.source, trajectories.actions
    text = _hashed(source, special, FIRST_FACTOR) + _hashed(actions, special, SECOND_FACTOR)
    position = torch.arange(actions.shape[1], device=text.device)
    seeded = _mix(text + torch.full_like(text, seed) * INCREMENT)
    mixed = _mix(seeded[:, None] + position * INCREMENT)
    whole = (mixed >> (64 - FRACTION_BITS)) & ((1 << FRACTION_BITS) - 1)
    return whole.double() / (1 << FRACTION_BITS)


def _hashed(tokens: Tensor, special: SpecialTokens, factor: int) -> Tensor:
    """Return an int64 hash of each row of (B, L) tokens without its padding, (B,).

    Another odd `factor` gives another hash.
    """
    place = torch.arange(1, tokens.shape[1] + 1, device=tokens.device)
    return _mix(tokens + place * factor).where(tokens != special.pad, 0).sum(1)


def _mix(values: Tensor) -> Tensor:
    """Return int64 values whose bits depend on all bits of the given ones; sums wrap around."""
    values = (values ^ _shifted(values, 30)) * FIRST_FACTOR
    values = (values ^ _shifted(values, 27)) * SECOND_FACTOR
    return values ^ _shifted(values, 31)


def _shifted(values: Tensor, bits: int) -> Tensor:
    """Return int64 values shifted right by `bits`, with zeros moving in."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)
