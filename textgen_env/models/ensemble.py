"""Models composed of other models: one with a smaller vocabulary, and ensembles."""

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
    """Model without the last tokens of its vocabulary.

    It is meant for teachers whose embedding was padded to a round number, and so has more entries
    than their tokenizer and their student. Logits are cut and not renormalized.

    Attributes:
        model: model with at least `vocab_size` tokens.
        vocab_size: number of tokens that are kept, V.

    Raises:
        ValueError: `vocab_size` is above the model's, or excludes special tokens.
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
        """Ids of the padding, start and end tokens."""
        return self.model.special

    def start(self, source: Tensor, max_steps: int) -> AnyCache:
        """Return the model's own cache."""
        return self.model.start(source, max_steps)

    def step(self, previous: Tensor, cache: AnyCache) -> tuple[Tensor, AnyCache]:
        """Return the first V of the model's logits, (B, V), and its cache."""
        logits, cache = self.model.step(previous, cache)
        return logits[..., : self.vocab_size], cache

    def sequence_logits(self, source: Tensor, actions: Tensor) -> Tensor:
        """Return the first V of the model's logits, (B, T, V)."""
        return self.model.sequence_logits(source, actions)[..., : self.vocab_size]


@dataclass(frozen=True)
class EnsembleCache:
    """Caches of an ensemble's models, which are stepped together; a `Cache` itself."""

    caches: tuple[AnyCache, ...]

    def select_rows(self, index: Tensor) -> Self:
        """Select the same rows of every cache."""
        return self._map(lambda cache: cache.select_rows(index))

    def repeat_rows(self, count: int) -> Self:
        """Repeat the rows of every cache."""
        return self._map(lambda cache: cache.repeat_rows(count))

    def reorder_rows(self, index: Tensor) -> Self:
        """Reorder the rows of every cache."""
        return self._map(lambda cache: cache.reorder_rows(index))

    def reset_rows(self, mask: Tensor, fresh: Self, index: Tensor) -> Self:
        """Reset the same rows of every cache."""
        pairs = zip(self.caches, fresh.caches, strict=True)
        return type(self)(tuple(cache.reset_rows(mask, new, index) for cache, new in pairs))

    def _map(self, function: Callable[[AnyCache], AnyCache]) -> Self:
        return type(self)(tuple(function(cache) for cache in self.caches))


@dataclass(frozen=True)
class Ensemble:
    """Ensemble of models: its probabilities are the mean of the models' probabilities.

    An ensemble is a model itself: `NeuralExpert(Ensemble((first, second)))` is an expert with two
    teachers. Its logits are log-probabilities in float32.

    Attributes:
        models: at least one model; all have the same vocabulary.

    Raises:
        ValueError: there are no models, or their vocabularies differ.
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
        """Ids of the padding, start and end tokens."""
        return self.models[0].special

    @property
    def vocab_size(self) -> int:
        """Number of tokens in the vocabulary, V."""
        return self.models[0].vocab_size

    def start(self, source: Tensor, max_steps: int) -> EnsembleCache:
        """Encode the source with every model."""
        return EnsembleCache(tuple(model.start(source, max_steps) for model in self.models))

    def step(self, previous: Tensor, cache: EnsembleCache) -> tuple[Tensor, EnsembleCache]:
        """Return the log-probabilities (B, V) of the next token and the cache after this step."""
        pairs = zip(self.models, cache.caches, strict=True)
        steps = [model.step(previous, own) for model, own in pairs]
        logits, caches = zip(*steps, strict=True)
        return self._log_mean_probs(logits), EnsembleCache(caches)

    def sequence_logits(self, source: Tensor, actions: Tensor) -> Tensor:
        """Return the log-probabilities (B, T, V) of every action.

        Models are run one after the other, so that at most two such tensors exist at a time.
        """
        return self._log_mean_probs(model.sequence_logits(source, actions) for model in self.models)

    def _log_mean_probs(self, each_logits: Iterable[Tensor]) -> Tensor:
        """Return the logarithm of the mean probabilities, float32, in the shape of the logits."""
        log_probs = (logits.float().log_softmax(-1) for logits in each_logits)
        return reduce(torch.logaddexp, log_probs) - math.log(len(self.models))
