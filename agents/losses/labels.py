"""Labels: what the expert is asked at every state, and the batches that keep its answers.

The teacher is frozen, so an answer never goes stale: it is asked for once, as a `Label` says, and a
`RecordedExpert` gives it again whenever a loss asks.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Self

import torch
from torch import Tensor

from textgen_agents.losses.divergences import (
    LOG_ZERO,
    Divergence,
    cross_entropy,
    forward_kl,
)
from textgen_agents.losses.topk import with_tail
from textgen_env.bounds import check_at_least
from textgen_env.dynamics import State
from textgen_env.experts.draws import Draws
from textgen_env.experts.expert import Expert, ExpertError
from textgen_env.experts.top_k import TopK
from textgen_env.models.hidden_states import StatesAt
from textgen_env.models.sequence_model import AnyCache
from textgen_env.models.token_positions import TokenPositions
from textgen_env.types import Examples, SpecialTokens, Trajectories

Labels = Mapping[str, Tensor]
"""Tensors by name, (B, T, ...) each: what is known of every state of B trajectories."""
AnswersAt = Callable[[slice], Labels]
"""Function from a slice of K states to the answers at these k states, (k, ...) each."""


class StateLabel(ABC):
    """Base of labels: a question about states, which is asked of an expert."""

    @abstractmethod
    def ask(self, trajectories: Trajectories, expert: Expert) -> Labels:
        """Return the expert's answer at every state, (B, T, ...) each."""

    def ask_at(
        self, trajectories: Trajectories, expert: Expert, positions: TokenPositions
    ) -> AnswersAt:
        """Ask at K of the states, and return what gives the answers of some of them."""
        answers = {
            name: positions.gather(answer)
            for name, answer in self.ask(trajectories, expert).items()
        }
        return lambda rows: {name: each[rows] for name, each in answers.items()}


@dataclass(frozen=True)
class Top1(StateLabel):
    """The expert's most probable token, as if it were certain: 8 bytes a state.

    Attributes:
        label_smoothing: share of that token spread evenly over the vocabulary where forward KL is
            taken from it, in [0, 1).
    """

    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        check_smoothing(self.label_smoothing)

    def check(self, expert: Expert) -> None:
        """Accept `expert`: every expert gives its most probable token."""

    def ask(self, trajectories: Trajectories, expert: Expert) -> Labels:
        """Return the expert's most probable token at every state."""
        return {"best_actions": expert.best_actions(trajectories)}

    def losses(self, student_logits: Tensor, divergence: Divergence, answers: Labels) -> Tensor:
        """Return the (K,) divergence of (K, V) logits, nats, with all other tokens as one."""
        tokens = answers["best_actions"]
        if divergence is forward_kl:  # the same, without a distribution to be made
            return cross_entropy(student_logits, tokens, label_smoothing=self.label_smoothing)
        none = torch.full((1, *tokens.shape), float("-inf"), device=tokens.device)
        certain = TopK(tokens[None, :, None], torch.zeros_like(none)[..., None], none)
        return divergence(*with_tail(student_logits[None], certain)).squeeze(0)


@dataclass(frozen=True)
class TopKWithTail(StateLabel):
    """The k most probable tokens, and all others as one: 12 k + 4 bytes a state.

    Attributes:
        k: from 1 to the size of the vocabulary.
    """

    k: int = 10

    def __post_init__(self) -> None:
        check_at_least(self, k=1)

    def check(self, expert: Expert) -> None:
        """Raise unless the expert gives as many tokens.

        Raises:
            ExpertError: it gives fewer.
            ValueError: `k` above V.
        """
        check_k(self.k, expert)
        if expert.largest_k is not None and self.k > expert.largest_k:
            raise _too_little(f"the {self.k} most probable tokens", expert)

    def ask(self, trajectories: Trajectories, expert: Expert) -> Labels:
        """Return the k tokens, their log-probabilities and that of the tail at every state."""
        answer = expert.top_k(trajectories, self.k)
        return {field.name: getattr(answer, field.name) for field in fields(answer)}

    def losses(self, student_logits: Tensor, divergence: Divergence, answers: Labels) -> Tensor:
        """Return the (K,) divergence of (K, V) logits, nats, on k tokens and all others as one."""
        answer = TopK(**{field.name: answers[field.name][None] for field in fields(TopK)})
        return divergence(*with_tail(student_logits[None], answer)).squeeze(0)


