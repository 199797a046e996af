"""Students that begin with layers of their teacher.

A student has its teacher's embeddings, norms and widths, and the chosen ones of its layers. All of
it is copied: what the student learns does not reach the teacher.

Source: Shleifer and Rush, "Pre-trained Summarization Distillation", 2020, arXiv:2010.13002, whose
name for it is "shrink and fine-tune".
"""

from dataclasses import replace

from textgen_env.models.huggingface.model import HuggingFaceModel
from textgen_env.models.storage import Model
from textgen_env.models.teacher_layers import (
    OPTION,
    TeacherLayers,
    TeacherLayersError,
    renumbered_layers,
)
from textgen_env.models.transformer import Transformer


def student_from_layers(teacher: Model, layers: TeacherLayers) -> Model:
    """Return a student that is a copy of its teacher with the chosen layers alone.

    Args:
        teacher: model whose layers are copied; it stays as it is.
        layers: the layers.

    Returns:
        The student in evaluation mode, with its teacher's dtype and device.

    Raises:
        TeacherLayersError: the teacher does not have one of the layers, or is a model whose layers
            cannot be copied.
    """
    if isinstance(teacher, HuggingFaceModel):
        from textgen_env.models.huggingface.fewer_layers import pretrained_student

        return pretrained_student(teacher, layers)
    if not isinstance(teacher, Transformer):
        raise TeacherLayersError(
            f"{OPTION} must be left out unless the teacher is a Transformer, got a teacher of kind "
            f"{type(teacher).__name__}: leave it out, or choose another teacher"
        )
    encoder = layers.of_encoder(teacher.config.num_encoder_layers)
    decoder = layers.of_decoder(teacher.config.num_decoder_layers)
    config = replace(
        teacher.config,
        num_encoder_layers=len(encoder),
        num_decoder_layers=len(decoder),
        dropout=teacher.config.dropout if layers.dropout is None else layers.dropout,
    )
    student = config.build(teacher.special).to(teacher.embedding.weight)
    chosen = {"encoder": encoder, "decoder": decoder}
    student.load_state_dict(renumbered_layers(teacher.state_dict(), chosen))
    return student.eval()
