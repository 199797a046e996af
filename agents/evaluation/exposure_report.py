"""All exposure-bias instruments of one student, read the same way during training and afterwards.

Where there is no teacher, what needs one is None.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Self

import torch

from textgen_agents.evaluation.exposure_bias import (
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
from textgen_agents.evaluation.quality import LengthGroup, bleu, bleu_by_length
from textgen_agents.rollouts.batches import generator_for
from textgen_env.experts.expert import Expert
from textgen_env.generation.decoding import Sampling, sample
from textgen_env.models.sequence_model import SequenceModel
from textgen_env.tasks.task import Pair
from textgen_env.tokenizers.subword import TextTokenizer
from textgen_env.types import SpecialTokens, Trajectories, Writer

SHARES = (0.25, 0.5, 0.75)  # of a text that the student writes before the teacher goes on
SEED = 0  # of the draws: the same for all students
NUM_DRAWS = 3  # texts drawn for each source


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

    def mean(self, values: Sequence[float]) -> float:
        """Of one of the two measures, over all states."""
        weighted = zip(values, self.count, strict=True)
        return sum(value * states for value, states in weighted) / sum(self.count)


@dataclass(frozen=True)
class Finished:
    """The BLEU of texts of which the student wrote the first `share`, the teacher the rest."""

    share: float
    bleu: float


@dataclass(frozen=True)
class ExposureBiasReport:
    """What the instruments say of one student; those that need a teacher are None without one.

    Attributes:
        length_ratio: of the student's texts.
        repetition_rate: of the student's texts, in [0, 1].
        bleu_by_reference_length: of the student's texts.
        bleu_by_source_length: of the student's texts.
        teacher_pairs: how many pairs, the first ones, the figures below are of.
        positions: student beside teacher by position, on "reference", "student" and "teacher"
            prefixes.
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

    def figures(self) -> dict[str, float]:
        """One number for each instrument that there is, by the name that it is logged under.

        Of those by position the mean over all states; of the excess accumulated error its value at
        the last position that half of the student's greedy texts reach, beyond which there are few.
        """
        named = {
            "length_ratio": self.length_ratio,
            "repetition_rate": self.repetition_rate,
            "likelihood_risk": self.likelihood_risk,
            "coverage_risk": self.coverage_risk,
        }
        for who, found in (self.positions or {}).items():
            named[f"{who}_prefix_agreement"] = found.mean(found.agreement)
            named[f"{who}_prefix_divergence"] = found.mean(found.divergence)
        if self.excess_accumulated_error and self.positions:
            states = self.positions["student"].count
            half = sum(2 * count >= states[0] for count in states)
            named["excess_accumulated_error"] = self.excess_accumulated_error[:half][-1]
        for each in self.teacher_finishes or []:
            named[f"teacher_finishes_{each.share:g}"] = each.bleu
        return {name: value for name, value in named.items() if value is not None}


@dataclass(frozen=True)
class Teacher:
    """The teacher and what it writes for the examples, which is the same for all students.

    Attributes:
        expert: the teacher.
        written: its greedy texts.
        drawn: `NUM_DRAWS` texts for each source, drawn from its distributions.
    """

    expert: Expert
    written: Trajectories
    drawn: Trajectories

    @classmethod
    def of(cls, expert: Expert, written: Trajectories) -> Self:
        """The teacher whose greedy texts are `written`, T the length limit; it draws others."""
        examples, steps = written.examples, written.actions.shape[1]

        def draw(generator: torch.Generator) -> Trajectories:
            drawn = expert.sample(
                examples, max_steps=steps, sampling=Sampling(), generator=generator
            )
            return record(examples, drawn.reference, Writer.EXPERT, expert.special)

        return cls(expert, written, _drawn(draw, "teacher draws", expert.special))


def _drawn(
    draw: Callable[[torch.Generator], Trajectories], purpose: str, special: SpecialTokens
) -> Trajectories:
    """What `draw` gives for `NUM_DRAWS` generators of their own, one after the other."""
    generators = (generator_for(SEED, purpose, number) for number in range(NUM_DRAWS))
    return Trajectories.cat([draw(generator) for generator in generators], special)


def exposure(
    student: SequenceModel,
    own: Trajectories,
    pairs: Sequence[Pair],
    tokenizer: TextTokenizer,
    teacher: Teacher | None,
    shares: Sequence[float] = SHARES,
) -> ExposureBiasReport:
    """Read all instruments.

    Args:
        student: in evaluation mode.
        own: its greedy texts for `pairs`, T the length limit.
        pairs: sources and references.
        tokenizer: of both sides.
        teacher: with its texts for `pairs`, or for the first of them, to save time; None for a
            student that has none.
        shares: of a text that the student writes before the teacher goes on, beside none and all.
    """
    hypotheses = tokenizer.decode(own.actions.tolist())
    references = [pair.reference for pair in pairs]
    alone = ExposureBiasReport(
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
    examples, steps = own.examples, own.actions.shape[1]

    def draw(generator: torch.Generator) -> Trajectories:
        decoder = partial(sample, sampling=Sampling(), generator=generator)
        return written_by(student, examples, steps, writer=Writer.STUDENT, decoder=decoder)

    drawn, teachers = (
        compare(texts, student, teacher.expert)
        for texts in (_drawn(draw, "student draws", student.special), teacher.drawn)
    )
    error = excess_accumulated_error(drawn, teachers).tolist()
    return replace(
        alone,
        teacher_pairs=count,
        positions=_positions(student, own, teacher),
        excess_accumulated_error=[value if math.isfinite(value) else None for value in error],
        likelihood_risk=likelihood_risk(drawn),
        coverage_risk=coverage_risk(teachers),
        teacher_finishes=_finished(own, references, tokenizer, teacher, shares),
    )


def _positions(student: SequenceModel, own: Trajectories, teacher: Teacher) -> dict[str, Positions]:
    references = Trajectories.from_examples(own.examples, student.special)
    prefixes = {"reference": references, "student": own, "teacher": teacher.written}
    return {
        who: Positions.of(compare(texts, student, teacher.expert))
        for who, texts in prefixes.items()
    }


def _finished(
    own: Trajectories,
    references: Sequence[str],
    tokenizer: TextTokenizer,
    teacher: Teacher,
    shares: Sequence[float],
) -> list[Finished]:
    texts = {
        0.0: teacher.written.actions,
        **{share: teacher_finishes(own, teacher.expert, share) for share in shares},
        1.0: own.actions,
    }
    return [
        Finished(share, bleu(tokenizer.decode(actions.tolist()), references))
        for share, actions in texts.items()
    ]
