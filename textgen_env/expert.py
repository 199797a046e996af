"""The expert: a frozen teacher that answers, at any state, what it would write and how surely.

A finished rollout is labelled in one parallel pass, which is far cheaper than asking token by
token. Every answer is counted, so that methods can be compared by what they ask.
"""

import copy
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from textgen_env.beam_search import decoder_of
from textgen_env.decoding import decode_all, next_action
from textgen_env.dynamics import State
from textgen_env.models.narrowed import Narrowed
from textgen_env.models.sequence_model import AnyCache, SequenceModel
from textgen_env.types import Examples, SpecialTokens, Trajectories


@dataclass(frozen=True)
class Queries:
    """What an expert has been asked.

    Attributes:
        forwards: parallel passes, decoded sets, and steps.
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
    """

    def __init__(self, special: SpecialTokens | None = None) -> None:
        self.special = special or SpecialTokens()
        self._forwards, self._seconds = 0, 0.0
        self._tokens: Tensor | int = 0  # on the device: counting a step does not wait for it

    @property
    def queries(self) -> Queries:
        """What it has been asked so far."""
        return Queries(self._forwards, int(self._tokens), self._seconds)

    def count(self, tokens: Tensor | int, start: float) -> None:
        """Note one answer about `tokens` states, a scalar, begun at `time.perf_counter()` start."""
        self._forwards += 1
        self._tokens = self._tokens + tokens
        self._seconds += time.perf_counter() - start

    @abstractmethod
    def logits(self, trajectories: Trajectories) -> Tensor:
        """(B, T, V) float logits of the next token at every state, without gradient."""

    @abstractmethod
    def write(self, examples: Examples, *, max_steps: int, beam_size: int) -> Examples:
        """The examples with what the expert writes, at most `max_steps` tokens, as references."""

    @abstractmethod
    def start(self, source: Tensor, max_steps: int) -> AnyCache:
        """What it remembers of (B, S) sources where it goes along step by step."""

    @abstractmethod
    def step(self, state: State, previous: Tensor, cache: AnyCache) -> tuple[Tensor, AnyCache]:
        """(B, V) float logits of the next token at `state`, without gradient, and the cache after.

        Args:
            state: the episodes as they are.
            previous: (B,) int64, the tokens written last; the start token at the first step.
            cache: from `start` or from the step before, not to be used again.
        """

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

    @property
    def vocab_size(self) -> int:
        """V, the width of its answers."""
        return self.model.vocab_size

    def narrowed(self, vocab_size: int) -> Self:
        """The same expert, which answers about the first `vocab_size` tokens and counts apart."""
        view = copy.copy(self)
        view.model = Narrowed(self.model, vocab_size)
        return view

    @torch.no_grad()
    def logits(self, trajectories: Trajectories) -> Tensor:
        """(B, T, V) in one parallel pass; entries at padding mean nothing."""
        start = time.perf_counter()
        logits = self.model.sequence_logits(trajectories.source, trajectories.actions)
        self.count(trajectories.mask.sum(), start)
        return logits

    @torch.no_grad()
    def start(self, source: Tensor, max_steps: int) -> AnyCache:
        """The model's own cache."""
        return self.model.start(source, max_steps)

    @torch.no_grad()
    def step(self, state: State, previous: Tensor, cache: AnyCache) -> tuple[Tensor, AnyCache]:
        """The model's step; a state is counted for every episode that is not over."""
        start = time.perf_counter()
        answer = self.model.step(previous, cache)
        self.count((~state.done).sum(), start)
        return answer

    def write(self, examples: Examples, *, max_steps: int, beam_size: int) -> Examples:
        """Beam-search output; `beam_size` states are counted for every token of it."""
        decoder = decoder_of(beam_size)
        start = time.perf_counter()
        written = decode_all(self.model, examples.source, max_steps, decoder=decoder)
        self.count(beam_size * (written != self.special.pad).sum(), start)
        return Examples(examples.source, written)


class NoExpert(Expert):
    """Stands where a run has no teacher: asking it is an error."""

    def logits(self, trajectories: Trajectories) -> Tensor:
        """Never answers."""
        raise self._error()

    def start(self, source: Tensor, max_steps: int) -> AnyCache:
        """Never answers."""
        raise self._error()

    def step(self, state: State, previous: Tensor, cache: AnyCache) -> tuple[Tensor, AnyCache]:
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
