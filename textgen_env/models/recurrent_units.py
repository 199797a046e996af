"""Recurrent units that take the place of self-attention in a decoder layer.

Their state is all that a step reads of the past, so that a step costs the same at every position.
It is kept in float32 or wider: a sum of many steps would lose its small terms in bfloat16.
"""

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction, FunctionCtx, once_differentiable

from textgen_env.models.layers import at_least_float32
from textgen_env.models.recurrent import run_gru

UnitName = Literal["ssru", "gru"]


class RecurrentUnit(nn.Module, ABC):
    """Base of units, which map vectors of one width to as many of the same; states start at 0."""

    @abstractmethod
    def forward(self, inputs: Tensor) -> Tensor:
        """Return the outputs of all steps, (B, T, D), for inputs of the same shape."""

    @abstractmethod
    def step(self, inputs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return the output of one step, (B, D), and the state after it, (B, D).

        Args:
            inputs: (B, D).
            state: (B, D), float32 or wider.
        """


class SSRU(RecurrentUnit):
    """Simpler simple recurrent unit, whose gate does not read the state.

    f_t = sigmoid(W_f x_t + b_f), c_t = f_t c_{t-1} + (1 - f_t) W x_t, and the output is ReLU(c_t).
    So all products of a sequence are one product, of 2 D^2 a step, and elementwise work is left.

    Source: Kim et al., "From Research to Production and Back: Ludicrously Fast Neural Machine
    Translation", 2019, section 2.2, doi:10.18653/v1/D19-5632.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate_and_candidate = nn.Linear(width, 2 * width, bias=False)
        self.gate_bias = nn.Parameter(torch.zeros(width))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the outputs of all steps, (B, T, D)."""
        states = GatedMean.apply(*self._gate_and_candidate(inputs.transpose(0, 1)))
        return states.relu().to(inputs.dtype).transpose(0, 1).contiguous()

    def step(self, inputs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return the output of one step and the state after it, (B, D) each."""
        gate, candidate = self._gate_and_candidate(inputs)
        state = torch.lerp(candidate, state, gate)
        return state.relu().to(inputs.dtype), state

    def _gate_and_candidate(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return f and W x, in the dtype of states, for inputs of any shape (..., D)."""
        projected = self.gate_and_candidate(inputs)
        gate, candidate = projected.to(at_least_float32(projected.dtype)).chunk(2, dim=-1)
        return (gate + self.gate_bias).sigmoid(), candidate


class GRU(RecurrentUnit):
    """Gated recurrent unit, whose gates read the state: 6 D^2 a step, half of them one by one.

    Source: Cho et al. 2014, arXiv:1406.1078.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cell = nn.GRUCell(width, width)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the outputs of all steps, (B, T, D), which are the states."""
        steps = inputs.transpose(0, 1).contiguous()
        initial = steps.new_zeros(steps.shape[1:])
        return run_gru(self.cell, steps, initial).transpose(0, 1).contiguous()

    def step(self, inputs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return the output of one step and the state after it, (B, D) each."""
        output = self.cell(inputs, state.to(inputs.dtype))
        return output, output.to(state.dtype)


UNITS: dict[UnitName, type[RecurrentUnit]] = {"ssru": SSRU, "gru": GRU}


class GatedMean(torch.autograd.Function):
    """The sequential part of an SSRU, c_t = f_t c_{t-1} + (1 - f_t) w_t, as a function of f and w.

    Each direction is a loop of one operator a step; the gradients of f and w follow from that of c
    for all steps at once. The initial state is 0.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, gate: Tensor, candidate: Tensor) -> Tensor:
        """Return the states after every step, (T, B, D).

        Args:
            ctx: autograd's context.
            gate: (T, B, D), f, in (0, 1).
            candidate: (T, B, D), w, of the same dtype.
        """
        states = candidate.new_zeros(len(candidate) + 1, *candidate.shape[1:])
        steps = zip(candidate, states[:-1], gate, states[1:], strict=True)
        for new, before, kept, after in steps:
            torch.lerp(new, before, kept, out=after)
        ctx.save_for_backward(gate, candidate, states)
        return states[1:]

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] # the decorator's doing
        ctx: BackwardCFunction, grad: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the gradients of both arguments."""
        gate, candidate, states = ctx.saved_tensors  # pyright: ignore[reportAssignmentType]
        grads = grad.clone(memory_format=torch.contiguous_format)  # of c, also through later steps
        steps = zip(grads[:-1], grads[1:], gate[1:], strict=True)
        for before, after, kept in reversed(list(steps)):
            before.addcmul_(after, kept)
        return grads * (states[:-1] - candidate), grads * (1 - gate)
