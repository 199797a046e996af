"""Models made of models: one that knows fewer tokens, and several that answer as one."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Self

import torch
from torch import Tensor

from textgen_env.models.sequence_model import AnyCache, SequenceModel
from textgen_env.types import SpecialTokens


@dataclass(frozen=True)
class CutVocabulary:
    """A model without its last tokens: what is left is renormalized by whoever normalizes.

    For teachers whose embedding was padded to a round number, so that it has more entries than
    their tokenizer and their student.

    Attributes:
        model: with at least `vocab_size` tokens.
        vocab_size: V, how many of its tokens are kept.

    Raises:
        ValueError: `vocab_size` above the model's, or without room for the special tokens.
    """

    model: SequenceModel
    vocab_size: int

    def __post_init__(self) -> None:
        if not max(self.special) < self.vocab_size <= self.model.vocab_size:
            raise ValueError(
                f"vocab_size must be above the special tokens, {tuple(self.special)}, and at most "
                f"{self.model.vocab_size}, the model's, got {self.vocab_size}"
            )

    @property
    def special(self) -> SpecialTokens:
        """The ids of padding, start and end."""
        return self.model.special

    def start(self, source: Tensor, max_steps: int) -> AnyCache:
        """The model's own cache."""
        return self.model.start(source, max_steps)

    def step(self, previous: Tensor, cache: AnyCache) -> tuple[Tensor, AnyCache]:
        """The first V of the model's logits."""
        logits, cache = self.model.step(previous, cache)
        return logits[..., : self.vocab_size], cache

    def sequence_logits(self, source: Tensor, actions: Tensor) -> Tensor:
        """The first V of the model's logits."""
        return self.model.sequence_logits(source, actions)[..., : self.vocab_size]


@dataclass(frozen=True)
class EnsembleCache:
    """The caches of an ensemble's models, stepped together; a `Cache` itself."""

    caches: tuple[AnyCache, ...]

    def select_rows(self, index: Tensor) -> Self:
        """As each of the caches does."""
        return self._each(lambda cache: cache.select_rows(index))

    def repeat_rows(self, count: int) -> Self:
        """As each of the caches does."""
        return self._each(lambda cache: cache.repeat_rows(count))

    def reorder_rows(self, index: Tensor) -> Self:
        """As each of the caches does."""
        return self._each(lambda cache: cache.reorder_rows(index))

    def reset_rows(self, mask: Tensor, fresh: Self, index: Tensor) -> Self:
        """As each of the caches does."""
        pairs = zip(self.caches, fresh.caches, strict=True)
        return type(self)(tuple(cache.reset_rows(mask, new, index) for cache, new in pairs))

    def _each(self, change: Callable[[AnyCache], AnyCache]) -> Self:
        return type(self)(tuple(change(cache) for cache in self.caches))


@dataclass(frozen=True)
class Ensemble:
    """Models that answer with the mean of their probabilities.

    An ensemble is a model: `NeuralExpert(Ensemble((first, second)))` is an expert of two teachers,
    and beam search writes with it. Its logits are log-probabilities, float32.

    Attributes:
        models: at least one, with the same vocabulary.

    Raises:
        ValueError: no models, or models of unequal vocabularies.
    """

    models: Sequence[SequenceModel]

    def __post_init__(self) -> None:
        if not self.models:
            raise ValueError("models must hold at least one, got none")
        known = [(model.vocab_size, tuple(model.special)) for model in self.models]
        if len(set(known)) > 1:
            raise ValueError(
                "models must have the same vocabulary size and special tokens, got "
                f"{', '.join(map(str, known))}; CutVocabulary cuts off padded entries"
            )

    @property
    def special(self) -> SpecialTokens:
        """The ids of padding, start and end."""
        return self.models[0].special

    @property
    def vocab_size(self) -> int:
        """V."""
        return self.models[0].vocab_size

    def start(self, source: Tensor, max_steps: int) -> EnsembleCache:
        """Every model reads the source."""
        return EnsembleCache(tuple(model.start(source, max_steps) for model in self.models))

    def step(self, previous: Tensor, cache: EnsembleCache) -> tuple[Tensor, EnsembleCache]:
        """Every model takes the step."""
        pairs = zip(self.models, cache.caches, strict=True)
        answers = [model.step(previous, own) for model, own in pairs]
        logits, caches = zip(*answers, strict=True)
        return self._log_mean(logits), EnsembleCache(caches)

    def sequence_logits(self, source: Tensor, actions: Tensor) -> Tensor:
        """Every model in turn: two answers of this size are kept at most."""
        return self._log_mean(model.sequence_logits(source, actions) for model in self.models)

    def _log_mean(self, answers: Iterable[Tensor]) -> Tensor:
        """Log of the mean of the probabilities, the shape of each of the logits, float32."""
        log_probs = (logits.float().log_softmax(-1) for logits in answers)
        return reduce(torch.logaddexp, log_probs) - math.log(len(self.models))
