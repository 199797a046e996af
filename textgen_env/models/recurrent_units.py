"""Recurrent units that take the place of self-attention in a decoder layer.

Their state is all that a step reads of the past, so that a step costs the same at every position;
only `SRUPlusPlus` also reads keys and values of the steps before. The state is kept in float32 or
wider. A unit without products on the state computes it so too, because a sum over many steps would
lose its small terms in bfloat16.
"""

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction, FunctionCtx, once_differentiable

from textgen_env.models.layers import at_least_float32, attend
from textgen_env.models.recurrent import run_gru
from textgen_env.models.unit_memory import StepMemory

UnitName = Literal["ssru", "sru", "sru_pp", "gru"]


class RecurrentUnit(nn.Module, ABC):
    """Base of units, which map vectors of one width to as many of the same; states start at 0.

    Attributes:
        MIN_WIDTH: the smallest width that a unit can have.
    """

    MIN_WIDTH: ClassVar[int] = 1

    @abstractmethod
    def forward(self, inputs: Tensor) -> Tensor:
        """Return the outputs of all steps, (B, T, D), for inputs of the same shape."""

    @abstractmethod
    def step(self, inputs: Tensor, state: Tensor, memory: StepMemory) -> tuple[Tensor, Tensor]:
        """Return the output of one step, (B, D), and the state after it, (B, D).

        Args:
            inputs: (B, D).
            state: (B, D), float32 or wider.
            memory: what the steps before have left there; this step's is added in place.
        """

    @abstractmethod
    def step_block(
        self, inputs: Tensor, state: Tensor, memory: StepMemory
    ) -> tuple[Tensor, Tensor]:
        """Return the outputs of K steps and the states after each of them, (B, K, D) each.

        Args:
            inputs: (B, K, D).
            state: (B, D), float32 or wider.
            memory: what the steps before have left there; that of all K is added in place.
        """

    @property
    def memory_width(self) -> int:
        """Width of the keys and values that a step leaves in the memory; 0 without attention."""
        return 0


class GatedMeanUnit(RecurrentUnit):
    """Base of units whose gates do not read the state, so that all products of a text are one.

    f_t = sigmoid(W_f x_t + b_f) and c_t = f_t c_{t-1} + (1 - f_t) W x_t.

    Args:
        width: D.
        num_gates: number of gates, f among them; each has a weight like W_f and a bias like b_f.
        projected_width: width of what W and the gates' weights read; None for D, the inputs'.
    """

    def __init__(self, width: int, num_gates: int, projected_width: int | None = None) -> None:
        super().__init__()
        columns = width if projected_width is None else projected_width
        self.projection = nn.Linear(columns, (1 + num_gates) * width, bias=False)
        self.gate_bias = nn.Parameter(torch.zeros(num_gates * width))

    @abstractmethod
    def output(self, inputs: Tensor, gates: Tensor, state: Tensor) -> Tensor:
        """Return the output of a step, (..., D), in the dtype of `state`.

        Args:
            inputs: (..., D), x.
            gates: (..., (num_gates - 1) * D), those after f.
            state: (..., D), c.
        """

    def project(self, steps: Tensor) -> Tensor:
        """Return the products of all steps, (T, B, (1 + num_gates) * D), for inputs (T, B, D)."""
        return self.projection(steps)

    def project_next(self, inputs: Tensor, memory: StepMemory) -> Tensor:
        """Return the products of the next step or of K, (B, ..., (1 + num_gates) * D).

        Args:
            inputs: (B, D) or (B, K, D).
            memory: as that of `step_block`.
        """
        del memory  # without attention a step's products are its own input's
        return self.projection(inputs)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the outputs of all steps, (B, T, D)."""
        steps = inputs.transpose(0, 1)
        keep, gates, candidate = self.activate(self.project(steps))
        output = self.output(steps, gates, GatedMean.apply(keep, candidate))
        return output.to(inputs.dtype).transpose(0, 1).contiguous()

    def step(self, inputs: Tensor, state: Tensor, memory: StepMemory) -> tuple[Tensor, Tensor]:
        """Return the output of one step and the state after it, (B, D) each."""
        keep, gates, candidate = self.activate(self.project_next(inputs, memory))
        state = torch.lerp(candidate, state, keep)
        return self.output(inputs, gates, state).to(inputs.dtype), state

    def step_block(
        self, inputs: Tensor, state: Tensor, memory: StepMemory
    ) -> tuple[Tensor, Tensor]:
        """Return the outputs of K steps and the states after each, with one product for all."""
        keep, gates, candidate = self.activate(self.project_next(inputs, memory))
        states = []
        for new, kept in zip(candidate.unbind(1), keep.unbind(1), strict=True):
            state = torch.lerp(new, state, kept)
            states.append(state)
        after = torch.stack(states, 1)
        return self.output(inputs, gates, after).to(inputs.dtype), after

    def activate(self, projected: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return f, the other gates and W x of products, (..., D), in the dtype of states."""
        width = projected.shape[-1] - len(self.gate_bias)
        projected = projected.to(at_least_float32(projected.dtype))
        gates, candidate = projected.split([len(self.gate_bias), width], dim=-1)
        keep, others = (gates + self.gate_bias).sigmoid().tensor_split([width], dim=-1)
        return keep, others, candidate


