"""Experts: frozen teachers that answer, at any state, with an action or a distribution.

`Expert` is the interface of all oracles; `NeuralExpert` answers with a model. A finished rollout is
labeled in one parallel pass; `start` and `step` query the expert during a rollout. Every expert
counts its answers, so that algorithms can be compared by their number of expert queries. Labels
and losses made from the answers are in `agents/`.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from textgen_env import dynamics
from textgen_env.dynamics import State
from textgen_env.experts.draws import Draws, draw_systematically, state_uniforms
from textgen_env.experts.queries import Queries
from textgen_env.experts.top_k import TopK, top_k_and_tail
from textgen_env.generation.beam_search import decoder_of, n_best
from textgen_env.generation.decoding import (
    Decoder,
    decode_all,
    logits_from,
    next_action,
    sample,
    sync_interval,
)
from textgen_env.generation.sampling import Sampling
from textgen_env.models.ensemble import CutVocabulary
from textgen_env.models.hidden_states import StatesAt, found_at_states, states_at
from textgen_env.models.sequence_model import AnyCache, SequenceModel
from textgen_env.models.token_positions import TokenPositions
from textgen_env.types import Examples, SpecialTokens, Trajectories, Writer

AnswerT = TypeVar("AnswerT")


class ExpertError(RuntimeError):
    """Error of an expert that cannot answer a query."""


class Expert(ABC):
    """Interface of an oracle that answers queries at the states of trajectories.

    A subclass implements `logits`, `start`, `step` and `write`; everything else has a default. An
    expert reads `expert_source`, which may differ from the student's source.

    Attributes:
        special: the ids of padding, start and end.
    """

    def __init__(self, special: SpecialTokens | None = None) -> None:
        self.special = special or SpecialTokens()
        self._forwards, self._seconds = 0, 0.0
        self._tokens: Tensor | int = 0  # stays on the device: counting must not synchronize

    @property
    def vocab_size(self) -> int | None:
        """V, the size of the expert's vocabulary; None if unknown."""
        return None

    @property
    def largest_k(self) -> int | None:
        """Largest k of `top_k`: 0 if only the best action is known, None if there is no limit."""
        return None

    @property
    def queries(self) -> Queries:
        """Number and cost of the queries answered so far."""
        return Queries(self._forwards, int(self._tokens), self._seconds)

    def count(self, tokens: Tensor | int, start: float) -> None:
        """Record one answer.

        Args:
            tokens: number of states that were answered, a scalar.
            start: `time.perf_counter()` before the answer, seconds.
        """
        self._forwards += 1
        self._tokens = self._tokens + tokens
        self._seconds += time.perf_counter() - start

    @abstractmethod
    def logits(self, trajectories: Trajectories) -> Tensor:
        """Return (B, T, V) float logits of the next token at every state, without gradient."""

    def states_at(self, trajectories: Trajectories, positions: TokenPositions) -> StatesAt:
        """Return what makes the logits at K of the states, a part at a time, without gradient.

        The states that count in the mask are queried, as by `logits`, and must be among them. By
        default it is the logits themselves.
        """
        return StatesAt.of_logits(positions.gather(self.logits(trajectories)))

    @abstractmethod
    def write(self, examples: Examples, *, max_steps: int, beam_size: int) -> Examples:
        """Return the examples with texts of the expert as references.

        Args:
            examples: any number of sources.
            max_steps: T, the most tokens of a text, at least 1.
            beam_size: width of the beam search, at least 1; 1 is greedy decoding.
        """

    def write_n_best(self, examples: Examples, *, max_steps: int, beam_size: int) -> Tensor:
        """Return (N, C, T) int64, the C best texts of each source, the best first.

        Where an expert has fewer texts the rest are rows of PAD alone. By default C is 1, the text
        of `write`. The arguments are those of `write`.
        """
        return self.write(examples, max_steps=max_steps, beam_size=beam_size).reference[:, None]

    def sample(
        self, examples: Examples, *, max_steps: int, sampling: Sampling, generator: torch.Generator
    ) -> Examples:
        """Return the examples with texts sampled from the expert as references.

        Args:
            examples: the sources; by default all are decoded in one batch.
            max_steps: T, the most tokens of a text, at least 1.
            sampling: temperature and truncation of the distributions.
            generator: source of randomness.
        """
        prefix = examples.source.new_full((len(examples), max_steps), self.special.pad)
        length = torch.zeros_like(prefix[:, 0])
        texts = self.complete(
            examples.expert_view, prefix, length, sampling=sampling, generator=generator
        )
        return replace(examples, reference=texts)

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
        """Complete prefixes with the expert.

        The expert is queried from the first token on, so that the states of the prefixes count as
        queries.

        Args:
            source: (B, E) int64, the expert's view, PAD after each row's end token.
            prefix: (B, T) int64; T is the length limit.
            length: (B,) int64 in [0, T], number of tokens of each prefix that are kept.
            sampling: distribution that the expert samples from; None for its best actions.
            generator: source of randomness; not used without `sampling`.

        Returns:
            (B, T) int64, prefixes with their completions, PAD after the end token.
        """
        state = dynamics.initial(source, prefix.shape[1], self.special)
        cache, interval = self.start(source, prefix.shape[1]), sync_interval(source.device)
        previous = torch.full_like(length, self.special.start)
        for step, given in enumerate(prefix.unbind(1)):
            logits, cache = self.step(state, previous, cache)
            with logits_from("teacher"):
                action = next_action(
                    logits, sampling, generator, special=self.special, mask=state.alive
                )
            previous = given.where(step < length, action)
            state = dynamics.transition(state, previous, self.special)
            if (step + 1) % interval == 0 and bool(state.done.all()):
                break
        return state.prefix

    @abstractmethod
    def start(self, source: Tensor, max_steps: int) -> AnyCache:
        """Return the cache before the first `step` of episodes with these sources.

        Args:
            source: (B, E) int64, the expert's view, PAD after each row's end token.
            max_steps: T, the most steps that will be taken.
        """

    @abstractmethod
    def step(self, state: State, previous: Tensor, cache: AnyCache) -> tuple[Tensor, AnyCache]:
        """Query the expert at the current state of B episodes.

        Args:
            state: current states; their source is the student's view.
            previous: (B,) int64, the last actions; the start token at the first step.
            cache: from `start` or from the step before; it must not be used again.

        Returns:
            (B, V) float logits of the next token, without gradient, and the cache for the next
            step.
        """

    def best_actions(self, trajectories: Trajectories) -> Tensor:
        """Return (B, T) int64, the expert's best action at the states that count, else 0."""

        def best(logits: Tensor) -> dict[str, Tensor]:
            return {"tokens": next_action(logits, special=self.special)}

        with logits_from("teacher"):
            return self._find_at_states(trajectories, best)["tokens"]

    def best_actions_at(
        self, source: Tensor, prefix: Tensor, length: Tensor, reference: Tensor
    ) -> Tensor:
        """Return the expert's most probable token at one state of each episode.

        Args:
            source: (B, E) int64, the expert's view, PAD after each row's end token.
            prefix: (B, T) int64 tokens.
            length: (B,) int64 in [0, T), number of tokens of the prefix that precede the state.
            reference: (B, R) int64, the data set's target, for experts that read it.

        Returns:
            (B,) int64; each state counts as one query.
        """
        step = length[:, None]
        trajectories = Trajectories(
            source=source,
            actions=prefix,
            writer=torch.full_like(prefix, Writer.STUDENT),
            mask=torch.zeros_like(prefix, dtype=torch.bool).scatter(1, step, True),
            reference=reference,
        )
        return self.best_actions(trajectories).gather(1, step).squeeze(1)

    def top_k(self, trajectories: Trajectories, k: int) -> TopK:
        """Return the `k` most probable next tokens at every state, and the tail's probability.

        All are 0 at states that do not count.

        Raises:
            ValueError: `k` below 1 or above V.
        """
        return TopK(**self._find_at_states(trajectories, partial(top_k_and_tail, k=k)))

    def draws(self, trajectories: Trajectories, k: int, seed: int) -> Draws:
        """Return `k` tokens drawn at every state, the same for the same text and seed."""
        uniforms = state_uniforms(trajectories, self.special, seed)
        draw = partial(draw_systematically, k=k)
        return Draws(**self._find_at_states(trajectories, draw, uniforms))

    def _find_at_states(
        self,
        trajectories: Trajectories,
        find: Callable[..., dict[str, Tensor]],
        *known: Tensor,
    ) -> dict[str, Tensor]:
        """Return what `find` makes of the logits at the states that count, (B, T, ...) each.

        Args:
            trajectories: the states.
            find: function of the logits, (K, V), of some of them and of what is known there.
            known: (B, T) each.
        """
        positions = TokenPositions.of(trajectories.mask)

        def find_some(logits: Tensor, rows: slice) -> dict[str, Tensor]:
            return find(logits, *(positions.gather(each, rows) for each in known))

        return found_at_states(find_some, self.states_at(trajectories, positions), positions)


