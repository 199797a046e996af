"""Gates of pretrained models with experts in their layers."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from textgen_env.models.hidden_states import frozen
from textgen_env.models.huggingface.model import HuggingFaceModel

ROUTED_MODELS = frozenset({"mixtral", "olmoe", "qwen2_moe", "qwen3_moe"})
"""Names in `transformers` of the architectures whose gates are a product and a softmax."""

_Routed = tuple[Tensor, Tensor, Tensor]  # logits (R, N), weights and indices of experts, (R, K)


@dataclass(frozen=True)
class LayerGates:
    """Pretrained model with a gate in each layer that has experts, as `Gates`.

    Attributes:
        model: model of one of the types in `ROUTED_MODELS`.
        modules: its routers, from the first layer on.
        renormalizes: whether the weights of the experts that are used sum to 1; else they are their
            shares of all experts' weights.
    """

    model: HuggingFaceModel
    modules: Sequence[nn.Module]
    renormalizes: bool
    trained = True

    @classmethod
    def of(cls, model: HuggingFaceModel) -> "LayerGates | None":
        """Return the gates of `model`, None if it has none or those of another kind."""
        if model.config.model_type not in ROUTED_MODELS:
            return None
        modules = [each for each in model.modules() if type(each).__name__.endswith("TopKRouter")]
        renormalizes = model.model.config.to_dict().get("norm_topk_prob", True)  # Mixtral: always
        return cls(model, modules, renormalizes) if modules else None

    @property
    def routers(self) -> list[Tensor]:
        """Matrices of the gates, (N, D) each, float32, without gradient."""
        return [module.get_parameter("weight").detach().float() for module in self.modules]

    def gated_logits(
        self,
        source: Tensor,
        actions: Tensor,
        routers: Sequence[Tensor],
        choose: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """Return the logits (B, T, V) of every action, with gradient to `routers` alone.

        All experts of a layer are computed, whichever are used.
        """
        with ExitStack() as stack:
            stack.enter_context(frozen(self.model))
            for module, router in zip(self.modules, routers, strict=True):
                gate = self._gate(router, choose, len(source))
                stack.callback(module.register_forward_hook(gate).remove)
            return self.model.sequence_logits(source, actions)

    def _gate(
        self, router: Tensor, choose: Callable[[Tensor], Tensor], rows: int
    ) -> Callable[[nn.Module, tuple[Tensor], _Routed], _Routed]:
        """Return a hook of a router's call that weighs the experts by another matrix."""

        def weigh(module: nn.Module, inputs: tuple[Tensor], own: _Routed) -> _Routed:
            del module
            hidden = inputs[0].float().unflatten(0, (rows, -1))
            logits = F.linear(hidden, router.to(hidden.device))
            used = choose(logits)
            kept = logits.masked_fill(~used, float("-inf")) if self.renormalizes else logits
            weights = (kept.softmax(-1) * used).flatten(0, 1)
            experts = torch.arange(len(router), device=hidden.device).expand_as(weights)
            return logits.flatten(0, 1), weights.to(own[1].dtype), experts

        return weigh
