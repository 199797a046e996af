"""Random models for comparisons with other libraries, saved in the format of `transformers`.

Needs the extra `hf`.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MarianConfig,
    MarianMTModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

PAD_PIECE, START_PIECE, END_PIECE = "<pad>", "<s>", "</s>"
RESERVED_PIECES = (PAD_PIECE, START_PIECE, END_PIECE)  # ids 0, 1 and 2
HEAD_WIDTH = 64  # D
MARIAN_INIT_STD = 0.8  # with smaller weights, all texts repeat one token


@dataclass(frozen=True)
class Size:
    """Size of random models, of their sources and of their texts.

    Attributes:
        vocab_size: V.
        width: width of the residual stream, a multiple of 64.
        teacher_layers: layers of the Llama teacher, and of Marian's encoder and decoder.
        student_layers: layers of the Llama student.
        batch_size: B, texts written together.
        source_tokens: S, with the token that the model puts around each source.
        max_steps: maximal number of tokens written.
    """

    vocab_size: int = 8000
    width: int = 256
    teacher_layers: int = 8
    student_layers: int = 2
    batch_size: int = 64
    source_tokens: int = 24
    max_steps: int = 32


def random_words(size: Size) -> Tensor:
    """Return the sources without the token around them, (B, S - 1) int64."""
    generator = torch.Generator().manual_seed(0)
    shape = size.batch_size, size.source_tokens - 1
    return torch.randint(len(RESERVED_PIECES), size.vocab_size, shape, generator=generator)


def save_llama(folder: Path, size: Size, num_layers: int) -> None:
    """Save a random Llama of `num_layers`, whose texts begin with the start token."""
    config = LlamaConfig(
        vocab_size=size.vocab_size,
        hidden_size=size.width,
        intermediate_size=43 * size.width // 16,  # LLaMA's 11008 to 4096
        num_hidden_layers=num_layers,
        num_attention_heads=size.width // HEAD_WIDTH,
        max_position_embeddings=size.source_tokens + size.max_steps,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(num_layers)
    _save(folder, LlamaForCausalLM(config), f"{START_PIECE} $A", START_PIECE)


def save_marian(folder: Path, size: Size) -> None:
    """Save a random Marian of `teacher_layers` a side, whose sources end with the end token."""
    config = MarianConfig(
        vocab_size=size.vocab_size,
        d_model=size.width,
        encoder_layers=size.teacher_layers,
        decoder_layers=size.teacher_layers,
        encoder_attention_heads=size.width // HEAD_WIDTH,
        decoder_attention_heads=size.width // HEAD_WIDTH,
        encoder_ffn_dim=4 * size.width,
        decoder_ffn_dim=4 * size.width,
        max_position_embeddings=max(size.source_tokens, size.max_steps + 1),
        init_std=MARIAN_INIT_STD,
        pad_token_id=0,
        eos_token_id=2,
        decoder_start_token_id=0,
        forced_eos_token_id=None,
    )
    torch.manual_seed(0)
    _save(folder, MarianMTModel(config), f"$A {END_PIECE}", END_PIECE)


def _save(folder: Path, model: PreTrainedModel, template: str, around: str) -> None:
    """Save the model and a word tokenizer of its size, which adds `around` as `template` says."""
    size = model.config.vocab_size
    logging.disable_progress_bar()
    model.save_pretrained(folder)
    words = (f"w{index}" for index in range(size - len(RESERVED_PIECES)))
    pieces = {piece: index for index, piece in enumerate([*RESERVED_PIECES, *words])}
    backend = Tokenizer(models.WordLevel(pieces, unk_token=PAD_PIECE))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(around, pieces[around])]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=PAD_PIECE, bos_token=START_PIECE, eos_token=END_PIECE
    )
    tokenizer.save_pretrained(folder)