class NeuralExpert(Expert):
    """Expert that answers with the distributions of a frozen `SequenceModel`.

    Args:
        model: the teacher; it answers in its own precision.
        vocab_size: V, if the teacher's vocabulary was padded beyond the tokenizer's; None for the
            model's own.

    Raises:
        ValueError: `vocab_size` above the model's, or without room for the special tokens.
    """

    def __init__(self, model: SequenceModel, vocab_size: int | None = None) -> None:
        super().__init__(model.special)
        self.model = model if vocab_size is None else CutVocabulary(model, vocab_size)

    @property
    def vocab_size(self) -> int:
        """V, the size of the expert's vocabulary."""
        return self.model.vocab_size

    def logits(self, trajectories: Trajectories) -> Tensor:
        """Return (B, T, V) logits of one parallel pass; entries at padding have no meaning."""
        return self.answer(trajectories, self.model.sequence_logits)

    def states_at(self, trajectories: Trajectories, positions: TokenPositions) -> StatesAt:
        """Return the model's states of one parallel pass, and their product with its head."""
        found = self.answer(trajectories, partial(states_at, self.model, positions))
        return StatesAt(found.states, partial(self.project, found.project), found.vocab_size)

    @torch.no_grad()
    def answer(
        self, trajectories: Trajectories, forward: Callable[[Tensor, Tensor], AnswerT]
    ) -> AnswerT:
        """Return what `forward` gives for the expert's view and the actions, and count it."""
        start = time.perf_counter()
        answer = forward(trajectories.expert_view, trajectories.actions)
        self.count(trajectories.mask.sum(), start)
        return answer

    @torch.no_grad()
    def project(self, head: Callable[[Tensor], Tensor], states: Tensor) -> Tensor:
        """Return the logits that `head` makes of states, as a part of an answer in `answer`."""
        start = time.perf_counter()
        logits = head(states)
        self._seconds += time.perf_counter() - start
        return logits

    @torch.no_grad()
    def start(self, source: Tensor, max_steps: int) -> AnyCache:
        """Return the model's own cache."""
        return self.model.start(source, max_steps)

    @torch.no_grad()
    def step(self, state: State, previous: Tensor, cache: AnyCache) -> tuple[Tensor, AnyCache]:
        """Step the model; each episode that is not over counts as one query."""
        start = time.perf_counter()
        logits, cache = self.model.step(previous, cache)
        self.count(state.alive.sum(), start)
        return logits, cache

    def write(self, examples: Examples, *, max_steps: int, beam_size: int) -> Examples:
        """Decode by beam search; each token of the texts counts as `beam_size` queries."""
        texts = self._decode(
            examples, max_steps, decoder_of(beam_size), queries_per_token=beam_size
        )
        return replace(examples, reference=texts)

    def write_n_best(self, examples: Examples, *, max_steps: int, beam_size: int) -> Tensor:
        """Return all hypotheses of beam search; each token of each counts as one query."""

        def decoder(model: SequenceModel, source: Tensor, max_steps: int) -> Tensor:
            return n_best(model, source, max_steps, count=beam_size, beam_size=beam_size)[0]

        return self._decode(examples, max_steps, decoder)

    def sample(
        self, examples: Examples, *, max_steps: int, sampling: Sampling, generator: torch.Generator
    ) -> Examples:
        """Sample from the model's distributions; each token counts as one query."""
        decoder = partial(sample, sampling=sampling, generator=generator)
        return replace(examples, reference=self._decode(examples, max_steps, decoder))

    def _decode(
        self, examples: Examples, max_steps: int, decoder: Decoder, queries_per_token: int = 1
    ) -> Tensor:
        """Decode the expert's view of all sources and count the queries."""
        start = time.perf_counter()
        with logits_from("teacher"):
            texts = decode_all(self.model, examples.expert_view, max_steps, decoder=decoder)
        self.count(queries_per_token * (texts != self.special.pad).sum(), start)
        return texts


class NoExpert(Expert):
    """Placeholder for the expert of a run without a teacher; every query raises `ExpertError`."""

    def logits(self, trajectories: Trajectories) -> Tensor:
        """Raise `ExpertError`: there is no expert."""
        raise self._error()

    def start(self, source: Tensor, max_steps: int) -> AnyCache:
        """Raise `ExpertError`: there is no expert."""
        raise self._error()

    def step(self, state: State, previous: Tensor, cache: AnyCache) -> tuple[Tensor, AnyCache]:
        """Raise `ExpertError`: there is no expert."""
        raise self._error()

    def write(self, examples: Examples, *, max_steps: int, beam_size: int) -> Examples:
        """Raise `ExpertError`: there is no expert."""
        raise self._error()

    def _error(self) -> ExpertError:
        return ExpertError(
            "the agent queries an expert, and this run has none: give a teacher, or choose an "
            "agent that learns from data alone (mle)"
        )
