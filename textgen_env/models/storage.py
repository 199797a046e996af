"""Saving and loading of models as folders of weights, configuration and optional tokenizer.

Pretrained models are folders in the format of `transformers`, or names on the hub.

Weights are a safetensors file, so that nothing is unpickled. A folder is written under another name
and then renamed. A kill at any moment leaves the old model, none, or the new one, but never a
partial one. Optimizer state is saved elsewhere: see `textgen_agents.training.checkpoint`.
"""

import json
import reprlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Literal, cast, get_args, get_origin, get_type_hints

import torch
from safetensors.torch import load_file, save_file

from textgen_env.files import naming_write_errors, settle
from textgen_env.models import STUDENTS
from textgen_env.models.config import ModelConfig
from textgen_env.models.huggingface.folder import check_pretrained, check_pretrained_config
from textgen_env.models.huggingface.load import (
    PretrainedError,
    first_line,
    load_pretrained,
    load_pretrained_tokenizer,
    local_folder,
    save_pretrained,
)
from textgen_env.models.huggingface.model import HuggingFaceModel
from textgen_env.models.hybrid import Hybrid
from textgen_env.models.model_files import (
    DIGESTS,
    ModelFileError,
    Shapes,
    check_digests,
    check_dtypes,
    check_finite_weights,
    check_shapes,
    check_sizes,
    existing_file,
    read_model_config,
    weight_shapes,
    write_digests,
)
from textgen_env.models.recurrent import Recurrent
from textgen_env.models.transformer import Transformer
from textgen_env.registry import MissingPluginError
from textgen_env.tokenizers.chat import CHAT
from textgen_env.tokenizers.subword import TextTokenizer, Tokenizer, check_ids
from textgen_env.types import SpecialTokens

OwnModel = Transformer | Recurrent | Hybrid
Model = OwnModel | HuggingFaceModel

RUST = "pyo3_runtime"  # of the panics of `tokenizers`, whose class cannot be imported
WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"
PRETRAINED_TOKENIZER = "tokenizer_config.json"  # marks a tokenizer of `transformers`


def save_model(model: Model, folder: Path, tokenizer: TextTokenizer | None = None) -> None:
    """Write `model` to `folder` and replace the model that may be there.

    Args:
        model: model whose weights are saved in their own dtype, with adapters merged into them.
        folder: folder that is missing, empty, or has a saved model; its other files are kept.
        tokenizer: tokenizer that is saved with the model; without one, the folder will have none.

    Raises:
        ModelFileError: the folder holds other things and no model, or the model's configuration
            has a field that is no number, string or truth value.
        RegistryError: the class of the model's configuration is not registered.
        ValueError: the tokenizer has ids that the model has not, or other special tokens.
        WriteError: the folder cannot be written.
    """
    if tokenizer is not None and tokenizer.vocab_size > model.vocab_size:
        raise ValueError(
            f"tokenizer must have at most the model's {model.vocab_size} pieces, "
            f"got {tokenizer.vocab_size}"
        )
    if tokenizer is not None and tokenizer.special != model.special:
        raise ValueError(
            f"tokenizer must have the model's special tokens, {model.special}, got "
            f"{tokenizer.special}"
        )
    num_bytes = sum(value.nbytes for value in model.state_dict().values())
    with naming_write_errors(folder, num_bytes):
        _replace(folder, model, tokenizer)


def _replace(folder: Path, model: Model, tokenizer: TextTokenizer | None) -> None:
    """Write the model beside `folder` and rename it."""
    _restore(folder)
    _check_replaceable(folder)
    written = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(written, ignore_errors=True)
    written.mkdir(parents=True)
    try:
        if isinstance(model, HuggingFaceModel):
            save_pretrained(model, written)
        else:
            _write(model, written)
        if tokenizer is not None:
            tokenizer.save(written / TOKENIZER)
        write_digests(written)
        for path in sorted(written.iterdir()):
            settle(path)
        _keep_others(folder, written)
        _move_into_place(written, folder)
    finally:
        shutil.rmtree(written, ignore_errors=True)


