"""A Transformer as a folder of `transformers`, in Blenderbot's layout, and back as a writer.

Blenderbot and not Marian, whose norms stand behind the sublayers, nor M2M-100, whose positions
depend on which token is padding. Needs the extra `export`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from transformers import (
    AutoModelForSeq2SeqLM,
    BlenderbotConfig,
    BlenderbotForConditionalGeneration,
    GenerationConfig,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

from textgen_env.models.export.common import NEVER, GenerateFn, exportable, served_tokenizer
from textgen_env.models.storage import TOKENIZER, Model
from textgen_env.models.transformer import Transformer, sinusoids
from textgen_env.tokenizers.subword import SPECIAL_PIECES, TextTokenizer, Tokenizer

MAX_POSITIONS = 1024  # of the table that stands for the sinusoids, which have no end

PARTS = {  # of a weight's name, ours and Blenderbot's
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
    exported = to_blenderbot(exportable(model, tokenizer), max_steps)
    with _without_bars():
        exported.save_pretrained(folder)
    if not isinstance(tokenizer, Tokenizer):
        tokenizer.save(folder / TOKENIZER)
        return
    pad, start, end = SPECIAL_PIECES
    PreTrainedTokenizerFast(
        tokenizer_object=served_tokenizer(tokenizer),
        pad_token=pad,
        bos_token=start,
        eos_token=end,
        split_special_tokens=True,  # "</s>" in a text is four characters, not its end
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)


def to_blenderbot(model: Transformer, max_steps: int) -> BlenderbotForConditionalGeneration:
    """The same function of the same weights, but that padding and start are never written.

    Dropout acts in the same places.
    """
    size, special = model.config, model.special
    config = BlenderbotConfig(
        vocab_size=size.vocab_size,
        d_model=size.width,
        max_position_embeddings=MAX_POSITIONS,
        encoder_layers=size.num_encoder_layers,
        decoder_layers=size.num_decoder_layers,
        encoder_attention_heads=size.num_heads,
        decoder_attention_heads=size.num_heads,
        encoder_ffn_dim=size.feed_forward,
        decoder_ffn_dim=size.feed_forward,
        activation_function="relu",
        dropout=size.dropout,
        scale_embedding=True,
        encoder_no_repeat_ngram_size=0,
        forced_eos_token_id=None,
        pad_token_id=special.pad,
        bos_token_id=special.start,
        eos_token_id=special.end,
        decoder_start_token_id=special.start,
    )
    exported = BlenderbotForConditionalGeneration(config)
    exported.load_state_dict(dict(_weights(model)))
    exported.generation_config = GenerationConfig(
        max_new_tokens=max_steps,
        num_beams=1,
        do_sample=False,
        pad_token_id=special.pad,
        bos_token_id=special.start,
        eos_token_id=special.end,
        decoder_start_token_id=special.start,
    )
    return exported.eval()


def load_hf(folder: Path, dtype: torch.dtype = torch.float32, device: str = "cpu") -> GenerateFn:
    """What the model that `save_hf` wrote writes greedily, by `generate` of `transformers`.

    It reads the token ids of the model that was exported.

    Args:
        folder: where it was written.
        dtype: of the weights.
        device: where it writes, and where its sources are.
    """
    with _without_bars():
        model = AutoModelForSeq2SeqLM.from_pretrained(folder, local_files_only=True, dtype=dtype)
    model.eval().to(torch.device(device))
    pad = model.config.pad_token_id

    def write(source: Tensor, max_steps: int) -> Tensor:
        mask = (source != pad).long()
        with torch.inference_mode():
            written = model.generate(source, attention_mask=mask, max_new_tokens=max_steps)
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


def _weights(model: Transformer) -> Iterator[tuple[str, Tensor]]:
    """All weights with Blenderbot's names."""
    for name, weight in model.state_dict().items():
        layered = name.replace("feed_forward.0", "fc1").replace("feed_forward.2", "fc2")
        renamed = ".".join(PARTS.get(part, part) for part in layered.split("."))
        if "key_value" in renamed:
            keys, values = weight.chunk(2)
            yield renamed.replace("key_value", "k_proj"), keys
            yield renamed.replace("key_value", "v_proj"), values
        else:
            yield renamed, weight
    yield "lm_head.weight", model.embedding.weight
    positions = sinusoids(torch.arange(MAX_POSITIONS), model.config.width)
    for side in ("encoder", "decoder"):
        yield f"model.{side}.embed_tokens.weight", model.embedding.weight
        yield f"model.{side}.embed_positions.weight", positions
    bias = torch.zeros(1, model.vocab_size)
    bias[:, [model.special.pad, model.special.start]] = NEVER
    yield "final_logits_bias", bias
