"""Behavior policies: who writes the next token while prefixes are collected.

A behavior is a function of what is known at a step; it returns each row's action and its writer,
and the log-probability of the action if it was drawn.
Where several write one text, the student proposes every token and a gate decides which ones stay.
The unit of mixing is the number of tokens that share a draw of `token_mask`: one, a block or all.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from textgen_agents.losses.divergences import forward_kl, generalized_jsd
from textgen_agents.rollouts.context import Context
from textgen_env.generation.decoding import choose_action, logits_from
from textgen_env.generation.sampling import Sampling
from textgen_env.types import Writer


@dataclass(frozen=True)
class StepView:
    """View of one step: K of the rollout's B rows, those that are still being written.

    Attributes:
        rows: (K,) int64, their places among the B rows.
        position: (K,) int64, tokens that each has written.
        student_logits: (K, V) float.
        data_action: (K,) int64, the data's token at this step; PAD after the data's end.
        expert_logits: (K, V) float; None where the expert is not queried at every step.
    """

    rows: Tensor
    position: Tensor
    student_logits: Tensor
    data_action: Tensor
    expert_logits: Tensor | None = None


class Written(NamedTuple):
    """Choice of a behavior at one step.

    Attributes:
        action: (K,) int64.
        writer: (K,) int64, a `Writer` for each action.
        log_prob: (K,) float, nats, the action's log-probability in the distribution that its writer
            drew it from, 0 where it was not drawn; None where no action was.
    """

    action: Tensor
    writer: Tensor
    log_prob: Tensor | None = None


Behavior = Callable[[StepView], tuple[Tensor, Tensor] | Written]
"""View -> the fields of `Written`, of which the last may be left out."""
TokenSampler = Callable[[Tensor], tuple[Tensor, Tensor | None]]
"""(K, V) logits -> (K,) int64, the tokens that their owner writes, and their log-probabilities.

