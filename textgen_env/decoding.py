"""The generation engine: greedy decoding and sampling over any `SequenceModel`.

Sources are sorted by length and decoded in batches; rows that have ended are dropped from a batch
once enough of them have. Whether rows have ended is looked at every few steps only, because each
look waits for the device. Beam search is in `beam_search.py`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from textgen_env.beam_search import beam_search
from textgen_env.models.sequence_model import SequenceModel
from textgen_env.types import SpecialTokens, trimmed

LOOK_EVERY = 4  # steps between two looks at which rows have ended
KEEP_SHARE = 0.75  # rows are dropped once no more than this share of them goes on


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn: by temperature, then the `top_k` best, then the nucleus `top_p`.

    Attributes:
        temperature: divides the logits; over 0, 1 leaves them.
        top_k: how many of the most probable tokens may be drawn, at least 1; None for all.
        top_p: mass that the most probable tokens drawn from must reach, in (0, 1]; None for all.

    Source: Fan et al. 2018, arXiv:1805.04833; Holtzman et al. 2020, arXiv:1904.09751.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(
                f"temperature must be over 0, got {self.temperature}: for the most probable token "
                "decode greedily"
            )
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")


def next_action(
    logits: Tensor,
    special: SpecialTokens,
    sampling: Sampling | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """(B,) int64, the next token of each row; never padding or start.

    Args:
        logits: (B, V) float.
        special: the ids that are not written.
        sampling: how to draw; None for the most probable token.
        generator: of the draws, on the logits' device.

    Raises:
        ValueError: `top_k` is over V.
    """
    possible = writable(logits, special)
    if sampling is None:
        return possible.argmax(-1)
    probs = restricted(possible.float() / sampling.temperature, sampling).softmax(-1)
    return torch.multinomial(probs, 1, generator=generator).squeeze(-1)


def writable(logits: Tensor, special: SpecialTokens) -> Tensor:
    """The logits with minus infinity at padding and start."""
    possible = logits.clone()
    possible[..., special.pad] = float("-inf")
    possible[..., special.start] = float("-inf")
    return possible


def restricted(logits: Tensor, sampling: Sampling) -> Tensor:
    """The logits with minus infinity at what `top_k` and `top_p` leave out."""
    if sampling.top_k is not None:
        if sampling.top_k > logits.shape[-1]:
            raise ValueError(f"top_k must be at most {logits.shape[-1]}, got {sampling.top_k}")
        kth = logits.topk(sampling.top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < kth, float("-inf"))
    if sampling.top_p is not None:
        ordered, order = logits.sort(dim=-1, descending=True)
        probs = ordered.softmax(-1)
        beyond = probs.cumsum(-1) - probs >= sampling.top_p  # the mass before a token suffices
        logits = logits.masked_fill(beyond.gather(-1, order.argsort(-1)), float("-inf"))
    return logits


@torch.no_grad()
def decode(
    model: SequenceModel,
    source: Tensor,
    max_steps: int,
    sampling: Sampling | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Write one target for each source of a batch.

    Args:
        model: in evaluation mode.
        source: (B, S) int64.
        max_steps: most tokens of a target, its end token included.
        sampling: None for greedy decoding.
        generator: of the draws.

    Returns:
        (B, max_steps) int64, PAD after the end token.
    """
    special = model.special
    written = source.new_full((len(source), max_steps), special.pad)
    cache = model.start(source, max_steps)
    rows = torch.arange(len(source), device=source.device)
    previous = torch.full_like(rows, special.start)
    done = torch.zeros_like(rows, dtype=torch.bool)
    for step in range(max_steps):
        logits, cache = model.step(previous, cache)
        previous = next_action(logits, special, sampling, generator).where(~done, special.pad)
        written[rows, step] = previous
        done = done | (previous == special.end)
        if step % LOOK_EVERY == LOOK_EVERY - 1:
            going = int((~done).sum())
            if going == 0:
                break
            if going <= KEEP_SHARE * len(rows):
                keep = (~done).nonzero().squeeze(1)
                rows, previous, done = rows[keep], previous[keep], done[keep]
                cache = cache.select_rows(keep)
    return written


def decode_all(
    model: SequenceModel,
    source: Tensor,
    max_steps: int,
    *,
    batch_size: int = 64,
    beam_size: int = 1,
    advance: Callable[[int], object] | None = None,
) -> Tensor:
    """Write one target for each of any number of sources, greedily or by beam search.

    Args:
        model: in evaluation mode.
        source: (N, S) int64.
        max_steps: most tokens of a target, its end token included.
        batch_size: sources decoded together.
        beam_size: hypotheses kept for each source; 1 for greedy decoding.
        advance: called with the number of sources done, after each batch.

    Returns:
        (N, max_steps) int64, PAD after the end token, in the order of the sources.

    Raises:
        ValueError: `batch_size` or `beam_size` below 1.
    """
    for name, value in (("batch_size", batch_size), ("beam_size", beam_size)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    written = source.new_full((len(source), max_steps), model.special.pad)
    for rows, part in by_length(source, batch_size, model.special):
        if beam_size == 1:
            written[rows] = decode(model, part, max_steps)
        else:
            written[rows], _ = beam_search(model, part, max_steps, beam_size=beam_size)
        if advance:
            advance(len(rows))
    return written


def by_length(
    source: Tensor, batch_size: int, special: SpecialTokens
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of sources of similar length: their (B,) places and their tokens without padding."""
    order = (source != special.pad).sum(1).argsort(descending=True, stable=True)
    for rows in order.split(batch_size):
        yield rows, trimmed(source[rows], special)
