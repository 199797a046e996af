"""Interface of models whose logits are a product of their last hidden states.

A hidden state has D numbers where the logits made of it have V, so that states are what to keep of
a model's answers, and what modules beside a model read. Gradients flow through both functions, to
weights and to states.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

from textgen_env.models.acceleration.cuda_graph import GraphedModel
from textgen_env.models.huggingface.hidden_states import PretrainedHiddenStates
from textgen_env.models.huggingface.model import HuggingFaceModel
from textgen_env.models.sequence_model import SequenceModel
from textgen_env.models.token_positions import TokenPositions

CHUNK_NUMEL_CPU, CHUNK_NUMEL = 1 << 20, 1 << 26
"""Most logits of a chunk: on CPUs few, so that they stay in the cache."""
MIN_CHUNK_ROWS = 64  # fewer make products with the vocabulary slow


@runtime_checkable
class HiddenStates(Protocol):
    """Model with `sequence_logits(source, actions)` equal to `project(hidden(source, actions))`."""

    @property
    def width(self) -> int:
        """D, the width of the hidden states and of the embeddings."""
        ...

    def hidden(self, source: Tensor, actions: Tensor) -> Tensor:
        """Return the last hidden states (B, T, D) before every action.

        Args:
            source: (B, S) int64, PAD after each row's end token.
            actions: (B, T) int64, PAD after the end of each row.
        """
        ...

    def project(self, hidden: Tensor) -> Tensor:
        """Return the logits (..., V) of last hidden states, (..., D)."""
        ...

    def embed(self, tokens: Tensor) -> Tensor:
        """Return the input embeddings (..., D) of tokens, (...) int64, without positions."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """Return the model's weights, each once."""
        ...


def with_hidden_states(model: SequenceModel) -> HiddenStates | None:
    """Return `model` as one with hidden states, or the one whose steps it replays; None if none."""
    if isinstance(model, GraphedModel):
        return with_hidden_states(model.model)
    if isinstance(model, HuggingFaceModel):
        return PretrainedHiddenStates.of(model)
    return model if isinstance(model, HiddenStates) else None


class StatesAt(NamedTuple):
    """States of a model at K positions, of which `project` makes its logits.

    Attributes:
        states: (K, D), the last hidden states; or the logits, (K, V), of a model without; or (K,)
            int64, where logits that are kept stand.
        project: function from some of the states, (k, ...), to their logits, (k, V).
        vocab_size: V.
        weights: those of the model that gradients flow to.
    """

    states: Tensor
    project: Callable[[Tensor], Tensor]
    vocab_size: int
    weights: Sequence[nn.Parameter] = ()

    @property
    def chunks(self) -> list[slice]:
        """Slices of the states of which logits are made at a time; an empty one of no states."""
        return chunks_of(len(self.states), chunk_rows(self.vocab_size, self.states.device))

    @classmethod
    def of_logits(cls, logits: Tensor) -> Self:
        """Return logits, (K, V), as states that are projected already."""
        return cls(logits, lambda part: part, logits.shape[-1])


def states_at(
    model: SequenceModel, positions: TokenPositions, source: Tensor, actions: Tensor
) -> StatesAt:
    """Return the states of `model` at K positions of the actions.

    Logits are made of them as they are asked for, so that those of all states, (B, T, V), need not
    exist at once.

    Args:
        model: any model.
        positions: K of the (B, T) actions.
        source: (B, S) int64, PAD after each row's end token.
        actions: (B, T) int64, PAD after the end of each row.
    """
    states = with_hidden_states(model)
    if states is None:
        return StatesAt.of_logits(positions.gather(model.sequence_logits(source, actions)))
    hidden = positions.gather(states.hidden(source, actions))
    trained = [weight for weight in states.parameters() if weight.requires_grad]
    return StatesAt(hidden, states.project, model.vocab_size, trained)


def chunk_rows(vocab_size: int, device: torch.device) -> int:
    """Return the number of states of a chunk, by the size V of the vocabulary."""
    numel = CHUNK_NUMEL_CPU if device.type == "cpu" else CHUNK_NUMEL
    return max(MIN_CHUNK_ROWS, numel // vocab_size)


def chunks_of(count: int, rows: int) -> list[slice]:
    """Return the slices of `count` states, at most `rows` each; an empty one if there are none."""
    return [slice(first, first + rows) for first in range(0, max(count, 1), rows)]


def found_at_states(
    find: Callable[[Tensor, slice], Mapping[str, Tensor]], at: StatesAt, positions: TokenPositions
) -> dict[str, Tensor]:
    """Return what `find` finds in the logits of states, made of a few of them at a time.

    Args:
        find: function of the logits, (k, V), of some states, and the slice that they are of all;
            its results are (k, ...) each.
        at: the K states.
        positions: theirs in a (B, T) batch.

    Returns:
        (B, T, ...) each, 0 at other positions.
    """
    found = [find(at.project(at.states[rows]), rows) for rows in at.chunks]
    return {name: positions.scatter(torch.cat([each[name] for each in found])) for name in found[0]}


def hidden_states_of(model: SequenceModel, role: str) -> HiddenStates:
    """Return `model` as one with hidden states.

    Args:
        model: any model.
        role: name of the model in the message, such as "student".

    Raises:
        ValueError: it has none.
    """
    states = with_hidden_states(model)
    if states is None:
        raise ValueError(
            f"{role} must have hidden states whose product with its head are its logits, got "
            f"{type(model).__name__}: use a model of this project, or a pretrained one without "
            "adapters whose logits are neither scaled nor capped"
        )
    return states


@contextmanager
def frozen(model: HiddenStates | nn.Module) -> Iterator[None]:
    """Let no gradient flow to the weights of `model` from what is computed in the block.

    Gradients flow through it to its inputs. The weights can be trained by what is computed outside.
    """
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    for weight in trained:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in trained:
            weight.requires_grad_(True)
