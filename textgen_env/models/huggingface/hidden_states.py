"""Last hidden states of pretrained models whose logits are a plain product with them.

Other models scale or cap their logits in ways of their own, and give no hidden states here.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn

from textgen_env.models.huggingface.model import HuggingFaceModel

PLAIN_HEADS = frozenset({"bart", "gpt2", "llama", "m2m_100", "marian", "mistral", "qwen2"})
"""Names in `transformers` of the architectures whose head is a product, and at most a bias."""


@dataclass(frozen=True)
class PretrainedHiddenStates:
    """Pretrained model as `HiddenStates`.

    Attributes:
        model: model of one of the types in `PLAIN_HEADS`, without adapters.
    """

    model: HuggingFaceModel

    @classmethod
    def of(cls, model: HuggingFaceModel) -> "PretrainedHiddenStates | None":
        """Return the hidden states of `model`, None if its logits are more than a product."""
        plain = model.config.model_type in PLAIN_HEADS and model.config.lora_rank is None
        return cls(model) if plain else None

    @property
    def width(self) -> int:
        """D, the width of the hidden states and of the embeddings."""
        return self.model.config.width

    def hidden(self, source: Tensor, actions: Tensor) -> Tensor:
        """Return the last hidden states (B, T, D) before every action."""
        inputs = self.model.sequence_inputs(source, actions)
        output = self.model.model.base_model(**inputs, use_cache=False)
        return output.last_hidden_state[:, -actions.shape[1] :]

    def project(self, hidden: Tensor) -> Tensor:
        """Return the logits (..., V) of last hidden states, (..., D)."""
        head = cast("nn.Module", self.model.model.get_output_embeddings())
        logits = head(hidden)
        bias = dict(self.model.model.named_buffers(recurse=False)).get("final_logits_bias")
        return self.model.restrict_vocabulary(logits if bias is None else logits + bias)

    def embed(self, tokens: Tensor) -> Tensor:
        """Return the input embeddings (..., D) of tokens, (...) int64, without positions."""
        return self.model.model.get_input_embeddings()(tokens)

    def parameters(self) -> Iterator[nn.Parameter]:
        """Return the model's weights, each once."""
        return self.model.parameters()
