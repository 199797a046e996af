"""Encoder and step of each kind of student as functions of named tensors, which become graphs.

What the encoder makes of the source is *memory*, which all steps read; what a step hands to the
next is a *state*. Both are tensors whose first dimension is the row, so that rows can be selected.
All rows of a batch stand at the same position. This module needs PyTorch alone.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from textgen_env.models.encoder_decoder import EncoderDecoder
from textgen_env.models.export.common import SUPPRESSION_BIAS, ExportError
from textgen_env.models.export.onnx.caches import GrowingTarget, GrowingUnitMemory, LayeredSource
from textgen_env.models.export.onnx.gru import BidirectionalGru
from textgen_env.models.huggingface.model import HuggingFaceModel
from textgen_env.models.hybrid import Hybrid, HybridDecoderLayer
from textgen_env.models.layers import sinusoids
from textgen_env.models.recurrent import Recurrent
from textgen_env.models.recurrent_cache import RecurrentCache
from textgen_env.models.storage import Model
from textgen_env.models.transformer import DecoderLayer, Transformer
from textgen_env.types import SpecialTokens

BATCH, SOURCE_LENGTH, TARGET_LENGTH = "batch", "source_length", "target_length"
Axes = dict[int, str]
"""Dimensions whose size is not fixed, and the names of these sizes."""
Tensors = dict[str, Tensor]


class StudentGraphs(nn.Module, ABC):
    """Encoder and step of a student.

    Attributes:
        memory: name of each tensor of the memory -> its free dimensions.
        states: name of each state -> its free dimensions.
    """

    memory: dict[str, Axes]
    states: dict[str, Axes]

    @abstractmethod
    def encode(self, source: Tensor) -> Tensors:
        """Return the memory and the states before the first step.

        Args:
            source: (B, S) int64, PAD after each row's end token.
        """

    @abstractmethod
    def step(self, previous: Tensor, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensors]:
        """Return the logits of the next token, (B, V), and the states after this step.

        Args:
            previous: (B,) int64, the last token of each prefix.
            tensors: the memory and the states before this step.
        """


class RecurrentGraphs(StudentGraphs):
    """Graphs of a `Recurrent`; a state for each layer is all that its steps hand on."""

    def __init__(self, model: Recurrent) -> None:
        super().__init__()
        self.model = model
        cells = zip(model.forward_encoder, model.backward_encoder, strict=True)
        self.encoder = nn.ModuleList(
            BidirectionalGru(cast("nn.GRUCell", ahead), cast("nn.GRUCell", back))
            for ahead, back in cells
        )
        self.memory = {
            name: {0: BATCH, 1: SOURCE_LENGTH} for name in ("source_keys", "source_values")
        }
        self.memory["source_bias"] = {0: BATCH, 2: SOURCE_LENGTH}
        self.states = {f"state_{layer}": {0: BATCH} for layer in range(len(model.decoder))}

    def encode(self, source: Tensor) -> Tensors:
        """Return the memory and the states, as the base class says."""
        mask = source != self.model.special.pad
        hidden = final = self.model.embed(source.t()) * math.sqrt(self.model.width)
        length = mask.sum(1)
        for layer in self.encoder:
            hidden, final = layer(hidden, length)
        cache = self.model.first_cache(hidden, final, mask)
        values = [cache.source_keys, cache.source_values, cache.source_bias]
        return dict(zip([*self.memory, *self.states], [*values, *cache.states], strict=True))

    def step(self, previous: Tensor, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensors]:
        """Return the logits and the next states, as the base class says."""
        cache = RecurrentCache(
            torch.stack([tensors[name] for name in self.states]),
            *(tensors[name] for name in self.memory),
        )
        logits, cache = self.model.step(previous, cache)
        return logits, dict(zip(self.states, cache.states, strict=True))


class EncoderDecoderGraphs(StudentGraphs):
    """Base of the graphs of models with a Transformer encoder."""

    def __init__(self, model: EncoderDecoder) -> None:
        super().__init__()
        self.model = model
        layers = range(len(model.decoder))
        self.source_names = [(f"source_keys_{layer}", f"source_values_{layer}") for layer in layers]
        self.target_names = [(f"keys_{layer}", f"values_{layer}") for layer in layers]
        self.memory = {"source_bias": {0: BATCH, 3: SOURCE_LENGTH}}
        for names in self.source_names:
            self.memory |= {name: {0: BATCH, 2: SOURCE_LENGTH} for name in names}
        self.states = {"position": {0: BATCH}}

    def encode(self, source: Tensor) -> Tensors:
        """Return the memory and the states, as the base class says."""
        memory = self.model.source_memory(source)
        tensors = {"source_bias": memory.bias[:, :1]}
        for names, keys_values in zip(self.source_names, memory.keys_values, strict=True):
            tensors |= zip(names, keys_values, strict=True)
        return {**tensors, "position": torch.zeros_like(source[:, 0]), **self.first_states(source)}

    def step(self, previous: Tensor, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensors]:
        """Return the logits and the next states, as the base class says."""
        position = tensors["position"]
        hidden = self.model.embed_next(previous, sinusoids(position, self.model.width))
        keys, values = _layered(tensors, self.source_names)
        source = LayeredSource(keys, values, tensors["source_bias"])
        hidden, states = self.decode(hidden, tensors, source)
        logits = self.model.project(self.model.decoder_norm(hidden))
        return logits, {"position": position + 1, **states}

    @abstractmethod
    def first_states(self, source: Tensor) -> Tensors:
        """Return the states before the first step, except the position, for (B, S) `source`."""

    @abstractmethod
    def decode(
        self, hidden: Tensor, tensors: Mapping[str, Tensor], source: LayeredSource
    ) -> tuple[Tensor, Tensors]:
        """Return the last layer's output, (B, width), and the next states except the position.

        Args:
            hidden: (B, width), the input of the first layer.
            tensors: as those of `step`.
            source: keys and values of the source.
        """


class TransformerGraphs(EncoderDecoderGraphs):
    """Graphs of a `Transformer`, whose states are the keys and values of the target so far."""

    def __init__(self, model: Transformer) -> None:
        super().__init__(model)
        size = model.config
        self.head_shape = (size.num_heads, 0, size.width // size.num_heads)
        for names in self.target_names:
            self.states |= {name: {0: BATCH, 2: TARGET_LENGTH} for name in names}

    def first_states(self, source: Tensor) -> Tensors:
        """Return keys and values of no position, (B, H, 0, D) each."""
        names = [name for names in self.target_names for name in names]
        return {name: torch.zeros(source.shape[0], *self.head_shape) for name in names}

    def decode(
        self, hidden: Tensor, tensors: Mapping[str, Tensor], source: LayeredSource
    ) -> tuple[Tensor, Tensors]:
        """Return the last layer's output and longer keys and values, as the base class says."""
        cache = GrowingTarget(source, *_layered(tensors, self.target_names))
        layers = cast("Iterator[DecoderLayer]", iter(self.model.decoder))
        for index, layer in enumerate(layers):
            hidden = layer.step(hidden, cache, index, tensors["position"])
        states: Tensors = {}
        for names, *longer in zip(self.target_names, cache.keys, cache.values, strict=True):
            states |= zip(names, longer, strict=True)
        return hidden, states


