"""Parts shared by all export formats: check of the model, tokenizer and types.

Each format has a file of its own, because each imports a package that only the extra `export`
installs.
"""

from collections.abc import Callable
from pathlib import Path

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, processors
from torch import Tensor

from textgen_env.models.huggingface.model import HuggingFaceModel
from textgen_env.models.sequence_model import SequenceModel
from textgen_env.models.storage import Model
from textgen_env.models.transformer import Transformer
from textgen_env.tokenizers.pretrained import PretrainedTokenizer
from textgen_env.tokenizers.subword import SPECIAL_PIECES, TextTokenizer, Tokenizer

GenerateFn = Callable[[Tensor, int], Tensor]
"""Function (source, max_steps) -> tokens.

The source is (B, S) int64. Tokens are (B, max_steps) int64, PAD after the end.
"""

SUPPRESSION_BIAS = -1e4  # added to logits of tokens that are never written; finite in any precision


class ExportError(ValueError):
    """Model that cannot be exported as requested."""


def exportable(model: Model, tokenizer: TextTokenizer) -> Transformer:
    """Return `model`, or raise if other programs cannot run it.

    Raises:
        ExportError: the model is not a Transformer of this project, or `tokenizer` is not one that
            `check_served_alone` accepts.
    """
    if isinstance(model, HuggingFaceModel):
        raise ExportError(
            "model must be a Transformer of this project for this format, got a pretrained "
            f"{model.config.model_type}: export to hf, and where CTranslate2 knows its kind run "
            "ct2-transformers-converter --model FOLDER --output_dir OTHER on that folder"
        )
    if not isinstance(model, Transformer):
        raise ExportError(
            f"model must be a Transformer for this format, got a {type(model).__name__}: export to "
            "onnx, or train with --student transformer"
        )
    check_served_alone(model, tokenizer)
    return model


def check_served_alone(model: SequenceModel, tokenizer: TextTokenizer) -> None:
    """Raise unless programs that know nothing of this project can frame the model's texts.

    Raises:
        ExportError: the model does not belong to `tokenizer`, or the tokenizer adds more to a text
            than the end token.
    """
    if model.special != tokenizer.special or tokenizer.vocab_size > model.vocab_size:
        raise ExportError(
            f"model must have its tokenizer's special tokens, {tuple(tokenizer.special)}, and at "
            f"least its {tokenizer.vocab_size} pieces, got {tuple(model.special)} and "
            f"{model.vocab_size}"
        )
    if isinstance(tokenizer, PretrainedTokenizer):
        known, end = tokenizer.conventions, tokenizer.special.end
        if known.prefix or known.suffix != (end,):
            raise ExportError(
                f"tokenizer must put nothing but the end token ({end}) to a text, as in training, "
                f"got {known.prefix} before and {known.suffix} after it: export to safetensors"
            )


def save_served_tokenizer(tokenizer: TextTokenizer, path: Path) -> None:
    """Write a tokenizer to `path` for programs that need no code of this project around it."""
    if isinstance(tokenizer, Tokenizer):
        served_tokenizer(tokenizer).save(str(path))
    else:
        tokenizer.save(path)


def served_tokenizer(tokenizer: Tokenizer) -> Backend:
    """Return a tokenizer for other programs, which need no code of this project around it.

    It appends the end token to every text, as the model's sources have it, and removes the space
    that byte-level pairs put before a decoded text.
    """
    backend, end = Backend.from_str(tokenizer.backend.to_str()), tokenizer.special.end
    piece = SPECIAL_PIECES[end]
    backend.post_processor = processors.TemplateProcessing(
        single=f"$A {piece}", special_tokens=[(piece, end)]
    )
    if backend.decoder is not None:
        backend.decoder = decoders.Sequence([backend.decoder, decoders.Strip(" ", 1, 0)])
    return backend
