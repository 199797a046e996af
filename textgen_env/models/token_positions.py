"""Positions of a padded batch at which a model computes."""

from dataclasses import dataclass
from typing import Self

from torch import Tensor

from textgen_env.models.cache_ops import host_sync_is_free

ALL = slice(None)


@dataclass(frozen=True)
class TokenPositions:
    """Positions of a (B, L) batch at which a model computes, K in all.

    Where the host may look they are those of tokens: what is computed at padding costs as much and
    is never used. On other devices they are all B * L, because finding the tokens would make the
    host wait.

    Attributes:
        shape: B and L.
        index: (K,) int64, the positions in the flattened batch; None for all.
    """

    shape: tuple[int, int]
    index: Tensor | None

    @classmethod
    def of(cls, mask: Tensor) -> Self:
        """Return the positions at which (B, L) bool `mask` is True, or all."""
        rows, width = mask.shape
        skips_padding = host_sync_is_free(mask.device) and not mask.all()
        return cls((rows, width), mask.flatten().nonzero().squeeze(1) if skips_padding else None)

    def gather(self, padded: Tensor, rows: slice = ALL) -> Tensor:
        """Return the vectors (K, ...) at these positions of a (B, L, ...) tensor.

        Args:
            padded: (B, L, ...).
            rows: those of the K that are wanted.
        """
        flat = padded.flatten(0, 1)
        return flat[rows] if self.index is None else flat.index_select(0, self.index[rows])

    def scatter(self, vectors: Tensor) -> Tensor:
        """Return the (B, L, ...) tensor with these (K, ...) vectors, and 0 elsewhere."""
        if self.index is None:
            return vectors.unflatten(0, self.shape)
        rows, width = self.shape
        padded = vectors.new_zeros(rows * width, *vectors.shape[1:])
        return padded.index_copy(0, self.index, vectors).unflatten(0, self.shape)
