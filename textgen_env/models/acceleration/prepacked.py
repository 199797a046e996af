"""Models for inference on CPUs whose weights are laid out once as products read them.

oneDNN multiplies by a weight that is cut into blocks, and PyTorch cuts it anew for every product
unless it is handed the blocks: by the operators used here, which `torch.compile` writes too once
weights are frozen. Two threads of an x86 machine with 512-bit registers, against the plain product,
width 256 to 1,024 and 4,000 tokens: a half to 0.75 of the time in bfloat16 for 1 to 64 rows; in
float32 0.75 to 0.9 for 64 rows, 0.6 for 16, and up to 3 times as long for a single one.

Nothing here can be trained: a packed model keeps the weights that it was made with.
"""

from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from textgen_env.models.layers import TiedEmbedding

M = TypeVar("M")
FEW = 4  # rows for which float32 is better left to the plain product


def with_prepacked_weights(model: M) -> M:
    """A copy of `model` that shares its weights and makes products faster, if it is on a CPU.

    Args:
        model: in evaluation mode; one that is no `nn.Module`, or elsewhere, is returned as it is.
            Weights that change later are not seen by the copy: make another one.
    """
    if not isinstance(model, nn.Module) or not torch.backends.mkldnn.is_available():
        return model
    on_cpu = all(parameter.device.type == "cpu" for parameter in model.parameters())
    return cast("M", _copied(model)) if on_cpu else model


def _copied(module: nn.Module) -> nn.Module:
    """A copy of a module and all below it, the tensors being the same."""
    kind = KINDS.get(type(module), type(module))
    copy = kind.__new__(kind)
    copy.__dict__.update(module.__dict__)
    children = module._modules.items()
    copy._modules = {name: None if child is None else _copied(child) for name, child in children}
    if isinstance(copy, _Packed):
        copy.pack()
    return copy


class _Packed:
    """What is made anew from a module's weights, also after it was copied or pickled."""

    __dict__: dict[str, Any]

    def pack(self) -> None:
        """Lay out the weights."""
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "blocks"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.pack()


class PrepackedLinear(_Packed, nn.Linear):
    """A linear layer."""

    def pack(self) -> None:
        """Lay out the weight."""
        self.blocks = blocks_of(self.weight)

    def forward(self, input: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        return product(input, self.weight, self.blocks, self.bias)


class PrepackedEmbedding(_Packed, TiedEmbedding):
    """An embedding that makes the logits too."""

    def pack(self) -> None:
        """Lay out the matrix for the logits."""
        self.blocks = blocks_of(self.weight)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) to (..., V)."""
        return product(hidden, self.weight, self.blocks, None)


class PrepackedGRUCell(_Packed, nn.GRUCell):
    """A gated recurrent unit, one step of it."""

    def pack(self) -> None:
        """Lay out both weights."""
        self.blocks = blocks_of(self.weight_ih), blocks_of(self.weight_hh)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """(B, in) inputs and (B, D) states to states."""
        assert hx is not None, "the models here have a state from the start"
        width, (outer, inner) = self.hidden_size, self.blocks
        outside = product(input, self.weight_ih, outer, self.bias_ih)
        inside = product(hx, self.weight_hh, inner, self.bias_hh)
        gates = (outside[:, : 2 * width] + inside[:, : 2 * width]).sigmoid_()
        reset, update = gates.chunk(2, -1)
        candidate = torch.addcmul(outside[:, 2 * width :], reset, inside[:, 2 * width :]).tanh_()
        return torch.lerp(candidate, hx, update)


KINDS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: PrepackedLinear,
    TiedEmbedding: PrepackedEmbedding,
    nn.GRUCell: PrepackedGRUCell,
}


def blocks_of(weight: Tensor) -> Tensor:
    """A weight (out, in) as oneDNN reads it."""
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach())


def product(hidden: Tensor, weight: Tensor, blocks: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear`, by `blocks` where that is faster and no gradient is asked for."""
    few = weight.dtype == torch.float32 and hidden.numel() < FEW * hidden.shape[-1]
    if few or hidden.requires_grad:
        return F.linear(hidden, weight, bias)
    hidden = hidden.to(weight.dtype)  # under autocast norms answer in float32
    return torch.ops.mkldnn._linear_pointwise(hidden, blocks, bias, "none", [], "")
