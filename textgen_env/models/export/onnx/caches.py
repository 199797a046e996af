"""Caches of tensors that grow by concatenation, in place of memory that is reserved and written to.

A graph has no memory of its own: each step is given the tensors of the steps before and returns
longer ones. The layers that use these caches are the model's own.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


def attend_next(query: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return the attention output, (R, H * D), of one query for each row.

    Args:
        query: (R, H * D).
        keys: (R, H, L, D).
        values: (R, H, L, D).
        bias: (R, 1, 1, L), added to the scores; None where all positions are visible.
    """
    heads, width = keys.shape[1], keys.shape[3]
    queries = query.unflatten(-1, (heads, width))[:, :, None] * (1 / math.sqrt(width))
    scores = queries @ keys.transpose(2, 3)
    weights = (scores if bias is None else scores + bias).softmax(-1)
    return (weights @ values).flatten(1)


@dataclass(frozen=True)
class LayeredSource:
    """Keys and values of the source, two tensors for each layer; a `SourceReader`.

    Attributes:
        keys: (B, H, S, D) for each layer.
        values: (B, H, S, D) for each layer.
        bias: (B, 1, 1, S), 0 at the source's tokens and -inf at padding.
    """

    keys: list[Tensor]
    values: list[Tensor]
    bias: Tensor

    def attend(self, layer: int, query: Tensor) -> Tensor:
        """Return the attention output of one layer for `query`; both are (B, H * D)."""
        return attend_next(query, self.keys[layer], self.values[layer], self.bias)


@dataclass(frozen=True)
class GrowingTarget:
    """Keys and values of the target, two tensors for each layer; a `DecoderCache`.

    Attributes:
        source: keys and values of the source.
        keys: (B, H, L, D) for each layer, all visible; `write` replaces them by longer ones.
        values: (B, H, L, D) for each layer, likewise.
    """

    source: LayeredSource
    keys: list[Tensor]
    values: list[Tensor]

    def write(self, layer: int, keys_values: Tensor, slots: Tensor) -> None:
        """Append those of the next position, (B, 2 * H * D), of one layer; `slots` is unused."""
        del slots
        _, heads, _, width = self.keys[layer].shape
        new_keys, new_values = keys_values.unflatten(-1, (2, heads, 1, width)).unbind(1)
        self.keys[layer] = torch.cat([self.keys[layer], new_keys], 2)
        self.values[layer] = torch.cat([self.values[layer], new_values], 2)

    def attend_to_target(self, layer: int, query: Tensor) -> Tensor:
        """Return the attention output over the target for `query`; both are (B, H * D)."""
        return attend_next(query, self.keys[layer], self.values[layer])


@dataclass
class GrowingUnitMemory:
    """Keys and values of a recurrent unit that attends; a `StepMemory` of one position a step.

    Attributes:
        keys: (B, 1, L, D), of one head, all visible; `write` replaces them by longer ones.
        values: (B, 1, L, D), likewise.
    """

    keys: Tensor
    values: Tensor

    def write(self, keys_values: Tensor) -> None:
        """Append those of the next step, (B, 1, 2 * D), keys beside values."""
        new_keys, new_values = keys_values[:, None].chunk(2, dim=-1)
        self.keys = torch.cat([self.keys, new_keys], 2)
        self.values = torch.cat([self.values, new_values], 2)

    def attend(self, query: Tensor) -> Tensor:
        """Return the attention output, (B, 1, D), of the step that was written last."""
        return attend_next(query[:, 0], self.keys, self.values)[:, None]
