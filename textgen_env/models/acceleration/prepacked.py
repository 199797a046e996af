"""Models with prepacked weights for inference on CPUs.

oneDNN multiplies by weights in a blocked layout. PyTorch converts a weight to that layout for every
product, unless it is given the blocks. The operators used here take them, as the code does that
`torch.compile` generates for frozen weights. In float32 this is slower for very few rows, which
are left to the plain product.

A prepacked model cannot be trained: it keeps the weights that it was made with.
"""

from collections.abc import Mapping
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from textgen_env.models.layers import TiedEmbedding

ModelT = TypeVar("ModelT")
MIN_FLOAT32_ROWS = 4  # with fewer rows the plain product is faster in float32


def with_prepacked_weights(model: ModelT) -> ModelT:
    """Return a copy of `model` that shares its weights and has faster products, if it is on a CPU.

    Args:
        model: model in evaluation mode. It is returned unchanged if it is not an `nn.Module` or not
            on a CPU. The copy does not see later changes of the weights; make another one then.
    """
    if not isinstance(model, nn.Module) or not torch.backends.mkldnn.is_available():
        return model
    on_cpu = all(parameter.device.type == "cpu" for parameter in model.parameters())
    return cast("ModelT", converted_copy(model, PREPACKED_CLASSES)) if on_cpu else model


def converted_copy(
    module: nn.Module, classes: Mapping[type[nn.Module], type[nn.Module]]
) -> nn.Module:
    """Return a copy of a module and its submodules with the same tensors and faster products.

    Args:
        module: it is not changed.
        classes: class of a module -> subclass with the mixin `Prepacked` that takes its place.
    """
    kind = classes.get(type(module), type(module))
    copy = kind.__new__(kind)
    copy.__dict__.update(module.__dict__)
    copy._modules = {
        name: None if child is None else converted_copy(child, classes)
        for name, child in module._modules.items()
    }
    if isinstance(copy, Prepacked):
        copy.prepack()
    return copy


class Prepacked:
    """Mixin for modules with converted weights, which are made again after copying or pickling."""

    __dict__: dict[str, Any]

    def prepack(self) -> None:
        """Convert the weights to the form that the products take."""
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "blocks"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.prepack()


class PrepackedLinear(Prepacked, nn.Linear):
    """Linear layer with a prepacked weight."""

    def prepack(self) -> None:
        """Convert the weight to oneDNN's layout."""
        self.blocks = prepack_weight(self.weight)

    def forward(self, input: Tensor) -> Tensor:
        """Return the layer's output, (..., out), for `input`, (..., in)."""
        return prepacked_linear(input, self.weight, self.blocks, self.bias)


class PrepackedEmbedding(Prepacked, TiedEmbedding):
    """Tied embedding whose matrix is prepacked for the logits."""

    def prepack(self) -> None:
        """Convert the matrix to oneDNN's layout."""
        self.blocks = prepack_weight(self.weight)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits, (..., V), of hidden vectors, (..., D)."""
        return prepacked_linear(hidden, self.weight, self.blocks, None)


class PrepackedGRUCell(Prepacked, nn.GRUCell):
    """Cell of a gated recurrent unit with prepacked weights."""

    def prepack(self) -> None:
        """Convert both weights to oneDNN's layout."""
        self.blocks = prepack_weight(self.weight_ih), prepack_weight(self.weight_hh)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """Return the next states, (B, D), for `input`, (B, in), and the states `hx`, (B, D)."""
        assert hx is not None, "the models here always pass a state"
        width, (input_blocks, state_blocks) = self.hidden_size, self.blocks
        from_input = prepacked_linear(input, self.weight_ih, input_blocks, self.bias_ih)
        from_state = prepacked_linear(hx, self.weight_hh, state_blocks, self.bias_hh)
        gates = (from_input[:, : 2 * width] + from_state[:, : 2 * width]).sigmoid_()
        reset, update = gates.chunk(2, -1)
        candidate = torch.addcmul(from_input[:, 2 * width :], reset, from_state[:, 2 * width :])
        return torch.lerp(candidate.tanh_(), hx, update)


PREPACKED_CLASSES: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: PrepackedLinear,
    TiedEmbedding: PrepackedEmbedding,
    nn.GRUCell: PrepackedGRUCell,
}


def without_prepacked_weights(model: nn.Module) -> nn.Module:
    """Return a copy of `model` that shares its weights and computes with them as they are.

    Gradients flow through all its products, and its weights can be replaced in a call.
    """
    plain = {packed: kind for kind, packed in PREPACKED_CLASSES.items()}
    return converted_copy(model, plain)


def prepack_weight(weight: Tensor) -> Tensor:
    """Return a weight, (out, in), in oneDNN's blocked layout."""
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach())


def prepacked_linear(hidden: Tensor, weight: Tensor, blocks: Tensor, bias: Tensor | None) -> Tensor:
    """Compute `F.linear`, with `blocks` where that is faster and no gradient is needed.

    Args:
        hidden: (..., in).
        weight: (out, in).
        blocks: the same weight, from `prepack_weight`.
        bias: (out,), or None.

    Returns:
        (..., out).
    """
    few_rows = hidden.numel() < MIN_FLOAT32_ROWS * hidden.shape[-1]
    if (few_rows and weight.dtype == torch.float32) or hidden.requires_grad:
        return F.linear(hidden, weight, bias)
    hidden = hidden.to(weight.dtype)  # under autocast norms return float32
    return torch.ops.mkldnn._linear_pointwise(hidden, blocks, bias, "none", [], "")