@dataclass(frozen=True)
class Dense(StateLabel):
    """The whole distribution, in the teacher's precision: 2 V or 4 V bytes a state."""

    def check(self, expert: Expert) -> None:
        """Raise unless the expert gives its whole distribution.

        Raises:
            ExpertError: it gives less.
        """
        if expert.largest_k is not None:
            raise _too_little("the whole distribution", expert)

    def ask(self, trajectories: Trajectories, expert: Expert) -> Labels:
        """Return the expert's logits at every state."""
        return {"logits": expert.logits(trajectories)}

    def ask_at(
        self, trajectories: Trajectories, expert: Expert, positions: TokenPositions
    ) -> AnswersAt:
        """Ask at K of the states; logits are made of the expert's states as they are needed."""
        found = expert.states_at(trajectories, positions)
        return lambda rows: {"logits": found.project(found.states[rows])}

    def losses(self, student_logits: Tensor, divergence: Divergence, answers: Labels) -> Tensor:
        """Return the (K,) divergence of (K, V) logits, nats, on the whole vocabulary."""
        return divergence(student_logits, answers["logits"])


@dataclass(frozen=True)
class Sampled(StateLabel):
    """Tokens drawn from the teacher's distribution: 12 k bytes a state, unbiased for forward KL.

    The loss is the mean of log p(a) - log q(a) over the draws a. Its expectation is KL(p || q), and
    that of its gradient the gradient of KL(p || q); a single value may be negative. A state of the
    same text has the same draws whenever it is asked about.

    Attributes:
        k: draws at a state, at least 1.
        seed: another one gives other draws, at least 0.

    Source: Anshumann et al. 2025, arXiv:2503.16870, with the proposal p itself; systematic draws
        are ours.
    """

    k: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        check_at_least(self, k=1, seed=0)

    def check(self, expert: Expert) -> None:
        """Raise unless the expert gives its whole distribution, to draw from.

        Raises:
            ExpertError: it gives less.
        """
        Dense().check(expert)

    def ask(self, trajectories: Trajectories, expert: Expert) -> Labels:
        """Return the tokens that are drawn at every state, and their log-probabilities."""
        drawn = expert.draws(trajectories, self.k, self.seed)
        return {"drawn_tokens": drawn.tokens, "drawn_log_probs": drawn.log_probs}

    def losses(self, student_logits: Tensor, divergence: Divergence, answers: Labels) -> Tensor:
        """Return the (K,) estimate of forward KL from (K, V) logits, nats.

        Raises:
            ValueError: `divergence` is another one.
        """
        check_divergence(self, divergence)
        tokens, log_probs = answers["drawn_tokens"], answers["drawn_log_probs"]
        logits = student_logits.float()
        chosen = logits.gather(-1, tokens) - logits.logsumexp(-1, keepdim=True)
        return (log_probs - chosen.clamp(min=LOG_ZERO)).mean(-1)


Label = Top1 | TopKWithTail | Dense | Sampled


def check_divergence(label: Label, divergence: Divergence) -> None:
    """Raise `ValueError` unless `label` can be learned from by `divergence`.

    Draws from p say nothing unbiased about what is no mean over p.
    """
    if isinstance(label, Sampled) and divergence is not forward_kl:
        raise ValueError(
            f"label must be Top1, TopKWithTail or Dense for any but forward KL, got {label}: "
            "choose one of these, or an agent that learns by forward KL (imitkd_full)"
        )


def check_smoothing(label_smoothing: float) -> None:
    """Raise `ValueError` unless it is a share of a label that can be spread."""
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing must be in [0, 1), got {label_smoothing}")


def check_k(k: int, expert: Expert) -> None:
    """Raise unless the expert has so many tokens.

    Raises:
        ValueError: `k` above V.
    """
    if expert.vocab_size is not None and k > expert.vocab_size:
        raise ValueError(
            f"k must be at most {expert.vocab_size}, the size of the teacher's vocabulary, "
            f"got {k}: lower it"
        )