def load_model(
    folder: Path, dtype: torch.dtype = torch.float32, lora_rank: int | None = None
) -> Model:
    """Return the model in `folder`, on the CPU and in evaluation mode.

    Args:
        folder: folder written by `save_model` or by `transformers`, or a name on the hub.
        dtype: dtype of the loaded weights, which may differ from the file's.
        lora_rank: rank of adapters that are trained instead of the weights of a pretrained model;
            None for no adapters.

    Raises:
        ModelFileError: a file is missing, damaged or does not fit the others.
        PretrainedError: a pretrained model cannot be found or loaded.
        ValueError: adapters are requested for a model that is not a pretrained one.
    """
    folder = local_folder(folder)
    if _is_pretrained(folder):
        return _load_pretrained(folder, dtype, lora_rank)
    if lora_rank is not None:
        raise ValueError(f"lora_rank must be None for a model that is no pretrained one: {folder}")
    path = folder / WEIGHTS
    existing_file(folder / CONFIG)
    found = weight_shapes(path)
    with torch.device("meta"):  # initial weights are replaced, so none are drawn
        model = _empty_model(folder / CONFIG, found)
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    check_shapes(path, wanted, found)
    check_dtypes(path, wanted)
    check_digests(folder)
    model = model.to(dtype).to_empty(device="cpu")
    try:
        model.load_state_dict(load_file(path))
    except RuntimeError as error:
        raise ModelFileError(f"{path} must fit {folder / CONFIG}, got: {error}") from error
    check_finite_weights(model, folder)
    return model.eval()


def load_tokenizer(folder: Path) -> TextTokenizer:
    """Return the tokenizer in `folder`, or that of a model on the hub.

    Raises:
        ModelFileError: there is no tokenizer, or its file is damaged.
        PretrainedError: the tokenizer of a pretrained model cannot be found or loaded.
    """
    folder = local_folder(folder)
    if (folder / PRETRAINED_TOKENIZER).is_file() or _is_pretrained(folder):
        check_pretrained_config(folder)
        with _errors_of_transformers(folder):
            tokenizer = load_pretrained_tokenizer(folder)
            check_ids(tokenizer)
    else:
        path = existing_file(folder / TOKENIZER)
        try:
            tokenizer = Tokenizer.load(path)
            check_ids(tokenizer)
        except Exception as error:  # the `tokenizers` library has no narrower class of errors
            raise ModelFileError(f"{path} must be a tokenizer, got: {error}") from error
    _check_same_tokens(folder, tokenizer)
    return tokenizer


def _check_same_tokens(folder: Path, tokenizer: TextTokenizer) -> None:
    """Raise unless a model of this project in `folder`, if there is one, has these tokens.

    Raises:
        ModelFileError: the tokenizer has ids that the model has not, or other special tokens.
    """
    path = folder / CONFIG
    if not path.exists() or _is_pretrained(folder):
        return
    config = read_model_config(path)
    size, special = config.get("vocab_size"), config.get("special")
    if isinstance(size, int) and size < tokenizer.vocab_size:
        raise ModelFileError(
            f"{folder} must have a tokenizer of at most the model's {size} pieces, got one of "
            f"{tokenizer.vocab_size}"
        )
    if isinstance(special, dict) and special != tokenizer.special._asdict():
        raise ModelFileError(
            f"{folder} must have a model with the tokenizer's special tokens, "
            f"{tokenizer.special._asdict()}, got {reprlib.repr(special)}"
        )


def _is_pretrained(folder: Path) -> bool:
    """Return True if the configuration in `folder` is that of a model of `transformers`."""
    try:
        return "model_type" in read_model_config(folder / CONFIG)
    except (OSError, ModelFileError):
        return False  # the caller reads the file again and raises


def _load_pretrained(folder: Path, dtype: torch.dtype, lora_rank: int | None) -> HuggingFaceModel:
    """Return a model of `transformers`, whose files are checked before they are read.

    Raises:
        ModelFileError: the folder is damaged.
        PretrainedError: the model cannot be loaded.
    """
    check_pretrained(folder)
    with _errors_of_transformers(folder):
        model = load_pretrained(folder, dtype, lora_rank)
    check_finite_weights(model, folder)
    return model


@contextmanager
def _errors_of_transformers(folder: Path) -> Iterator[None]:
    """Turn errors of any class, which damaged files cause in `transformers`, into one of ours."""
    try:
        yield
    except (ModelFileError, PretrainedError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__module__ != RUST:
            raise
        raise ModelFileError(
            f"{folder} must hold a model that transformers can load, got "
            f"{type(error).__name__}: {first_line(error)}"
        ) from error


def _write(model: OwnModel, folder: Path) -> None:
    """Write weights and configuration to `folder`."""
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(_description(model), indent=2) + "\n")


def _description(model: OwnModel) -> dict[str, object]:
    """Return the content of `config.json` for `model`."""
    config: Any = getattr(model, "config", model)
    description: dict[str, object] = {"architecture": STUDENTS.name_of(config)}
    plugin = STUDENTS.origin_of(config)
    if plugin is not None:
        description["plugin"] = plugin
    _field_types(type(config))
    return {**description, **asdict(config), "special": model.special._asdict()}


