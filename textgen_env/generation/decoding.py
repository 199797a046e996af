"""Decoding: greedy search and sampling from any sequence model, for any number of sources.

`next_action` chooses a token from logits, and `choose_action` says how probable its draw was too;
`greedy` and `sample` decode a batch, and `decode_all` decodes any number of sources in batches of
similar length. They use `start` and `step` of a `SequenceModel` alone. Beam search is in
`beam_search.py`. The step is not compiled here, because decoding meets too many shapes; on CUDA
devices `with_cuda_graphs` replays it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from textgen_env.generation.decoded_rows import note_decoded
from textgen_env.generation.sampling import Sampling, candidates, sample_tokens
from textgen_env.models.cache_ops import host_sync_is_free
from textgen_env.models.layers import check_source
from textgen_env.models.sequence_model import SequenceModel
from textgen_env.types import SpecialTokens, check_shape

Decoder = Callable[[SequenceModel, Tensor, int], Tensor]
"""(model, (B, S) source, max_steps) -> (B, max_steps) int64 tokens, PAD after the end token."""

DEFAULT_SPECIAL = SpecialTokens()
DROP_ROWS_BELOW = 0.75  # finished rows are dropped once at most this fraction is unfinished
ARGMAX_BLOCK = 128  # tokens; a multiple of the width of vector instructions


class LogitsError(ValueError):
    """Logits from which no token can be chosen.

    Args:
        largest: the largest logit of a row; not a number where any of the row's is none.
        owner: the model that gave them.
    """

    def __init__(self, largest: float, owner: str = "model") -> None:
        super().__init__(
            f"logits of the {owner} must be finite numbers, got {largest}: its weights are spoiled "
            "or its precision is too low, take another model or float32"
        )
        self.largest = largest


@contextmanager
def logits_from(owner: str) -> Iterator[None]:
    """Name the owner of the logits in errors about them: student or teacher."""
    try:
        yield
    except LogitsError as error:
        raise LogitsError(error.largest, owner) from None


def next_action(
    logits: Tensor,
    sampling: Sampling | None = None,
    generator: torch.Generator | None = None,
    *,
    special: SpecialTokens = DEFAULT_SPECIAL,
    mask: Tensor | None = None,
) -> Tensor:
    """Choose each row's next token, never padding nor the start token.

    Where looking is free, the logits are checked. On accelerators nothing waits for them: a row
    that is not finite gets any token of the vocabulary there, until `check_logits` is called.

    Args:
        logits: (B, V) float, any dtype; computed in float32, not modified.
        sampling: distribution to sample from; None for the most probable token.
        generator: source of randomness, one number a row; not used without `sampling`.
        special: the model's special tokens.
        mask: (B,) bool, True where a row has a meaning and is checked; None for all rows.

    Returns:
        (B,) int64.

    Raises:
        LogitsError: logits of a row are NaN or infinite, or all are minus infinity.
        ValueError: `sampling` without a generator, or `top_k` above V.
    """
    return choose_action(logits, sampling, generator, special=special, mask=mask)[0]


def choose_action(
    logits: Tensor,
    sampling: Sampling | None = None,
    generator: torch.Generator | None = None,
    *,
    special: SpecialTokens = DEFAULT_SPECIAL,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Choose each row's next token as `next_action` does, and return the probability of the draw.

    Returns:
        The tokens, (B,) int64, and the log-probabilities, (B,) float32, nats, that they had in the
        distribution they were drawn from, truncated and without padding and start token; None in
        place of these for the most probable tokens, which are not drawn.
    """
    allowed = _float32_in_blocks(logits)
    allowed[:, special.pad] = float("-inf")
    allowed[:, special.start] = float("-inf")
    if sampling is None:
        return _argmax(allowed, mask), None
    allowed = allowed[:, : logits.shape[-1]]
    if host_sync_is_free(logits.device):
        _check_largest(allowed.amax(-1), mask)
    if generator is None:
        raise ValueError("generator must be a torch.Generator when sampling, got None")
    return sample_tokens(*candidates(allowed, sampling), generator)


