"""Greedy decoding of exported graphs by ONNX Runtime on CPUs.

This module needs the package onnxruntime of the extra `export`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import torch
from onnxruntime import (
    InferenceSession,
    SessionOptions,  # pyright: ignore[reportAttributeAccessIssue] - of a compiled module
)
from torch import Tensor

from textgen_env.models.export.common import ExportError, GenerateFn
from textgen_env.models.model_files import check_digests
from textgen_env.types import SpecialTokens, trimmed

ENCODER, STEP, DESCRIPTION = "encoder.onnx", "step.onnx", "decoding.json"
ENCODER_ROWS = 16  # sources that the encoder reads at a time
MOST_ENDED_ROWS = 0.1  # share of the rows; dropping them copies what is known of the others
PADDING = {"source_bias": -np.inf}
"""Value of an output of the encoder at padding, where it is not 0."""


@dataclass(frozen=True)
class GraphDescription:
    """Content of `decoding.json`: what a program must know to decode with the graphs.

    Attributes:
        special: ids of the tokens `pad`, `start` and `end`.
        vocab_size: number of logits, V.
        max_steps: default of the largest number of tokens to write; the graphs have no limit.
        memory: names of the encoder's outputs that all steps read.
        states: names of its other outputs, which the first step reads; each step returns the next
            one of NAME as `next_NAME`.
    """

    special: dict[str, int]
    vocab_size: int
    max_steps: int
    memory: list[str]
    states: list[str]

    @property
    def encoder_outputs(self) -> list[str]:
        """Names of what the encoder returns for `source`, and of what a step reads besides."""
        return [*self.memory, *self.states]

    @property
    def step_outputs(self) -> list[str]:
        """Names of what the step returns."""
        return ["logits", *(f"next_{name}" for name in self.states)]


def load_onnx(folder: Path) -> GenerateFn:
    """Return a function that decodes greedily with graphs written by `save_onnx`.

    It has as many threads as PyTorch. Rows that have ended are dropped once they are some.

    Args:
        folder: folder of the graphs.

    Raises:
        ExportError: a file is missing or damaged.
        ModelFileError: the graphs are not those that were exported.
    """
    check_digests(folder)
    try:
        content = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        description = GraphDescription(**content)
        encoder, step = (_session(folder / name) for name in (ENCODER, STEP))
    except Exception as error:  # those of onnxruntime have no class in common
        raise ExportError(f"{folder} must hold graphs for ONNX Runtime, got: {error}") from error
    return partial(_greedy, encoder, step, description)


def _session(path: Path) -> InferenceSession:
    options = SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _greedy(
    encoder: InferenceSession,
    step: InferenceSession,
    description: GraphDescription,
    source: Tensor,
    max_steps: int,
) -> Tensor:
    """Return (B, max_steps) int64 tokens of (B, S) sources, PAD after the end."""
    special = SpecialTokens(**description.special)
    tokens = np.full((len(source), max_steps), special.pad)
    rows = (source != special.pad).sum(1).argsort(descending=True, stable=True).numpy()
    previous, ended = np.full(len(rows), special.start), np.zeros(len(rows), bool)
    given = _encode(encoder, description, source[rows])
    for position in range(max_steps):
        logits, *states = _run(step, description.step_outputs, {"previous": previous, **given})
        tokens[rows, position] = previous = np.where(ended, special.pad, logits.argmax(-1))
        given.update(zip(description.states, states, strict=True))
        ended |= previous == special.end
        if ended.all():
            break
        if ended.mean() > MOST_ENDED_ROWS:
            kept = ~ended
            rows, previous, ended = rows[kept], previous[kept], ended[kept]
            given = {name: value[kept] for name, value in given.items()}
    return torch.from_numpy(tokens)


def _encode(
    encoder: InferenceSession, description: GraphDescription, source: Tensor
) -> dict[str, np.ndarray]:
    """Return the encoder's outputs by name, for sources sorted by length.

    Few rows are read at a time, as wide as the longest of them: what is computed at padding costs
    as much as what is computed at tokens.
    """
    special = SpecialTokens(**description.special)
    parts = [
        _run(encoder, description.encoder_outputs, {"source": trimmed(part, special).numpy()})
        for part in source.split(ENCODER_ROWS)
    ]
    columns = zip(description.encoder_outputs, zip(*parts, strict=True), strict=True)
    return {name: _joined(arrays, name) for name, arrays in columns}


def _joined(parts: Sequence[np.ndarray], name: str) -> np.ndarray:
    """Return the rows of all parts, those of narrower sources filled up with padding."""
    shape = np.max([part.shape for part in parts], 0)
    joined = np.full((sum(map(len, parts)), *shape[1:]), PADDING.get(name, 0.0), parts[0].dtype)
    first = 0
    for part in parts:
        joined[(slice(first, first + len(part)), *map(slice, part.shape[1:]))] = part
        first += len(part)
    return joined


def _run(
    session: InferenceSession, outputs: list[str], inputs: dict[str, np.ndarray]
) -> list[np.ndarray]:
    """Return the named outputs of a graph, all of which are dense arrays."""
    return cast("list[np.ndarray]", session.run(outputs, inputs))
