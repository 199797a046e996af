"""What is kept of an expert's answer, and how a student is compared with what was kept.

The teacher is frozen, so an answer never goes stale: it is asked for once, as a `Label` says, and
`RecordedExpert` gives it again whenever a loss asks.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from textgen_agents.losses.divergences import (
    Divergence,
    by_parts,
    cross_entropy,
    forward_kl,
    masked_mean,
)
from textgen_agents.losses.topk import with_tail
from textgen_env.dynamics import State
from textgen_env.experts.expert import Expert, ExpertError, TopK
from textgen_env.models.sequence_model import AnyCache, SequenceModel
from textgen_env.types import Examples, SpecialTokens, Trajectories

Answers = Mapping[str, Tensor]
"""Parts of an answer by name, (B, T, ...) each, about every state of B trajectories."""


@dataclass(frozen=True)
class Top1:
    """The expert's most probable token, as if it were certain: 8 bytes a state.

    Attributes:
        label_smoothing: share of that token spread evenly over the vocabulary where forward KL is
            taken from it, in [0, 1).
    """

    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        check_smoothing(self.label_smoothing)

    def check(self, expert: Expert) -> None:
        """Every expert gives it."""

    def ask(self, trajectories: Trajectories, expert: Expert) -> Answers:
        """What is kept."""
        return {"best_actions": expert.best_actions(trajectories)}

    def losses(
        self,
        student_logits: Tensor,
        trajectories: Trajectories,
        expert: Expert,
        divergence: Divergence,
    ) -> Tensor:
        """(B, T) nats, of that token and all others as one."""
        tokens = expert.best_actions(trajectories)
        if divergence is forward_kl:  # the same in half the time
            return cross_entropy(student_logits, tokens, label_smoothing=self.label_smoothing)
        none = torch.full(tokens.shape, float("-inf"), device=tokens.device)
        certain = TopK(tokens[..., None], torch.zeros_like(none)[..., None], none)
        return divergence(*with_tail(student_logits, certain))


@dataclass(frozen=True)
class TopKWithTail:
    """The k most probable tokens, and all others as one: 12 k + 4 bytes a state.

    Attributes:
        k: from 1 to the size of the vocabulary.
    """

    k: int = 10

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"k must be at least 1, got {self.k}")

    def check(self, expert: Expert) -> None:
        """Raise unless the expert gives as many.

        Raises:
            ExpertError: it gives fewer.
            ValueError: `k` above V.
        """
        check_k(self.k, expert)
        if expert.largest_k is not None and self.k > expert.largest_k:
            raise _too_little(f"the {self.k} most probable tokens", expert)

    def ask(self, trajectories: Trajectories, expert: Expert) -> Answers:
        """What is kept."""
        answer = expert.top_k(trajectories, self.k)
        return {field.name: getattr(answer, field.name) for field in fields(answer)}

    def losses(
        self,
        student_logits: Tensor,
        trajectories: Trajectories,
        expert: Expert,
        divergence: Divergence,
    ) -> Tensor:
        """(B, T) nats, of k tokens and all others as one."""
        return divergence(*with_tail(student_logits, expert.top_k(trajectories, self.k)))


@dataclass(frozen=True)
class Dense:
    """The whole distribution, in the teacher's precision: 2 V or 4 V bytes a state."""

    def check(self, expert: Expert) -> None:
        """Raise unless the expert gives it.

        Raises:
            ExpertError: it gives less.
        """
        if expert.largest_k is not None:
            raise _too_little("the whole distribution", expert)

    def ask(self, trajectories: Trajectories, expert: Expert) -> Answers:
        """What is kept."""
        return {"logits": expert.logits(trajectories)}

    def losses(
        self,
        student_logits: Tensor,
        trajectories: Trajectories,
        expert: Expert,
        divergence: Divergence,
    ) -> Tensor:
        """(B, T) nats."""
        return by_parts(divergence, student_logits, expert.logits(trajectories))


Label = Top1 | TopKWithTail | Dense


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


def label_loss(
    trajectories: Trajectories,
    student: SequenceModel,
    expert: Expert,
    label: Label,
    divergence: Divergence = forward_kl,
) -> Tensor:
    """Mean divergence of the student from the expert's labels at every state, nats.

    Args:
        trajectories: the states.
        student: the model to be trained.
        expert: is asked for what `label` keeps.
        label: with `Top1`, forward KL is the cross-entropy on the expert's token.
        divergence: of the student from the label.
    """
    logits = student.sequence_logits(trajectories.source, trajectories.actions)
    losses = label.losses(logits, trajectories, expert, divergence)
    return masked_mean(losses, trajectories.mask)


class RecordedExpert(Expert):
    """Gives answers that were kept, about the states that they were given for; asks nobody.

    Args:
        special: the ids of padding, start and end.
        answers: what was kept.
    """

    def __init__(self, special: SpecialTokens, answers: Answers) -> None:
        super().__init__(special)
        self.answers = answers

    def logits(self, trajectories: Trajectories) -> Tensor:
        """The whole distribution."""
        if "logits" not in self.answers:
            raise ExpertError(
                "label must be Dense() for a loss that needs the whole distribution, got one that "
                f"keeps {', '.join(self.answers)}"
            )
        return self.answers["logits"]

    def best_actions(self, trajectories: Trajectories) -> Tensor:
        """The most probable tokens, kept themselves or taken from the whole distribution."""
        if "best_actions" in self.answers:
            return self.answers["best_actions"]
        return super().best_actions(trajectories)

    def top_k(self, trajectories: Trajectories, k: int) -> TopK:
        """The k most probable tokens, kept themselves or taken from the whole distribution."""
        if "tokens" in self.answers:
            return TopK(**self.answers)
        return super().top_k(trajectories, k)

    def write(self, examples: Examples, *, max_steps: int, beam_size: int) -> Examples:
        """Never answers."""
        raise self._error()

    def start(self, source: Tensor, max_steps: int) -> AnyCache:
        """Never answers."""
        raise self._error()

    def step(self, state: State, previous: Tensor, cache: AnyCache) -> tuple[Tensor, AnyCache]:
        """Never answers."""
        raise self._error()

    def _error(self) -> ExpertError:
        return ExpertError("answers that were kept are about finished trajectories: ask the expert")
