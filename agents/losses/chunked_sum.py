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

from textgen_env.models.hidden_states import chunks_of

ChunkLoss = Callable[[Sequence[Tensor], slice], Tensor]
"""Function of some of N states, (K, ...) each, and the slice that they are of all: a scalar."""


def chunked_sum(
    loss: ChunkLoss, states: Sequence[Tensor], weights: Sequence[nn.Parameter], rows: int
) -> Tensor:
    """Compute the sum of `loss` over all chunks of the states.

    Gradients flow to the states and to the weights, once.

    Args:
        loss: sums the loss of the states of a chunk.
        states: what is known of N states, (N, ...) each, at least one of them.
        weights: all that `loss` reads and gradients may flow to.
        rows: most states of a chunk, at least 1.

    Returns:
        Scalar of the dtype of `loss`.
    """
    chunks = chunks_of(len(states[0]), rows)
    is_learned = any(each.requires_grad for each in (*states, *weights))
    if not (is_learned and torch.is_grad_enabled()):
        sums = [loss([each[chunk] for each in states], chunk) for chunk in chunks]
        return torch.stack(sums).sum()
    return cast("Tensor", _ChunkedSum.apply(loss, chunks, len(states), *states, *weights))


class _ChunkedSum(torch.autograd.Function):
    """Sum whose gradient is computed in the forward pass, for a gradient of 1."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        loss: ChunkLoss,
        chunks: Sequence[slice],
        count: int,
        *tensors: Tensor,
    ) -> Tensor:
        """Return the sum over the chunks, and keep its gradients.

        The first `count` of the tensors are states, the others weights.
        """
        states, weights, sums = tensors[:count], tensors[count:], []
        of_states: list[list[Tensor]] = [[] for each in states if each.requires_grad]
        totals: list[Tensor | None] = [None] * len(weights)
        for chunk in chunks:
            parts = [each[chunk].detach().requires_grad_(each.requires_grad) for each in states]
            with torch.enable_grad():
                total = loss(parts, chunk)
            learned = [part for part in parts if part.requires_grad]
            found = torch.autograd.grad(total, [*learned, *weights], allow_unused=True)
            sums.append(total.detach())
            for gradients, gradient in zip(of_states, found, strict=False):
                gradients.append(gradient)
            totals = [
                each if before is None or each is None else before + each
                for before, each in zip(totals, found[len(learned) :], strict=True)
            ]
        ctx.save_for_backward(
            *map(torch.cat, of_states),
            *totals,  # pyright: ignore[reportArgumentType] # None is permitted
        )
        return torch.stack(sums).sum()

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] # the decorator's doing
        ctx: BackwardCFunction, gradient: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Return the gradients that are kept, times that of the sum."""
        found = (None if each is None else gradient * each for each in ctx.saved_tensors)
        wanted = ctx.needs_input_grad[3:]
        return None, None, None, *(next(found) if each else None for each in wanted)
