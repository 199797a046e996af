"""Base class of pretrained models: vocabulary, framing of sources, steps and trained state."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

import torch
from torch import Tensor, nn

from textgen_env.bounds import check_at_least
from textgen_env.models.config import ModelConfig
from textgen_env.tokenizers.pretrained import Conventions
from textgen_env.types import SpecialTokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from textgen_env.models.huggingface.cache import RowCache

PADDING_GAP = 30.0  # nats by which the logit of a made-up padding token is below the best logit
ADAPTER_INFIX = ".lora_"  # part of the names of all weights of adapters


@dataclass(frozen=True)
class HuggingFaceConfig(ModelConfig):
    """Description of a pretrained model; everything else is in its folder.

    Attributes:
        model_type: name of its architecture in `transformers`.
        vocab_size: number of tokens of its tokenizer, V.
        width: width of the residual stream.
        lora_rank: rank of the adapters that are trained; None if all weights are trained.
    """

    model_type: str
    lora_rank: int | None = None

    def __post_init__(self) -> None:
        check_at_least(self, vocab_size=1, width=1, lora_rank=1)

    def build(self, special: SpecialTokens | None = None) -> NoReturn:
        """Refuse to build a pretrained model, which is loaded instead.

        Raises:
            ValueError: always.
        """
        del special
        raise ValueError(f"student_init must be given for a pretrained model, got {self}")


class HuggingFaceModel(nn.Module, ABC):
    """Abstract `SequenceModel` around a model of `transformers`.

    The `state_dict` contains what is trained: each weight once, even if it has several names, or
    the adapters alone.

    Args:
        model: model of `transformers`, with or without adapters.
        config: description of the model.
        conventions: conventions of its tokenizer.
        max_positions: longest text that it can read, in tokens; None for any length.
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
        self.register_state_dict_post_hook(_drop_untrained)
        self.register_load_state_dict_pre_hook(_add_untrained)

    @property
    def special(self) -> SpecialTokens:
        """Ids of the padding, start and end tokens."""
        return self.conventions.special

    @property
    def vocab_size(self) -> int:
        """Number of tokens in the vocabulary, V."""
        return self.conventions.vocab_size

    @property
    def rows_move_together(self) -> bool:
        """True if all rows of a batch must keep the same number of tokens when they go back."""
        return False

    @abstractmethod
    def start(self, source: Tensor, max_steps: int) -> "RowCache":
        """Read the source and the decoder's prompt, and return the cache."""

    @abstractmethod
    def next_logits(self, tokens: Tensor, cache: "RowCache") -> Tensor:
        """Return the model's logits, (R, K, V'), after each of `tokens`, (R, K).

        Args:
            tokens: (R, K) int64.
            cache: cache with slots for the tokens, from `RowCache.allocate_slots`.
        """

    @abstractmethod
    def sequence_inputs(self, source: Tensor, actions: Tensor) -> dict[str, Tensor]:
        """Return the arguments, by name, of a pass over the sources and finished targets."""

    @abstractmethod
    def sequence_logits(self, source: Tensor, actions: Tensor) -> Tensor:
        """Return the logits (B, T, V) of every action."""

    def step(self, previous: Tensor, cache: "RowCache") -> tuple[Tensor, "RowCache"]:
        """Return the logits (B, V) of the next token and the cache, which is written in place."""
        logits, caches = self.step_block(previous[:, None], cache)
        return logits.squeeze(1), caches[-1]

    def step_block(self, tokens: Tensor, cache: "RowCache") -> tuple[Tensor, list["RowCache"]]:
        """Return the logits after each of K tokens, (B, K, V), and the cache after each of them."""
        given = cache.first_input[:, None].where(tokens == self.special.start, tokens)
        cache, caches = cache.allocate_slots(tokens.shape[1]), []
        logits = self.next_logits(given, cache)
        for _ in range(tokens.shape[1]):
            cache = cache.advance()
            caches.append(cache)
        return self.restrict_vocabulary(logits), caches

    def restrict_vocabulary(self, logits: Tensor) -> Tensor:
        """Return the logits of the tokenizer's V tokens.

        Where the tokenizer has no padding token, one is made up. Its logit is so low that it is
        practically never chosen, but finite, so that divergences are finite too.

        Args:
            logits: (..., V') with V' >= V, or V' >= V - 1 with a made-up padding token.

        Returns:
            (..., V).
        """
        if self.conventions.has_padding:
            return logits[..., : self.vocab_size]
        logits = logits[..., : self.vocab_size - 1]
        padding = logits.detach().amax(-1, keepdim=True) - PADDING_GAP
        return torch.cat([logits, padding], -1)

    def check_length(self, length: int) -> None:
        """Raise `ValueError` if `length` tokens are more than the model can read."""
        if self.max_positions is not None and length > self.max_positions:
            raise ValueError(
                f"source and target must have at most {self.max_positions} tokens, the "
                f"{self.config.model_type} model's limit, got {length}: lower the task's max_tokens"
            )

    def frame_source(self, source: Tensor, *, as_prompt: bool) -> tuple[Tensor, Tensor]:
        """Replace the end token of each source by the tokens that the model's tokenizer adds.

        An encoder's input has them on both sides and is padded on the right. A prompt has only
        those before the text and is padded on the left. The prompt of an empty source keeps the
        end token if nothing stands before it.

        Args:
            source: (B, S) int64, PAD after each row's end token.
            as_prompt: whether to make prompts of a causal model instead of inputs of an encoder.

        Returns:
            Tokens, (B, L) int64, and their mask, (B, L) bool, False at padding.
        """
        prefix, suffix = self.conventions.prefix, () if as_prompt else self.conventions.suffix
        added = source.new_tensor([*prefix, *suffix, self.special.pad]).expand(len(source), -1)
        candidates = torch.cat([source, added], 1)
        first_added = source.shape[1]
        min_length = int(as_prompt and not prefix)
        length = (source != self.special.pad).sum(1, keepdim=True) - 1
        length = length.clamp(min=min_length)
        total = len(prefix) + length + len(suffix)
        width = len(prefix) + max(first_added - 1, min_length) + len(suffix)
        position = torch.arange(width, device=source.device)[None]
        position = position - (width - total) if as_prompt else position.expand(len(source), -1)
        in_text = position - len(prefix)
        in_suffix = in_text - length
        index = torch.where(in_suffix < 0, in_text, first_added + len(prefix) + in_suffix)
        index = torch.where(in_text < 0, first_added + position, index)
        mask = (position >= 0) & (position < total)
        index = index.where(mask, first_added + len(prefix) + len(suffix))
        return candidates.gather(1, index), mask


def _untrained(module: nn.Module, names: Iterable[str]) -> set[str]:
    """Return those of the `names` of weights that are not part of a model's trained state."""
    assert isinstance(module, HuggingFaceModel), "hooks of that class"
    if module.config.lora_rank is not None:
        return {name for name in names if ADAPTER_INFIX not in name}
    all_names = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    return all_names - {name for name, _ in module.named_parameters()}


def _drop_untrained(
    module: nn.Module, state: dict[str, Tensor], prefix: str, local_metadata: object
) -> None:
    """Remove untrained weights from a state dictionary; a hook of `state_dict`."""
    del local_metadata
    for name in _untrained(module, [name.removeprefix(prefix) for name in state]):
        del state[prefix + name]


def _add_untrained(module: nn.Module, state: dict[str, Tensor], prefix: str, *rest: object) -> None:
    """Add untrained weights as they are to a state dictionary; a hook of `load_state_dict`."""
    del rest
    assert isinstance(module, HuggingFaceModel), "a hook of that class"
    inner = module.model.state_dict(keep_vars=True)
    own = {f"model.{name}": tensor for name, tensor in inner.items()}
    for name in _untrained(module, own):
        state[prefix + name] = own[name]
