"""Writing of a student as two ONNX graphs, with a description for programs that run them.

`encoder.onnx` is run once for a batch of sources, `step.onnx` once for each token. This module
needs the extra `export`.
"""

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import onnxscript  # noqa: F401 - torch.onnx writes with it, and imports it late
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import Tensor, nn

from textgen_env.models.export.common import check_served_alone, save_served_tokenizer
from textgen_env.models.export.onnx.graphs import (
    BATCH,
    SOURCE_LENGTH,
    Axes,
    EncoderGraph,
    StepGraph,
    graphs_of,
)
from textgen_env.models.export.onnx.load import DESCRIPTION, ENCODER, STEP, GraphDescription
from textgen_env.models.model_files import write_digests
from textgen_env.models.storage import TOKENIZER, Model
from textgen_env.tokenizers.subword import TextTokenizer

EXAMPLE_ROWS, EXAMPLE_SOURCE_LENGTH, EXAMPLE_STEPS = 2, 5, 3  # of traced tensors; all differ


def save_onnx(
    model: Model,
    tokenizer: TextTokenizer,
    folder: Path,
    precision: Literal["float32", "int8"],
    max_steps: int,
) -> None:
    """Write the graphs of `model`, their description and its tokenizer.

    Args:
        model: a student of this project, in float32 and evaluation mode, on the CPU.
        tokenizer: tokenizer of the model.
        folder: existing folder.
        precision: int8 has a scale for each output of a linear layer; embeddings, attention's own
            products and the encoder's gated recurrent units stay in float32.
        max_steps: length limit that the description names, in tokens.

    Raises:
        ExportError: the model is of another kind, or its tokenizer needs code of this project.
    """
    graphs = graphs_of(model)
    check_served_alone(model, tokenizer)
    description = GraphDescription(
        special=model.special._asdict(),
        vocab_size=model.vocab_size,
        max_steps=max_steps,
        memory=list(graphs.memory),
        states=list(graphs.states),
    )
    encoder, step = EncoderGraph(graphs), StepGraph(graphs, model.special, model.vocab_size)
    source = torch.full((EXAMPLE_ROWS, EXAMPLE_SOURCE_LENGTH), model.special.end)
    previous, tensors = source[:, 0], encoder(source)
    for _ in range(EXAMPLE_STEPS):  # until no state is empty
        _, *states = step(previous, *tensors)
        tensors = (*tensors[: len(graphs.memory)], *states)
    with _quiet_exporter():
        axes: dict[str, Axes] = {"source": {0: BATCH, 1: SOURCE_LENGTH}}
        _write_graph(encoder, (source,), axes, description.encoder_outputs, folder / ENCODER)
        axes = {"previous": {0: BATCH}, **graphs.memory, **graphs.states}
        _write_graph(step, (previous, *tensors), axes, description.step_outputs, folder / STEP)
        if precision == "int8":
            for name in (ENCODER, STEP):
                quantize_graph(folder / name)
    (folder / DESCRIPTION).write_text(json.dumps(asdict(description), indent=2) + "\n")
    write_digests(folder)
    save_served_tokenizer(tokenizer, folder / TOKENIZER)


def _write_graph(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    axes: dict[str, Axes],
    outputs: list[str],
    path: Path,
) -> None:
    """Write the graph of a module.

    Args:
        module: takes and returns tensors.
        inputs: examples of what it takes; sizes that are free in `axes` are at least 2 and differ.
        axes: name of each input -> its free dimensions.
        outputs: names of what it returns.
        path: file to write.
    """
    program = torch.onnx.export(
        module,
        inputs,
        input_names=list(axes),
        output_names=outputs,
        dynamic_shapes={"tensors": tuple(axes.values())},
        dynamo=True,
        verbose=False,
    )
    assert program is not None, "the exporter that traces with torch.export returns a program"
    ClearMetadataAndDocStringPass()(program.model)  # they name files of this machine
    program.save(path, external_data=False)


def quantize_graph(path: Path) -> None:
    """Replace the weights of matrix products in the graph at `path` by integers.

    They have 7 bits: processors that lack instructions for such products add two of them in 16
    bits, which would overflow.
    """
    quantize_dynamic(
        path,
        path,
        op_types_to_quantize=["MatMul"],
        per_channel=True,
        reduce_range=True,
        weight_type=QuantType.QInt8,
    )


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silence the exporter's remarks on what it does not need, such as torchvision."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(disabled)
