"""Composition of batches: a pure function of the seed and the update's number.

Nothing is kept between updates, so a resumed run draws what it would have drawn. Examples of
similar length come together: a window of several batches is sorted by length and cut, and the
batches are then shuffled.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from textgen_env.tasks.task import text_hash
from textgen_env.types import Examples, SpecialTokens

WINDOW = 32  # batches that are sorted together; more saves padding, fewer mixes better


def seed_of(seed: int, purpose: str, counter: int) -> int:
    """Return the 63-bit seed of one use of randomness, far from that of any other use."""
    return text_hash(f"{seed}/{purpose}/{counter}") >> 1


def generator_for(seed: int, purpose: str, counter: int) -> torch.Generator:
    """Return a CPU generator for one use of randomness, the same at every call."""
    return torch.Generator().manual_seed(seed_of(seed, purpose, counter))


def example_lengths(examples: Examples, special: SpecialTokens) -> Tensor:
    """Return the (N,) int64 lengths by which examples come together, on the CPU.

    They are those of the references, in tokens; where there is none, of the source.
    """
    source, reference = ((t != special.pad).sum(1) for t in (examples.source, examples.reference))
    return reference.where(reference > 0, source).cpu()


def batch_indices(
    lengths: Tensor, batch_size: int, seed: int, first: int = 0, *, texts_per_source: int = 1
) -> Iterator[Tensor]:
    """Yield batches of example indices without end, from batch number `first` on.

    Args:
        lengths: (N,) tokens of each example.
        batch_size: B, the same for every batch.
        seed: another seed gives another order.
        first: number of the first batch, counted from 0.
        texts_per_source: times that an example stands in its batch, side by side; divides B.

    Yields:
        (B,) int64 indices below N. Every example is drawn once before any is drawn twice.
    """
    sources = batch_size // texts_per_source
    window = first // WINDOW
    skip = first % WINDOW
    while True:
        batches = _window(lengths, sources, seed, window)
        yield from batches[skip:].repeat_interleave(texts_per_source, 1)
        window, skip = window + 1, 0


def _window(lengths: Tensor, batch_size: int, seed: int, window: int) -> Tensor:
    """Return (WINDOW, B) indices: a part of the sequence of permutations, sorted and cut."""
    count = len(lengths)
    start, stop = window * WINDOW * batch_size, (window + 1) * WINDOW * batch_size
    epochs = range(start // count, (stop - 1) // count + 1)
    permutations = [
        torch.randperm(count, generator=generator_for(seed, "epoch", epoch)) for epoch in epochs
    ]
    offset = epochs[0] * count
    drawn = torch.cat(permutations)[start - offset : stop - offset]
    batches = drawn[lengths[drawn].argsort(stable=True)].view(WINDOW, batch_size)
    return batches[torch.randperm(WINDOW, generator=generator_for(seed, "window", window))]


def rows_by_length(lengths: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return the rows of `count` batches, (count, B), those of similar length together, shuffled.

    One long text widens all of its batch.

    Args:
        lengths: (count * B,) int64, the tokens of each text.
        count: batches to be made.
        generator: of their order, on the CPU.
    """
    by_length = lengths.argsort(stable=True).view(count, -1)
    return by_length[torch.randperm(count, generator=generator)]
