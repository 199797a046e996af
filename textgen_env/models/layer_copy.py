"""Students that begin with layers of their teacher.

A student has its teacher's embeddings, norms and widths, and the chosen ones of its layers. All of
it is copied: what the student learns does not reach the teacher. A hybrid has the encoder, and of
each decoder layer all but self-attention, in whose place a new recurrent unit stands.

Source: Shleifer and Rush, "Pre-trained Summarization Distillation", 2020, arXiv:2010.13002, whose
name for it is "shrink and fine-tune".
"""

from dataclasses import fields, replace
from typing import cast

from textgen_env.models.config import ModelConfig
from textgen_env.models.encoder_decoder import EncoderDecoderConfig
from textgen_env.models.huggingface.model import HuggingFaceModel
from textgen_env.models.hybrid import Hybrid, HybridConfig
from textgen_env.models.storage import Model
from textgen_env.models.teacher_layers import (
    OPTION,
    TeacherLayers,
    TeacherLayersError,
    renumbered_layers,
)
from textgen_env.models.transformer import Transformer, TransformerConfig


def student_from_layers(
    teacher: Model, layers: TeacherLayers, kind: ModelConfig | None = None
) -> Model:
    """Return a student with copies of the chosen layers and of all that is outside of layers.

    Args:
        teacher: model whose layers are copied; it stays as it is.
        layers: the layers.
        kind: `HybridConfig` for a student with recurrent units, which are drawn from the global
            generator of random numbers; None for a student of the teacher's kind. Its sizes are
            the teacher's, so they must be those or the defaults.

    Returns:
        The student in evaluation mode, with its teacher's dtype and device.

    Raises:
        TeacherLayersError: the teacher does not have one of the layers, is a model whose layers
            cannot be copied, or has layers that do not fit a student of this kind or size.
    """
    if isinstance(teacher, HuggingFaceModel):
        from textgen_env.models.huggingface.fewer_layers import pretrained_student

        if kind not in (None, teacher.config):
            raise TeacherLayersError(
                f"student must be left out beside {OPTION} for a pretrained teacher, got {kind}"
            )
        return pretrained_student(teacher, layers)
    if not isinstance(teacher, Transformer | Hybrid):
        raise TeacherLayersError(
            f"{OPTION} must be left out unless the teacher is a Transformer, a hybrid or a "
            f"pretrained model, got a teacher of kind {type(teacher).__name__}: leave it out, or "
            "choose another teacher"
        )
    chosen = {
        "encoder": layers.of_encoder(teacher.config.num_encoder_layers),
        "decoder": layers.of_decoder(teacher.config.num_decoder_layers),
    }
    config = replace(
        _of_kind(kind, cast("TransformerConfig | HybridConfig", teacher.config)),
        num_encoder_layers=len(chosen["encoder"]),
        num_decoder_layers=len(chosen["decoder"]),
        dropout=teacher.config.dropout if layers.dropout is None else layers.dropout,
    )
    _check_sizes(kind, config)
    student = config.build(teacher.special).to(teacher.embedding.weight)
    weights, own = renumbered_layers(teacher.state_dict(), chosen), student.state_dict()
    student.load_state_dict(own | {name: weights[name] for name in own.keys() & weights.keys()})
    return student.eval()


def _of_kind(
    kind: ModelConfig | None, teacher: TransformerConfig | HybridConfig
) -> TransformerConfig | HybridConfig:
    """Return a configuration of a kind with its teacher's sizes.

    Raises:
        TeacherLayersError: the teacher's layers do not fit this kind.
    """
    if kind is None or type(kind) is type(teacher):
        return teacher
    if isinstance(kind, HybridConfig):
        sizes = {field.name: vars(teacher)[field.name] for field in fields(EncoderDecoderConfig)}
        return replace(kind, **sizes)
    raise TeacherLayersError(
        f"student must be of the teacher's kind or a hybrid for {OPTION}, got {kind} with a "
        f"teacher of {type(teacher).__name__}"
    )


def _check_sizes(kind: ModelConfig | None, made: TransformerConfig | HybridConfig) -> None:
    """Raise unless each size that is asked for is the default or the one that is made.

    Raises:
        TeacherLayersError: a size would be ignored.
    """
    for name, value in vars(kind).items() if kind is not None else ():
        if value not in (vars(type(made)())[name], vars(made)[name]):
            raise TeacherLayersError(
                f"student.{name} must be left out beside {OPTION}, which makes it "
                f"{vars(made)[name]}, got {value}"
            )
