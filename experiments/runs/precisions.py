"""Precisions that models act in on this machine: dtype of the weights, and faster products."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from textgen_env.models.acceleration.int8 import with_int8_weights
from textgen_env.models.acceleration.prepacked import with_prepacked_weights
from textgen_env.models.huggingface.model import HuggingFaceModel
from textgen_env.models.storage import Model, load_model
from textgen_experiments.runs.folder import DTYPES, RunError

PrecisionName = Literal["float32", "bfloat16", "int8"]


class Precision(NamedTuple):
    """Way to act with a model.

    Attributes:
        dtype: dtype of the weights that are loaded.
        accelerate: function from the loaded model to the one that acts.
    """

    dtype: torch.dtype
    accelerate: Callable[[Model], Model]


def in_int8(model: Model) -> Model:
    """Return a copy of one of the project's own models that acts in int8.

    Raises:
        RunError: the model is a pretrained one.
        ValueError: the model is not on a CPU.
    """
    if isinstance(model, HuggingFaceModel):
        raise RunError(
            "precision must be float32 or bfloat16 for a pretrained model, got int8: take one of "
            "them, or a student of this project's own"
        )
    return with_int8_weights(model)


PRECISIONS: dict[str, Precision] = {
    **{name: Precision(dtype, with_prepacked_weights) for name, dtype in DTYPES.items()},
    "int8": Precision(torch.float32, in_int8),
}


def load_to_act(folder: Path, precision: str) -> Model:
    """Return the model in `folder`, on the CPU, with the products of a precision.

    Args:
        folder: of the model.
        precision: a name in `PRECISIONS`.

    Raises:
        RunError: a pretrained model has no such precision.
        ModelFileError, PretrainedError: it cannot be loaded.
    """
    dtype, accelerate = PRECISIONS[precision]
    return accelerate(load_model(folder, dtype))
