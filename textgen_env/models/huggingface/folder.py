"""Checks of a folder of `transformers` before that library reads it and takes memory."""

import reprlib
from collections.abc import Iterable
from pathlib import Path

from torch import nn

from textgen_env.bounds import LARGEST_WHOLE
from textgen_env.models.model_files import (
    ModelFileError,
    Shapes,
    check_digests,
    check_dtypes,
    check_shapes,
    check_sizes,
    count_numbers,
    existing_file,
    read_model_config,
    weight_files,
    weight_shapes,
)
from textgen_env.tokenizers.folder_check import json_fields

SIZES = {
    "max_position_embeddings",
    "relative_attention_num_buckets",
    "relative_attention_max_distance",
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
    "num_experts",
    "num_local_experts",
    "n_routed_experts",
}
FIRST_TOKENS = ("decoder_start_token_id", "forced_bos_token_id")
MOST_PARTS = 10_000  # layers or experts, each of which is an object, be it empty
SLACK = 2**20  # numbers that a model computes by itself, such as positions and masks


def check_pretrained(folder: Path) -> None:
    """Raise unless the configuration in `folder` could be that of the weights beside it.

    Raises:
        ModelFileError: a file is no regular one or does not fit the others, or a size makes no
            sense.
    """
    check_pretrained_config(folder)
    path = folder / "config.json"
    config = read_model_config(path)
    check_digests(folder)
    if shapes := _shapes(folder):
        check_sizes(path, {name: config[name] for name in sorted(SIZES & config.keys())}, shapes)
    _check_first_tokens(folder)


def check_pretrained_config(folder: Path) -> None:
    """Raise unless the configuration in `folder`, if there is one, has sizes that make sense.

    A tokenizer is loaded with it, too.

    Raises:
        ModelFileError: a JSON file is a device, a pipe or a broken link, or a number is none that
            its name can have.
    """
    for path in sorted(folder.glob("*.json")):
        existing_file(path)
    path = folder / "config.json"
    if not path.exists():
        return
    read_model_config(path)
    for name, value in json_fields(path):
        if type(value) not in (int, float, str, bool):
            continue
        if name in SIZES and not (type(value) is int and value >= 1):
            raise ModelFileError(
                f"{path}: {name} must be a whole number above 0, got {reprlib.repr(value)}"
            )
        is_part = name in SIZES and ("layer" in name or "expert" in name)
        if is_part and type(value) is int and value > MOST_PARTS:
            raise ModelFileError(f"{path}: {name} must be at most {MOST_PARTS}, got more")
        if "drop" in name and isinstance(value, int | float) and not 0 <= value <= 1:
            raise ModelFileError(f"{path}: {name} must be in [0, 1], got {value}")


def check_fits(folder: Path, empty: nn.Module) -> None:
    """Raise unless the weights in `folder` are those of a model, before memory is taken for it.

    Weights under names that the model does not know are left to `transformers`, which knows earlier
    names; so are those that are missing.

    Args:
        folder: the model's folder.
        empty: the model that its configuration describes, on the device "meta".

    Raises:
        ModelFileError: a tensor has another shape or no floating-point numbers, or the model has
            far more numbers than the files.
    """
    parts = [*empty.parameters(), *empty.buffers()]
    needed, found = sum(part.numel() for part in parts), count_numbers(_shapes(folder))
    if needed > 2 * found + SLACK:
        raise ModelFileError(
            f"{folder / 'config.json'} must describe a model of the {found:,} numbers in the "
            f"weights beside it, got one of {needed:,}"
        )
    wanted = {name: tuple(value.shape) for name, value in empty.state_dict().items()}
    parameters = {name for name, _ in empty.named_parameters(remove_duplicate=False)}
    for path in _tensor_files(folder):
        shapes = weight_shapes(path)
        known = wanted.keys() & shapes.keys()
        check_shapes(path, _only(wanted, known), _only(shapes, known))
        check_dtypes(path, parameters & known)


def _only(shapes: Shapes, names: Iterable[str]) -> Shapes:
    return {name: shapes[name] for name in names}


def _tensor_files(folder: Path) -> list[Path]:
    """Return the files of weights that have a header."""
    files = [existing_file(path) for path in weight_files(folder)]
    return [path for path in files if path.suffix == ".safetensors"]


def _shapes(folder: Path) -> Shapes:
    """Return the shapes of all weights that are in files with a header."""
    return {
        name: shape for path in _tensor_files(folder) for name, shape in weight_shapes(path).items()
    }


def _check_first_tokens(folder: Path) -> None:
    """Raise unless the tokens that a decoder reads first are in the vocabulary."""
    config, path = read_model_config(folder / "config.json"), folder / "generation_config.json"
    generation = read_model_config(path) if path.exists() else {}
    for found in (config, generation):
        for name in FIRST_TOKENS:
            token, size = found.get(name), config.get("vocab_size")
            largest = size - 1 if type(size) is int else LARGEST_WHOLE
            if token is not None and not (type(token) is int and 0 <= token <= largest):
                raise ModelFileError(
                    f"{folder}: {name} must be from 0 to {largest}, a token of the vocabulary, "
                    f"got {reprlib.repr(token)}"
                )