def action_probs(logits: Tensor, sampling: Sampling, special: SpecialTokens) -> Tensor:
    """Return the probabilities with which `next_action` samples, (B, V) float32.

    Args:
        logits: (B, V) float, any dtype; checked as there.
        sampling: distribution to sample from.
        special: the model's special tokens.

    Raises:
        LogitsError, ValueError: as `next_action`.
    """
    never = torch.tensor([special.pad, special.start], device=logits.device)
    allowed = logits.float().index_fill(-1, never, float("-inf"))
    if host_sync_is_free(logits.device):
        _check_largest(allowed.amax(-1), None)
    probs, tokens = candidates(allowed, sampling)
    probs = probs / probs.sum(-1, keepdim=True)
    return probs if tokens is None else torch.zeros_like(allowed).scatter(-1, tokens, probs)


def best_actions(logits: Tensor, special: SpecialTokens) -> Tensor:
    """Return (B, T) int64, the most probable action at every state, of (B, T, V) logits.

    Raises:
        LogitsError: as `next_action`.
    """
    return next_action(logits.flatten(0, 1), special=special).view(logits.shape[:2])


def check_logits(logits: Tensor) -> None:
    """Raise `LogitsError` unless each row of (..., V) has finite logits; the host waits for it."""
    _check_largest(logits.amax(-1), None)


def check_unseen_logits(logits: Tensor) -> None:
    """Check (..., V) logits on accelerators, where choosing tokens does not; the host waits."""
    if not host_sync_is_free(logits.device):
        check_logits(logits)


