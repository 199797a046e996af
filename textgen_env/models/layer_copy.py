"""Students that begin with layers of their teacher.

A student has its teacher's embeddings, norms and widths, and the chosen ones of its layers. All of
it is copied: what the student learns does not reach the teacher.

Source: Shleifer and Rush, "Pre-trained Summarization Distillation", 2020, arXiv:2010.13002, whose
name for it is "shrink and fine-tune".
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from torch import Tensor

from textgen_env.bounds import check_at_least
from textgen_env.models.config import check_dropout
from textgen_env.models.storage import Model
from textgen_env.models.transformer import Transformer

OPTION = "student_from_teacher"


class TeacherLayersError(ValueError):
    """Layers that a teacher does not have, or a teacher whose layers cannot be copied."""


@dataclass(frozen=True)
class TeacherLayers:
    """Layers of the teacher that a student begins with.

    A number of layers stands for layers spread evenly over the teacher's, the first and the last
    among them, and 1 for the last. Kind, widths and vocabulary are the teacher's too, whatever the
    student's own size says.

    Attributes:
        encoder: number of encoder layers; None for all, unless `encoder_indices` are given.
        decoder: number of decoder layers; None for all, unless `decoder_indices` are given.
        encoder_indices: encoder layers by their index in the teacher, from 0 on and ascending.
        decoder_indices: decoder layers by their index in the teacher, from 0 on and ascending.
        dropout: probability of dropout, in [0, 0.99]; None for the teacher's.
    """

    encoder: int | None = None
    decoder: int | None = None
    encoder_indices: tuple[int, ...] | None = None
    decoder_indices: tuple[int, ...] | None = None
    dropout: float | None = None

    def __post_init__(self) -> None:
        check_at_least(self, encoder=1, decoder=1)
        if self.dropout is not None:
            check_dropout(self)
        _check_choice("encoder", self.encoder, self.encoder_indices)
        _check_choice("decoder", self.decoder, self.decoder_indices)

    def of_encoder(self, available: int) -> tuple[int, ...]:
        """Return the indices of the chosen ones of `available` encoder layers.

        Raises:
            TeacherLayersError: the teacher does not have one of them.
        """
        return _choose("encoder", self.encoder, self.encoder_indices, available)

    def of_decoder(self, available: int) -> tuple[int, ...]:
        """Return the indices of the chosen ones of `available` decoder layers.

        Raises:
            TeacherLayersError: the teacher does not have one of them.
        """
        return _choose("decoder", self.decoder, self.decoder_indices, available)


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


def renumbered_layers(
    weights: Mapping[str, Tensor], chosen: Mapping[str, Sequence[int]]
) -> dict[str, Tensor]:
    """Return the weights outside of all layers, and those of chosen layers, numbered from 0.

    Args:
        weights: weights of a model by name.
        chosen: name of each list of layers, such as `encoder` -> indices of the chosen ones.
    """
    lists = tuple(f"{name}." for name in chosen)
    found = {name: weight for name, weight in weights.items() if not name.startswith(lists)}
    for layer_list, indices in chosen.items():
        for new, old in enumerate(indices):
            prefix = f"{layer_list}.{old}."
            found |= {
                f"{layer_list}.{new}.{name.removeprefix(prefix)}": weight
                for name, weight in weights.items()
                if name.startswith(prefix)
            }
    return found


def _check_choice(side: str, count: int | None, indices: Sequence[int] | None) -> None:
    """Raise unless the layers of one side are given by number, by index or not at all.

    Raises:
        ValueError: both are given, or the indices do not ascend from 0 or more.
    """
    if indices is None:
        return
    if count is not None:
        raise ValueError(
            f"{OPTION}.{side} and {OPTION}.{side}_indices must not both be given, got {count} and "
            f"{tuple(indices)}: leave one out"
        )
    are_whole = all(type(index) is int and index >= 0 for index in indices)
    if not indices or not are_whole or any(after <= before for before, after in pairwise(indices)):
        raise ValueError(
            f"{OPTION}.{side}_indices must be whole numbers of at least 0 that ascend, at least "
            f"one, got {tuple(indices)}"
        )


def _choose(
    side: str, count: int | None, indices: Sequence[int] | None, available: int
) -> tuple[int, ...]:
    """Return the indices of chosen layers, spread evenly where a number of them is given."""
    if indices is not None:
        if indices[-1] >= available:
            raise TeacherLayersError(
                f"{OPTION}.{side}_indices must be below {available}, the number of the teacher's "
                f"{side} layers, got {indices[-1]}"
            )
        return tuple(indices)
    count = available if count is None else count
    if count > available:
        raise TeacherLayersError(
            f"{OPTION}.{side} must be at most {available}, the number of the teacher's {side} "
            f"layers, got {count}"
        )
    if count == 1:
        return (available - 1,)
    return tuple(round(place * (available - 1) / (count - 1)) for place in range(count))
