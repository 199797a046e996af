"""Target-side augmentation: several targets for each source, drawn from a teacher.

A reference is one of many good texts. The teacher continues a beginning of it in several ways, so
that the student learns the law of the targets and not one of them. Everything is drawn before
training.
"""

from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from textgen_agents.agent import Agent, LearnsFrom
from textgen_agents.losses.labels import LabelledBatch, check_smoothing
from textgen_agents.losses.objectives import token_loss
from textgen_agents.rollouts.context import Context
from textgen_agents.rollouts.rollout import data_rollout
from textgen_env.bounds import check_at_least, check_finite, check_shares
from textgen_env.experts.expert import Expert
from textgen_env.generation.sampling import Sampling
from textgen_env.models.sequence_model import SequenceModel
from textgen_env.types import Examples, SpecialTokens

SOURCES_TOGETHER = 64  # whose texts the teacher completes at a time


@dataclass(frozen=True)
class TargetSideAugmentation(Agent):
    """Training on references and on several continuations of their beginnings by the teacher.

    Roll-in: as data, the reference and `draws` texts of the teacher, each of which begins as the
    reference does, up to a share of it drawn evenly from 0 to `observed`. Label: their next token.
    Loss: cross-entropy.
    Differs from the paper in: the part of the reference that is read is a beginning, which any
    teacher can continue, where the paper trains one to read scattered spans of it; texts are
    drawn once, before training; 8 draws and shares up to a half, which nothing that was read
    gives, by choice. Sources without references have the teacher's texts alone.

    Attributes:
        draws: M, texts of the teacher a source, at least 1.
        observed: largest share of the reference that the teacher goes on from, in [0, 1].
        sampling: how the teacher draws.
        seed: of the draws.
        label_smoothing: share of the label spread evenly over the vocabulary, in [0, 1).

    Source: Bao et al. 2023, arXiv:2305.04505.
    """

    learns_from = LearnsFrom.TEXTS
    student_writes = False
    learns_without_references = True
    draws: int = 8
    observed: float = 0.5
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    label_smoothing: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        check_at_least(self, draws=1)
        check_finite(self, "seed")
        check_shares(self, "observed")
        check_smoothing(self.label_smoothing)

    def prepare(self, examples: Examples, expert: Expert, max_steps: int) -> Examples:
        """Return the pairs, then the sources with each draw of the teacher as their reference."""
        generator = torch.Generator(examples.source.device).manual_seed(self.seed)
        prefix = _with_width(examples.reference, max_steps, expert.special)
        sources = examples.expert_view
        known = examples.has_reference(expert.special).nonzero().squeeze(1)
        rows, texts = [known], [prefix[known]]
        every = torch.arange(len(examples), device=sources.device)
        for _ in range(self.draws):
            length = self._observed_lengths(prefix, expert.special, generator)
            texts += [
                expert.complete(
                    sources[part],
                    prefix[part],
                    length[part],
                    sampling=self.sampling,
                    generator=generator,
                )
                for part in every.split(SOURCES_TOGETHER)
            ]
            rows.append(every)
        return replace(examples.select(torch.cat(rows)), reference=torch.cat(texts))

    def _observed_lengths(
        self, references: Tensor, special: SpecialTokens, generator: torch.Generator
    ) -> Tensor:
        """Draw the (N,) int64 numbers of tokens that the teacher reads of each reference."""
        share = torch.rand(len(references), generator=generator, device=references.device)
        words = ((references != special.pad) & (references != special.end)).sum(1)
        return (self.observed * share * (words + 1)).long().clamp(max=words)

    def collect(self, context: Context) -> LabelledBatch:
        """Return references and drawn texts as prefixes."""
        return data_rollout(context)

    def loss(self, batch: LabelledBatch, student: SequenceModel, expert: Expert) -> Tensor:
        """Return the cross-entropy on the texts' tokens."""
        del expert
        states = batch.trajectories
        return token_loss(states, student, states.actions, label_smoothing=self.label_smoothing)


def _with_width(texts: Tensor, width: int, special: SpecialTokens) -> Tensor:
    """Return (N, `width`) texts, padded or cut."""
    return F.pad(texts, (0, width - texts.shape[1]), value=special.pad)