None in place of these if the tokens are not drawn.
"""
Gate = Callable[[StepView, Tensor], Tensor]
"""(view, (K,) int64 tokens that the student proposes) -> (K,) bool, True where they stay."""


@dataclass(frozen=True)
class Gated:
    """Behavior in which a gate decides which of the student's tokens stay.

    Attributes:
        gate: decides which proposals stay.
        student: chooses the student's tokens.
        expert: chooses the tokens that replace the others; None to take the data's.
    """

    gate: Gate
    student: TokenSampler
    expert: TokenSampler | None = None

    def __call__(self, view: StepView) -> Written:
        """Return the actions, their writers and their log-probabilities."""
        with logits_from("student"):
            proposal, own_log_prob = self.student(view.student_logits)
        stays = self.gate(view, proposal)
        if self.expert is None:
            other, log_prob, writer = view.data_action, None, Writer.DATA
        else:
            with logits_from("teacher"):
                other, log_prob = self.expert(_required_expert_logits(view))
            writer = Writer.EXPERT
        return Written(
            proposal.where(stays, other),
            torch.where(stays, Writer.STUDENT, writer),
            _one_of(stays, own_log_prob, log_prob),
        )


@dataclass(frozen=True)
class TokenMask:
    """Gate whose decisions are drawn before the first token is written.

    Attributes:
        by_student: (B, T) bool, the tokens that the student writes.
    """

    by_student: Tensor

    def __call__(self, view: StepView, proposal: Tensor) -> Tensor:
        """Return a (K,) bool mask, True where the student writes."""
        del proposal
        return self.by_student[view.rows, view.position]


def token_mask(context: Context, beta: float, block: int = 1) -> TokenMask:
    """Return a gate that keeps each token of the student with probability 1 - beta.

    Where the data writes the others, a row whose end the student has written over has none left:
    its `data_action` is PAD, which a caller must leave to the student.

    Args:
        context: of the collection.
        beta: probability that another writes a token, in [0, 1].
        block: neighboring tokens that share a draw, counted from the start of a text: 1 for a
            draw for each token, T for one for each text.
    """
    env, steps = context.env, context.env.max_steps
    blocks = -(-steps // block)
    others = bernoulli_mask(beta, env.num_envs * blocks, context.generator)
    by_student = ~others.view(-1, blocks).repeat_interleave(block, 1)[:, :steps]
    return TokenMask(by_student.to(env.device))


@dataclass(frozen=True)
class InTopK:
    """Gate that keeps a proposal if it is one of the expert's k most probable tokens.

    Attributes:
        k: at least 0; no proposal stays if it is 0, and all do if it is V.

    Source: Xu et al. 2025, arXiv:2410.11325.
    """

    k: int

    def __call__(self, view: StepView, proposal: Tensor) -> Tensor:
        """Return a (K,) bool mask, True where fewer than k tokens are more probable."""
        logits = _required_expert_logits(view)
        return (logits > logits.gather(1, proposal[:, None])).sum(1) < self.k


@dataclass(frozen=True)
class BelowThreshold:
    """Gate that keeps a proposal where student and expert diverge little.

    Attributes:
        threshold: (T,) float, nats, the largest Jensen-Shannon divergence at which a proposal
            stays, by position.

    Source: Koo et al. 2025, arXiv:2410.19503.
    """

    threshold: Tensor

    def __call__(self, view: StepView, proposal: Tensor) -> Tensor:
        """Return a (K,) bool mask, True where the divergence is not above the threshold."""
        del proposal
        divergence = generalized_jsd(view.student_logits, _required_expert_logits(view))
        return divergence <= self.threshold[view.position]


class OneWaySwitch:
    """Gate that keeps proposals until the divergence leaps above its recent mean.

    Args:
        shape: (B, L), the rows, and the number of last divergences that make up the mean; the
            first L proposals of a text stay.
        factor: multiple of the mean that is a leap.
        device: of the rollout.

    Source: Peng et al. 2025, arXiv:2510.07842.
    """

    def __init__(self, shape: tuple[int, int], factor: float, device: torch.device) -> None:
        self.factor = factor
        self.recent = torch.zeros(shape, device=device)
        self.over = torch.zeros(shape[0], dtype=torch.bool, device=device)

    def __call__(self, view: StepView, proposal: Tensor) -> Tensor:
        """Return a (K,) bool mask, True before the leap; called at every position of a text."""
        del proposal
        rows, window = view.rows, self.recent.shape[1]
        divergence = forward_kl(view.student_logits, _required_expert_logits(view))
        leaps = divergence > self.factor * self.recent[rows].mean(1)
        begun = view.position > 0
        over = (self.over[rows] & begun) | (leaps & (view.position >= window))
        self.over[rows] = over
        self.recent[rows, view.position % window] = divergence
        return ~over


def by_example(by_student: Tensor, student: TokenSampler, max_steps: int) -> Gated:
    """Return a behavior in which each row is written from start to end by student or data.

    Args:
        by_student: (B,) bool, the rows that the student writes.
        student: chooses its tokens.
        max_steps: T, the length limit.

    Source: Lin et al. 2020, algorithm 1, arXiv:2009.07253.
    """
    return Gated(TokenMask(by_student[:, None].expand(-1, max_steps)), student)


def token_sampler(sampling: Sampling | None, context: Context) -> TokenSampler:
    """Return how one of the writers chooses, with draws of its own on the environment's device.

    Args:
        sampling: how to draw; None for the most probable token.
        context: of the collection; its generator gives the seed of the draws.
    """
    seed = int(torch.randint(2**62, (), generator=context.generator))
    draws = torch.Generator(context.env.device).manual_seed(seed)
    return partial(choose_action, sampling=sampling, generator=draws, special=context.env.special)


def bernoulli_mask(probability: float, count: int, generator: torch.Generator) -> Tensor:
    """Return a (count,) bool mask, True with `probability`, on the generator's device."""
    return torch.rand(count, generator=generator, device=generator.device) < probability


def _one_of(stays: Tensor, own: Tensor | None, other: Tensor | None) -> Tensor | None:
    """Return the (K,) log-probabilities of tokens of two writers, 0 for those of one who drew none.

    None if neither drew.
    """
    if own is None and other is None:
        return None
    none_drawn = torch.zeros(stays.shape, device=stays.device)
    return (none_drawn if own is None else own).where(stays, none_drawn if other is None else other)


def _required_expert_logits(view: StepView) -> Tensor:
    """Return the expert's (K, V) logits, which the rollout must have asked for."""
    if view.expert_logits is None:
        raise ValueError(
            "the expert must be queried at every step for a behavior that looks at its logits, got "
            "None: call rollout with record_expert_logits=True"
        )
    return view.expert_logits
