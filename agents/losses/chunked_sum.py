"""Sums of losses over a large vocabulary, whose logits exist for a few states at a time.

The gradient of a sum is known as soon as its terms are: each chunk's is taken in the forward pass,
before the next chunk's logits are made. The product with the vocabulary is computed once, and what
is kept for the backward pass has the size of the hidden states and of the weights.

Source: Hsu et al. 2024, "Liger Kernel", section 3.2, arXiv:2410.10989.
"""

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction, FunctionCtx, once_differentiable

ChunkLoss = Callable[[Tensor, slice], Tensor]
"""Function of the states of some rows, (K, ...), and the slice of these rows: their sum, scalar."""


CHUNK_NUMEL_CPU, CHUNK_NUMEL = 1 << 20, 1 << 26
"""Most logits of a chunk: on CPUs few, so that they stay in the cache."""
MIN_CHUNK_ROWS = 64  # fewer make products with the vocabulary slow


def chunk_rows(vocab_size: int, device: torch.device) -> int:
    """Return the number of states of a chunk, by the size V of the vocabulary."""
    numel = CHUNK_NUMEL_CPU if device.type == "cpu" else CHUNK_NUMEL
    return max(MIN_CHUNK_ROWS, numel // vocab_size)


def chunks_of(states: Tensor, rows: int) -> list[slice]:
    """Return the slices of (K, ...) states that have at most `rows` of them, in order."""
    return [slice(first, first + rows) for first in range(0, len(states), rows)]


def chunked_sum(
    loss: ChunkLoss, states: Tensor, weights: Sequence[nn.Parameter], rows: int
) -> Tensor:
    """Compute the sum of `loss` over all chunks of the states.

    Gradients flow to the states and to the weights, once.

    Args:
        loss: sums the loss of the states of a chunk.
        states: (K, ...) float.
        weights: all that `loss` reads and gradients may flow to.
        rows: most states of a chunk, at least 1.

    Returns:
        Scalar of the dtype of `loss`.
    """
    chunks = chunks_of(states, rows)
    if not torch.is_grad_enabled():
        return torch.stack([loss(states[chunk], chunk) for chunk in chunks]).sum()
    return cast("Tensor", _ChunkedSum.apply(loss, chunks, states, *weights))


class _ChunkedSum(torch.autograd.Function):
    """Sum whose gradient is computed in the forward pass, for a gradient of 1."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        loss: ChunkLoss,
        chunks: Sequence[slice],
        states: Tensor,
        *weights: Tensor,
    ) -> Tensor:
        """Return the sum over the chunks, and keep its gradients."""
        sums, state_gradients = [], []
        totals: list[Tensor | None] = [None] * len(weights)
        for chunk in chunks:
            part = states[chunk].detach().requires_grad_()
            with torch.enable_grad():
                total = loss(part, chunk)
            gradient, *found = torch.autograd.grad(total, [part, *weights], allow_unused=True)
            sums.append(total.detach())
            state_gradients.append(gradient)
            totals = [
                each if before is None or each is None else before + each
                for before, each in zip(totals, found, strict=True)
            ]
        ctx.save_for_backward(
            torch.cat(state_gradients),
            *totals,  # pyright: ignore[reportArgumentType] # None is permitted
        )
        return torch.stack(sums).sum()

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] # the decorator's doing
        ctx: BackwardCFunction, gradient: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Return the gradients that are kept, times that of the sum."""
        gradients = (None if each is None else gradient * each for each in ctx.saved_tensors)
        return None, None, *gradients
