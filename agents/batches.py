"""Which examples make up which update: a pure function of (seed, update).

Nothing is kept between updates, so a resumed run draws what it would have drawn. Examples of similar
length come together: a window of several batches is sorted by length and cut, and the batches are
then shuffled.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

WINDOW = 32  # batches that are sorted together; more saves padding, fewer mixes better


def generator_for(seed: int, update: int, device: torch.device | str = "cpu") -> torch.Generator:
    """The source of every random choice of one update."""
    return torch.Generator(device).manual_seed(_mixed(seed, update))


def batch_indices(lengths: Tensor, batch_size: int, seed: int, first: int = 0) -> Iterator[Tensor]:
    """Endless batches of example indices, from batch number `first` on.

    Args:
        lengths: (N,) tokens of each example.
        batch_size: B, the same for every batch.
        seed: another seed gives another order.
        first: number of the first batch, counted from 0.

    Yields:
        (B,) int64 indices below N. Every example is drawn once before any is drawn twice.
    """
    window = first // WINDOW
    skip = first % WINDOW
    while True:
        batches = _window(lengths, batch_size, seed, window)
        yield from batches[skip:]
        window, skip = window + 1, 0


def _window(lengths: Tensor, batch_size: int, seed: int, window: int) -> Tensor:
    """(WINDOW, B) indices: a stretch of the endless sequence of permutations, sorted and cut."""
    count = len(lengths)
    start, stop = window * WINDOW * batch_size, (window + 1) * WINDOW * batch_size
    epochs = range(start // count, (stop - 1) // count + 1)
    permutations = [torch.randperm(count, generator=generator_for(seed, epoch)) for epoch in epochs]
    offset = epochs[0] * count
    drawn = torch.cat(permutations)[start - offset : stop - offset]
    batches = drawn[lengths[drawn].argsort(stable=True)].view(WINDOW, batch_size)
    return batches[torch.randperm(WINDOW, generator=generator_for(seed, -1 - window))]


def _mixed(seed: int, counter: int) -> int:
    """A 63-bit seed in which close seeds and counters lie far apart (splitmix64's finalizer)."""
    state = (seed * 0x9E3779B97F4A7C15 + counter * 0xBF58476D1CE4E5B9) % 2**64
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) % 2**64
    return (state ^ (state >> 31)) % 2**63
