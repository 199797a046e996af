"""ONNX's operator GRU in both directions, which reads a source of any length in one call.

The model's own loop over time and that of `torch.gru` are unrolled when they are traced: a graph
would fit one length alone.
"""

import torch
from torch import Tensor, nn


class BidirectionalGru(nn.Module):
    """A layer of two gated recurrent units that read a text forward and backward.

    Calling it outside an export gives tensors of the right shapes, not the outputs.

    Args:
        forward_cell: the unit that reads forward, D wide.
        backward_cell: the one that reads backward, as wide.
    """

    def __init__(self, forward_cell: nn.GRUCell, backward_cell: nn.GRUCell) -> None:
        super().__init__()
        cells = (forward_cell, backward_cell)
        self.width = forward_cell.hidden_size
        weights = {
            "input_weight": [_in_onnx_order(cell.weight_ih) for cell in cells],
            "state_weight": [_in_onnx_order(cell.weight_hh) for cell in cells],
            "bias": [
                torch.cat([_in_onnx_order(cell.bias_ih), _in_onnx_order(cell.bias_hh)])
                for cell in cells
            ],
        }
        for name, parts in weights.items():
            self.register_buffer(name, torch.stack(parts))

    def forward(self, inputs: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        """Return the states after each step and the last one, of both directions side by side.

        Args:
            inputs: (S, B, width), padding at the end.
            length: (B,) int64, tokens of each row.

        Returns:
            (S, B, 2 * D), 0 at padding, and (B, 2 * D): the forward unit's state after the last
            token and the backward one's after the first.
        """
        steps, rows, _ = inputs.shape
        states, last = torch.onnx.ops.symbolic_multi_out(
            "GRU",
            (inputs, *self.buffers(), length.int()),
            {"hidden_size": self.width, "direction": "bidirectional", "linear_before_reset": 1},
            dtypes=(inputs.dtype, inputs.dtype),
            shapes=((steps, 2, rows, self.width), (2, rows, self.width)),
        )
        return states.transpose(1, 2).flatten(2), last.transpose(0, 1).flatten(1)


def _in_onnx_order(parameter: Tensor) -> Tensor:
    """Return a GRU's parameter, (3 * D, ...), with the update gate before the reset gate."""
    reset, update, candidate = parameter.detach().chunk(3)
    return torch.cat([update, reset, candidate])
