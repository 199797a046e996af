"""The records that travel between the environment, the expert, the agents and the learner.

Dimension letters used in docstrings throughout the project:
**B** sequences, **S** source tokens, **E** those of the expert's view, **T** target steps,
**V** vocabulary, **N** layers, **H** heads, **D** head width.

Records are frozen and check their own shapes. They hold no behavior beyond that: what happens to a
state is in `dynamics.py`, what is learned from trajectories is in `agents/`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
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
    """Writers of a trajectory's tokens."""

    DATA = 0
    STUDENT = 1
    EXPERT = 2


@dataclass(frozen=True)
class Examples:
    """Encoded pairs of a split, or a batch of them.

    Attributes:
        source: (B, S) int64 source token ids, PAD after the end token.
        reference: (B, T) int64 target token ids, the end token included, PAD after it; all PAD for
            a source without a reference.
        expert_source: (B, E) int64, what the expert reads in place of `source`; None where it reads
            the same.
    """

    source: Tensor
    reference: Tensor
    expert_source: Tensor | None = None

    def __post_init__(self) -> None:
        check_shape("source", self.source, (None, None))
        check_shape("reference", self.reference, (self.source.shape[0], None))
        _check_expert_source(self)

    def __len__(self) -> int:
        return self.source.shape[0]

    @property
    def expert_view(self) -> Tensor:
        """Tokens that the expert reads, (B, E) int64."""
        return self.source if self.expert_source is None else self.expert_source

    def has_reference(self, special: SpecialTokens) -> Tensor:
        """Return a (B,) bool mask, False for sources without references, whose row is all PAD."""
        return (self.reference != special.pad).any(1)

    def select(self, index: Tensor) -> Self:
        """Return the examples at `index`, (K,) int64, in that order."""
        return type(self)(**{name: rows[index] for name, rows in tensors(self).items()})

    def trimmed(self, special: SpecialTokens) -> Self:
        """Return the examples without the columns that are padding in all of them."""
        return type(self)(**{name: trimmed(t, special) for name, t in tensors(self).items()})

    def to(self, device: torch.device | str) -> Self:
        """Return the same examples on `device`."""
        return type(self)(**{name: tensor.to(device) for name, tensor in tensors(self).items()})


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
        expert_source: (B, E) int64, what the expert reads in place of `source`; None where it reads
            the same.
        weight: (B, T) float, what the loss of each action is multiplied by; None for 1.
        behavior_log_prob: (B, T) float, nats, log-probability of each action when it was written,
            in the distribution that its writer drew it from; 0 for actions that were not drawn, as
            the data's, greedy ones and noise, and outside the mask. None where none was drawn.
    """

    source: Tensor
    actions: Tensor
    writer: Tensor
    mask: Tensor
    reference: Tensor
    expert_source: Tensor | None = None
    weight: Tensor | None = None
    behavior_log_prob: Tensor | None = None

    def __post_init__(self) -> None:
        check_shape("source", self.source, (None, None))
        rows, steps = self.source.shape[0], self.actions.shape[-1]
        check_shape("actions", self.actions, (rows, steps))
        check_shape("writer", self.writer, (rows, steps))
        check_shape("mask", self.mask, (rows, steps))
        for name, tensor in tensors(self).items():
            if name in ("weight", "behavior_log_prob"):
                check_shape(name, tensor, (rows, steps))
        check_shape("reference", self.reference, (rows, None))
        _check_expert_source(self)
        if self.mask.dtype != torch.bool:
            raise ShapeError(f"mask must be bool, got {self.mask.dtype}")

    def __len__(self) -> int:
        return self.source.shape[0]

    @classmethod
    def of(cls, examples: Examples, actions: Tensor, writer: Tensor, mask: Tensor) -> Self:
        """Return trajectories of what was written for `examples`, a row each."""
        return cls(actions=actions, writer=writer, mask=mask, **tensors(examples))

    @classmethod
    def from_examples(cls, examples: Examples, special: SpecialTokens) -> Self:
        """Return trajectories in which the data wrote every token.

        No action counts where an example has no reference.
        """
        mask = examples.reference != special.pad
        writer = torch.full_like(examples.reference, Writer.DATA)
        return cls.of(examples, examples.reference, writer, mask)

    @classmethod
    def cat(cls, parts: Sequence[Self], special: SpecialTokens) -> Self:
        """Return the rows of all `parts`, at least one, in that order, padded to the widest."""
        two_views = any(part.expert_source is not None for part in parts)
        if two_views:
            parts = [replace(part, expert_source=part.expert_view) for part in parts]
        if any(part.weight is not None for part in parts):
            parts = [replace(part, weight=part.action_weight) for part in parts]
        if any(part.behavior_log_prob is not None for part in parts):
            parts = [replace(part, behavior_log_prob=part.action_log_prob) for part in parts]
        fill = {"writer": Writer.DATA, "mask": False, "behavior_log_prob": 0.0}
        columns = {name: [getattr(part, name) for part in parts] for name in tensors(parts[0])}
        return cls(
            **{name: _stacked(c, fill.get(name, special.pad)) for name, c in columns.items()}
        )

    @property
    def expert_view(self) -> Tensor:
        """Tokens that the expert reads, (B, E) int64."""
        return self.source if self.expert_source is None else self.expert_source

    @property
    def action_weight(self) -> Tensor:
        """Weight of each action, (B, T) float."""
        ones = torch.ones(self.mask.shape, device=self.mask.device)
        return ones if self.weight is None else self.weight

    @property
    def action_log_prob(self) -> Tensor:
        """Log-probability of each action when it was written, (B, T) float, nats."""
        certain = torch.zeros(self.mask.shape, device=self.mask.device)
        return certain if self.behavior_log_prob is None else self.behavior_log_prob

    @property
    def examples(self) -> Examples:
        """Examples that the trajectories were written for, a row each."""
        return Examples(self.source, self.reference, self.expert_source)

    def select(self, index: Tensor) -> Self:
        """Return the trajectories at `index`, (K,) int64, in that order."""
        return type(self)(**{name: rows[index] for name, rows in tensors(self).items()})

    def trimmed(self, special: SpecialTokens) -> Self:
        """Return the trajectories without the columns that are padding in all of them."""
        width = int(self.mask.sum(1).max())
        written = ("actions", "writer", "mask", "weight", "behavior_log_prob")
        return type(self)(
            **{
                name: tensor[:, :width] if name in written else trimmed(tensor, special)
                for name, tensor in tensors(self).items()
            }
        )

    def to(self, device: torch.device | str) -> Self:
        """Return the same trajectories on `device`."""
        return type(self)(**{name: tensor.to(device) for name, tensor in tensors(self).items()})


def tensors(record: Examples | Trajectories) -> dict[str, Tensor]:
    """Return the tensors of `record` by the names of their fields."""
    named = {field.name: getattr(record, field.name) for field in fields(record)}
    return {name: tensor for name, tensor in named.items() if tensor is not None}


def _check_expert_source(record: Examples | Trajectories) -> None:
    """Raise `ShapeError` unless the expert's view has a row for each example."""
    if record.expert_source is not None:
        check_shape("expert_source", record.expert_source, (len(record), None))


def _stacked(parts: Sequence[Tensor], fill: float) -> Tensor:
    """Return all rows of the (B, L) `parts`, with `fill` up to the widest."""
    width = max(part.shape[1] for part in parts)
    return torch.cat([F.pad(part, (0, width - part.shape[1]), value=fill) for part in parts])


def trimmed(tokens: Tensor, special: SpecialTokens) -> Tensor:
    """Return (B, L) tokens without the columns that are padding in every row."""
    return tokens[:, : int((tokens != special.pad).sum(1).max())]
