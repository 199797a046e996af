"""Models that weigh experts of theirs by gates, whose weights and choices can be replaced.

Mixtures of several models have one gate, pretrained ones with experts in their layers one in each.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Protocol

import torch
from torch import Tensor

from textgen_env.models.adapters import trainable_module
from textgen_env.models.ensemble import Ensemble
from textgen_env.models.hidden_states import HiddenStates, with_hidden_states
from textgen_env.models.huggingface.layer_experts import LayerGates
from textgen_env.models.huggingface.model import HuggingFaceModel
from textgen_env.models.sequence_model import SequenceModel

ChooseExperts = Callable[[Tensor], Tensor]
"""Function of a gate's logits, (B, L, N), that returns the experts to use, bool of that shape.

The last T of the L positions are those of the actions.
"""


class Gates(Protocol):
    """Model whose answers are sums of what its experts compute, weighed at one gate or at several.

    A gate's logits are the product of a router, (N, D), with the states that it reads. The experts
    that are used are weighed by their softmax.
    """

    @property
    def trained(self) -> bool:
        """True if the routers were trained with the model, False if all experts weigh the same."""
        ...

    @property
    def routers(self) -> Sequence[Tensor]:
        """Matrices of the gates, (N, D) each, in the order in which they are passed."""
        ...

    def gated_logits(
        self, source: Tensor, actions: Tensor, routers: Sequence[Tensor], choose: ChooseExperts
    ) -> Tensor:
        """Return the logits (B, T, V) of every action, with gradient to `routers` alone.

        Args:
            source: (B, S) int64, PAD after each row's end token.
            actions: (B, T) int64, PAD after the end of each row.
            routers: matrices in place of the model's own.
            choose: is called at each gate, in order.
        """
        ...


def with_gates(model: SequenceModel) -> Gates | None:
    """Return `model` as one with gates; None if it has none.

    A single model with hidden states is a mixture of one.
    """
    module = trainable_module(model)
    layers = LayerGates.of(module) if isinstance(module, HuggingFaceModel) else None
    if layers is not None:
        return layers
    models = model.models if isinstance(model, Ensemble) else (model,)
    states = [with_hidden_states(each) for each in models]
    known = [each for each in states if each is not None]
    return MixtureGate(known) if len(known) == len(states) else None


@dataclass(frozen=True)
class MixtureGate:
    """Several models whose probabilities are weighed by one gate.

    It reads their last hidden states, side by side.

    Attributes:
        models: N of them, with one vocabulary.
    """

    models: Sequence[HiddenStates]
    trained = False

    @property
    def routers(self) -> list[Tensor]:
        """The one router, of zeros: it gives all models the same weight."""
        return [torch.zeros(len(self.models), sum(model.width for model in self.models))]

    def gated_logits(
        self, source: Tensor, actions: Tensor, routers: Sequence[Tensor], choose: ChooseExperts
    ) -> Tensor:
        """Return the log-probabilities (B, T, V) of the mixture, float32."""
        (router,) = routers
        with torch.no_grad():
            hidden = [model.hidden(source, actions) for model in self.models]
        read = torch.cat([each.float() for each in hidden], -1)
        logits = read @ router.to(read.device).T
        log_weights = logits.masked_fill(~choose(logits), float("-inf")).log_softmax(-1)
        parts = (
            _head_log_probs(model, each) + log_weight[..., None]
            for model, each, log_weight in zip(
                self.models, hidden, log_weights.unbind(-1), strict=True
            )
        )
        return reduce(torch.logaddexp, parts)


@torch.no_grad()
def _head_log_probs(model: HiddenStates, hidden: Tensor) -> Tensor:
    """Return the log-probabilities (B, T, V), float32, that a model's head makes of its states."""
    return model.project(hidden).float().log_softmax(-1)
