"""Writing with a model: greedy, by sampling, and any number of sources at once.

Everything here asks a `SequenceModel` for `start` and `step` alone. Beam search has a file of its
own.

On CUDA devices `models.with_cuda_graphs` replays the step. On CPUs it runs as it is, not under
`torch.compile`. Measured with Transformers of 2 and 6 layers a side, width 256, 64 rows, on an x86
machine: compiled with the cache as it is, a step took 1.01 to 1.27 of the plain one's time; with
the cache split into one tensor a layer 0.79 to 0.83 in bfloat16 and 0.94 in float32, after 6 to
60 s of compiling for each number of rows and source width, of which decoding meets many.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from textgen_env.models.cache_ops import host_sync_is_free
from textgen_env.models.sequence_model import SequenceModel
from textgen_env.types import SpecialTokens, check_shape

Decoder = Callable[[SequenceModel, Tensor, int], Tensor]
"""(model, (B, S) sources, max_steps) -> (B, max_steps) int64 tokens, PAD after the end."""

DEFAULT_SPECIAL = SpecialTokens()
DROP_ROWS_BELOW = 0.75  # rows are dropped once at most this part of them is still being written
BLOCK = 128  # tokens; other sizes that are a multiple of a vector are as good
NUCLEUS_GUESS = 128  # candidates looked at first: sorting 64 rows of 4,000 takes 6 times as long


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn: from softmax(logits / temperature), cut to `top_k`, then to `top_p`.

    Attributes:
        temperature: above 0; 1 draws from the model's own distribution.
        top_k: draw from this many most probable tokens, at least 1; None for all.
        top_p: draw from the nucleus, the fewest most probable tokens that hold this probability
            (of what `top_k` left) together, in (0, 1]; None for all.

    Source: Fan et al. 2018, arXiv:1805.04833 (top-k); Holtzman et al. 2020, section 3.1,
    arXiv:1904.09751 (nucleus).
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(
                f"temperature must be above 0, got {self.temperature}; for the most probable token "
                "decode greedily"
            )
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be at least 1 or None, got {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1] or None, got {self.top_p}")


def next_action(
    logits: Tensor,
    sampling: Sampling | None = None,
    generator: torch.Generator | None = None,
    *,
    special: SpecialTokens = DEFAULT_SPECIAL,
) -> Tensor:
    """Choose each row's next token; never padding nor the start token.

    Args:
        logits: (B, V) float, any dtype; computed in float32, not changed.
        sampling: how to draw; None for the most probable token.
        generator: of the draws, one number a row; not used without `sampling`.
        special: the model's special tokens.

    Returns:
        (B,) int64.

    Raises:
        ValueError: `sampling` without a generator, or `top_k` above V.
    """
    allowed = _float32_in_blocks(logits)
    allowed[:, special.pad] = float("-inf")
    allowed[:, special.start] = float("-inf")
    if sampling is None:
        return _best(allowed)
    allowed = allowed[:, : logits.shape[-1]]
    if generator is None:
        raise ValueError("generator must be a torch.Generator when sampling, got None")
    if sampling.top_k is not None and sampling.top_k > logits.shape[-1]:
        raise ValueError(
            f"top_k must be at most the vocabulary's size ({logits.shape[-1]}), "
            f"got {sampling.top_k}"
        )
    return _draw(*_candidates(allowed, sampling), generator)


def best_actions(logits: Tensor, special: SpecialTokens) -> Tensor:
    """(B, T) int64, the most probable token that may be written, of (B, T, V) logits."""
    return next_action(logits.flatten(0, 1), special=special).view(logits.shape[:2])


def greedy(model: SequenceModel, source: Tensor, max_steps: int) -> Tensor:
    """Write the most probable token at every step.

    Args:
        model: in evaluation mode.
        source: (B, S) int64, PAD after each row's end token.
        max_steps: T, at least 1.

    Returns:
        (B, T) int64, the end token included, PAD after it; no end token in a row cut off at T.
    """
    return _write(
        model, source, max_steps, lambda logits: next_action(logits, special=model.special)
    )


def sample(
    model: SequenceModel,
    source: Tensor,
    max_steps: int,
    *,
    sampling: Sampling,
    generator: torch.Generator,
) -> Tensor:
    """Draw a token at every step.

    Args:
        model: in evaluation mode.
        source: (B, S) int64, PAD after each row's end token.
        max_steps: T, at least 1.
        sampling: how to draw.
        generator: of the draws; the global random state is not touched.

    Returns:
        (B, T) int64 as `greedy`. A row's draws depend on the rows beside it.
    """
    return _write(
        model,
        source,
        max_steps,
        lambda logits: next_action(logits, sampling, generator, special=model.special),
    )


def decode_all(
    model: SequenceModel,
    source: Tensor,
    max_steps: int,
    *,
    decoder: Decoder = greedy,
    batch_size: int = 64,
) -> Tensor:
    """Decode any number of sources, those of like length together.

    Args:
        model: in evaluation mode.
        source: (B, S) int64, PAD after each row's end token.
        max_steps: T, at least 1.
        decoder: `greedy`, `BeamSearch(...)`, or `functools.partial(sample, ...)`; it may give
            several texts a source, (B, C, T).
        batch_size: sources decoded together, at least 1.

    Returns:
        (B, T) int64, or what else `decoder` gives, in the order of the sources.
    """
    check_decoding(source, max_steps)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    length = (source != model.special.pad).sum(1)
    order = length.argsort(descending=True, stable=True)
    written = []
    for start in range(0, len(source), batch_size):
        rows = order[start : start + batch_size]
        longest = max(1, int(length[rows[0]]))
        written.append(decoder(model, source[rows, :longest], max_steps))
    return torch.cat(written)[order.argsort()] if written else source.new_empty(0, max_steps)


def check_decoding(source: Tensor, max_steps: int) -> None:
    """Raise unless these can be decoded."""
    check_shape("source", source, (None, None))
    if max_steps < 1:
        raise ValueError(f"max_steps must be at least 1, got {max_steps}")


def sync_interval(device: torch.device) -> int:
    """Steps between two looks at which rows are done: a look makes the host wait for the device."""
    return 1 if host_sync_is_free(device) else 8


def rows_to_keep(done: Tensor) -> Tensor | None:
    """Indices of the rows that are not done, (K,) int64, or None while dropping few does not pay.

    The host waits for the device. Where it does, a step of few rows takes as long as one of many,
    and its shape is to stay as it was recorded: rows are dropped when all are done.
    """
    live = len(done) - int(done.sum())
    few = DROP_ROWS_BELOW * len(done) if host_sync_is_free(done.device) else 0
    return None if live > few else (~done).nonzero().squeeze(1)


def _write(
    model: SequenceModel, source: Tensor, max_steps: int, choose: Callable[[Tensor], Tensor]
) -> Tensor:
    check_decoding(source, max_steps)
    with torch.inference_mode():
        written = _written(model, source, max_steps, choose)
    return written.clone()  # a tensor made in inference mode could not be trained on


def _written(
    model: SequenceModel, source: Tensor, max_steps: int, choose: Callable[[Tensor], Tensor]
) -> Tensor:
    special, every = model.special, sync_interval(source.device)
    written = source.new_full((len(source), max_steps), special.pad)
    rows = torch.arange(len(source), device=source.device)
    previous, done = torch.full_like(rows, special.start), torch.zeros_like(rows, dtype=torch.bool)
    cache = model.start(source, max_steps)
    for step in range(max_steps):
        logits, cache = model.step(previous, cache)
        previous = choose(logits).masked_fill(done, special.pad)
        written[rows, step] = previous
        done = done | (previous == special.end)
        if (step + 1) % every or step + 1 == max_steps:
            continue
        kept = rows_to_keep(done)
        if kept is None:
            continue
        if not len(kept):
            break
        rows, previous, done = rows[kept], previous[kept], done[kept]
        cache = cache.select_rows(kept)
    return written


def _float32_in_blocks(logits: Tensor) -> Tensor:
    """A float32 copy of (B, V) logits, minus infinity up to the next multiple of `BLOCK`."""
    rows, vocab_size = logits.shape
    copy = logits.new_empty(rows, vocab_size + -vocab_size % BLOCK, dtype=torch.float32)
    copy[:, :vocab_size] = logits
    copy[:, vocab_size:] = float("-inf")
    return copy


def _best(logits: Tensor) -> Tensor:
    """(B,) int64, the argmax of float32 logits of whole blocks, the first one of equals.

    On CPUs a maximum is vectorized and its place is not: 64 rows of 4,000 take half the time where
    the place is looked for in the best block alone.
    """
    if logits.device.type != "cpu":
        return logits.argmax(-1)
    blocks = logits.unflatten(-1, (-1, BLOCK))
    best = blocks.amax(-1).argmax(-1)
    rows = torch.arange(len(logits))
    return best * BLOCK + blocks[rows, best].argmax(-1)


def _candidates(logits: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor | None]:
    """Unnormalized probabilities (B, C) of the tokens that may be drawn, and their ids.

    The ids are (B, C) int64, or None if the candidates are all tokens in order.
    """
    logits, tokens = logits / sampling.temperature, None
    if sampling.top_k is not None:
        logits, tokens = logits.topk(sampling.top_k)
    probs = logits.softmax(-1)
    if sampling.top_p is None or sampling.top_p == 1:
        return probs, tokens
    if tokens is None:
        probs, tokens = _sorted_nucleus(probs, sampling.top_p)
    before = probs.cumsum(-1) - probs  # held by more probable tokens
    return probs.where(before < sampling.top_p, 0.0), tokens


def _sorted_nucleus(probs: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """The most probable tokens in falling order, at least as many as hold `top_p`."""
    if host_sync_is_free(probs.device) and probs.shape[-1] > NUCLEUS_GUESS:
        top, tokens = probs.topk(NUCLEUS_GUESS)
        if bool((top.sum(-1) >= top_p).all()):
            return top, tokens
    return probs.sort(-1, descending=True)


def _draw(probs: Tensor, tokens: Tensor | None, generator: torch.Generator) -> Tensor:
    """(B,) int64 draws from unnormalized `probs`: where a uniform number falls in their sums.

    `torch.multinomial` spends a random number on every token: 20 times the time at 4,000 tokens.
    """
    sums = probs.cumsum(-1)
    uniform = torch.rand(len(probs), 1, generator=generator, device=generator.device)
    # Below the last sum even when rounded, so that the first sum above it exists.
    place = torch.searchsorted(sums, uniform.to(sums.device) * sums[:, -1:], right=True)
    return (place if tokens is None else tokens.gather(1, place)).squeeze(1)
