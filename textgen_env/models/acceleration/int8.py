"""Models with products of 8-bit integers for inference on CPUs.

A weight has a scale for each output, and what it is multiplied by one for each row, found anew for
every product. So a row's result does not depend on the other rows. Sums of integers are exact.

Linear layers and tied logits are quantized. Embeddings, norms, attention's own products and gated
recurrent units stay in float32: states of the latter carry an error on from step to step.

Source: Dettmers et al., "LLM.int8()", 2022, section 2.1, vector-wise quantization,
arXiv:2208.07339.
"""

from functools import cache
from typing import NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn

from textgen_env.models.acceleration.prepacked import (
    PREPACKED_CLASSES,
    Prepacked,
    converted_copy,
)
from textgen_env.models.layers import TiedEmbedding

ModuleT = TypeVar("ModuleT", bound=nn.Module)
MAX_LEVEL = 127
MAX_SAFE_LEVEL = 63  # two products with such a weight fit in 16 bits
MIN_MAGNITUDE = 1e-30  # of a row, so that one of zeros has a scale


class QuantizedRows(NamedTuple):
    """Matrix of 8-bit integers with a scale for each row.

    Attributes:
        levels: (R, D) int8, symmetric about 0.
        scales: (R, 1) float32, above 0; the matrix is about `levels * scales`.
    """

    levels: Tensor
    scales: Tensor


def with_int8_weights(model: ModuleT) -> ModuleT:
    """Return a copy of `model` for acting, whose products with weights are of 8-bit integers.

    Args:
        model: model in evaluation mode, in float32 on a CPU. It is not changed, and the copy shares
            its weights. The copy does not see later changes of them; make another one then.

    Raises:
        ValueError: the model is elsewhere or in another dtype.
    """
    for parameter in model.parameters():
        if parameter.device.type != "cpu" or parameter.dtype != torch.float32:
            raise ValueError(
                "a model must be in float32 on a CPU to act in int8, got "
                f"{parameter.dtype} on {parameter.device}: take float32 or bfloat16 there"
            )
    return cast("ModuleT", converted_copy(model, INT8_CLASSES))


class Int8Linear(Prepacked, nn.Linear):
    """Linear layer with a quantized weight."""

    def prepack(self) -> None:
        """Quantize the weight, with a scale for each output."""
        self.blocks = quantize_rows(self.weight.detach(), weight_levels())

    def forward(self, input: Tensor) -> Tensor:
        """Return the layer's output, (..., out), for `input`, (..., in)."""
        return int8_linear(input, self.blocks, self.bias)


class Int8Embedding(Prepacked, TiedEmbedding):
    """Tied embedding whose matrix is quantized for the logits."""

    def prepack(self) -> None:
        """Quantize the matrix, with a scale for each token."""
        self.blocks = quantize_rows(self.weight.detach(), weight_levels())

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits, (..., V), of hidden vectors, (..., D)."""
        return int8_linear(hidden, self.blocks, None)


INT8_CLASSES: dict[type[nn.Module], type[nn.Module]] = {
    **PREPACKED_CLASSES,
    nn.Linear: Int8Linear,
    TiedEmbedding: Int8Embedding,
}


def quantize_rows(matrix: Tensor, max_level: int = MAX_LEVEL) -> QuantizedRows:
    """Round a matrix to integers; each element is off by at most half of its row's scale.

    Args:
        matrix: (R, D) float32, finite. A row that is not finite has a scale that is not either.
        max_level: absolute value of the integer that a row's largest element becomes, up to 127.
    """
    magnitudes = matrix.abs().amax(-1, keepdim=True)
    scales = magnitudes.clamp_(min=MIN_MAGNITUDE).div_(max_level)
    return QuantizedRows(torch.div(matrix, scales).round_().to(torch.int8), scales)


def int8_linear(hidden: Tensor, weight: QuantizedRows, bias: Tensor | None) -> Tensor:
    """Compute about what `F.linear` does, by a product of integers.

    Args:
        hidden: (..., in) float32.
        weight: (out, in), from `quantize_rows`.
        bias: (out,) float32, or None.

    Returns:
        (..., out) float32.

    Raises:
        RuntimeError: `hidden` needs a gradient, which rounding does not have.
    """
    if hidden.requires_grad:
        raise RuntimeError("a model in int8 must act without gradients: call it in torch.no_grad()")
    rows = quantize_rows(hidden.reshape(-1, hidden.shape[-1]))
    sums = add_products(rows.levels, weight.levels.t()).float().mul_(weight.scales.view(-1))
    output = sums.mul_(rows.scales) if bias is None else torch.addcmul(bias, sums, rows.scales)
    return output.view(*hidden.shape[:-1], len(weight.levels))


def add_products(left: Tensor, right: Tensor) -> Tensor:
    """Return the product, (R, out) int32, of matrices of int8, (R, in) and (in, out)."""
    return torch._int_mm(left, right)


@cache
def weight_levels() -> int:
    """Return the largest level of a weight whose products are exact on this CPU, 127 or 63.

    CPUs without instructions for such products (VNNI) add two of them in 16 bits, which 8-bit
    weights overflow.
    """
    row = torch.full((1, 64), MAX_LEVEL, dtype=torch.int8)
    exact = int(row.int().square().sum())
    found = [int(add_products(row, column.t())) for column in (row, -row)]
    return MAX_LEVEL if found == [exact, -exact] else MAX_SAFE_LEVEL
