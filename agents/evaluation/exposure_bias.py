"""Diagnostics of exposure bias: the student beside the teacher on prefixes of several writers.

Two sets of trajectories differ in who wrote the prefixes: the data, the student or the teacher. At
the states of each, `compare_with_teacher` compares what the two models would write next. A student
with exposure bias is closer to the teacher on the data's prefixes than on its own. Every diagnostic
is a function here; `exposure_report` gathers all of them for one student.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from textgen_agents.losses.divergences import cross_entropy, entropy, forward_kl
from textgen_agents.losses.labels import LabelledBatch, Labels
from textgen_agents.losses.state_chunks import StateChunk, label_states
from textgen_env.experts.expert import Expert
from textgen_env.generation.decoding import Decoder, decode_all, greedy, logits_from, next_action
from textgen_env.models.sequence_model import SequenceModel
from textgen_env.types import Examples, SpecialTokens, Trajectories, Writer, trimmed

COMPARISON_BATCH_SIZE = 32
"""Number of texts that student and teacher read at a time."""
NUM_BEST = 10
"""Number of most probable tokens of both models whose overlap is measured; V if that is smaller."""


@dataclass(frozen=True)
class TeacherComparison:
    """Means over the states at each position of the text, of student and teacher.

    In the formulas p is the teacher's distribution and q the student's. A mean is 0 at a position
    that no text reaches.

    Attributes:
        count: (T,) float64, number of states at each position.
        agreement: (T,) float64, share of the states at which both have the same most probable
            token, in [0, 1].
        divergence: (T,) float64, mean KL(p || q), nats.
        student_nll: (T,) float64, mean of -log q(action), nats.
        teacher_nll: (T,) float64, mean of -log p(action), nats.
        top_k_overlap: (T,) float64, mean share of the `NUM_BEST` most probable tokens of the
            student that are among as many of the teacher, in [0, 1].
        shared_mass: (T,) float64, mean probability of these shared tokens, that of p and q
            averaged, in [0, 1].
        entropy_gap: (T,) float64, mean distance of the entropies of p and q, nats.
    """

    count: Tensor
    agreement: Tensor
    divergence: Tensor
    student_nll: Tensor
    teacher_nll: Tensor
    top_k_overlap: Tensor
    shared_mass: Tensor
    entropy_gap: Tensor

    @property
    def mean_agreement(self) -> float:
        """Mean agreement over all states, in [0, 1]."""
        return self.mean(self.agreement)

    def mean(self, figure: Tensor) -> float:
        """Return the mean over all states of one of the figures, given by position, (T,)."""
        return float((figure * self.count).sum() / self.count.sum())


@torch.no_grad()
def compare_with_teacher(
    trajectories: Trajectories,
    student: SequenceModel,
    expert: Expert,
    *,
    batch_size: int = COMPARISON_BATCH_SIZE,
) -> TeacherComparison:
    """Compare the student with the teacher at every counted state, in one pass of each.

    Args:
        trajectories: the states.
        student: in evaluation mode.
        expert: the teacher.
        batch_size: number of trajectories in a pass; those of similar length are batched together.

    Raises:
        ValueError: there is no trajectory.

    Source: Arora et al. 2022, section 4, arXiv:2204.01171, for the divergence by writer of the
        prefix; agreement is one minus the 0-1 loss of Ross et al. 2011, section 2,
        arXiv:1011.0686. Overlap, shared mass and entropy gap: after Li et al. 2026,
        arXiv:2604.13016.
    """
    if not len(trajectories):
        raise ValueError("trajectories must hold at least one text, got 0")
    steps, special = trajectories.actions.shape[1], expert.special
    names = [field.name for field in fields(TeacherComparison)]
    sums = torch.zeros(len(names), steps, dtype=torch.float64)
    for batch in _batches_by_length(trajectories, special, batch_size):
        figures = label_states(
            partial(_compare_states, special=special), LabelledBatch(batch), student, expert
        )
        for total, name in zip(sums, names, strict=True):
            counted = figures[name].double().where(batch.mask, 0.0)
            total[: counted.shape[1]] += counted.sum(0).cpu()
    return TeacherComparison(sums[0], *sums[1:] / sums[0].clamp(min=1))


def _compare_states(at: StateChunk, *, special: SpecialTokens) -> Labels:
    """Return the figures of `TeacherComparison` at each state, (K,) each, and 1 as the count."""
    own, teachers = at.student_logits, at.teacher_logits
    with logits_from("student"):
        best = next_action(own, special=special, mask=at.mask)
    with logits_from("teacher"):
        agreement = best == next_action(teachers, special=special, mask=at.mask)
    overlap, mass = shared_best(own, teachers)
    return {
        "count": torch.ones_like(agreement),
        "agreement": agreement,
        "divergence": forward_kl(own, teachers),
        "student_nll": cross_entropy(own, at.actions),
        "teacher_nll": cross_entropy(teachers, at.actions),
        "top_k_overlap": overlap,
        "shared_mass": mass,
        "entropy_gap": (entropy(own) - entropy(teachers)).abs(),
    }


def shared_best(
    student_logits: Tensor, teacher_logits: Tensor, k: int = NUM_BEST
) -> tuple[Tensor, Tensor]:
    """Compute the overlap of the k best tokens of student and teacher, and its probability.

    Args:
        student_logits: (..., V) float, any dtype.
        teacher_logits: (..., V) float, any dtype.
        k: number of tokens, at least 1; V where that is smaller.

    Returns:
        overlap: (...) float32 in [0, 1], share of the k tokens that both have.
        mass: (...) float32 in [0, 1], probability of these, that of both models averaged.
    """
    k = min(k, student_logits.shape[-1])
    best = student_logits.topk(k).indices
    shared = (best[..., :, None] == teacher_logits.topk(k).indices[..., None, :]).any(-1)
    probs = (student_logits.float().softmax(-1) + teacher_logits.float().softmax(-1)) / 2
    mass = probs.gather(-1, best).where(shared, 0.0).sum(-1)
    return shared.float().mean(-1), mass


def written_by(
    model: SequenceModel,
    examples: Examples,
    max_steps: int,
    *,
    writer: Writer,
    decoder: Decoder = greedy,
    batch_size: int = 64,
) -> Trajectories:
    """Generate a text for each source with `model`, and return the trajectories.

    Args:
        model: in evaluation mode; as `Writer.EXPERT` it reads the expert's view of the sources.
        examples: the sources.
        max_steps: largest number of tokens in a text.
        writer: the part that the model plays.
        decoder: decoding rule.
        batch_size: number of texts generated together.
    """
    source = examples.expert_view if writer == Writer.EXPERT else examples.source
    actions = decode_all(model, source, max_steps, decoder=decoder, batch_size=batch_size)
    return trajectories_of(examples, actions, writer, model.special)


def trajectories_of(
    examples: Examples, actions: Tensor, writer: Writer, special: SpecialTokens
) -> Trajectories:
    """Return trajectories of the texts `actions`, (B, T) int64, one for each example."""
    by = torch.full_like(actions, writer)
    return Trajectories.of(examples, actions, by, actions != special.pad)


def excess_accumulated_error(
    on_student: TeacherComparison, on_teacher: TeacherComparison
) -> Tensor:
    """Compute the excess of the error that accumulates on the student's own prefixes, in percent.

    R(l) is the sum of the divergences over the first l positions of the student's prefixes, as the
    mean over all texts, where a text that has ended adds 0; E(l) is the same on the teacher's:
    100 (R(l) - E(l)) / E(l). At 0 there is no exposure bias; where E(l) is 0 the result is not
    finite. A student whose texts are too long accumulates more.

    It may be negative: on strange prefixes an unsure teacher has a flat distribution, and a student
    that is as flat is close to it, which hides the bias.

    Args:
        on_student: on prefixes drawn from the student, three texts for each source
            (`exposure_report.NUM_DRAWS`).
        on_teacher: on prefixes drawn from the teacher.

    Returns:
        (L,) float64, percent, for the positions that a text of either reaches.

    Source: Arora et al. 2022, section 4, arXiv:2204.01171; with the teacher in the place of the
        data as Gu et al. 2023, section 3.3, arXiv:2306.08543.
    """
    positions = max(int((texts.count > 0).sum()) for texts in (on_student, on_teacher))
    accumulated, inherent = (
        _accumulated_divergence(each, positions) for each in (on_student, on_teacher)
    )
    return 100 * (accumulated - inherent) / inherent


def _accumulated_divergence(texts: TeacherComparison, positions: int) -> Tensor:
    """Return the divergence of a text up to each of the first positions, mean of all texts."""
    sums = (texts.divergence * texts.count)[:positions]
    return F.pad(sums, (0, positions - len(sums))).cumsum(0) / texts.count[0]


def likelihood_risk(drawn: TeacherComparison) -> float:
    """Compute the teacher's negative log-likelihood of the student's texts, nats a token.

    The mean of -log p(action) over all tokens, p the teacher. It is high where the student writes
    what the teacher would not.

    Args:
        drawn: on texts drawn from the student.

    Source: Wen et al. 2023, section 4.3, arXiv:2307.15190; per token here, not per text.
    """
    return drawn.mean(drawn.teacher_nll)


def coverage_risk(drawn: TeacherComparison) -> float:
    """Compute the student's negative log-likelihood of the teacher's texts, nats a token.

    The mean of -log q(action) over all tokens, q the student. It is high where the student cannot
    write what the teacher would.

    Args:
        drawn: on texts drawn from the teacher.

    Source: Wen et al. 2023, section 4.3, arXiv:2307.15190; per token here, not per text.
    """
    return drawn.mean(drawn.student_nll)


def _batches_by_length(
    texts: Trajectories, special: SpecialTokens, batch_size: int
) -> Iterator[Trajectories]:
    """Yield all texts in batches of similar length, so that little of a batch is padding."""
    for rows in texts.mask.sum(1).argsort(stable=True).split(batch_size):
        yield texts.select(rows).trimmed(special)


def complete_with_teacher(
    student_texts: Trajectories, expert: Expert, share: float, *, batch_size: int = 64
) -> Tensor:
    """Let the teacher complete, greedily, a share of each of the student's texts.

    The quality of the completed texts says how far the student's prefixes mislead the teacher.

    Args:
        student_texts: T is the length limit.
        expert: the teacher.
        share: share of each text's tokens that is kept, from the first, in [0, 1]. It is rounded to
            the nearest whole number of tokens, ties to the even one.
        batch_size: number of texts completed together; those with sources of similar length are
            batched together.

    Returns:
        (B, T) int64, PAD after the end token.

    Source: Lin et al. 2020, table 1, arXiv:2009.07253, for any share.
    """
    special = expert.special
    source, actions = student_texts.expert_view, student_texts.actions
    kept = (share * student_texts.mask.sum(1)).round().long()
    order = (source != special.pad).sum(1).argsort(stable=True)
    completed = [
        expert.complete(trimmed(source[rows], special), actions[rows], kept[rows])
        for rows in order.split(batch_size)
    ]
    return torch.cat(completed)[order.argsort()]


def length_ratio(texts: Trajectories, special: SpecialTokens) -> float:
    """Compute the tokens written over the tokens of the references, end tokens included.

    Source: Papineni et al. 2002, "BLEU", section 2.2.2: c over r of its brevity penalty.
    """
    return float(texts.mask.sum() / (texts.reference != special.pad).sum())


def repetition_rate(texts: Trajectories, *, order: int = 4) -> float:
    """Compute the share of a text's n-grams that occur earlier in it, as the mean over the texts.

    With u distinct n-grams among t: 1 - u / t, in [0, 1]. A text shorter than n tokens counts as 0.

    Args:
        texts: the texts.
        order: n, in tokens.

    Source: Welleck et al. 2020, "seq-rep-n", section 6, arXiv:1908.04319.
    """
    total = 0.0
    lengths = texts.mask.sum(1).tolist()
    for actions, length in zip(texts.actions.tolist(), lengths, strict=True):
        grams = [tuple(actions[i : i + order]) for i in range(length - order + 1)]
        total += 1 - len(set(grams)) / len(grams) if grams else 0.0
    return total / len(texts)
