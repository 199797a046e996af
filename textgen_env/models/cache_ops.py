"""Operations on the tensors of caches: growing, trimming, replacing rows, visiting all tensors.

They never copy values to the host unless that is free (`host_sync_is_free`).
"""

from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

C = TypeVar("C")
CAPACITY_INCREMENT = 16  # positions by which the capacity for targets grows
TRIM_MULTIPLE = 16  # widths are trimmed to a multiple of it, and only if that removes as many


def host_sync_is_free(device: torch.device) -> bool:
    """Return True if the host can read values on `device` without waiting for it.

    While a graph is exported there are no values to read.
    """
    return device.type == "cpu" and not torch.compiler.is_exporting()


def scatter_rows_(
    destination: Tensor, fresh: Tensor, mask: Tensor, index: Tensor, dim: int = 0
) -> None:
    """Replace row i of `destination` in place by row index[i] of `fresh` where mask[i] is True.

    Where the host can read the mask for free, only the rows concerned are touched. On other devices
    all rows are read, so that the host need not wait to learn how many there are.

    Args:
        destination: B rows along `dim`.
        fresh: K rows along `dim`, otherwise of the same shape.
        mask: (B,) bool.
        index: (B,) int64 in [0, K), also where `mask` is False.
        dim: dimension of the rows.
    """
    if host_sync_is_free(destination.device):
        rows = mask.nonzero().squeeze(1)
        destination.index_copy_(dim, rows, fresh.index_select(dim, index.index_select(0, rows)))
    else:
        shape = [1] * destination.dim()
        shape[dim] = -1
        selected = fresh.index_select(dim, index)
        torch.where(mask.view(shape), selected, destination, out=destination)


def pad_to(memory: Tensor, width: int, dim: int) -> Tensor:
    """Return `memory` padded to at least `width` positions along `dim`.

    A bias, whose positions are its last dimension, is padded with minus infinity. Other tensors
    are padded with zeros, which such a bias masks.
    """
    missing = width - memory.shape[dim]
    if missing <= 0:
        return memory
    last = dim == memory.dim() - 1
    around = (0, missing) if last else (0, 0) * (memory.dim() - 1 - dim) + (0, missing)
    return F.pad(memory, around, value=float("-inf") if last else 0.0)


def trim_to(memory: Tensor, width: int, dim: int) -> Tensor:
    """Return `memory` cut to `width` positions along `dim`, rounded up to `TRIM_MULTIPLE`.

    It is returned unchanged if fewer than `TRIM_MULTIPLE` positions would be removed.
    """
    rounded = -(-width // TRIM_MULTIPLE) * TRIM_MULTIPLE
    if memory.shape[dim] - rounded < TRIM_MULTIPLE:
        return memory
    return memory.narrow(dim, 0, rounded).contiguous()


def select_states(history: Sequence[Tensor], index: Tensor) -> Tensor:
    """Return (N, R, D) states of N layers, of which row i is that of history[index[i]].

    Args:
        history: states after successive steps, (N, R, D) each.
        index: (R,) int64.
    """
    rows = torch.arange(len(index), device=index.device)
    return torch.stack(tuple(history))[index, :, rows].transpose(0, 1).contiguous()


def tensors_of(cache: object) -> list[Tensor]:
    """Return the tensors of a dataclass, in the order of its fields.

    Those in its tuples and in dataclasses that it holds are among them.
    """
    found: list[Tensor] = []
    for field in fields(cache):  # pyright: ignore[reportArgumentType] - a dataclass
        value = getattr(cache, field.name)
        if is_dataclass(value):
            found += tensors_of(value)
            continue
        parts = value if isinstance(value, tuple) else (value,)
        found += [part for part in parts if isinstance(part, Tensor)]
    return found


def map_tensors(function: Callable[[Tensor], Tensor], cache: C) -> C:
    """Return a dataclass with `function` applied to each tensor that `tensors_of` returns."""
    changed: dict[str, Any] = {}
    for field in fields(cache):  # pyright: ignore[reportArgumentType] - a dataclass
        value = getattr(cache, field.name)
        if is_dataclass(value):
            changed[field.name] = map_tensors(function, value)
        elif isinstance(value, Tensor):
            changed[field.name] = function(value)
        elif isinstance(value, tuple):
            changed[field.name] = tuple(map(function, value))
    return replace(cache, **changed)  # pyright: ignore[reportArgumentType]
