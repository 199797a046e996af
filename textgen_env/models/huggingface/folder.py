"""Checks of a folder of `transformers` before that library reads it and takes memory."""

from pathlib import Path
from typing import Any

from textgen_env.models.model_files import (
    ModelFileError,
    Shapes,
    check_digests,
    check_sizes,
    existing_file,
    read_model_config,
    weight_files,
    weight_shapes,
)

SIZES = (
    "vocab_size",
    "hidden_size",
    "d_model",
    "n_embd",
    "num_hidden_layers",
    "num_layers",
    "num_decoder_layers",
    "n_layer",
    "encoder_layers",
    "decoder_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "encoder_attention_heads",
    "decoder_attention_heads",
    "num_heads",
    "n_head",
    "head_dim",
    "d_kv",
    "d_ff",
    "intermediate_size",
    "encoder_ffn_dim",
    "decoder_ffn_dim",
)
WIDTHS = ("hidden_size", "d_model", "n_embd")
OUTER = ("vocab_size", "d_ff", "intermediate_size", "encoder_ffn_dim", "decoder_ffn_dim")
FIRST_TOKENS = ("decoder_start_token_id", "forced_bos_token_id")
LARGEST_POSITION = 2**24
MOST_LAYERS = 10_000


def check_pretrained(folder: Path) -> None:
    """Raise unless the configuration in `folder` could be that of the weights beside it.

    Raises:
        ModelFileError: a file is no regular one or does not fit the others, or a size makes no
            sense.
    """
    check_regular_files(folder)
    path = folder / "config.json"
    config = read_model_config(path)
    sizes = {name: config[name] for name in SIZES if name in config}
    for name, size in sizes.items():
        if type(size) in (int, float, str, bool) and not (type(size) is int and size >= 1):
            raise ModelFileError(f"{path}: {name} must be a whole number above 0, got {size!r}")
        if "layer" in name and type(size) is int and size > MOST_LAYERS:
            raise ModelFileError(f"{path}: {name} must be at most {MOST_LAYERS}, got more")
    positions = config.get("max_position_embeddings")
    if type(positions) is int and positions > LARGEST_POSITION:
        raise ModelFileError(
            f"{path}: max_position_embeddings must be at most {LARGEST_POSITION}, got more"
        )
    check_digests(folder)
    shapes = _shapes(folder)
    if shapes:
        check_sizes(path, {**sizes, **_products(config)}, shapes)
    _check_first_tokens(folder, config)


def check_regular_files(folder: Path) -> None:
    """Raise `ModelFileError` if a JSON file in `folder` is a device, a pipe or a broken link."""
    for path in sorted(folder.glob("*.json")):
        existing_file(path)


def _shapes(folder: Path) -> Shapes:
    """Return the shapes of all weights that are in files with a header."""
    files = [existing_file(path) for path in weight_files(folder)]
    tensors = [path for path in files if path.suffix == ".safetensors"]
    return {name: shape for path in tensors for name, shape in weight_shapes(path).items()}


def _products(config: dict[str, Any]) -> dict[str, int]:
    """Return the number of weights of matrices that every model with such sizes has."""
    return {
        f"{outer} times {width}": config[outer] * config[width]
        for width in WIDTHS
        for outer in OUTER
        if type(config.get(width)) is int and type(config.get(outer)) is int
    }


def _check_first_tokens(folder: Path, config: dict[str, Any]) -> None:
    """Raise unless the tokens that a decoder reads first are in the vocabulary."""
    path = folder / "generation_config.json"
    generation = read_model_config(path) if path.exists() else {}
    for found in (config, generation):
        for name in FIRST_TOKENS:
            token, size = found.get(name), config.get("vocab_size")
            if type(token) is int and type(size) is int and not 0 <= token < size:
                raise ModelFileError(
                    f"{folder}: {name} must be from 0 to {size - 1}, a token of the vocabulary, "
                    f"got {token}"
                )
