"""Pretrained students that begin with layers of a pretrained teacher.

A student is built from its teacher's configuration with the numbers of its layers, exactly as
`transformers` builds it from the folder that it will be saved in, and is given copies of the
weights. Architectures differ in how they name and build layers, so nothing is taken for granted:
each layer must be built as the layer that it is a copy of.

Left out, and refused: models that count their layers in another way, and models whose layers depend
on their place, except for the distances that the first layers of T5 and its relatives hold for all.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn

from textgen_env.models.huggingface.causal import HuggingFaceCausal
from textgen_env.models.huggingface.model import HuggingFaceModel
from textgen_env.models.huggingface.seq2seq import HuggingFaceSeq2Seq
from textgen_env.models.teacher_layers import (
    OPTION,
    TeacherLayers,
    TeacherLayersError,
    renumbered_layers,
)

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

COUNT = "num_hidden_layers"  # of a causal model's layers, or of an encoder's
DECODER_COUNTS = ("decoder_layers", "num_decoder_layers")
DROPOUTS = ("dropout", "dropout_rate", "resid_pdrop", "embd_pdrop")
SHARED_BIAS = "relative_attention_bias"  # in T5's first layers, which lend it to the others
MAY_DIFFER = ("layer_idx", f"has_{SHARED_BIAS}", "dropout", "training")
"""Settings in which a layer may differ from the one that it is a copy of."""


@dataclass(frozen=True)
class LayerList:
    """Layers of an encoder or decoder, of which a student begins with some.

    Attributes:
        name: the list's name in the model, such as `model.decoder.layers`.
        count_field: field of the configuration that has their number.
        chosen: indices of those that are copied.
        available: number of them in the teacher.
    """

    name: str
    count_field: str
    chosen: tuple[int, ...]
    available: int


def pretrained_student(teacher: HuggingFaceModel, layers: TeacherLayers) -> HuggingFaceModel:
    """Return a pretrained student that is a copy of its teacher with the chosen layers alone.

    Args:
        teacher: model without adapters; it stays as it is.
        layers: the layers.

    Raises:
        TeacherLayersError: the teacher does not have one of the layers, or its architecture is one
            whose layers cannot be left out one by one.
    """
    model = teacher.model
    lists = _chosen_lists(model, layers)
    fields = _smaller_fields(model.config, lists, layers.dropout)
    try:
        student = _built(model, fields)
    except Exception as error:  # of whatever an architecture cannot be built with
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise _refusal(model, reason[0]) from error
    _check_same_layers(model, student, lists)
    weights, chosen = model.state_dict(), {each.name: each.chosen for each in lists}
    student.load_state_dict(renumbered_layers(weights, chosen) | _shared_biases(weights, chosen))
    return _wrapped(teacher, student.eval())


def _chosen_lists(model: "PreTrainedModel", layers: TeacherLayers) -> list[LayerList]:
    """Return the lists of layers of a pretrained model with those that are chosen.

    Raises:
        TeacherLayersError: the model does not have one of the layers, or no such lists.
    """
    fields = model.config.to_dict()
    count = model.config.attribute_map.get(COUNT, COUNT)
    decoder_count = next((name for name in DECODER_COUNTS if name in fields), count)
    if model.config.is_encoder_decoder:
        sides = [
            (model.get_encoder(), count, layers.of_encoder),
            (model.get_decoder(), decoder_count, layers.of_decoder),
        ]
    elif layers.encoder is None and layers.encoder_indices is None:
        sides = [(model.get_decoder(), count, layers.of_decoder)]
    else:
        raise TeacherLayersError(
            f"{OPTION}.encoder must be left out for a causal model, which has decoder layers "
            f"alone, got {layers.encoder or layers.encoder_indices}"
        )
    found = []
    for stack, field, choose in sides:
        name, available = _layer_list(model, stack, fields.get(field))
        found.append(LayerList(name, field, choose(available), available))
    return found


def _layer_list(model: "PreTrainedModel", stack: nn.Module, available: object) -> tuple[str, int]:
    """Return the name of the list of a stack's layers, and their number.

    Args:
        model: the model that the stack is a part of.
        stack: encoder or decoder.
        available: number of its layers by the configuration; None if it has no such field.

    Raises:
        TeacherLayersError: the stack has no list of that many modules, or several.
    """
    found = [
        child
        for child in stack.children()
        if isinstance(child, nn.ModuleList) and len(child) == available
    ]
    if len(found) != 1:
        raise _refusal(model, f"{len(found)} lists of {available} layers")
    name = next(name for name, module in model.named_modules() if module is found[0])
    return name, len(found[0])


def _smaller_fields(
    config: "PreTrainedConfig", lists: Sequence[LayerList], dropout: float | None
) -> dict[str, Any]:
    """Return the fields of a student's configuration.

    Fields with a value for each layer, such as `layer_types`, keep those of the chosen layers.

    Raises:
        TeacherLayersError: a dropout is given and the configuration has none.
    """
    fields = config.to_dict()
    fields.update({each.count_field: len(each.chosen) for each in lists})
    if not config.is_encoder_decoder:
        (only,) = lists
        listed = {
            name: [value[index] for index in only.chosen]
            for name, value in fields.items()
            if "layer" in name and isinstance(value, list) and len(value) == only.available
        }
        fields.update(listed)
    if dropout is not None:
        named = [name for name in DROPOUTS if name in fields]
        if not named:
            raise TeacherLayersError(
                f"{OPTION}.dropout must be left out for a model without dropout, got {dropout}"
            )
        fields.update(dict.fromkeys(named, dropout))
    return fields


def _built(model: "PreTrainedModel", fields: dict[str, Any]) -> "PreTrainedModel":
    """Return a model of the class, dtype, device and attention of `model`, with random weights.

    Its configuration is read from `fields` as from a file.
    """
    build: Any = type(model)._from_config
    student: PreTrainedModel = build(
        type(model.config).from_dict(fields),
        attn_implementation=model.config._attn_implementation,
        dtype=model.dtype,
    )
    generation = model.generation_config
    assert generation is not None, "models that generate have one"
    student.generation_config = type(generation).from_dict(generation.to_dict())
    return cast("Any", student).to(model.device)


def _check_same_layers(
    model: "PreTrainedModel", student: "PreTrainedModel", lists: Iterable[LayerList]
) -> None:
    """Raise unless each layer of the student is built as the one that it is a copy of.

    Raises:
        TeacherLayersError: a layer has other parts or settings at its new place.
    """
    for each in lists:
        old, new = (whole.get_submodule(each.name) for whole in (model, student))
        layers = cast("nn.ModuleList", old)
        for place, layer in enumerate(cast("nn.ModuleList", new)):
            if _structure(layer) != _structure(layers[each.chosen[place]]):
                raise _refusal(model, f"some in {each.name} that depend on their place")


def _structure(layer: nn.Module) -> list[tuple[str, type, dict[str, object]]]:
    """Return the parts of a layer with the settings that decide on what they compute."""
    return [
        (name, type(part), _settings(part))
        for name, part in layer.named_modules()
        if not (name.endswith(SHARED_BIAS) or isinstance(part, nn.Dropout))
    ]


def _settings(part: nn.Module) -> dict[str, object]:
    """Return the numbers, strings and truth values that a module keeps."""
    return {
        name: value
        for name, value in vars(part).items()
        if not (name.startswith("_") or name in MAY_DIFFER)
        and isinstance(value, bool | int | float | str | None)
    }


def _shared_biases(
    weights: Mapping[str, Tensor], chosen: Mapping[str, Sequence[int]]
) -> dict[str, Tensor]:
    """Return the biases that first layers hold for all others, whichever layers are chosen.

    None for models each of whose layers has its own.
    """
    found = {}
    for name, indices in chosen.items():
        first, kept = f"{name}.0.", f"{name}.{indices[0]}."
        for weight_name, weight in weights.items():
            own = kept + weight_name.removeprefix(first)
            if weight_name.startswith(first) and SHARED_BIAS in weight_name and own not in weights:
                found[weight_name] = weight
    return found


def _wrapped(teacher: HuggingFaceModel, student: "PreTrainedModel") -> HuggingFaceModel:
    """Return `student` as a `SequenceModel` with the conventions of its teacher."""
    described = student, teacher.config, teacher.conventions, teacher.max_positions
    if isinstance(teacher, HuggingFaceSeq2Seq):
        return HuggingFaceSeq2Seq(*described, teacher.decoder_prompt).eval()
    return HuggingFaceCausal(*described).eval()


def _refusal(model: "PreTrainedModel", reason: str) -> TeacherLayersError:
    """Return the error of a model of which no student with the chosen layers can be made."""
    return TeacherLayersError(
        f"{OPTION} must choose layers that make a {model.config.model_type} model, got {reason}: "
        "choose others, or begin with another model (--student-init)"
    )
