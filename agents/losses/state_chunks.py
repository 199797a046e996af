"""Losses and labels of states, made of the logits of a few of them at a time.

An agent says in a small function what it wants of some states. It is called with one chunk after
the other, so that the logits of all states, (B, T, V), need not exist at once.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from textgen_agents.losses.chunked_sum import chunked_sum
from textgen_agents.losses.labels import Dense, LabelledBatch, Labels, StateLabel
from textgen_env.experts.expert import Expert
from textgen_env.models.hidden_states import chunk_rows, found_at_states, states_at
from textgen_env.models.sequence_model import SequenceModel
from textgen_env.models.token_positions import TokenPositions
from textgen_env.types import Trajectories

DISTRIBUTION = Dense()


@dataclass(frozen=True)
class StateChunk:
    """K of a batch's states, and what is known there.

    Attributes:
        student_logits: (K, V) float.
        actions: (K,) int64, the tokens written.
        writer: (K,) int64, a `Writer` for each token.
        mask: (K,) bool, True for tokens that count; a loss of others is left out.
        labels: the batch's labels and the expert's answers, (K, ...) each.
    """

    student_logits: Tensor
    actions: Tensor
    writer: Tensor
    mask: Tensor
    labels: Labels

    @property
    def teacher_logits(self) -> Tensor:
        """The expert's logits, (K, V) float, without gradient."""
        return self.labels["logits"]


def mean_over_states(
    losses: Callable[[StateChunk], Tensor],
    batch: LabelledBatch,
    student: SequenceModel,
    expert: Expert | None = None,
    label: StateLabel = DISTRIBUTION,
) -> Tensor:
    """Return the mean loss over the actions that count, each times its action's weight.

    It is `mean_over_actions` of the losses at all states. The denominator is the number of actions,
    whatever their weights.

    Args:
        losses: returns the loss at each state of a chunk, (K,) float.
        batch: the states, and what is known of them.
        student: the model to be trained.
        expert: the teacher, or its recorded answers; None if the losses need no more than `batch`.
        label: what the expert is asked.
    """
    trajectories = batch.trajectories
    positions = TokenPositions.of(trajectories.mask)
    at = states_at(student, positions, trajectories.source, trajectories.actions)
    chunk = _chunk_maker(batch, positions, expert, label)

    def sum_of(parts: Sequence[Tensor], rows: slice) -> Tensor:
        found = losses(chunk(at.project(parts[0]), rows))
        return _counted_sum(found, trajectories, positions, rows)

    return chunked_sum(sum_of, [at.states], at.weights, chunk_rows(at.vocab_size, at.states.device))


def mean_in_chunks(
    losses: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    trajectories: Trajectories,
    weights: Iterable[nn.Parameter],
    vocab_size: int,
) -> Tensor:
    """Return `mean_over_actions` of `losses(*inputs)`, computed for a few states at a time.

    It is for losses that make logits of hidden states themselves. Gradients flow to all inputs that
    have them.

    Args:
        losses: returns the loss at each of K states, (K,) float, from the inputs there, (K, ...)
            each.
        inputs: (B, T, ...) each.
        trajectories: with mask and weights.
        weights: all that `losses` reads and gradients may flow to; those that are frozen are left
            out.
        vocab_size: V, the logits that `losses` makes of a state.
    """
    positions = TokenPositions.of(trajectories.mask)
    states = [positions.gather(each) for each in inputs]

    def sum_of(parts: Sequence[Tensor], rows: slice) -> Tensor:
        return _counted_sum(losses(*parts), trajectories, positions, rows)

    trained = [weight for weight in weights if weight.requires_grad]
    return chunked_sum(sum_of, states, trained, chunk_rows(vocab_size, states[0].device))


@torch.no_grad()
def label_states(
    find: Callable[[StateChunk], Labels],
    batch: LabelledBatch,
    student: SequenceModel,
    expert: Expert | None = None,
) -> Labels:
    """Return what `find` says of every state, also of those that do not count, (B, T, ...) each.

    Args:
        find: returns labels of the states of a chunk, (K, ...) each.
        batch: the states, and what is known of them.
        student: as it is now.
        expert: asked for its distribution; None if `find` needs no more than `batch`.
    """
    trajectories = batch.trajectories
    count, width = trajectories.mask.shape
    every = TokenPositions((count, width), None)
    states = states_at(student, every, trajectories.source, trajectories.actions)
    chunk = _chunk_maker(batch, every, expert, DISTRIBUTION)

    def labels(student_logits: Tensor, rows: slice) -> Labels:
        return find(chunk(student_logits, rows))

    return found_at_states(labels, states, every)


def _counted_sum(
    losses: Tensor, trajectories: Trajectories, positions: TokenPositions, rows: slice
) -> Tensor:
    """Return what some states add to the mean over all actions that count.

    Args:
        losses: (K,) float, at the positions that `rows` is a slice of.
        trajectories: with mask and weights.
        positions: of the states, among them all that count.
        rows: slice of the positions.
    """
    if trajectories.weight is not None:
        losses = losses * positions.gather(trajectories.weight, rows)
    counted = losses.where(positions.gather(trajectories.mask, rows), 0.0)
    return counted.sum() / trajectories.mask.sum()


def _chunk_maker(
    batch: LabelledBatch, positions: TokenPositions, expert: Expert | None, label: StateLabel
) -> Callable[[Tensor, slice], StateChunk]:
    """Return the function that makes a chunk of the student's logits at some of the positions."""
    states = batch.trajectories
    answers = _no_answers if expert is None else label.ask_at(states, expert, positions)

    def chunk(student_logits: Tensor, rows: slice) -> StateChunk:
        labels = dict(answers(rows))
        for name, known in batch.labels.items():
            if name not in labels:
                labels[name] = positions.gather(known, rows)
        return StateChunk(
            student_logits,
            actions=positions.gather(states.actions, rows),
            writer=positions.gather(states.writer, rows),
            mask=positions.gather(states.mask, rows),
            labels=labels,
        )

    return chunk


def _no_answers(rows: slice) -> Labels:
    """Return no answers, those of an expert that is not asked."""
    del rows
    return {}
