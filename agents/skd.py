"""Speculative knowledge distillation: the student's texts without tokens unlikely to the teacher.

No gradient flows through the writing.
"""

from dataclasses import dataclass, field
from functools import partial

from torch import Tensor

from textgen_agents.agent import Agent
from textgen_agents.losses.divergences import forward_kl
from textgen_agents.losses.kl_mixtures import KLMixture
from textgen_agents.losses.labels import Dense, Label, LabelledBatch, check_divergence, check_k
from textgen_agents.losses.objectives import loss_for
from textgen_agents.rollouts.behaviors import Gated, InTopK, token_sampler
from textgen_agents.rollouts.context import Context
from textgen_agents.rollouts.rollout import rollout
from textgen_env.bounds import check_at_least
from textgen_env.experts.expert import Expert
from textgen_env.generation.sampling import Sampling
from textgen_env.models.sequence_model import SequenceModel


@dataclass(frozen=True)
class SKD(Agent):
    """Distillation along the student's texts, in which the teacher replaces unlikely tokens.

    Roll-in: the student draws every token; one that is not among the teacher's k most probable is
    replaced by a draw of the teacher. Label: the teacher's distribution. Loss: forward KL.
    Differs from the paper in: the teacher judges each token as it is proposed, not five at a time,
    which writes the same texts.

    Attributes:
        sampling: how the student writes; None for greedy.
        expert_sampling: how the teacher writes; None for greedy.
        k: the teacher's tokens among which the student's must be, from 1 to V.
        label: what is learned of the teacher's distribution; less is no longer the paper's.
        divergence: mixture of forward and reverse KL in place of forward KL; None for forward KL.

    Source: Xu et al. 2025, arXiv:2410.11325.
    """

    queries_while_writing = True
    expects_trained_student = True
    learns_without_references = True
    sampling: Sampling | None = field(default_factory=partial(Sampling, temperature=0.5, top_p=0.5))
    expert_sampling: Sampling | None = field(
        default_factory=partial(Sampling, temperature=0.2, top_p=0.5)
    )
    k: int = 25
    label: Label = field(default_factory=Dense, kw_only=True)
    divergence: KLMixture | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        check_at_least(self, "1 keeps the teacher's best alone", k=1)
        check_divergence(self.label, self.divergence or forward_kl)

    def check_expert(self, expert: Expert) -> None:
        """Raise, before any training, unless the expert gives its distribution over k or more."""
        super().check_expert(expert)
        check_k(self.k, expert)

    def collect(self, context: Context) -> LabelledBatch:
        """Write by the student, and by the teacher where its top k refuse the student's token."""
        behavior = Gated(
            gate=InTopK(self.k),
            student=token_sampler(self.sampling, context),
            expert=token_sampler(self.expert_sampling, context),
        )
        return rollout(context, behavior, record_expert_logits=True)

    def loss(self, batch: LabelledBatch, student: SequenceModel, expert: Expert) -> Tensor:
        """Return the divergence from the teacher's distribution on all prefixes."""
        divergence = self.divergence or forward_kl
        return loss_for(self.label, divergence, batch.trajectories, student, expert)
