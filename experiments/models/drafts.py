"""Loading of a model that writes with the help of a draft."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from textgen_env.generation.speculative import SpeculativeDecoder
from textgen_env.models.storage import Model, load_tokenizer
from textgen_env.tokenizers.subword import same_pieces
from textgen_experiments.models.formats import format_of
from textgen_experiments.runs.folder import RunError
from textgen_experiments.runs.precisions import load_to_act


@dataclass(frozen=True)
class SpeculativeWriter:
    """Greedy decoding of a model with a draft, a `GenerateFn`.

    Attributes:
        model: the target.
        decoder: holds the draft, and counts what is accepted.
    """

    model: Model
    decoder: SpeculativeDecoder

    def __call__(self, source: Tensor, max_steps: int) -> Tensor:
        """Return (B, T) int64, the target's greedy texts of (B, S) sources."""
        return self.decoder(self.model, source, max_steps)


def load_speculative(
    target: Path, draft: Path, *, draft_tokens: int, precision: str = "float32"
) -> SpeculativeWriter:
    """Load a target and its draft for greedy decoding, both in one precision.

    Args:
        target: folder of the model whose texts are written.
        draft: folder of the model that proposes tokens.
        draft_tokens: tokens that it proposes at a time, at least 1.
        precision: a name in `PRECISIONS`.

    Raises:
        RunError: the draft has another tokenizer, or one of them is in another program's format.
    """
    for name, folder in (("model", target), ("draft", draft)):
        if format_of(folder) == "ctranslate2":
            raise RunError(
                f"{name} must be in this project's format or that of transformers to decode with a "
                f"draft, got {folder} in that of ctranslate2: give the model it was exported from"
            )
    if not same_pieces(load_tokenizer(target), load_tokenizer(draft)):
        raise RunError(
            f"draft must have the tokenizer of {target}, got {draft} with another: take a student "
            "of this model"
        )
    decoder = SpeculativeDecoder(load_to_act(draft, precision), draft_tokens)
    return SpeculativeWriter(load_to_act(target, precision), decoder)
