"""The expert: a frozen teacher that answers, at any state, what it would write and how surely.

A finished rollout is labelled in one parallel pass, which is far cheaper than asking token by
token. Every answer is counted, so that methods can be compared by what they ask.
"""

import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from textgen_env import dynamics
from textgen_env.dynamics import State
from textgen_env.generation.beam_search import decoder_of, n_best
from textgen_env.generation.decoding import (
    Decoder,
    Sampling,
    best_actions,
    decode_all,
    next_action,
    sample,
    sync_interval,
)
from textgen_env.models.ensemble import CutVocabulary
from textgen_env.models.sequence_model import AnyCache, SequenceModel
from textgen_env.types import Examples, SpecialTokens, Trajectories, Writer, check_shape

CHUNK = 1024  # states whose logits `top_k` holds in float32 at a time


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


@dataclass(frozen=True)
class TopK:
    """The k most probable next tokens at every state, and all others as one bucket.

    The probabilities and the tail's sum to 1, so that a divergence of such labels is one.

    Attributes:
        tokens: (B, T, k) int64, in falling order of probability.
        log_probs: (B, T, k) float32, nats.
        tail_log_prob: (B, T) float32, nats, of all other tokens; -inf where there are none.
    """

    tokens: Tensor
    log_probs: Tensor
    tail_log_prob: Tensor

    def __post_init__(self) -> None:
        check_shape("tokens", self.tokens, (None, None, None))
        check_shape("log_probs", self.log_probs, tuple(self.tokens.shape))
        check_shape("tail_log_prob", self.tail_log_prob, tuple(self.tokens.shape[:2]))


class ExpertError(RuntimeError):
    """An expert was asked for what it cannot give."""


