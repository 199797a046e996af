"""A model without the padding of its vocabulary: rows of the output that no token belongs to."""

from dataclasses import dataclass

from torch import Tensor

from textgen_env.models.sequence_model import AnyCache, SequenceModel
from textgen_env.types import SpecialTokens


@dataclass(frozen=True)
class Narrowed:
    """A `SequenceModel` that gives another's logits of the first `vocab_size` tokens.

    The distribution over those is the other's, given that none of the padding is written.

    Attributes:
        model: whose vocabulary is padded.
        vocab_size: V without the padding.
    """

    model: SequenceModel
    vocab_size: int

    @property
    def special(self) -> SpecialTokens:
        """The other's."""
        return self.model.special

    def start(self, source: Tensor, max_steps: int) -> AnyCache:
        """The other's cache."""
        return self.model.start(source, max_steps)

    def step(self, previous: Tensor, cache: AnyCache) -> tuple[Tensor, AnyCache]:
        """Logits of the next token, (B, V), and the cache after this step."""
        logits, cache = self.model.step(previous, cache)
        return logits[:, : self.vocab_size], cache

    def sequence_logits(self, source: Tensor, actions: Tensor) -> Tensor:
        """Logits at every position, (B, T, V)."""
        return self.model.sequence_logits(source, actions)[..., : self.vocab_size]
