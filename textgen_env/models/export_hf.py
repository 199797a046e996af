"""A Transformer as a folder of `transformers`, in M2M-100's layout, and back as a writer.

M2M-100 and not Marian, whose norms stand behind the sublayers. Needs the extra `export`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from transformers import (
    AutoModelForSeq2SeqLM,
    GenerationConfig,
    M2M100Config,
    M2M100ForConditionalGeneration,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

from textgen_env.models.export import Write, exportable, served_tokenizer
from textgen_env.models.storage import Model
from textgen_env.models.transformer import Transformer
from textgen_env.tokenizer import SPECIAL_PIECES, TextTokenizer

PARTS = {  # of a weight's name, ours and M2M-100's
    "embedding": "model.shared",
    "encoder": "model.encoder.layers",
    "encoder_norm": "model.encoder.layer_norm",
    "decoder": "model.decoder.layers",
    "decoder_norm": "model.decoder.layer_norm",
    "attention": "self_attn",
    "attention_norm": "self_attn_layer_norm",
    "source_attention": "encoder_attn",
    "source_norm": "encoder_attn_layer_norm",
    "query": "q_proj",
    "out": "out_proj",
    "feed_forward_norm": "final_layer_norm",
}
SHARED = "model.shared.weight"
SHARERS = ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight")


def save_hf(model: Model, tokenizer: TextTokenizer, folder: Path, max_steps: int) -> None:
    """Write `model` so that `AutoModelForSeq2SeqLM` and `AutoTokenizer` load it.

    Args:
        model: a Transformer.
        tokenizer: its own.
        folder: an existing one.
        max_steps: most tokens that `generate` writes unless it is told otherwise.

    Raises:
        ExportError: the model is none that `transformers` knows.
    """
    transformer, known = exportable(model, tokenizer)
    exported = to_m2m100(transformer, max_steps)
    with _without_bars():
        exported.save_pretrained(folder)
    pad, start, end = SPECIAL_PIECES
    PreTrainedTokenizerFast(
        tokenizer_object=served_tokenizer(known),
        pad_token=pad,
        bos_token=start,
        eos_token=end,
        split_special_tokens=True,  # "</s>" in a text is four characters, not its end
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)


def to_m2m100(model: Transformer, max_steps: int) -> M2M100ForConditionalGeneration:
    """The same function of the same weights; dropout acts in the same places."""
    size, special = model.config, model.special
    config = M2M100Config(
        vocab_size=size.vocab_size,
        d_model=size.width,
        encoder_layers=size.num_encoder_layers,
        decoder_layers=size.num_decoder_layers,
        encoder_attention_heads=size.num_heads,
        decoder_attention_heads=size.num_heads,
        encoder_ffn_dim=size.feed_forward,
        decoder_ffn_dim=size.feed_forward,
        dropout=size.dropout,
        attention_dropout=0.0,
        encoder_layerdrop=0.0,
        decoder_layerdrop=0.0,
        pad_token_id=special.pad,
        bos_token_id=special.start,
        eos_token_id=special.end,
        decoder_start_token_id=special.start,
    )
    exported = M2M100ForConditionalGeneration(config)
    exported.load_state_dict(dict(_renamed(model)))
    exported.generation_config = GenerationConfig(
        max_new_tokens=max_steps,
        num_beams=1,
        do_sample=False,
        suppress_tokens=[special.pad, special.start],  # as `decoding.next_action` does
        pad_token_id=special.pad,
        bos_token_id=special.start,
        eos_token_id=special.end,
        decoder_start_token_id=special.start,
    )
    return exported.eval()


def load_hf(folder: Path, beam_size: int = 1, dtype: torch.dtype = torch.float32) -> Write:
    """What the model that `save_hf` wrote writes, by `generate` of `transformers`.

    It reads the token ids of the model that was exported.
    """
    with _without_bars():
        model = AutoModelForSeq2SeqLM.from_pretrained(folder, local_files_only=True, dtype=dtype)
    model.eval()
    pad = model.config.pad_token_id

    def write(source: Tensor, max_steps: int) -> Tensor:
        mask = (source != pad).long()
        with torch.inference_mode():
            written = model.generate(
                source, attention_mask=mask, max_new_tokens=max_steps, num_beams=beam_size
            )
        tokens = source.new_full((len(source), max_steps), pad)
        tokens[:, : written.shape[1] - 1] = written[:, 1:]  # without the start token
        return tokens

    return write


@contextmanager
def _without_bars() -> Iterator[None]:
    """Reading and writing a small model takes no time that a bar would have to shorten."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _renamed(model: Transformer) -> Iterator[tuple[str, Tensor]]:
    """The weights with M2M-100's names."""
    for name, weight in model.state_dict().items():
        layered = name.replace("feed_forward.0", "fc1").replace("feed_forward.2", "fc2")
        renamed = ".".join(PARTS.get(part, part) for part in layered.split("."))
        if "key_value" in renamed:
            keys, values = weight.chunk(2)
            yield renamed.replace("key_value", "k_proj"), keys
            yield renamed.replace("key_value", "v_proj"), values
        else:
            yield renamed, weight
    for name in (*SHARERS, "lm_head.weight"):
        yield name, model.embedding.weight
