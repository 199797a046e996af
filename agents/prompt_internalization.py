"""Generative prompt internalization: the student does without a prompt that its teacher reads.

The teacher's view of an example is the source with a prompt around it. The student learns the texts
that the teacher writes so from the bare source, and to write the prompt itself when it is asked for
it. Left out: the reason for the prompt that a larger model writes there, and the play of roles in
which it makes up sources.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from textgen_agents.agent import Agent, LearnsFrom
from textgen_agents.losses.labels import LabelledBatch, check_smoothing
from textgen_agents.losses.objectives import token_loss
from textgen_agents.rollouts.context import Context
from textgen_agents.rollouts.rollout import data_rollout
from textgen_env.bounds import check_at_least
from textgen_env.experts.expert import Expert
from textgen_env.models.sequence_model import SequenceModel
from textgen_env.types import Examples, SpecialTokens


@dataclass(frozen=True)
class GenPI(Agent):
    """Training on the texts that the teacher writes under a prompt, and on the prompt.

    Roll-in: as data, for each source the teacher's text under the prompt, and, where the source
    asks for it, the prompt. Label: their next token. Loss: cross-entropy, that of prompts times
    `prompt_weight`; one mean over the tokens of both.
    Differs from the paper in: the prompt is asked for by the source alone, in which the start token
    stands in place of the end token; there by the source with the texts of teacher and student, and
    with a reason to be written; the teacher writes by beam search. The weight, which nothing that
    was read gives, is 1 by choice.

    Attributes:
        beam_size: hypotheses the teacher keeps, at least 1.
        prompt_weight: of the prompts' tokens, at least 0; at 0 it is seqkd, and there are no rows
            of prompts.
        label_smoothing: share of the label spread evenly over the vocabulary, in [0, 1).

    Source: Shin et al. 2024, arXiv:2411.15927.
    """

    learns_from = LearnsFrom.TEXTS
    student_writes = False
    learns_without_references = True
    needs_expert_view = True
    beam_size: int = 5
    prompt_weight: float = 1.0
    label_smoothing: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        check_smoothing(self.label_smoothing)
        check_at_least(self, beam_size=1)
        check_at_least(self, "0 is seqkd", prompt_weight=0)

    def prepare(self, examples: Examples, expert: Expert, max_steps: int) -> Examples:
        """Return the sources with the teacher's texts, then those that ask for their prompts.

        Raises:
            ValueError: the teacher's view has no prompt, or one longer than a text may be.
        """
        if not self.prompt_weight:
            return expert.write(examples, max_steps=max_steps, beam_size=self.beam_size)
        prompts = _as_references(prompts_of(examples, expert.special), max_steps, expert.special)
        written = expert.write(examples, max_steps=max_steps, beam_size=self.beam_size)
        texts = F.pad(
            written.reference,
            (0, max_steps - written.reference.shape[1]),
            value=expert.special.pad,
        )
        twice = torch.arange(len(examples), device=texts.device).repeat(2)
        sources = torch.cat([examples.source, asking(examples.source, expert.special)])
        both = examples.select(twice)
        return replace(both, source=sources, reference=torch.cat([texts, prompts.to(texts.device)]))

    def collect(self, context: Context) -> LabelledBatch:
        """Return the teacher's texts and the prompts as prefixes."""
        return data_rollout(context)

    def loss(self, batch: LabelledBatch, student: SequenceModel, expert: Expert) -> Tensor:
        """Return the cross-entropy on the tokens of texts and of prompts."""
        del expert
        states, weight = batch.trajectories, batch.trajectories.action_weight
        of_prompts = ~_last_ends(states.source, student.special).any(1, keepdim=True)
        weighed = replace(states, weight=weight.where(~of_prompts, self.prompt_weight * weight))
        return token_loss(weighed, student, states.actions, label_smoothing=self.label_smoothing)


def asking(source: Tensor, special: SpecialTokens) -> Tensor:
    """Return the (B, S) sources that ask for the prompt: they end with the start token."""
    return source.masked_fill(_last_ends(source, special), special.start)


def _last_ends(source: Tensor, special: SpecialTokens) -> Tensor:
    """Return a (B, S) bool mask of the end token of each source, not those of messages in it."""
    length = (source != special.pad).sum(1, keepdim=True)
    is_last = torch.arange(source.shape[1], device=source.device) == length - 1
    return is_last & (source == special.end)


def prompts_of(examples: Examples, special: SpecialTokens) -> list[list[int]]:
    """Return the tokens that the expert reads before and after each source.

    Raises:
        ValueError: there are none, or the source is not within the expert's view.
    """
    prompts, never = [], {special.pad, special.end}
    for own, read in zip(examples.source.tolist(), examples.expert_view.tolist(), strict=True):
        source, view = ([token for token in row if token not in never] for row in (own, read))
        prompts.append(_around(source, view))
    without = sum(not prompt for prompt in prompts)
    if without:
        raise ValueError(
            "expert_source must be the source with a prompt around it for GenPI, got "
            f"{without:,} of {len(prompts):,} that are not: give the field expert_source, or set "
            "prompt_weight to 0"
        )
    return prompts


def _around(source: Sequence[int], view: Sequence[int]) -> list[int]:
    """Return the tokens of `view` around `source`; none where it is not in it."""
    for start in range(len(view) - len(source), -1, -1):
        if view[start : start + len(source)] == source:
            return [*view[:start], *view[start + len(source) :]]
    return []


def _as_references(prompts: Sequence[list[int]], width: int, special: SpecialTokens) -> Tensor:
    """Return (N, `width`) int64, each prompt with its end token, PAD after it."""
    longest = max(map(len, prompts)) + 1
    if longest > width:
        raise ValueError(
            f"prompt must have at most {width} tokens with its end, the longest text of the task, "
            f"got {longest}: shorten it, or set prompt_weight to 0"
        )
    rows = [torch.tensor([*prompt, special.end]) for prompt in prompts]
    padded = pad_sequence(rows, batch_first=True, padding_value=special.pad)
    return F.pad(padded, (0, width - longest), value=special.pad)
