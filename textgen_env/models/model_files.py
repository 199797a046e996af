"""Checks of the files of a model's folder, made before memory is taken for the model.

A folder is data that anybody may have written. Its configuration must be a small regular file, its
sizes must fit the header of its weights, and its weights must have the digest that was saved with
them. Left out: whether a model is any good.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

DIGESTS = "weights.sha256"  # lines of `sha256sum`: it checks the folder, too
LARGEST_CONFIG = 1_000_000  # bytes
ALWAYS_POSSIBLE = 2**20  # of what the weights do not show, such as positions
WEIGHT_DTYPES = ("F16", "BF16", "F32", "F64")
WEIGHT_PATTERNS = ("*.safetensors", "*.bin", "*.onnx")

Shapes = Mapping[str, tuple[int, ...]]


class ModelFileError(ValueError):
    """Folder that has no model to load, or that must not be overwritten."""


def existing_file(path: Path) -> Path:
    """Return `path`, or raise unless it is a regular file or a link to one.

    Raises:
        ModelFileError: there is none, or it is a folder, device or pipe.
    """
    if not path.is_file():
        kind = "something else" if path.exists() else "none"
        raise ModelFileError(f"{path} must be an existing file, got {kind}")
    return path


def read_model_config(path: Path) -> dict[str, Any]:
    """Return the object in the configuration at `path`.

    Raises:
        ModelFileError: it is no regular file, larger than 1 MB, or no JSON object.
    """
    size = existing_file(path).stat().st_size
    if size > LARGEST_CONFIG:
        raise ModelFileError(f"{path} must have at most {LARGEST_CONFIG:,} bytes, got {size:,}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path} must be JSON, got: {error}") from error
    if not isinstance(content, dict):
        raise ModelFileError(f"{path} must hold an object, got {type(content).__name__}")
    return content


def weight_shapes(path: Path) -> Shapes:
    """Return the shape of each tensor in a safetensors file, from its header alone.

    Raises:
        ModelFileError: the file is missing or not whole.
    """
    try:
        with safe_open(str(existing_file(path)), framework="pt") as file:
            names = file.keys()
            return {name: tuple(file.get_slice(name).get_shape()) for name in names}
    except SafetensorError as error:
        raise ModelFileError(f"{path} must be a whole safetensors file, got: {error}") from error
    except MemoryError:  # the file is mapped as a whole
        size = path.stat().st_size
        raise ModelFileError(
            f"{path} must be a file that this machine has room to map, got {size:,} bytes"
        ) from None


def check_sizes(path: Path, sizes: Mapping[str, object], shapes: Shapes) -> None:
    """Raise unless a model of these sizes could have weights of these shapes, none below 0.

    Args:
        path: configuration, for the error.
        sizes: values of its fields; those that are no whole numbers are ignored.
        shapes: shapes of the weights.

    Raises:
        ModelFileError: there are more layers than tensors, more of something than numbers, or less
            than none.
    """
    numbers = count_numbers(shapes)
    for name, value in sizes.items():
        largest = len(shapes) if "layer" in name else max(numbers, ALWAYS_POSSIBLE)
        if isinstance(value, int) and value < 0:
            raise ModelFileError(f"{path}: {name} must be at least 0, got {value}")
        if isinstance(value, int) and value > largest:
            found = value if value < 2**63 else f"one of {value.bit_length()} bits"
            raise ModelFileError(
                f"{path}: {name} must be at most {largest}, which the weights beside it have room "
                f"for, got {found}"
            )


def count_numbers(shapes: Shapes) -> int:
    """Return how many numbers tensors of these shapes hold."""
    return sum(math.prod(shape) for shape in shapes.values())


def check_dtypes(path: Path, names: Iterable[str]) -> None:
    """Raise unless the weights of these names are numbers of a usual floating-point format.

    Other formats need scales, or are no weights.

    Raises:
        ModelFileError: the file has other numbers under one of the names.
    """
    with safe_open(str(path), framework="pt") as file:
        for name in sorted(names):
            found = file.get_slice(name).get_dtype()
            if found not in WEIGHT_DTYPES:
                raise ModelFileError(
                    f"{path} must have weights in one of {', '.join(WEIGHT_DTYPES)}, got {name} in "
                    f"{found}"
                )


def check_shapes(path: Path, wanted: Shapes, found: Shapes) -> None:
    """Raise unless the weights in `path` have the names and shapes that are wanted.

    Raises:
        ModelFileError: a tensor is missing, unknown or of another shape.
    """
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise ModelFileError(
                f"{path} must fit {path.with_name('config.json')}, which means {name} of shape "
                f"{wanted.get(name, 'none')}, got {found.get(name, 'none')}"
            )


def check_finite_weights(model: nn.Module, folder: Path) -> None:
    """Raise unless all weights are finite; a bias or a buffer may mask by minus infinity.

    Raises:
        ModelFileError: a weight is NaN or infinite.
    """
    for name, weight in chain(model.named_parameters(), model.named_buffers()):
        may_mask = weight.dim() == 1 or not isinstance(weight, nn.Parameter)
        if not _is_finite(weight.detach(), may_mask):
            raise ModelFileError(
                f"{folder} must have finite weights, got NaN or infinity in {name}: the file is "
                "damaged, or training diverged"
            )


def _is_finite(weight: Tensor, may_mask: bool) -> bool:
    """Return True if all numbers are finite, or minus infinity where it `may_mask`."""
    if not weight.numel() or not weight.is_floating_point():
        return True
    smallest, largest = torch.stack(weight.aminmax()).tolist()
    return math.isfinite(largest) and (may_mask or math.isfinite(smallest))


def weight_files(folder: Path) -> list[Path]:
    """Return the files with weights in `folder`, by name."""
    return sorted(path for pattern in WEIGHT_PATTERNS for path in folder.glob(pattern))


def write_digests(folder: Path) -> None:
    """Write the digest of each file with weights in `folder` beside them."""
    lines = [f"{_digest(path)}  {path.name}\n" for path in weight_files(folder)]
    (folder / DIGESTS).write_text("".join(lines), encoding="utf-8")


def check_digests(folder: Path) -> None:
    """Raise unless the weights in `folder` are those that were saved.

    A folder without digests, of an older version or of another program, is accepted.

    Raises:
        ModelFileError: a file has other bytes or is missing, or the digests cannot be read.
    """
    path = folder / DIGESTS
    if not path.exists():
        return
    for name, digest in _saved_digests(path):
        found = _digest(existing_file(folder / name))
        if found != digest:
            raise ModelFileError(
                f"{folder / name} must be as it was saved, with the digest in {path}, got "
                f"{found[:16]}...: copy the folder again; if you changed the weights, delete "
                f"{path.name}"
            )


def _saved_digests(path: Path) -> Iterable[tuple[str, str]]:
    """Return the names of files and their digests in `path`."""
    if existing_file(path).stat().st_size > LARGEST_CONFIG:
        raise ModelFileError(f"{path} must have at most {LARGEST_CONFIG:,} bytes")
    lines = path.read_bytes().decode("utf-8", errors="replace").splitlines()
    found = [re.fullmatch(r"([0-9a-f]{64}) [ *]([^/\\\0]+)", line) for line in lines]
    if not all(found):
        raise ModelFileError(
            f"{path} must have lines of sha256sum, a digest and a file's name: delete it to load "
            "the weights unchecked"
        )
    return [(line[2], line[1]) for line in found if line]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
