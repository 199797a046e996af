"""Formats of a model's folder: the project's own, and those of other programs.

The packages of other programs come with the extra `export` and are imported where they are used.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Literal

from textgen_env.generation.beam_search import decoder_of
from textgen_env.models.acceleration.cuda_graph import with_cuda_graphs
from textgen_env.models.export.common import ExportError, GenerateFn
from textgen_env.models.huggingface.model import HuggingFaceModel
from textgen_env.models.storage import Model, load_model, save_model
from textgen_env.tokenizers.subword import TextTokenizer
from textgen_experiments.runs.folder import RunError
from textgen_experiments.runs.precisions import PRECISIONS

Format = Literal["hf", "ctranslate2", "onnx", "safetensors"]
FORMAT_FILES: dict[Format, str] = {  # the first file that exists tells the format
    "hf": "generation_config.json",
    "ctranslate2": "model.bin",
    "onnx": "step.onnx",
    "safetensors": "model.safetensors",
}

EXPORTED_PRECISIONS: tuple[Format, ...] = ("ctranslate2", "onnx")
"""Formats whose precision is chosen when exporting."""


def format_of(folder: Path) -> Format | None:
    """Return the format of the model in `folder`, or None if there is no model."""
    return next((name for name, file in FORMAT_FILES.items() if (folder / file).is_file()), None)


def check_stepped(folder: Path, purpose: str) -> None:
    """Check that this project writes the texts of a model itself, token by token.

    Args:
        folder: of the model.
        purpose: what that is needed for, such as "to be served".

    Raises:
        RunError: the model is in another program's format.
    """
    if (name := format_of(folder)) not in ("safetensors", "hf"):
        raise RunError(
            f"model must be in this project's format or that of transformers {purpose}, got "
            f"{folder} in that of {name}: give the run that it was exported from"
        )


def load_generator(
    folder: Path, *, beam_size: int = 1, precision: str = "float32", device: str = "cpu"
) -> GenerateFn:
    """Load a model for decoding; models of `transformers` are decoded by this project.

    Args:
        folder: of the model.
        beam_size: 1 for greedy.
        precision: a name in `PRECISIONS`.
        device: where it runs; CTranslate2 and ONNX graphs run on CPUs alone.

    Raises:
        RunError: its package is not installed, its precision was chosen when it was exported, it
            has no such precision, or it is a graph, which has no beams.
        ValueError: the device has no such precision.
    """
    name = format_of(folder)
    if name in EXPORTED_PRECISIONS and precision != "float32":
        raise RunError(f"precision must be chosen when exporting to {name}, got {precision}")
    if name == "onnx" and beam_size != 1:
        raise RunError(
            f"beam_size must be 1 for an export to onnx, got {beam_size}: use the run's model"
        )
    if name == "ctranslate2":
        with extra("export"):
            from textgen_env.models.export.ctranslate2 import load_ctranslate2
        return load_ctranslate2(folder, beam_size)
    if name == "onnx":
        with extra("export"):
            from textgen_env.models.export.onnx.load import load_onnx
        return load_onnx(folder)
    dtype, accelerate = PRECISIONS[precision]
    model = accelerate(load_model(folder, dtype).to(device))
    return partial(decoder_of(beam_size), with_cuda_graphs(model))


def save_as(
    name: Format,
    model: Model,
    tokenizer: TextTokenizer,
    folder: Path,
    *,
    precision: Literal["float32", "int8"] = "float32",
    max_steps: int = 128,
) -> None:
    """Write `model` to the empty `folder`; a pretrained one is saved by `transformers`.

    Args:
        name: the format.
        model: in float32.
        tokenizer: the model's tokenizer.
        folder: an existing folder.
        precision: of the weights; int8 for ctranslate2 and onnx.
        max_steps: default length limit for `transformers` and for programs that run the graphs, in
            tokens; a pretrained model keeps its own.

    Raises:
        ExportError: the format cannot hold the model or the precision.
        RunError: a package is not installed.
    """
    if precision != "float32" and name not in EXPORTED_PRECISIONS:
        raise ExportError(f"precision must be float32 for format {name}, got {precision}")
    if name == "safetensors" or (name == "hf" and isinstance(model, HuggingFaceModel)):
        save_model(model, folder, tokenizer)
    elif name == "hf":
        with extra("export"):
            from textgen_env.models.export.huggingface import save_hf
        save_hf(model, tokenizer, folder, max_steps)
    elif name == "onnx":
        with extra("export"):
            from textgen_env.models.export.onnx.save import save_onnx
        save_onnx(model, tokenizer, folder, precision, max_steps)
    else:
        with extra("export"):
            from textgen_env.models.export.ctranslate2 import save_ctranslate2
        save_ctranslate2(model, tokenizer, folder, precision)


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Raise an error with the extra to install where an import of a package fails.

    Raises:
        RunError: a package is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise RunError(
            f"{error.name} must be installed for this: pip install 'textgen-env[{name}]'"
        ) from error