class SSRU(GatedMeanUnit):
    """Simpler simple recurrent unit, whose output is ReLU(c_t): 2 D^2 a step.

    Source: Kim et al., "From Research to Production and Back: Ludicrously Fast Neural Machine
    Translation", 2019, doi:10.18653/v1/D19-5632.
    """

    def __init__(self, width: int) -> None:
        super().__init__(width, num_gates=1)

    def output(self, inputs: Tensor, gates: Tensor, state: Tensor) -> Tensor:
        """Return ReLU(c), which depends on the state alone."""
        del inputs, gates
        return state.relu()


class SRU(GatedMeanUnit):
    """Simple recurrent unit, whose second gate mixes state and input: 3 D^2 a step.

    r_t = sigmoid(W_r x_t + b_r), and the output is r_t tanh(c_t) + (1 - r_t) x_t. It is that of the
    paper's first version; in the last one gates also read the state, element by element.

    Source: Lei and Zhang, "Training RNNs as Fast as CNNs", 2017, arXiv:1709.02755v2.
    """

    def __init__(self, width: int, projected_width: int | None = None) -> None:
        super().__init__(width, 2, projected_width)

    def output(self, inputs: Tensor, gates: Tensor, state: Tensor) -> Tensor:
        """Return the mean of tanh(c) and the input, weighted by the second gate."""
        return torch.lerp(inputs.to(state.dtype), state.tanh(), gates)


class SRUPlusPlus(SRU):
    """SRU whose products read the inputs before too, by one attention: 1.125 D^2 a step.

    With q_t = W_q x_t of a quarter of D, k = W_k q and v = W_v q, the products are those of W_o and
    norm(q_t + alpha a_t), where a_t is the attention of q_t over steps 1 to t in one head. The
    scalar alpha begins at 0: an SRU with a factored, normed projection.

    Source: Lei, "When Attention Meets Fast Recurrence: Training Language Models with Reduced
    Compute", 2021, arXiv:2102.12459.
    """

    MIN_WIDTH = 8  # the norm of a single feature would leave nothing of it

    def __init__(self, width: int) -> None:
        inner = width // 4
        super().__init__(width, inner)
        self.query = nn.Linear(width, inner, bias=False)
        self.key_value = nn.Linear(inner, 2 * inner, bias=False)
        self.attention_scale = nn.Parameter(torch.zeros(1))
        self.norm = nn.LayerNorm(inner)

    @property
    def memory_width(self) -> int:
        """Width of the keys and values, a quarter of D."""
        return self.query.out_features

    def project(self, steps: Tensor) -> Tensor:
        """Return the products of all steps; padding, at the end, is seen by no step before it."""
        query = self.query(steps)
        by_row = query.transpose(0, 1)[:, None]
        keys, values = self.key_value(by_row).chunk(2, dim=-1)
        causal = steps.new_ones(len(steps), len(steps), dtype=torch.bool).tril()
        attended = attend(by_row, keys, values, causal).squeeze(1)
        return self._combine(query, attended.transpose(0, 1))

    def project_next(self, inputs: Tensor, memory: StepMemory) -> Tensor:
        """Return the products of the next steps, whose keys and values are remembered."""
        query = self.query(inputs)
        by_row = query.view(len(query), -1, self.memory_width)
        memory.write(self.key_value(by_row))
        return self._combine(query, memory.attend(by_row).view(query.shape))

    def _combine(self, query: Tensor, attended: Tensor) -> Tensor:
        return self.projection(self.norm(query + self.attention_scale * attended))


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

    def step(self, inputs: Tensor, state: Tensor, memory: StepMemory) -> tuple[Tensor, Tensor]:
        """Return the output of one step and the state after it, (B, D) each."""
        del memory
        output = self.cell(inputs, state.to(inputs.dtype))
        return output, output.to(state.dtype)

    def step_block(
        self, inputs: Tensor, state: Tensor, memory: StepMemory
    ) -> tuple[Tensor, Tensor]:
        """Return the outputs of K steps and the states after each, one by one."""
        outputs, states = [], []
        for each in inputs.unbind(1):
            output, state = self.step(each, state, memory)
            outputs.append(output)
            states.append(state)
        return torch.stack(outputs, 1), torch.stack(states, 1)


UNITS: dict[UnitName, type[RecurrentUnit]] = {
    "ssru": SSRU,
    "sru": SRU,
    "sru_pp": SRUPlusPlus,
    "gru": GRU,
}


class GatedMean(torch.autograd.Function):
    """The sequential part of units, c_t = f_t c_{t-1} + (1 - f_t) w_t, as a function of f and w.

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