def greedy(model: SequenceModel, source: Tensor, max_steps: int) -> Tensor:
    """Decode greedily: take the most probable token at every step.

    Args:
        model: in evaluation mode.
        source: (B, S) int64, PAD after each row's end token.
        max_steps: T, at least 1.

    Returns:
        (B, T) int64, the end token included, PAD after it; no end token in a row truncated at T.
    """
    return _decode(
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
    """Decode by sampling a token at every step.

    Args:
        model: in evaluation mode.
        source: (B, S) int64, PAD after each row's end token.
        max_steps: T, at least 1.
        sampling: distribution to sample from.
        generator: source of randomness; the global random state is not used.

    Returns:
        (B, T) int64 as `greedy`. A row's sample depends on the other rows of the batch.
    """
    return _decode(
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
    """Decode any number of sources in batches of similar source length.

    Args:
        model: in evaluation mode.
        source: (B, S) int64, PAD after each row's end token.
        max_steps: T, at least 1.
        decoder: `greedy`, `BeamSearch(...)`, or `functools.partial(sample, ...)`; it may return
            C texts a source, (B, C, T).
        batch_size: sources decoded at a time, at least 1.

    Returns:
        (B, T) int64, or (B, C, T) as the decoder returns it, in the order of the sources.
    """
    check_decoding(source, max_steps)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    length = (source != model.special.pad).sum(1)
    order = length.argsort(descending=True, stable=True)
    batches = []
    for start in range(0, len(source), batch_size):
        rows = order[start : start + batch_size]
        longest = max(1, int(length[rows[0]]))
        batches.append(decoder(model, source[rows, :longest], max_steps))
        note_decoded(len(rows))
    return torch.cat(batches)[order.argsort()] if batches else source.new_empty(0, max_steps)


def check_decoding(source: Tensor, max_steps: int) -> None:
    """Raise `ValueError` unless `source` is (B, S) with S above 0 and `max_steps` at least 1."""
    check_shape("source", source, (None, None))
    check_source(source)
    if max_steps < 1:
        raise ValueError(f"max_steps must be at least 1, got {max_steps}")


def sync_interval(device: torch.device) -> int:
    """Return the number of steps between two checks for finished rows.

    A check makes the host wait for the device.
    """
    return 1 if host_sync_is_free(device) else 8


def rows_to_keep(done: Tensor) -> Tensor | None:
    """Return (K,) int64 indices of the unfinished rows, or None to keep all rows.

    On accelerators all rows stay until all are done: a step of few rows takes as long there as one
    of many, and recorded steps need a constant shape. The host waits for the device.
    """
    unfinished = len(done) - int(done.sum())
    limit = DROP_ROWS_BELOW * len(done) if host_sync_is_free(done.device) else 0
    return None if unfinished > limit else (~done).nonzero().squeeze(1)


def _decode(
    model: SequenceModel, source: Tensor, max_steps: int, choose: Callable[[Tensor], Tensor]
) -> Tensor:
    """Return (B, T) int64 tokens, each chosen by `choose` from (K, V) logits of unfinished rows."""
    check_decoding(source, max_steps)
    if not len(source):
        return source.new_empty(0, max_steps)
    with torch.inference_mode():
        tokens = _decode_rows(model, source, max_steps, choose)
    return tokens.clone()  # a tensor made in inference mode cannot be used in training


def _decode_rows(
    model: SequenceModel, source: Tensor, max_steps: int, choose: Callable[[Tensor], Tensor]
) -> Tensor:
    special, interval = model.special, sync_interval(source.device)
    tokens = source.new_full((len(source), max_steps), special.pad)
    rows = torch.arange(len(source), device=source.device)
    previous, done = torch.full_like(rows, special.start), torch.zeros_like(rows, dtype=torch.bool)
    cache = model.start(source, max_steps)
    for step in range(max_steps):
        logits, cache = model.step(previous, cache)
        previous = choose(logits).masked_fill(done, special.pad)
        tokens[rows, step] = previous
        done = done | (previous == special.end)
        if (step + 1) % interval and step + 1 < max_steps:
            continue
        check_unseen_logits(logits)
        if step + 1 == max_steps:
            break
        kept = rows_to_keep(done)
        if kept is None:
            continue
        if not len(kept):
            break
        rows, previous, done = rows[kept], previous[kept], done[kept]
        cache = cache.select_rows(kept)
    return tokens


def _float32_in_blocks(logits: Tensor) -> Tensor:
    """Return a float32 copy of (B, V) logits, padded by -inf to a multiple of `ARGMAX_BLOCK`."""
    rows, vocab_size = logits.shape
    copy = logits.new_empty(rows, vocab_size + -vocab_size % ARGMAX_BLOCK, dtype=torch.float32)
    copy[:, :vocab_size] = logits
    copy[:, vocab_size:] = float("-inf")
    return copy


def _check_largest(largest: Tensor, mask: Tensor | None) -> None:
    """Raise `LogitsError` unless the largest logits of the rows in `mask` are finite.

    Args:
        largest: (...) float; NaN where any logit of the row is.
        mask: (...) bool; None for all rows.
    """
    spoiled = ~largest.isfinite()
    if mask is not None:
        spoiled &= mask
    if bool(spoiled.any()):
        raise LogitsError(float(largest[spoiled][0]))


def _argmax(logits: Tensor, mask: Tensor | None) -> Tensor:
    """Return (B,) int64, the first index of the maximum of each row of whole blocks.

    Raises:
        LogitsError: the maximum of a row in `mask` is not finite; only where looking is free.
    """
    if logits.device.type != "cpu":
        return logits.argmax(-1)
    # PyTorch's argmax is not vectorized on CPUs, and amax is: argmax searches the best block only.
    blocks = logits.unflatten(-1, (-1, ARGMAX_BLOCK))
    largest = blocks.amax(-1)
    best = largest.argmax(-1)
    rows = torch.arange(len(logits))
    if host_sync_is_free(logits.device):
        _check_largest(largest[rows, best], mask)
    return best * ARGMAX_BLOCK + blocks[rows, best].argmax(-1)
