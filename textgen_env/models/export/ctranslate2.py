"""Export of Transformers to CTranslate2, and generation with the exported model.

The weights are laid out here, because CTranslate2 has no converter for the layout of
`export/huggingface.py`. This module needs the extra `export`.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, cast

import torch
from ctranslate2 import Translator
from ctranslate2.specs import TransformerSpec
from torch import Tensor, nn

from textgen_env.models.encoder_decoder import EncoderLayer
from textgen_env.models.export.common import (
    SUPPRESSION_BIAS,
    ExportError,
    GenerateFn,
    exportable,
    save_served_tokenizer,
)
from textgen_env.models.model_files import check_digests, write_digests
from textgen_env.models.storage import CONFIG, TOKENIZER, Model
from textgen_env.models.transformer import DecoderLayer, Transformer
from textgen_env.tokenizers.subword import TextTokenizer

Spec = Any  # part of a specification, whose attributes CTranslate2 sets and checks dynamically
VOCABULARY = "shared_vocabulary.json"


def save_ctranslate2(
    model: Model, tokenizer: TextTokenizer, folder: Path, precision: Literal["float32", "int8"]
) -> None:
    """Write `model` and its tokenizer so that `ctranslate2.Translator` loads the folder.

    Args:
        model: a Transformer.
        tokenizer: tokenizer of the model.
        folder: existing folder.
        precision: precision of the weights; int8 has a scale for each row of a matrix.

    Raises:
        ExportError: CTranslate2 cannot run the model.
    """
    spec = to_spec(exportable(model, tokenizer))
    named = {index: piece for piece, index in tokenizer.pieces.items()}
    pieces = [named.get(index, f"<unused {index}>") for index in range(model.vocab_size)]
    spec.register_source_vocabulary(pieces)
    spec.register_target_vocabulary(pieces)
    pad, start, end = (pieces[index] for index in model.special)
    config: Spec = spec.config
    config.bos_token, config.eos_token, config.unk_token = start, end, pad
    config.decoder_start_token = start
    spec.validate()
    spec.optimize(quantization=precision)
    spec.save(str(folder))
    write_digests(folder)
    save_served_tokenizer(tokenizer, folder / TOKENIZER)


def to_spec(model: Transformer) -> TransformerSpec:
    """Return a specification with the model's weights, which computes the same function.

    Position embeddings are left out, because CTranslate2 computes the same ones itself.
    """
    size = model.config
    embedding = model.embedding.weight.detach().clone()  # quantization overwrites its input
    spec: Spec = TransformerSpec.from_config(
        (size.num_encoder_layers, size.num_decoder_layers), size.num_heads
    )
    spec.encoder.embeddings[0].weight = embedding
    spec.decoder.embeddings.weight = spec.decoder.projection.weight = embedding
    spec.decoder.projection.bias = torch.zeros(size.vocab_size)
    spec.decoder.projection.bias[[model.special.pad, model.special.start]] = SUPPRESSION_BIAS
    _set_norm(spec.encoder.layer_norm, model.encoder_norm)
    _set_norm(spec.decoder.layer_norm, model.decoder_norm)
    for part, layer in zip(
        spec.encoder.layer, cast("Iterable[EncoderLayer]", model.encoder), strict=True
    ):
        _set_layer(part, layer)
    for part, layer in zip(
        spec.decoder.layer, cast("Iterable[DecoderLayer]", model.decoder), strict=True
    ):
        _set_layer(part, layer)
        attention = layer.source_attention
        _set_norm(part.attention.layer_norm, layer.source_norm)
        query, key_value, out = part.attention.linear
        _set_linear(query, attention.query)
        _set_linear(key_value, attention.key_value)
        _set_linear(out, attention.out)
    return spec


def load_ctranslate2(folder: Path, beam_size: int = 1) -> GenerateFn:
    """Return a function that generates with a model written by `save_ctranslate2`.

    It computes in the precision of the weights and with as many threads as torch. For an empty
    source CTranslate2 returns an empty text without running the model.

    Args:
        folder: folder of the model.
        beam_size: number of beams; 1 for greedy decoding.

    Raises:
        ExportError: a file is missing or damaged.
        ModelFileError: the weights are not those that were exported.
    """
    check_digests(folder)
    try:
        translator = Translator(str(folder), intra_threads=torch.get_num_threads())
        pieces, config = (
            json.loads((folder / name).read_text(encoding="utf-8")) for name in (VOCABULARY, CONFIG)
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise ExportError(f"{folder} must hold a model for CTranslate2, got: {error}") from error
    ids = {piece: index for index, piece in enumerate(pieces)}
    pad = ids[config["unk_token"]]  # `save_ctranslate2` stores padding under this name

    def generate(source: Tensor, max_steps: int) -> Tensor:
        texts = [[pieces[token] for token in row if token != pad] for row in source.tolist()]
        results = translator.translate_batch(
            texts,
            beam_size=beam_size,
            max_input_length=0,  # no limit
            min_decoding_length=0,  # the first token may be the end
            max_decoding_length=max_steps,
            return_end_token=True,
        )
        tokens = source.new_full((len(source), max_steps), pad)
        for row, result in zip(tokens, results, strict=True):
            hypothesis = [ids[piece] for piece in result.hypotheses[0]]
            row[: len(hypothesis)] = torch.tensor(hypothesis)
        return tokens

    return generate


def _set_layer(part: Spec, layer: EncoderLayer | DecoderLayer) -> None:
    """Set self-attention and feed-forward network, which encoder and decoder layers have."""
    attention = part.self_attention
    _set_norm(attention.layer_norm, layer.attention_norm)
    _set_linear(attention.linear[0], layer.attention.query, layer.attention.key_value)
    _set_linear(attention.linear[1], layer.attention.out)
    _set_norm(part.ffn.layer_norm, layer.feed_forward_norm)
    inner, _, outer = layer.feed_forward
    _set_linear(part.ffn.linear_0, cast("nn.Linear", inner))
    _set_linear(part.ffn.linear_1, cast("nn.Linear", outer))


def _set_linear(part: Spec, *layers: nn.Linear) -> None:
    """Set one linear layer that computes all `layers`, which have the same input."""
    part.weight = torch.cat([layer.weight.detach() for layer in layers])
    part.bias = torch.cat([layer.bias.detach() for layer in layers])


def _set_norm(part: Spec, norm: nn.LayerNorm) -> None:
    part.gamma, part.beta = norm.weight.detach(), norm.bias.detach()
