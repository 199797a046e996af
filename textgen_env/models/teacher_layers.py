"""Choice of the teacher's layers that a student begins with, and their weights' new names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from textgen_env.bounds import check_at_least
from textgen_env.models.config import check_dropout

OPTION = "student_from_teacher"


class TeacherLayersError(ValueError):
    """Layers that a teacher does not have, or a teacher whose layers cannot be copied."""


@dataclass(frozen=True)
class TeacherLayers:
    """Layers of the teacher that a student begins with.

    A number of layers stands for layers spread evenly over the teacher's, the first and the last
    among them, and 1 for the last. Kind, widths and vocabulary are the teacher's too. Only a hybrid
    may stand under the teacher's encoder instead, whose recurrent units are new (student hybrid).

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
