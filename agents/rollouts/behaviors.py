"""Who writes the next token while prefixes are collected.

A behavior is a function of what is known at a step; it gives each row's action and who chose it.
Where several write one text, the student proposes every token and a gate says which ones stay. The
unit of mixing is a matter of how coins are shared (`toss_blocks`): a token, a block of them or a
whole text.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from textgen_agents.losses.divergences import forward_kl, generalized_jsd
from textgen_env.envs.vector_env import TextGenVectorEnv
from textgen_env.generation.decoding import Sampling, next_action
from textgen_env.types import Writer


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
TokenSampler = Callable[[Tensor], Tensor]
"""(K, V) logits -> (K,) int64, the token that their owner writes."""
Gate = Callable[[StepView, Tensor], Tensor]
"""(what is known, (K,) int64 the student's proposals) -> (K,) bool, True where they stay."""


@dataclass(frozen=True)
class Gated:
    """The student proposes every token; where a gate refuses it, the expert or the data writes.

    Attributes:
        gate: says which proposals stay.
        student: how the student chooses.
        expert: how the expert chooses; None if the data writes what the student does not.
    """

    gate: Gate
    student: TokenSampler
    expert: TokenSampler | None = None

    def __call__(self, view: StepView) -> tuple[Tensor, Tensor]:
        """(K,) int64 actions and (K,) int64 writers."""
        proposal = self.student(view.student_logits)
        stays = self.gate(view, proposal)
        if self.expert is None:
            other, writer = view.data_action, Writer.DATA
        else:
            other, writer = self.expert(_asked(view)), Writer.EXPERT
        return proposal.where(stays, other), torch.where(stays, Writer.STUDENT, writer)


@dataclass(frozen=True)
class TokenMask:
    """A coin for each token, tossed before the first one is written.

    Attributes:
        by_student: (B, T) bool, the tokens that the student writes.
    """

    by_student: Tensor

    def __call__(self, view: StepView, proposal: Tensor) -> Tensor:
        """(K,) bool, True where the coin says so."""
        del proposal
        return self.by_student[view.rows, view.position]


def coins_for(
    env: TextGenVectorEnv, beta: float, generator: torch.Generator, block: int = 1
) -> TokenMask:
    """Coins for one rollout of `env`; the arguments are those of `toss_blocks`."""
    return TokenMask(
        toss_blocks(beta, (env.num_envs, env.max_steps), generator, block).to(env.device)
    )


@dataclass(frozen=True)
class InTopK:
    """A proposal stays if it is one of the expert's k most probable tokens.

    Attributes:
        k: at least 1; all proposals stay if it is V.

    Source: Xu et al. 2025, arXiv:2410.11325.
    """

    k: int

    def __call__(self, view: StepView, proposal: Tensor) -> Tensor:
        """(K,) bool, True where fewer than k tokens are more probable."""
        logits = _asked(view)
        return (logits > logits.gather(1, proposal[:, None])).sum(1) < self.k


@dataclass(frozen=True)
class BelowThreshold:
    """A proposal stays where student and expert diverge little, by a measure for each position.

    Attributes:
        threshold: (T,) float, nats, the largest Jensen-Shannon divergence at which it stays.

    Source: Koo et al. 2025, arXiv:2410.19503.
    """

    threshold: Tensor

    def __call__(self, view: StepView, proposal: Tensor) -> Tensor:
        """(K,) bool, True where the divergence is not above the threshold."""
        del proposal
        divergence = generalized_jsd(view.student_logits, _asked(view))
        return divergence <= self.threshold[view.position]


class OneWaySwitch:
    """Proposals stay until the divergence leaps above its recent mean, and none after that.

    Args:
        shape: (B, L), rows and how many of the last divergences make up the mean; the first L
            proposals of a text stay.
        factor: how many times the mean is a leap.
        device: of the rollout.

    Source: Peng et al. 2025, arXiv:2510.07842.
    """

    def __init__(self, shape: tuple[int, int], factor: float, device: torch.device) -> None:
        self.factor = factor
        self.recent = torch.zeros(shape, device=device)
        self.over = torch.zeros(shape[0], dtype=torch.bool, device=device)

    def __call__(self, view: StepView, proposal: Tensor) -> Tensor:
        """(K,) bool, True before the leap; must be asked at every position of a text."""
        del proposal
        rows, window = view.rows, self.recent.shape[1]
        divergence = forward_kl(view.student_logits, _asked(view))
        leaps = divergence > self.factor * self.recent[rows].mean(1)
        begun = view.position > 0
        over = (self.over[rows] & begun) | (leaps & (view.position >= window))
        self.over[rows] = over
        self.recent[rows, view.position % window] = divergence
        return ~over


def by_example(by_student: Tensor, student: TokenSampler, max_steps: int) -> Gated:
    """Each row is written from start to end by the student or by the data.

    Args:
        by_student: (B,) bool, the rows that the student writes.
        student: how it chooses.
        max_steps: T.

    Source: Lin et al. 2020, algorithm 1, arXiv:2009.07253.
    """
    return Gated(TokenMask(by_student[:, None].expand(-1, max_steps)), student)


def token_sampler(
    sampling: Sampling | None, env: TextGenVectorEnv, generator: torch.Generator
) -> TokenSampler:
    """How one of the writers chooses, with draws of its own on the environment's device.

    Args:
        sampling: how to draw; None for the most probable token.
        env: has the device and the ids that nobody writes.
        generator: gives the seed of the draws; on the CPU.
    """
    seed = int(torch.randint(2**62, (), generator=generator))
    draws = torch.Generator(env.device).manual_seed(seed)
    return partial(next_action, sampling=sampling, generator=draws, special=env.special)


def toss(beta: float, count: int, generator: torch.Generator) -> Tensor:
    """(count,) bool, True with probability 1 - beta: the examples that the student writes."""
    return torch.rand(count, generator=generator, device=generator.device) >= beta


def toss_blocks(
    beta: float, shape: tuple[int, int], generator: torch.Generator, block: int = 1
) -> Tensor:
    """Coins for tokens, of which neighbors may share one.

    Args:
        beta: probability that the student does not write, in [0, 1].
        shape: (B, T).
        generator: of the coins.
        block: tokens that share a coin, counted from the start of a text: 1 for a coin for each
            token, T for one for each text.

    Returns:
        (B, T) bool, True with probability 1 - beta: the tokens that the student writes.
    """
    rows, steps = shape
    blocks = -(-steps // block)
    coins = toss(beta, rows * blocks, generator).view(rows, blocks)
    return coins.repeat_interleave(block, 1)[:, :steps]


def check_block(block: int) -> None:
    """Raise `ValueError` unless so many tokens can share a coin."""
    if block < 1:
        raise ValueError(f"block must be at least 1, got {block}; 1 is a coin a token")


def _asked(view: StepView) -> Tensor:
    """(K, V) float logits of the expert, which must be there to be looked at."""
    if view.expert_logits is None:
        raise ValueError(
            "expert must go along with a behavior that looks at it, got None: give it to rollout"
        )
    return view.expert_logits
