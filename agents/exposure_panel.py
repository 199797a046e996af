"""All exposure-bias instruments of one student: a few during training, the rest afterwards.

Where there is no teacher, what needs one is None.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Self

import torch

from agents.batches import generator_for
from agents.evaluation import LengthGroup, bleu, bleu_by_length
from agents.exposure import (
    Comparison,
    compare,
    coverage_risk,
    excess_accumulated_error,
    length_ratio,
    likelihood_risk,
    record,
    repetition_rate,
    teacher_finishes,
    written_by,
)
from textgen_env.decoding import Sampling, sample
from textgen_env.expert import Expert
from textgen_env.models.sequence_model import SequenceModel
from textgen_env.tasks.task import Pair
from textgen_env.tokenizer import TextTokenizer
from textgen_env.types import Trajectories, Writer

SHARES = (0.25, 0.5, 0.75)  # of a text that the student writes before the teacher goes on
SEED = 0  # of the draws: the same for all students


@dataclass(frozen=True)
class Positions:
    """A `Comparison` by position in the text, as far as there are states, as lists."""

    agreement: list[float]
    divergence: list[float]
    count: list[int]

    @classmethod
    def of(cls, comparison: Comparison) -> Self:
        """The positions of `comparison` that have a state."""
        seen = int((comparison.count > 0).sum())  # a text has no gaps: these are the first ones
        return cls(
            comparison.agreement[:seen].tolist(),
            comparison.divergence[:seen].tolist(),
            comparison.count[:seen].long().tolist(),
        )


@dataclass(frozen=True)
class Finished:
    """The BLEU of texts of which the student wrote the first `share`, the teacher the rest."""

    share: float
    bleu: float


@dataclass(frozen=True)
class Exposure:
    """What the instruments say of one student; those that need a teacher are None without one.

    Attributes:
        length_ratio: of the student's texts.
        repetition_rate: of the student's texts, in [0, 1].
        bleu_by_reference_length: of the student's texts.
        bleu_by_source_length: of the student's texts.
        teacher_pairs: how many pairs, the first ones, the figures below are of.
        positions: student beside teacher on "gold", "own" and "teacher" prefixes, by position.
        excess_accumulated_error: by position, percent; None where it is not finite.
        likelihood_risk: nats a token.
        coverage_risk: nats a token.
        teacher_finishes: from the teacher's own texts (share 0) to the student's (1).
    """

    length_ratio: float
    repetition_rate: float
    bleu_by_reference_length: list[LengthGroup]
    bleu_by_source_length: list[LengthGroup]
    teacher_pairs: int | None = None
    positions: dict[str, Positions] | None = None
    excess_accumulated_error: list[float | None] | None = None
    likelihood_risk: float | None = None
    coverage_risk: float | None = None
    teacher_finishes: list[Finished] | None = None


@dataclass(frozen=True)
class Teacher:
    """The teacher and what it writes for the examples, which is the same for all students.

    Attributes:
        expert: the teacher.
        written: its greedy texts.
        drawn: a text for each source, drawn from its distributions.
    """

    expert: Expert
    written: Trajectories
    drawn: Trajectories

    @classmethod
    def of(cls, expert: Expert, written: Trajectories) -> Self:
        """The teacher whose greedy texts are `written`, T the length limit; it draws others."""
        examples = written.examples
        drawn = expert.sample(
            examples,
            max_steps=written.actions.shape[1],
            sampling=Sampling(),
            generator=generator_for(SEED, "teacher draws", 0),
        )
        return cls(
            expert, written, record(examples, drawn.reference, Writer.EXPERT, expert.special)
        )


def exposure(
    student: SequenceModel,
    own: Trajectories,
    pairs: Sequence[Pair],
    tokenizer: TextTokenizer,
    teacher: Teacher | None,
) -> Exposure:
    """Read all instruments.

    Args:
        student: in evaluation mode.
        own: its greedy texts for `pairs`, T the length limit.
        pairs: sources and references.
        tokenizer: of both sides.
        teacher: with its texts for `pairs`, or for the first of them, to save time; None for a
            student that has none.
    """
    hypotheses = tokenizer.decode(own.actions.tolist())
    references = [pair.reference for pair in pairs]
    alone = Exposure(
        length_ratio=length_ratio(own, student.special),
        repetition_rate=repetition_rate(own),
        bleu_by_reference_length=bleu_by_length(hypotheses, references, references),
        bleu_by_source_length=bleu_by_length(
            hypotheses, references, [pair.source for pair in pairs]
        ),
    )
    if teacher is None:
        return alone
    count = len(teacher.written)
    own, references = own.select(torch.arange(count)), references[:count]
    drawing = partial(
        sample, sampling=Sampling(), generator=generator_for(SEED, "student draws", 0)
    )
    drawn = written_by(
        student,
        own.examples,
        own.actions.shape[1],
        writer=Writer.STUDENT,
        decoder=drawing,
    )
    return replace(
        alone,
        teacher_pairs=count,
        positions=_positions(student, own, teacher),
        excess_accumulated_error=_excess(student, drawn, teacher),
        likelihood_risk=likelihood_risk(drawn, teacher.expert),
        coverage_risk=coverage_risk(teacher.drawn, student),
        teacher_finishes=_finished(own, references, tokenizer, teacher),
    )


def _positions(student: SequenceModel, own: Trajectories, teacher: Teacher) -> dict[str, Positions]:
    gold = Trajectories.from_examples(own.examples, student.special)
    prefixes = {"gold": gold, "own": own, "teacher": teacher.written}
    return {
        who: Positions.of(compare(texts, student, teacher.expert))
        for who, texts in prefixes.items()
    }


def _excess(student: SequenceModel, drawn: Trajectories, teacher: Teacher) -> list[float | None]:
    own, teachers = (compare(texts, student, teacher.expert) for texts in (drawn, teacher.drawn))
    error = excess_accumulated_error(own, teachers).tolist()
    return [value if math.isfinite(value) else None for value in error]


def _finished(
    own: Trajectories, references: Sequence[str], tokenizer: TextTokenizer, teacher: Teacher
) -> list[Finished]:
    texts = {
        0.0: teacher.written.actions,
        **{share: teacher_finishes(own, teacher.expert, share) for share in SHARES},
        1.0: own.actions,
    }
    return [
        Finished(share, bleu(tokenizer.decode(actions.tolist()), references))
        for share, actions in texts.items()
    ]


def figures_while_training(
    own: Trajectories, student: SequenceModel, expert: Expert | None
) -> dict[str, float]:
    """The cheap instruments, to be logged at each evaluation; some are absent without a teacher.

    Args:
        own: the student's greedy texts.
        student: in evaluation mode.
        expert: the teacher, whose answers here are not to be counted as those to the agent.
    """
    special = student.special
    figures = {"length_ratio": length_ratio(own, special), "repetition_rate": repetition_rate(own)}
    if expert is None:
        return figures
    gold = Trajectories.from_examples(own.examples, special)
    for who, texts in {"gold": gold, "own": own}.items():
        comparison = compare(texts, student, expert)
        figures[f"{who}_agreement"] = comparison.mean_agreement
        figures[f"{who}_divergence"] = comparison.mean_divergence
    return figures