class Expert(ABC):
    """Anything that can be asked what to write at the states of a trajectory.

    It reads `expert_source`, which a task may let differ from what the student reads.

    Attributes:
        special: the ids of padding, start and end.
    """

    def __init__(self, special: SpecialTokens | None = None) -> None:
        self.special = special or SpecialTokens()
        self._forwards, self._seconds = 0, 0.0
        self._tokens: Tensor | int = 0  # on the device: counting a step does not wait for it

    @property
    def vocab_size(self) -> int | None:
        """V of its logits; None where it is not known."""
        return None

    @property
    def largest_k(self) -> int | None:
        """The k up to which `top_k` answers, 0 if only the best token is known; None for all V."""
        return None

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

    def write_n_best(self, examples: Examples, *, max_steps: int, beam_size: int) -> Tensor:
        """(N, C, T) int64, its best texts for each source, the best first; by default its only one.

        A row of PAD alone is no text.
        """
        return self.write(examples, max_steps=max_steps, beam_size=beam_size).reference[:, None]

    def sample(
        self, examples: Examples, *, max_steps: int, sampling: Sampling, generator: torch.Generator
    ) -> Examples:
        """The examples with what it draws, at most `max_steps` tokens, as references.

        Args:
            examples: the sources; all are written side by side by default.
            max_steps: T, at least 1.
            sampling: how to draw.
            generator: of the draws.
        """
        nothing = examples.source.new_full((len(examples), max_steps), self.special.pad)
        length = torch.zeros_like(nothing[:, 0])
        written = self.complete(
            examples.expert_view, nothing, length, sampling=sampling, generator=generator
        )
        return replace(examples, reference=written)

    @torch.no_grad()
    def complete(
        self,
        source: Tensor,
        prefix: Tensor,
        length: Tensor,
        *,
        sampling: Sampling | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The beginnings of texts, and how the expert goes on.

        It goes along from the first token, so that the states of the beginnings count as asked.

        Args:
            source: (B, E) int64, the expert's view, PAD after each row's end token.
            prefix: (B, T) int64, T the length limit.
            length: (B,) int64, how many tokens of the prefix stay.
            sampling: how the expert draws; None for its most probable tokens.
            generator: of the draws.

        Returns:
            (B, T) int64, PAD after the end token.
        """
        state = dynamics.initial(source, prefix.shape[1], self.special)
        cache, every = self.start(source, prefix.shape[1]), sync_interval(source.device)
        previous = torch.full_like(length, self.special.start)
        for step, given in enumerate(prefix.unbind(1)):
            logits, cache = self.step(state, previous, cache)
            own = next_action(logits, sampling, generator, special=self.special)
            previous = given.where(step < length, own)
            state = dynamics.transition(state, previous, self.special)
            if (step + 1) % every == 0 and bool(state.done.all()):
                break
        return state.prefix

    @abstractmethod
    def start(self, source: Tensor, max_steps: int) -> AnyCache:
        """What it remembers of (B, E) sources, its own view, where it goes along step by step."""

    @abstractmethod
    def step(self, state: State, previous: Tensor, cache: AnyCache) -> tuple[Tensor, AnyCache]:
        """(B, V) float logits of the next token at `state`, without gradient, and the cache after.

        Args:
            state: the episodes as they are; their source is the student's view.
            previous: (B,) int64, the tokens written last; the start token at the first step.
            cache: from `start` or from the step before, not to be used again.
        """

    def best_actions(self, trajectories: Trajectories) -> Tensor:
        """(B, T) int64, the expert's most probable next token at every state."""
        return best_actions(self.logits(trajectories), self.special)

    def best_actions_at(
        self, source: Tensor, prefix: Tensor, place: Tensor, reference: Tensor
    ) -> Tensor:
        """(B,) int64, its most probable token at one state of each text; each is counted once.

        Args:
            source: (B, E) int64, the expert's view, PAD after each row's end token.
            prefix: (B, T) int64 tokens written.
            place: (B,) int64 below T, the state asked about: after so many tokens of the prefix.
            reference: (B, R) int64, the data set's target, for experts that look at it.
        """
        chosen = place[:, None]
        asked = Trajectories(
            source=source,
            actions=prefix,
            writer=torch.full_like(prefix, Writer.STUDENT),
            mask=torch.zeros_like(prefix, dtype=torch.bool).scatter(1, chosen, True),
            reference=reference,
        )
        return self.best_actions(asked).gather(1, chosen).squeeze(1)

    def top_k(self, trajectories: Trajectories, k: int) -> TopK:
        """The `k` most probable next tokens at every state, their probabilities, and the rest's.

        Raises:
            ValueError: `k` below 1 or above V.
        """
        logits = self.logits(trajectories)
        rows, steps, vocab_size = logits.shape
        if not 1 <= k <= vocab_size:
            raise ValueError(
                f"k must be from 1 to {vocab_size}, the size of the vocabulary, got {k}"
            )
        parts = [_top_k(part, k) for part in logits.flatten(0, 1).split(CHUNK)]
        tokens, log_probs, tail = (torch.cat(column) for column in zip(*parts, strict=True))
        return TopK(
            tokens.view(rows, steps, k), log_probs.view(rows, steps, k), tail.view(rows, steps)
        )


def _top_k(logits: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens (B, k), log-probabilities (B, k) and the tail's (B,) of logits (B, V).

    The tail is summed, not taken as what is left of 1, so that a small one keeps its digits.
    """
    values, tokens = logits.float().topk(k)
    tail = logits.float().scatter(1, tokens, float("-inf")).logsumexp(1)
    normalizer = torch.logaddexp(values.logsumexp(1), tail)
    return tokens, values - normalizer[:, None], tail - normalizer


class NeuralExpert(Expert):
    """A frozen `SequenceModel` as an oracle.

    Args:
        model: the teacher, in the precision in which it shall answer.
        vocab_size: V, how many of its tokens count, for a teacher whose vocabulary was padded; None
            for all.

    Raises:
        ValueError: `vocab_size` above the model's, or without room for the special tokens.
    """

    def __init__(self, model: SequenceModel, vocab_size: int | None = None) -> None:
        super().__init__(model.special)
        self.model = model if vocab_size is None else CutVocabulary(model, vocab_size)

    @property
    def vocab_size(self) -> int:
        """V of its logits."""
        return self.model.vocab_size

    @torch.no_grad()
    def logits(self, trajectories: Trajectories) -> Tensor:
        """(B, T, V) in one parallel pass; entries at padding mean nothing."""
        start = time.perf_counter()
        logits = self.model.sequence_logits(trajectories.expert_view, trajectories.actions)
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
        self.count(state.alive.sum(), start)
        return answer

    def write(self, examples: Examples, *, max_steps: int, beam_size: int) -> Examples:
        """Beam-search output; `beam_size` states are counted for every token of it."""
        written = self._decoded(examples, max_steps, decoder_of(beam_size), beam_size)
        return replace(examples, reference=written)

    def write_n_best(self, examples: Examples, *, max_steps: int, beam_size: int) -> Tensor:
        """All hypotheses of beam search; a state is counted for every token of each."""

        def decoder(model: SequenceModel, source: Tensor, max_steps: int) -> Tensor:
            return n_best(model, source, max_steps, count=beam_size, beam_size=beam_size)[0]

        return self._decoded(examples, max_steps, decoder)

    def sample(
        self, examples: Examples, *, max_steps: int, sampling: Sampling, generator: torch.Generator
    ) -> Examples:
        """Draws from the model's distributions; a state is counted for every token."""
        decoder = partial(sample, sampling=sampling, generator=generator)
        return replace(examples, reference=self._decoded(examples, max_steps, decoder))

    def _decoded(
        self, examples: Examples, max_steps: int, decoder: Decoder, asked: int = 1
    ) -> Tensor:
        """What `decoder` writes; `asked` states are counted for every token of it."""
        start = time.perf_counter()
        written = decode_all(self.model, examples.expert_view, max_steps, decoder=decoder)
        self.count(asked * (written != self.special.pad).sum(), start)
        return written


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
