"""Check of a pretrained model's folder before any library reads it: the folder is data.

`transformers` can run code that a folder brings, fetch code that it names, and read weights from
other folders. Folders that ask for any of this are refused. Left out: the values of the
configuration and of the weights, which are read as numbers.
"""

import json
from collections.abc import Iterator
from pathlib import Path

CONFIG_FILES = (
    "config.json",
    "tokenizer_config.json",
    "generation_config.json",
    "processor_config.json",
    "preprocessor_config.json",
)
ADAPTER = "adapter_config.json"  # makes `transformers` load the model that it names
INDICES = "*.index.json"
SAFE, PICKLED = "*.safetensors", ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
CODE_FIELDS = {"auto_map", "custom_pipelines", "custom_generate"}
ELSEWHERE_FIELDS = {"transformers_weights", "quantization_config"}
ATTENTION_FIELDS = {"attn_implementation", "_attn_implementation", "_attn_implementation_internal"}
BUILT_IN_ATTENTION = {None, "eager", "sdpa", "flex_attention"}  # all others may be fetched


class UnsafeFolderError(ValueError):
    """Folder of a model that brings or names code, or names files outside of itself."""


def check_is_data(folder: Path) -> None:
    """Check that nothing in a model's folder asks for code or for files elsewhere.

    Raises:
        UnsafeFolderError: a configuration names code, a kernel, or another model, or an index of
            weights names a file outside `folder`.
    """
    if (folder / ADAPTER).exists():
        raise UnsafeFolderError(
            f"{folder} must hold a whole model, got {ADAPTER}, which names another one: merge the "
            "adapters into the weights first"
        )
    for name in CONFIG_FILES:
        for field, value in json_fields(folder / name):
            _check_field(folder / name, field, value)
    for path in sorted(folder.glob(INDICES)):
        _check_index(path)


def check_no_pickle(folder: Path) -> None:
    """Check that a model's folder has weights which are read without unpickling.

    Raises:
        UnsafeFolderError: all weights are pickles.
    """
    pickled = sorted(path.name for kind in PICKLED for path in folder.glob(kind))
    if pickled and not any(folder.glob(SAFE)):
        raise UnsafeFolderError(
            f"{folder} must have weights in the format safetensors, got {pickled[0]}, a pickle, "
            "which could run code: if you trust it, load it with transformers and write it with "
            "save_pretrained"
        )


def json_fields(path: Path) -> Iterator[tuple[str, object]]:
    """Yield each name and value in a JSON file, nested ones too; none if it cannot be read."""
    try:
        pending = [json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, RecursionError):
        return  # whoever reads the file next raises
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            yield from value.items()
            pending += value.values()
        elif isinstance(value, list):
            pending += value


def _check_field(path: Path, field: str, value: object) -> None:
    """Raise `UnsafeFolderError` if a field of a configuration asks for more than data."""
    if field in CODE_FIELDS and value:
        raise UnsafeFolderError(
            f"{path} must name no code, got {field}: the model brings code of its own, which is "
            "never run; where transformers knows the model without it, delete the field"
        )
    if field in ELSEWHERE_FIELDS and value:
        raise UnsafeFolderError(
            f"{path} must describe weights of plain numbers in the model's own files, got {field}: "
            "load the model with transformers and write it with save_pretrained"
        )
    if field in ATTENTION_FIELDS:
        named = list(value.values()) if isinstance(value, dict) else [value]
        if any(isinstance(one, list | dict) or one not in BUILT_IN_ATTENTION for one in named):
            raise UnsafeFolderError(
                f"{path} must name no kernel, got {field} {value!r}: kernels are code, which is "
                "never fetched; delete the field"
            )


def _check_index(path: Path) -> None:
    """Raise `UnsafeFolderError` if an index of weights names anything but files beside it."""
    for field, files in json_fields(path):
        if field != "weight_map":
            continue
        named = list(files.values()) if isinstance(files, dict) else [files]
        for name in named:
            if not isinstance(name, str) or not _is_plain_name(name):
                raise UnsafeFolderError(
                    f"{path} must name files in the same folder, got {name!r}: give the weights "
                    "as files beside the index"
                )


def _is_plain_name(name: str) -> bool:
    return bool(name) and not {"/", "\\", "\0"}.intersection(name) and name not in (".", "..")