def _too_little(wanted: str, expert: Expert) -> ExpertError:
    known = f"the {expert.largest_k} most probable tokens" if expert.largest_k else "one token"
    return ExpertError(
        f"the expert must give {wanted} at every state, got one that gives {known}: choose an "
        "agent or a label that needs no more (imitkd learns from one token, seqkd from texts), or "
        "another teacher"
    )


@dataclass(frozen=True)
class LabelledBatch:
    """Trajectories to learn from, with what is known of their states.

    Attributes:
        trajectories: B of them.
        labels: answers of the expert, and what an agent decided when it collected the batch; empty
            where the expert is still to be asked.
    """

    trajectories: Trajectories
    labels: Labels = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.trajectories)

    @classmethod
    def cat(cls, batches: Sequence[Self], special: SpecialTokens) -> Self:
        """Return the rows of `batches`, which have no labels yet, in that order."""
        assert not any(batch.labels for batch in batches), "labels are made of whole batches"
        return cls(Trajectories.cat([batch.trajectories for batch in batches], special))

    def select(self, index: Tensor) -> Self:
        """Return the rows at `index`, (K,) int64, in that order."""
        labels = {name: label[index] for name, label in self.labels.items()}
        return type(self)(self.trajectories.select(index), labels)

    def trimmed(self, special: SpecialTokens) -> Self:
        """Return the rows without the columns that are padding in all of them."""
        trajectories = self.trajectories.trimmed(special)
        width = trajectories.mask.shape[1]
        labels = {name: label[:, :width] for name, label in self.labels.items()}
        return type(self)(trajectories, labels)

    def expert(self, asked: Expert) -> Expert:
        """Return the expert that a loss asks: `asked`, unless its answers are recorded here."""
        return RecordedExpert(asked.special, self.labels) if self.labels else asked


class RecordedExpert(Expert):
    """Expert that repeats recorded answers about the states they were given for.

    Args:
        special: ids of padding, start and end.
        labels: the recorded answers.
    """

    def __init__(self, special: SpecialTokens, labels: Labels) -> None:
        super().__init__(special)
        self.labels = labels

    def logits(self, trajectories: Trajectories) -> Tensor:
        """Return the logits that were recorded."""
        if "logits" not in self.labels:
            raise ExpertError(
                "label must be Dense() for a loss that needs the whole distribution, got one that "
                f"keeps {', '.join(self.labels)}"
            )
        return self.labels["logits"]

    def states_at(self, trajectories: Trajectories, positions: TokenPositions) -> StatesAt:
        """Return the recorded logits, or where those of the positions are among them."""
        recorded = self.logits(trajectories).flatten(0, 1)
        if positions.index is None:
            return StatesAt.of_logits(recorded)
        return StatesAt(positions.index, partial(recorded.index_select, 0), recorded.shape[-1])

    def best_actions(self, trajectories: Trajectories) -> Tensor:
        """Return the most probable tokens, recorded themselves or taken from the logits."""
        if "best_actions" in self.labels:
            return self.labels["best_actions"]
        return super().best_actions(trajectories)

    def top_k(self, trajectories: Trajectories, k: int) -> TopK:
        """Return the k most probable tokens, recorded themselves or taken from the logits."""
        if "tokens" in self.labels:
            return TopK(**{field.name: self.labels[field.name] for field in fields(TopK)})
        return super().top_k(trajectories, k)

    def draws(self, trajectories: Trajectories, k: int, seed: int) -> Draws:
        """Return the tokens that were drawn, recorded themselves or drawn from the logits."""
        if "drawn_tokens" in self.labels:
            return Draws(self.labels["drawn_tokens"], self.labels["drawn_log_probs"])
        return super().draws(trajectories, k, seed)

    def write(self, examples: Examples, *, max_steps: int, beam_size: int) -> Examples:
        """Raise `ExpertError`: recorded answers hold no more."""
        raise self._error()

    def start(self, source: Tensor, max_steps: int) -> AnyCache:
        """Raise `ExpertError`: recorded answers hold no more."""
        raise self._error()

    def step(self, state: State, previous: Tensor, cache: AnyCache) -> tuple[Tensor, AnyCache]:
        """Raise `ExpertError`: recorded answers hold no more."""
        raise self._error()

    def _error(self) -> ExpertError:
        return ExpertError("recorded answers are about finished trajectories: ask the expert")
