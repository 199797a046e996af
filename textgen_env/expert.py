"""The expert: a frozen teacher that answers, at any state, what it would write and how surely.

A finished rollout is labelled in one parallel pass, which is far cheaper than asking token by
token. Every answer is counted, so that methods can be compared by what they ask.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from textgen_env.beam_search import decoder_of
from textgen_env.decoding import decode_all, next_action
from textgen_env.models.sequence_model import SequenceModel
from textgen_env.types import Examples, SpecialTokens, Trajectories


@dataclass
class Queries:
    """What an expert has been asked so far.

    Attributes:
        forwards: parallel passes and decoded sets.
        tokens: states at which it gave a next-token distribution, padding not counted.
        seconds: time spent on the answers, as the host sees it.
    """

    forwards: int = 0
    tokens: int = 0
    seconds: float = 0.0


class ExpertError(RuntimeError):
    """An expert was asked for what it cannot give."""


class Expert(ABC):
    """Anything that can be asked what to write at the states of a trajectory.

    Attributes:
        special: the ids of padding, start and end.
        queries: what it has been asked so far.
    """

    def __init__(self, special: SpecialTokens | None = None) -> None:
        self.special = special or SpecialTokens()
        self.queries = Queries()

    @abstractmethod
    def logits(self, trajectories: Trajectories) -> Tensor:
        """(B, T, V) float logits of the next token at every state, without gradient."""

    @abstractmethod
    def write(self, examples: Examples, *, max_steps: int, beam_size: int) -> Examples:
        """The examples with what the expert writes, at most `max_steps` tokens, as references."""

    def best_actions(self, trajectories: Trajectories) -> Tensor:
        """(B, T) int64, the expert's most probable next token at every state."""
        logits = self.logits(trajectories)
        flat = next_action(logits.flatten(0, 1), special=self.special)
        return flat.view(logits.shape[:2])


class NeuralExpert(Expert):
    """A frozen `SequenceModel` as an oracle.

    Args:
        model: the teacher, in the precision in which it shall answer.
    """

    def __init__(self, model: SequenceModel) -> None:
        super().__init__(model.special)
        self.model = model

    @torch.no_grad()
    def logits(self, trajectories: Trajectories) -> Tensor:
        """(B, T, V) in one parallel pass; entries at padding mean nothing."""
        with self._asked():
            self.queries.tokens += int(trajectories.mask.sum())
            return self.model.sequence_logits(trajectories.source, trajectories.actions)

    def write(self, examples: Examples, *, max_steps: int, beam_size: int) -> Examples:
        """Beam-search output; `beam_size` states are counted for every token of it."""
        with self._asked():
            decoder = decoder_of(beam_size)
            written = decode_all(self.model, examples.source, max_steps, decoder=decoder)
            self.queries.tokens += beam_size * int((written != self.special.pad).sum())
        return Examples(examples.source, written)

    @contextmanager
    def _asked(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.queries.forwards += 1
        self.queries.seconds += time.perf_counter() - start


class NoExpert(Expert):
    """Stands where a run has no teacher: asking it is an error."""

    def logits(self, trajectories: Trajectories) -> Tensor:
        """Never answers."""
        raise self._error()

    def write(self, examples: Examples, *, max_steps: int, beam_size: int) -> Examples:
        """Never answers."""
        raise self._error()

    def _error(self) -> ExpertError:
        return ExpertError(
            "the agent asks the expert, and this run has none: give a teacher, or choose an agent "
            "that learns from data alone (mle)"
        )
