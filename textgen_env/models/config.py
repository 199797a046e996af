"""Base of the configurations of models."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import nn

from textgen_env.bounds import check_finite
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


def check_dropout(config: object) -> None:
    """Raise unless the `dropout` of `config` is a probability that leaves something.

    Raises:
        TypeError: it is no number.
        ValueError: it is outside [0, 0.99].
    """
    check_finite(config, "dropout")
    dropout: float = getattr(config, "dropout")  # noqa: B009 - not every configuration has it
    if not 0 <= dropout <= 0.99:
        raise ValueError(f"dropout must be in [0, 0.99], got {dropout}")
