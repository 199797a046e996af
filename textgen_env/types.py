"""The records that travel between the environment, the expert, the agents and the learner.

Dimension letters used in docstrings throughout the project:
**B** sequences, **S** source tokens, **T** target steps, **V** vocabulary,
**N** layers, **H** heads, **D** head width.

Records are frozen and check their own shapes. They hold no behavior beyond that: what happens to a
state is in `dynamics.py`, what is learned from trajectories is in `agents/`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor


class ShapeError(ValueError):
    """A tensor has another shape or dtype than its role demands."""


def check_shape(name: str, tensor: Tensor, shape: tuple[int | None, ...]) -> None:
    """Raise `ShapeError` unless `tensor` has `shape`, where None stands for any size."""
    fits = tensor.dim() == len(shape) and all(
        wanted is None or wanted == size for wanted, size in zip(shape, tensor.shape, strict=True)
    )
    if not fits:
        wanted = "(" + ", ".join("any" if size is None else str(size) for size in shape) + ")"
        raise ShapeError(f"{name} must have shape {wanted}, got {tuple(tensor.shape)}")


class SpecialTokens(NamedTuple):
    """Token ids with a meaning of their own."""

    pad: int = 0
    start: int = 1
    end: int = 2


class Writer(IntEnum):
    """Who wrote a token of a trajectory."""

    DATA = 0
    STUDENT = 1
    EXPERT = 2


@dataclass(frozen=True)
class Examples:
    """Encoded pairs of a split, or a batch of them.

    Attributes:
        source: (B, S) int64 source token ids, PAD after the end token.
        reference: (B, T) int64 target token ids, the end token included, PAD after it.
    """

    source: Tensor
    reference: Tensor

    def __post_init__(self) -> None:
        check_shape("source", self.source, (None, None))
        check_shape("reference", self.reference, (self.source.shape[0], None))

    def __len__(self) -> int:
        return self.source.shape[0]

    def select(self, index: Tensor) -> Self:
        """The examples at `index`, (K,) int64, in that order."""
        return type(self)(self.source[index], self.reference[index])

    def trimmed(self, special: SpecialTokens) -> Self:
        """The examples without the columns that are padding in all of them."""
        return type(self)(trimmed(self.source, special), trimmed(self.reference, special))

    def to(self, device: torch.device | str) -> Self:
        """The same examples on `device`."""
        return type(self)(self.source.to(device), self.reference.to(device))


@dataclass(frozen=True)
class Trajectories:
    """A record of B generations: what was written, by whom, and which actions count.

    Attributes:
        source: (B, S) int64 source token ids, PAD after the end token.
        actions: (B, T) int64 target token ids; PAD once an episode is over.
        writer: (B, T) int64, a `Writer` for each action.
        mask: (B, T) bool, True for actions taken before the episode was over: the end token counts,
            the absorbing PAD after it does not.
        reference: (B, R) int64, the data set's target for the same sources.
    """

    source: Tensor
    actions: Tensor
    writer: Tensor
    mask: Tensor
    reference: Tensor

    def __post_init__(self) -> None:
        check_shape("source", self.source, (None, None))
        rows, steps = self.source.shape[0], self.actions.shape[-1]
        check_shape("actions", self.actions, (rows, steps))
        check_shape("writer", self.writer, (rows, steps))
        check_shape("mask", self.mask, (rows, steps))
        check_shape("reference", self.reference, (rows, None))
        if self.mask.dtype != torch.bool:
            raise ShapeError(f"mask must be bool, got {self.mask.dtype}")

    def __len__(self) -> int:
        return self.source.shape[0]

    @classmethod
    def from_examples(cls, examples: Examples, special: SpecialTokens) -> Self:
        """Trajectories whose every token was written by the data."""
        mask = examples.reference != special.pad
        writer = torch.full_like(examples.reference, Writer.DATA)
        return cls(examples.source, examples.reference, writer, mask, examples.reference)

    @classmethod
    def cat(cls, parts: Sequence[Self], special: SpecialTokens) -> Self:
        """The rows of all `parts`, at least one, in that order, padded to the widest."""
        fill = {"writer": Writer.DATA, "mask": False}
        columns = {f.name: [getattr(part, f.name) for part in parts] for f in fields(cls)}
        return cls(
            **{name: _stacked(c, fill.get(name, special.pad)) for name, c in columns.items()}
        )

    def select(self, index: Tensor) -> Self:
        """The trajectories at `index`, (K,) int64, in that order."""
        return type(self)(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def trimmed(self, special: SpecialTokens) -> Self:
        """The trajectories without the columns that are padding in all of them."""
        width = int(self.mask.sum(1).max())
        return type(self)(
            source=trimmed(self.source, special),
            actions=self.actions[:, :width],
            writer=self.writer[:, :width],
            mask=self.mask[:, :width],
            reference=trimmed(self.reference, special),
        )

    def to(self, device: torch.device | str) -> Self:
        """The same trajectories on `device`."""
        return type(self)(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})


def _stacked(parts: Sequence[Tensor], fill: int) -> Tensor:
    """All rows of the (B, L) `parts`, as wide as the widest, `fill` after their end."""
    width = max(part.shape[1] for part in parts)
    return torch.cat([F.pad(part, (0, width - part.shape[1]), value=fill) for part in parts])


def trimmed(tokens: Tensor, special: SpecialTokens) -> Tensor:
    """(B, L) tokens without the columns that are padding in every row."""
    return tokens[:, : int((tokens != special.pad).sum(1).max())]
