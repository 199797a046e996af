"""Export of Transformers to `transformers`, and generation with the exported model.

The layout is Blenderbot's. Marian's does not fit, because its norms follow the sublayers, nor does
M2M-100's, because its positions depend on the padding token. This module needs the extra `export`.
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

from textgen_env.models.export.common import (
    SUPPRESSION_BIAS,
    GenerateFn,
    exportable,
    served_tokenizer,
)
from textgen_env.models.layers import sinusoids
from textgen_env.models.model_files import check_digests, write_digests
from textgen_env.models.storage import TOKENIZER, Model
from textgen_env.models.transformer import Transformer
from textgen_env.tokenizers.folder_check import check_is_data
from textgen_env.tokenizers.subword import SPECIAL_PIECES, TextTokenizer, Tokenizer

POSITION_TABLE_SIZE = 1024  # Blenderbot has a table of positions, where sinusoids have no limit

BLENDERBOT_NAMES = {  # parts of the names of weights, here and in Blenderbot
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
    """Write model and tokenizer so that `AutoModelForSeq2SeqLM` and `AutoTokenizer` load them.

    Args:
        model: a Transformer.
        tokenizer: tokenizer of the model.
        folder: existing folder.
        max_steps: default of the largest number of tokens that `generate` writes.

    Raises:
        ExportError: `transformers` cannot run the model.
    """
    exported = to_blenderbot(exportable(model, tokenizer), max_steps)
    with _no_progress_bars():
        exported.save_pretrained(folder)
    write_digests(folder)
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
    """Return a Blenderbot model with the same weights, which never writes padding or start.

    Otherwise it computes the same function, and dropout acts in the same places.
    """
    size, special = model.config, model.special
    config = BlenderbotConfig(
        vocab_size=size.vocab_size,
        d_model=size.width,
        max_position_embeddings=POSITION_TABLE_SIZE,
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
    exported.load_state_dict(dict(_blenderbot_weights(model)))
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
    """Return a function that decodes greedily with a model written by `save_hf`.

    It calls `generate` of `transformers`. Token ids are those of the exported model.

    Args:
        folder: folder of the model.
        dtype: dtype of the loaded weights.
        device: device of the model and of its sources.
    """
    check_is_data(folder)
    check_digests(folder)
    with _no_progress_bars():
        model = AutoModelForSeq2SeqLM.from_pretrained(
            folder,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
        )
    model.eval().to(torch.device(device))
    pad = model.config.pad_token_id

    def generate(source: Tensor, max_steps: int) -> Tensor:
        mask = (source != pad).long()
        with torch.inference_mode():
            generated = model.generate(source, attention_mask=mask, max_new_tokens=max_steps)
        tokens = source.new_full((len(source), max_steps), pad)
        tokens[:, : generated.shape[1] - 1] = generated[:, 1:]  # without the start token
        return tokens

    return generate


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Disable the progress bars of `transformers`, which small models do not need."""
    bars_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if bars_enabled:
            logging.enable_progress_bar()


def _blenderbot_weights(model: Transformer) -> Iterator[tuple[str, Tensor]]:
    """Yield all weights with Blenderbot's names."""
    for name, weight in model.state_dict().items():
        layered = name.replace("feed_forward.0", "fc1").replace("feed_forward.2", "fc2")
        renamed = ".".join(BLENDERBOT_NAMES.get(part, part) for part in layered.split("."))
        if "key_value" in renamed:
            keys, values = weight.chunk(2)
            yield renamed.replace("key_value", "k_proj"), keys
            yield renamed.replace("key_value", "v_proj"), values
        else:
            yield renamed, weight
    yield "lm_head.weight", model.embedding.weight
    positions = sinusoids(torch.arange(POSITION_TABLE_SIZE), model.config.width)
    for side in ("encoder", "decoder"):
        yield f"model.{side}.embed_tokens.weight", model.embedding.weight
        yield f"model.{side}.embed_positions.weight", positions
    bias = torch.zeros(1, model.vocab_size)
    bias[:, [model.special.pad, model.special.start]] = SUPPRESSION_BIAS
    yield "final_logits_bias", bias
