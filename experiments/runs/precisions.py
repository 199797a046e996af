"""Precisions that models act in on this machine: dtype of the weights, and faster products."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from textgen_env.models.acceleration.int8 import with_int8_weights
from textgen_env.models.acceleration.prepacked import with_prepacked_weights
from textgen_env.models.storage import Model, load_model
from textgen_experiments.runs.folder import DTYPES

PrecisionName = Literal["float32", "bfloat16", "int8"]


class Precision(NamedTuple):
    """Way to act with a model.

    Attributes:
        dtype: dtype of the weights that are loaded.
        accelerate: function from the loaded model to the one that acts.
    """

    dtype: torch.dtype
    accelerate: Callable[[Model], Model]


PRECISIONS: dict[str, Precision] = {
    **{name: Precision(dtype, with_prepacked_weights) for name, dtype in DTYPES.items()},
    "int8": Precision(torch.float32, with_int8_weights),
}


def load_to_act(folder: Path, precision: str) -> Model:
    """Return the model in `folder`, on the CPU, with the products of a precision.

    Args:
        folder: of the model.
        precision: a name in `PRECISIONS`.

    Raises:
        ModelFileError, PretrainedError: it cannot be loaded.
    """
    dtype, accelerate = PRECISIONS[precision]
    return accelerate(load_model(folder, dtype))