class HybridGraphs(EncoderDecoderGraphs):
    """Graphs of a `Hybrid`, with a state for each layer; units that attend have keys and values."""

    def __init__(self, model: Hybrid) -> None:
        super().__init__(model)
        self.layers = [cast("HybridDecoderLayer", layer) for layer in model.decoder]
        self.memory_width = self.layers[0].unit.memory_width
        for layer, names in enumerate(self.target_names):
            self.states[f"state_{layer}"] = {0: BATCH}
            if self.memory_width:
                self.states |= {name: {0: BATCH, 2: TARGET_LENGTH} for name in names}

    def first_states(self, source: Tensor) -> Tensors:
        """Return states of zeros, (B, width), and for units that attend (B, 1, 0, D) tensors."""
        states: Tensors = {}
        for layer, names in enumerate(self.target_names):
            states[f"state_{layer}"] = torch.zeros(source.shape[0], self.model.width)
            if self.memory_width:
                shape = (source.shape[0], 1, 0, self.memory_width)
                states |= {name: torch.zeros(shape) for name in names}
        return states

    def decode(
        self, hidden: Tensor, tensors: Mapping[str, Tensor], source: LayeredSource
    ) -> tuple[Tensor, Tensors]:
        """Return the last layer's output and the units' states, as the base class says."""
        states: Tensors = {}
        nothing = torch.zeros(hidden.shape[0], 1, 0, 0)
        for index, layer in enumerate(self.layers):
            keys, values = (tensors.get(name, nothing) for name in self.target_names[index])
            memory, name = GrowingUnitMemory(keys, values), f"state_{index}"
            hidden, states[name] = layer.step(hidden, tensors[name], memory, source, index)
            if self.memory_width:
                states |= zip(self.target_names[index], (memory.keys, memory.values), strict=True)
        return hidden, states


class EncoderGraph(nn.Module):
    """The encoder as a module from one tensor to a tuple of tensors."""

    def __init__(self, graphs: StudentGraphs) -> None:
        super().__init__()
        self.graphs = graphs

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the memory and the first states, in the order of their names.

        Args:
            *tensors: the source alone, (B, S) int64.
        """
        encoded = self.graphs.encode(*tensors)
        return tuple(encoded[name] for name in (*self.graphs.memory, *self.graphs.states))


class StepGraph(nn.Module):
    """The step as a module of tensors alone, whose logits rule out padding and start token.

    Args:
        graphs: encoder and step.
        special: special tokens of the model.
        vocab_size: V.
    """

    def __init__(self, graphs: StudentGraphs, special: SpecialTokens, vocab_size: int) -> None:
        super().__init__()
        self.graphs = graphs
        self.bias = torch.zeros(vocab_size)
        self.bias[[special.pad, special.start]] = SUPPRESSION_BIAS

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the logits, (B, V), and the states after a step, in the order of their names.

        Args:
            *tensors: the previous tokens, (B,) int64, the memory, and the states before the step.
        """
        previous, *given = tensors
        names = (*self.graphs.memory, *self.graphs.states)
        logits, states = self.graphs.step(previous, dict(zip(names, given, strict=True)))
        return (logits + self.bias, *(states[name] for name in self.graphs.states))


def _layered(
    tensors: Mapping[str, Tensor], names: Sequence[tuple[str, str]]
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the keys and the values of all layers, given their names layer by layer."""
    return [tensors[name] for name, _ in names], [tensors[name] for _, name in names]


def graphs_of(model: Model) -> StudentGraphs:
    """Return the graphs of a student of this project.

    Raises:
        ExportError: the model is of another kind.
    """
    match model:
        case Recurrent():
            return RecurrentGraphs(model)
        case Transformer():
            return TransformerGraphs(model)
        case Hybrid():
            return HybridGraphs(model)
    kind = model.config.model_type if isinstance(model, HuggingFaceModel) else type(model).__name__
    raise ExportError(
        "model must be a recurrent, hybrid or Transformer student of this project for onnx, got "
        f"{kind}: export to hf if it is pretrained, else to safetensors"
    )
