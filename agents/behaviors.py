"""Who writes the next token while prefixes are collected.

A behavior is a function of what is known at a step; it gives each row's action and who chose it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from textgen_env.decoding import Sampling, next_action
from textgen_env.types import SpecialTokens, Writer


@dataclass(frozen=True)
class StepView:
    """What a behavior may look at: K of the rollout's B rows, those that are still being written.

    Attributes:
        rows: (K,) int64, which rows they are.
        position: (K,) int64, tokens that each has written.
        student_logits: (K, V) float.
        data_action: (K,) int64, the data's token at this step; PAD after the data's end.
        expert_logits: (K, V) float, or None where the expert does not go along.
    """

    rows: Tensor
    position: Tensor
    student_logits: Tensor
    data_action: Tensor
    expert_logits: Tensor | None = None


Behavior = Callable[[StepView], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class PerExampleMixture:
    """Each row is written from start to end by the student or by the data.

    Attributes:
        by_student: (B,) bool, the rows that the student writes.
        special: the ids that nobody writes.
        sampling: how the student chooses; None for its most probable token.
        generator: of the student's draws.

    Source: Lin et al. 2020, algorithm 1, arXiv:2009.07253.
    """

    by_student: Tensor
    special: SpecialTokens
    sampling: Sampling | None
    generator: torch.Generator

    def __call__(self, view: StepView) -> tuple[Tensor, Tensor]:
        """(K,) int64 actions and (K,) int64 writers."""
        by_student = self.by_student[view.rows]
        chosen = next_action(
            view.student_logits, self.sampling, self.generator, special=self.special
        )
        action = chosen.where(by_student, view.data_action)
        writer = torch.where(by_student, Writer.STUDENT, Writer.DATA)
        return action, writer


def toss(beta: float, count: int, generator: torch.Generator) -> Tensor:
    """(count,) bool, True with probability 1 - beta: the examples that the student writes."""
    return torch.rand(count, generator=generator, device=generator.device) >= beta


@dataclass(frozen=True)
class ExpertMixture:
    """Each token is the expert's most probable one or the student's.

    Attributes:
        by_student: (B, T) bool, the tokens that the student writes.
        special: the ids that nobody writes.
        sampling: how the student chooses; None for its most probable token.
        generator: of the student's draws.

    Source: Ross et al. 2011, section 3, arXiv:1011.0686.
    """

    by_student: Tensor
    special: SpecialTokens
    sampling: Sampling | None
    generator: torch.Generator

    def __call__(self, view: StepView) -> tuple[Tensor, Tensor]:
        """(K,) int64 actions and (K,) int64 writers."""
        assert view.expert_logits is not None, "the expert must go along"
        by_student = self.by_student[view.rows, view.position]
        chosen = next_action(
            view.student_logits, self.sampling, self.generator, special=self.special
        )
        best = next_action(view.expert_logits, special=self.special)
        writer = torch.where(by_student, Writer.STUDENT, Writer.EXPERT)
        return chosen.where(by_student, best), writer
