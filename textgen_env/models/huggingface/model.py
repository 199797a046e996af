"""What pretrained models of the two kinds share: vocabulary, sources, steps, and their state."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

import torch
from torch import Tensor, nn

from textgen_env.models.config import ModelConfig
from textgen_env.tokenizers.pretrained import Conventions
from textgen_env.types import SpecialTokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from textgen_env.models.huggingface.cache import RowCache

NEVER = 30.0  # nats below the best: the probability of a token that the model does not know
ADAPTER = ".lora_"  # in the names of weights of adapters


@dataclass(frozen=True)
class HuggingFaceConfig(ModelConfig):
    """What is noted of a pretrained model; all else is in its folder.

    Attributes:
        vocab_size: V, as its tokenizer has it.
        width: of the residual stream.
        model_type: the name of its kind in `transformers`.
        lora_rank: of the adapters that are trained; None if all weights are.
    """

    model_type: str
    lora_rank: int | None = None

    def __post_init__(self) -> None:
        if self.lora_rank is not None and self.lora_rank < 1:
            raise ValueError(f"lora_rank must be at least 1 or None, got {self.lora_rank}")

    def build(self, special: SpecialTokens | None = None) -> NoReturn:
        """Refuse to build a pretrained model, which is loaded instead.

        Raises:
            ValueError: always.
        """
        del special
        raise ValueError(f"student_init must be given for a pretrained model, got {self}")


class HuggingFaceModel(nn.Module, ABC):
    """What the two kinds share: a `SequenceModel` around a model of `transformers`.

    Its state consists of what is trained: each weight once, however many names it has, or the
    adapters alone.

    Args:
        model: the model, with adapters or without.
        config: what is noted of it.
        conventions: of its tokenizer.
        max_positions: longest text that it knows, in tokens; None for any length.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        config: HuggingFaceConfig,
        conventions: Conventions,
        max_positions: int | None,
    ) -> None:
        super().__init__()
        self.model, self.config, self.conventions = model, config, conventions
        self.max_positions = max_positions
        self.register_state_dict_post_hook(_leave_out)
        self.register_load_state_dict_pre_hook(_put_back)

    @property
    def special(self) -> SpecialTokens:
        """The ids of padding, start and end."""
        return self.conventions.special

    @property
    def vocab_size(self) -> int:
        """V."""
        return self.conventions.vocab_size

    @abstractmethod
    def start(self, source: Tensor, max_steps: int) -> "RowCache":
        """Read the source, and what the model reads before it writes."""

    @abstractmethod
    def next_logits(self, tokens: Tensor, cache: "RowCache") -> Tensor:
        """The model's own logits (R, 1, ...) after `tokens`, (R, 1), in an opened cache."""

    @abstractmethod
    def sequence_logits(self, source: Tensor, actions: Tensor) -> Tensor:
        """Logits (B, T, V) of every action."""

    def step(self, previous: Tensor, cache: "RowCache") -> tuple[Tensor, "RowCache"]:
        """Logits (B, V) of the next token; `cache` is written in place."""
        tokens = cache.opening.where(previous == self.special.start, previous)
        cache = cache.opened()
        logits = self.next_logits(tokens[:, None], cache)
        return self.known(logits).squeeze(1), cache.advanced()

    def known(self, logits: Tensor) -> Tensor:
        """Logits (..., V) of the tokenizer's pieces, of those of a padded vocabulary.

        A made-up padding is next to impossible, and finite, so that divergences are too.
        """
        if self.conventions.has_padding:
            return logits[..., : self.vocab_size]
        logits = logits[..., : self.vocab_size - 1]
        never = logits.detach().amax(-1, keepdim=True) - NEVER
        return torch.cat([logits, never], -1)

    def check_length(self, length: int) -> None:
        """Raise `ValueError` if the model knows no texts of `length` tokens."""
        if self.max_positions is not None and length > self.max_positions:
            raise ValueError(
                f"source and target must have at most {self.max_positions} tokens, the "
                f"{self.config.model_type} model's limit, got {length}: lower the task's max_tokens"
            )

    def framed(self, source: Tensor, *, left: bool) -> tuple[Tensor, Tensor]:
        """Sources as the model reads them.

        Args:
            source: (B, S) int64, PAD after each row's end token.
            left: whether they are padded on the left and what follows a source is left out, as for
                one that is to be gone on with. Of a source that is empty the end token stays then,
                if nothing stands before it.

        Returns:
            (B, L) int64 tokens, and (B, L) bool, False at padding.
        """
        prefix, suffix = self.conventions.prefix, () if left else self.conventions.suffix
        around = source.new_tensor([*prefix, *suffix, self.special.pad]).expand(len(source), -1)
        first = source.shape[1]  # of `around` among all there is to choose from
        length = (source != self.special.pad).sum(1, keepdim=True) - 1
        shortest = 1 if left and not prefix else 0
        length = length.clamp(min=shortest)
        total = len(prefix) + length + len(suffix)
        width = len(prefix) + max(first - 1, shortest) + len(suffix)
        place = torch.arange(width, device=source.device)[None]
        place = place - (width - total) if left else place.expand(len(source), -1)
        text, after = place - len(prefix), place - len(prefix) - length
        chosen = torch.where(after < 0, text, first + len(prefix) + after)
        chosen = torch.where(text < 0, first + place, chosen)
        mask = (place >= 0) & (place < total)
        chosen = chosen.where(mask, first + len(prefix) + len(suffix))
        return torch.cat([source, around], 1).gather(1, chosen), mask


def _left_out(module: nn.Module, names: Iterable[str]) -> set[str]:
    """Those of the `names` of weights that are no part of a model's state."""
    assert isinstance(module, HuggingFaceModel), "hooks of that class"
    if module.config.lora_rank is not None:
        return {name for name in names if ADAPTER not in name}
    all_names = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    return all_names - {name for name, _ in module.named_parameters()}


def _leave_out(
    module: nn.Module, state: dict[str, Tensor], prefix: str, local_metadata: object
) -> None:
    """A hook of `state_dict`."""
    del local_metadata
    for name in _left_out(module, [name.removeprefix(prefix) for name in state]):
        del state[prefix + name]


def _put_back(module: nn.Module, state: dict[str, Tensor], prefix: str, *rest: object) -> None:
    """A hook of `load_state_dict`: what was left out stays as it is."""
    del rest
    assert isinstance(module, HuggingFaceModel), "a hook of that class"
    inner = module.model.state_dict(keep_vars=True)
    own = {f"model.{name}": tensor for name, tensor in inner.items()}
    for name in _left_out(module, own):
        state[prefix + name] = own[name]
