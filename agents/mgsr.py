"""MGSR: the student's text is corrected at its worst token, and taught at three granularities.

The student writes a text, the teacher replaces the token before which the two differ most, and the
student goes on from there. The corrected text is learned from as a sequence, by token and by pairs
of neighboring tokens. Left out: the network that learns where to clip the teacher's distribution,
in whose place are fixed percentiles; the weighting of sequences.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from textgen_agents.agent import Agent
from textgen_agents.losses.divergences import cross_entropy, forward_kl
from textgen_agents.losses.labels import LabelledBatch, Labels
from textgen_agents.losses.objectives import mean_over_actions
from textgen_agents.losses.state_chunks import StateChunk, label_states
from textgen_agents.rollouts.behaviors import StepView, TokenSampler, token_sampler
from textgen_agents.rollouts.context import Context
from textgen_agents.rollouts.rollout import rollout, student_rollout
from textgen_env.bounds import check_at_least, check_shares
from textgen_env.experts.expert import Expert
from textgen_env.generation.decoding import logits_from, next_action
from textgen_env.generation.sampling import Sampling
from textgen_env.models.sequence_model import SequenceModel
from textgen_env.types import Writer


@dataclass(frozen=True)
class MGSR(Agent):
    """Distillation on the student's texts, each corrected by the teacher at its worst token.

    Roll-in: the student draws a text; where KL(p || q) is largest along it the teacher's most
    probable token is put, and the student draws the rest anew. Label: the text itself and the
    teacher's distribution. Loss: cross-entropy on the text, plus `clipped_weight` times the forward
    KL of distributions in which the tokens outside two percentiles of the teacher's are one, plus
    `span_weight` times the squared distance between the products p(t - 1) p(t) of neighboring
    distributions and the student's, summed over the vocabulary.
    Differs from the paper in: one correction a text; fixed percentiles, where a network predicts
    them; spans are pairs of neighboring tokens, not phrases that a parser has found. All weights,
    which nothing that was read gives, are 1, and the percentiles 0.5 and 1, by choice.

    Attributes:
        sampling: how the student writes; None for greedy.
        clipped_weight: of the clipped divergence, at least 0.
        span_weight: of the distance between neighboring pairs, at least 0.
        lower: share of the vocabulary, the teacher's least probable tokens, that are one token to
            the divergence, in [0, 1].
        upper: share above which its most probable ones join them, in [`lower`, 1]; the token that
            was written always stays by itself.

    Source: Liu et al. 2024, arXiv:2407.10068.
    """

    expects_trained_student = True
    learns_without_references = True
    sampling: Sampling | None = field(default_factory=Sampling)
    clipped_weight: float = 1.0
    span_weight: float = 1.0
    lower: float = 0.5
    upper: float = 1.0

    def __post_init__(self) -> None:
        check_at_least(self, "0 leaves this term out", clipped_weight=0, span_weight=0)
        check_shares(self, "lower", "upper")
        if self.upper < self.lower:
            raise ValueError(
                f"upper must be at least lower = {self.lower}, got {self.upper}: 1 clips no "
                "probable token"
            )

    def collect(self, context: Context) -> LabelledBatch:
        """Write by the student, correct its worst token, and let it write the rest again."""
        env, draft = context.env, student_rollout(context, self.sampling).trajectories

        def compare(at: StateChunk) -> Labels:
            with logits_from("teacher"):
                best = next_action(at.teacher_logits, special=env.special, mask=at.mask)
            return {"best": best, "divergence": forward_kl(at.student_logits, at.teacher_logits)}

        found = label_states(compare, LabelledBatch(draft), context.student, env.expert)
        place = worst_token(found["divergence"], draft.mask)
        corrected = draft.actions.scatter(1, place, found["best"].gather(1, place))
        return rollout(context, Corrected(corrected, place, token_sampler(self.sampling, context)))

    def loss(self, batch: LabelledBatch, student: SequenceModel, expert: Expert) -> Tensor:
        """Return the mean of the losses of text, tokens and neighboring pairs."""
        states = batch.trajectories
        teacher_logits = expert.logits(states)
        logits = student.sequence_logits(states.source, states.actions)
        kept = self.kept_tokens(teacher_logits, states.actions)
        divergence = forward_kl(*(one_rest(each, kept) for each in (logits, teacher_logits)))
        losses = cross_entropy(logits, states.actions) + self.clipped_weight * divergence
        losses = losses + self.span_weight * pair_distance(logits, teacher_logits)
        return mean_over_actions(losses, states)

    def kept_tokens(self, teacher_logits: Tensor, actions: Tensor) -> Tensor:
        """Return a (B, T, V) bool mask of the tokens that the divergence tells apart.

        Args:
            teacher_logits: (B, T, V).
            actions: (B, T) int64, the tokens written, which are always among them.
        """
        last = teacher_logits.shape[-1] - 1
        ordered = teacher_logits.sort(-1).values
        least, most = (
            ordered[..., round(last * share), None] for share in (self.lower, self.upper)
        )
        kept = (teacher_logits >= least) & (teacher_logits <= most)
        return kept.scatter(-1, actions[..., None], True)


@dataclass(frozen=True)
class Corrected:
    """Behavior that writes texts again up to a token of the teacher's, and lets the student go on.

    Attributes:
        actions: (B, T) int64, the texts, with the teacher's token in them.
        place: (B, 1) int64, the position of that token.
        student: chooses the tokens after it.
    """

    actions: Tensor
    place: Tensor
    student: TokenSampler

    def __call__(self, view: StepView) -> tuple[Tensor, Tensor]:
        """Return the actions and their writers, (K,) int64 each."""
        with logits_from("student"):
            proposal, _ = self.student(view.student_logits)
        place = self.place[view.rows, 0]
        column = view.position.clamp(max=self.actions.shape[1] - 1)
        written = self.actions[view.rows, column]
        action = written.where(view.position <= place, proposal)
        return action, torch.where(view.position == place, Writer.EXPERT, Writer.STUDENT)


def worst_token(divergence: Tensor, mask: Tensor) -> Tensor:
    """Return the position at which a divergence is largest, (B, 1) int64; the first of equals.

    Args:
        divergence: (B, T) float, at least 0.
        mask: (B, T) bool, the tokens that count, at least one a row.
    """
    return divergence.masked_fill(~mask, -1.0).argmax(1, keepdim=True)


def one_rest(logits: Tensor, kept: Tensor) -> Tensor:
    """Return (..., V + 1) logits in which all tokens but those of `kept` are one, the last.

    Args:
        logits: (..., V) float, any dtype.
        kept: (..., V) bool.
    """
    logits = logits.float()
    rest = logits.masked_fill(kept, float("-inf")).logsumexp(-1, keepdim=True)
    return torch.cat([logits.masked_fill(~kept, float("-inf")), rest], -1)


def pair_distance(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Return the squared distance of products of neighboring distributions, (B, T), in [0, 2].

    The sum over V of (p(t - 1) p(t) - q(t - 1) q(t))^2; 0 at the first token, which has none
    before it.

    Args:
        student_logits: (B, T, V).
        teacher_logits: (B, T, V).
    """
    student, teacher = (each.float().softmax(-1) for each in (student_logits, teacher_logits))
    gap = student[:, :-1] * student[:, 1:] - teacher[:, :-1] * teacher[:, 1:]
    return F.pad(gap.square().sum(-1), (1, 0))
