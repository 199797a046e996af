"""Short roll-ins: the student writes, and is taught on, only the beginning of a text."""

from dataclasses import replace

from torch import Tensor

from textgen_env.dynamics import State
from textgen_env.types import Examples, SpecialTokens

LENGTH_TOLERANCE = 1e-9  # a product that is above a whole number by less is that number


def expected_lengths(examples: Examples, special: SpecialTokens) -> Tensor:
    """Return the tokens that each text should have, the end token included, (N,) float64.

    That is the length of its reference. Where there is none, it is the length of the source times
    the ratio of all references to their sources.

    Raises:
        ValueError: there is no reference at all.
    """
    source, reference = (
        (tokens != special.pad).sum(1).double() for tokens in (examples.source, examples.reference)
    )
    known = reference > 0
    if not known.any():
        raise ValueError(
            "roll_in_share must be 1 for sources without references, whose texts have no length to "
            "take a share of, got less: add pairs, or leave it out"
        )
    ratio = reference[known].sum() / source[known].sum()
    return reference.where(known, ratio * source)


def shares_of(lengths: Tensor, share: float) -> Tensor | None:
    """Return `share`, in (0, 1], of the (B,) lengths, at least a token; None for whole texts."""
    if share == 1:
        return None
    return (share * lengths - LENGTH_TOLERANCE).ceil().long().clamp(min=1)


def cut_off(state: State, max_written: Tensor | None, data_alone: Tensor) -> State:
    """Return the episodes with those truncated that have reached their limit.

    Args:
        state: of B episodes.
        max_written: (B,) int64, limits in tokens; None for no limit.
        data_alone: (B,) bool, the episodes that nobody else has written in, which have no limit.
    """
    if max_written is None:
        return state
    reached = ~data_alone & (state.length >= max_written) & ~state.terminated
    return replace(state, truncated=state.truncated | reached)
