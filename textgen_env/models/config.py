"""Base of the configurations of models."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import nn

from textgen_env.types import SpecialTokens


@dataclass(frozen=True)
class ModelConfig(ABC):
    """Size of a model; an entry of `STUDENTS` is one.

    Subclasses are frozen dataclasses. A fresh model gets the vocabulary size of its tokenizer by
    `dataclasses.replace`. What is built is an `nn.Module` that is a `SequenceModel` and keeps the
    configuration as `config`.

    Attributes:
        vocab_size: V.
        width: width of the hidden states; the precision of a run is chosen by it.
    """

    vocab_size: int
    width: int

    @abstractmethod
    def build(self, special: SpecialTokens | None = None) -> nn.Module:
        """Return a model of this size with random weights.

        Args:
            special: special tokens of its tokenizer; None for those of tokenizers trained here.
        """