def _empty_model(path: Path, shapes: Shapes) -> OwnModel:
    """Return the model that the configuration in `path` describes, its weights uninitialized.

    Args:
        path: the configuration.
        shapes: shapes of the weights, which bound the sizes.

    Raises:
        ModelFileError: the file cannot be understood, or its sizes do not fit the weights.
        MissingPluginError: the model is that of a plugin that is not loaded.
    """
    description = read_model_config(path)
    architecture, plugin = description.pop("architecture", None), description.pop("plugin", None)
    known = sorted(STUDENTS)
    if architecture not in known and plugin is not None:
        raise MissingPluginError(path, plugin)
    if architecture not in known:
        raise ModelFileError(
            f"{path}: architecture must be one of {known}, got {reprlib.repr(architecture)}"
        )
    kind = type(STUDENTS[architecture])
    _check_fields(path, description, {**_field_types(kind), "special": dict})
    special = description.pop("special")
    _check_fields(path, special, dict.fromkeys(SpecialTokens._fields, int), "special.")
    check_sizes(path, description, shapes)
    for name, token in special.items():
        if not 0 <= token < description["vocab_size"]:
            raise ModelFileError(
                f"{path}: special.{name} must be from 0 to vocab_size - 1, got {token}"
            )
    try:
        return cast("OwnModel", kind(**description).build(SpecialTokens(**special)))
    except (ValueError, RuntimeError, TypeError, ArithmeticError) as error:
        raise ModelFileError(f"{path}: {error}") from error


def _field_types(kind: type[ModelConfig]) -> dict[str, type]:
    """Return the type of each field of a configuration.

    Raises:
        ModelFileError: JSON does not keep one of them as it is.
    """
    hints = get_type_hints(kind)
    types = {field.name: _plain_type(hints[field.name]) for field in fields(kind)}
    for name, hint in types.items():
        if hint not in (bool, int, float, str):
            raise ModelFileError(
                f"{kind.__name__}.{name} must be bool, int, float or str, which {CONFIG} keeps, "
                f"got {hint}"
            )
    return types


def _plain_type(hint: Any) -> Any:  # noqa: ANN401 - a type hint has no narrower type
    """Return the type of the values of a `Literal` of one type, and any other hint itself."""
    kinds = {type(value) for value in get_args(hint)} if get_origin(hint) is Literal else {hint}
    return kinds.pop() if len(kinds) == 1 else hint


def _check_fields(
    path: Path, found: dict[str, object], wanted: dict[str, type], prefix: str = ""
) -> None:
    """Raise `ModelFileError` unless `found` has the names of `wanted` and values of its types."""
    if missing := sorted(wanted.keys() - found.keys()):
        raise ModelFileError(f"{path} must have the field {prefix}{missing[0]}, got none")
    if unknown := sorted(found.keys() - wanted.keys()):
        raise ModelFileError(
            f"{path}: fields must be {sorted(wanted)}, got {prefix}{unknown[0]} besides"
        )
    for name, kind in wanted.items():
        value = found[name]
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise ModelFileError(
                f"{path}: {prefix}{name} must be {kind.__name__}, got {reprlib.repr(value)}"
            )


def _check_replaceable(folder: Path) -> None:
    """Raise `ModelFileError` if `folder` has content but no saved model, so it is never moved."""
    if not folder.exists() or (folder / WEIGHTS).is_file():
        return
    if not folder.is_dir() or any(folder.iterdir()):
        raise ModelFileError(
            f"{folder} must not exist, be empty or hold a saved model, got something else; "
            "save to another folder"
        )


def _keep_others(folder: Path, written: Path) -> None:
    """Copy files other than the model's, such as a model card, from `folder` to `written`."""
    replaced = {WEIGHTS, CONFIG, TOKENIZER, PRETRAINED_TOKENIZER, CHAT, DIGESTS}
    replaced |= {path.name for path in written.iterdir()}
    for path in folder.iterdir() if folder.exists() else ():
        if path.is_dir():
            shutil.copytree(path, written / path.name)
        elif path.name not in replaced:
            shutil.copy2(path, written / path.name)


def _move_into_place(written: Path, folder: Path) -> None:
    """Rename `written` to `folder`; the old folder is set aside first and deleted afterwards."""
    aside = _aside(folder)
    if folder.exists():
        folder.rename(aside)
    written.rename(folder)
    shutil.rmtree(aside, ignore_errors=True)


def _restore(folder: Path) -> None:
    """Restore a folder that a kill left set aside, unless its successor exists."""
    aside = _aside(folder)
    if aside.exists() and not folder.exists():
        aside.rename(folder)
    shutil.rmtree(aside, ignore_errors=True)


def _aside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")
