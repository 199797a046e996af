"""What exports to other programs share: which models can be exported, and with what tokenizer.

The formats have a file each, `export_hf.py` and `export_ctranslate2.py`, because each imports a
package that only the extra `export` installs.
"""

from collections.abc import Callable

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, processors
from torch import Tensor

from textgen_env.models.huggingface.model import HuggingFaceModel
from textgen_env.models.storage import Model
from textgen_env.models.transformer import Transformer
from textgen_env.tokenizers.pretrained import PretrainedTokenizer
from textgen_env.tokenizers.subword import SPECIAL_PIECES, TextTokenizer, Tokenizer

GenerateFn = Callable[[Tensor, int], Tensor]
"""((B, S) sources, max_steps) -> (B, max_steps) int64 tokens, PAD after the end."""

NEVER = -1e4  # added to the logits of tokens that are never written; finite in every precision


class ExportError(ValueError):
    """A model that cannot be exported as asked."""


def exportable(model: Model, tokenizer: TextTokenizer) -> Transformer:
    """`model`, if other programs know its layout and its tokenizer makes of a text what it reads.

    Raises:
        ExportError: it is no Transformer of this project's, or does not belong to `tokenizer`, or
            that puts more around a text than the end token.
    """
    if isinstance(model, HuggingFaceModel):
        raise ExportError(
            "model must be a Transformer of this project's for this format, got a pretrained "
            f"{model.config.model_type}: export to hf, and where CTranslate2 knows its kind run "
            "ct2-transformers-converter --model FOLDER --output_dir OTHER on what that writes"
        )
    if not isinstance(model, Transformer):
        raise ExportError(
            f"model must be a Transformer for this format, got a {type(model).__name__}, which no "
            "other program knows; train with --student transformer, or export to safetensors"
        )
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
    return model


def served_tokenizer(tokenizer: Tokenizer) -> Backend:
    """A tokenizer that by itself does what the project does around its own.

    It ends every text with the end token, as the model's sources end, and takes away the space that
    byte-level pairs begin a decoded text with.
    """
    backend, end = Backend.from_str(tokenizer.backend.to_str()), tokenizer.special.end
    piece = SPECIAL_PIECES[end]
    backend.post_processor = processors.TemplateProcessing(
        single=f"$A {piece}", special_tokens=[(piece, end)]
    )
    if backend.decoder is not None:
        backend.decoder = decoders.Sequence([backend.decoder, decoders.Strip(" ", 1, 0)])
    return backend
