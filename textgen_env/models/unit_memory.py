"""Keys and values by which a recurrent unit with attention reads the steps before.

They have room for all steps from the start: in the narrow width and the single head of such a unit,
positions that are not written yet cost little, and a cache of one shape needs neither to grow nor
to keep a mask. What lies beyond a row's length is never read, so going back changes the length
alone.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from textgen_env.models.layers import attend_cached


class StepMemory(Protocol):
    """Memory of one layer, as the step of a unit writes and reads it."""

    def write(self, keys_values: Tensor) -> None:
        """Keep those of the next K steps, (R, K, 2 * D), keys beside values."""
        ...

    def attend(self, query: Tensor) -> Tensor:
        """Return the attention output, (R, K, D), of the K steps that were written last."""
        ...


@dataclass(frozen=True)
class UnitMemory:
    """Memory of one layer at its next steps.

    Attributes:
        keys_values: (2, R, 1, T, D), keys, then values, of one head; T is the step limit.
        length: (R,) int64, steps of each row before these.
    """

    keys_values: Tensor
    length: Tensor

    def write(self, keys_values: Tensor) -> None:
        """Write those of the next K steps in place, (R, K, 2 * D), keys beside values."""
        new = torch.stack(keys_values.to(self.keys_values.dtype).chunk(2, dim=-1))
        index = self._positions(new.shape[2])[..., None].expand(new.shape)
        self.keys_values.squeeze(2).scatter_(2, index, new)

    def attend(self, query: Tensor) -> Tensor:
        """Return the attention output, (R, K, D), of the K steps that were written last.

        Args:
            query: (R, K, D); each sees the steps before it and itself.
        """
        capacity = self.keys_values.shape[3]
        places = torch.arange(capacity, device=query.device)
        hidden = places > self._positions(query.shape[1])[:, None, :, None]
        bias = torch.zeros_like(hidden, dtype=query.dtype).masked_fill_(hidden, float("-inf"))
        return attend_cached(query.flatten(0, 1), self.keys_values, bias).view(query.shape)

    def _positions(self, count: int) -> Tensor:
        """Return where the next `count` steps of each row stand, (R, count) int64."""
        return self.length[:, None] + torch.arange(count, device=self.length.device)
