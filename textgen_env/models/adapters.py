"""Small trained modules beside a frozen model, through which its logits have a gradient.

The model's own weights are neither changed nor copied: in a pass of its own each adapted matrix is
replaced by itself plus a product of two narrow ones.
"""

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from textgen_env.models.acceleration.cuda_graph import GraphedModel
from textgen_env.models.acceleration.prepacked import without_prepacked_weights
from textgen_env.models.hidden_states import frozen
from textgen_env.models.sequence_model import SequenceModel


def trainable_module(model: SequenceModel) -> nn.Module | None:
    """Return the module whose weights `model` computes with, None if it is not one module.

    Accelerated models are returned without what no gradient flows through.
    """
    if isinstance(model, GraphedModel):
        return trainable_module(model.model)
    return without_prepacked_weights(model) if isinstance(model, nn.Module) else None


class Adapters(nn.Module):
    """Low-rank terms of a frozen model's matrices, and a temperature of its logits.

    At first they change nothing. Embeddings are not adapted, and neither is an output layer that
    shares their matrix.

    Args:
        model: a module from `trainable_module`, which is not registered as a part of this one.
        rank: of the term added to each matrix; 0 for none.
        learns_temperature: True to divide the logits by a trained temperature.

    Source: Hu et al. 2021, section 4.1, arXiv:2106.09685, without its scaling and its dropout.
    """

    def __init__(self, model: nn.Module, rank: int, *, learns_temperature: bool) -> None:
        super().__init__()
        self.names = adaptable_matrices(model) if rank else []
        self.down, self.up = nn.ParameterList(), nn.ParameterList()
        for name in self.names:
            rows, columns = model.get_parameter(name).shape
            down = torch.empty(rank, columns)
            self.down.append(nn.init.kaiming_uniform_(down, a=math.sqrt(5)))
            self.up.append(torch.zeros(rows, rank))
        self.log_temperature = nn.Parameter(torch.zeros(())) if learns_temperature else None

    def sequence_logits(self, model: nn.Module, source: Tensor, actions: Tensor) -> Tensor:
        """Return the adapted logits (B, T, V) of `model`, with gradient to the adapters alone.

        Args:
            model: the module that the adapters were made for, in evaluation mode.
            source: (B, S) int64, PAD after each row's end token.
            actions: (B, T) int64, PAD after the end of each row.
        """
        terms = zip(self.names, self.up, self.down, strict=True)
        with frozen(model):
            weights = {
                f"model.{name}": _plus(model.get_parameter(name), up @ down)
                for name, up, down in terms
            }
            logits = functional_call(_SequencePass(model), weights, (source, actions))
        if self.log_temperature is None:
            return logits
        return logits.float() * torch.exp(-self.log_temperature)


def adaptable_matrices(model: nn.Module) -> list[str]:
    """Return the names of the model's matrices that are no embeddings, each once."""
    embeddings = {
        id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)
    }
    named = model.named_parameters()
    return [name for name, weight in named if weight.dim() == 2 and id(weight) not in embeddings]


def _plus(weight: Tensor, term: Tensor) -> Tensor:
    """Return the sum in the weight's own precision."""
    return weight + term.to(weight.dtype)


class _SequencePass(nn.Module):
    """A model whose call is its pass over finished texts."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, source: Tensor, actions: Tensor) -> Tensor:
        return cast("SequenceModel", self.model).sequence_logits(source, actions)
