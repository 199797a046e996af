"""Exposure-bias report of one student: all diagnostics, computed alike during and after training.

Diagnostics that need a teacher are None where there is none.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Self

import torch
from torch import Tensor

from textgen_agents.evaluation.exposure_bias import (
    TeacherComparison,
    compare_with_teacher,
    complete_with_teacher,
    coverage_risk,
    excess_accumulated_error,
    length_ratio,
    likelihood_risk,
    repetition_rate,
    trajectories_of,
    written_by,
)
from textgen_agents.evaluation.quality import LengthGroup, bleu, bleu_by_length
from textgen_agents.rollouts.batches import generator_for
from textgen_env.experts.expert import Expert
from textgen_env.generation.decoding import sample
from textgen_env.generation.sampling import Sampling
from textgen_env.models.sequence_model import SequenceModel
from textgen_env.tasks.task import Pair, references_of
from textgen_env.tokenizers.subword import TextTokenizer
from textgen_env.types import SpecialTokens, Trajectories, Writer

STUDENT_SHARES = (0.25, 0.5, 0.75)
"""Shares of a text that the student writes before the teacher completes it."""
DRAW_SEED = 0
"""Seed of the drawn texts, the same for all students."""
NUM_DRAWS = 3
"""Number of texts drawn for each source."""


@dataclass(frozen=True)
class PositionCurves:
    """Figures of a `TeacherComparison` as lists, up to the last position that a text reaches.

    Attributes:
        agreement: share of the states at which student and teacher agree, in [0, 1].
        divergence: mean KL(teacher || student), nats.
        top_k_overlap: share of the best tokens that both have in common, in [0, 1].
        shared_mass: probability of these, in [0, 1].
        entropy_gap: mean distance of both entropies, nats.
        count: number of states.
    """

    agreement: list[float]
    divergence: list[float]
    top_k_overlap: list[float]
    shared_mass: list[float]
    entropy_gap: list[float]
    count: list[int]

    @classmethod
    def of(cls, comparison: TeacherComparison) -> Self:
        """Return the curves of `comparison` over the positions that have a state."""
        reached = int((comparison.count > 0).sum())  # texts have no gaps: these come first
        return cls(
            agreement=comparison.agreement[:reached].tolist(),
            divergence=comparison.divergence[:reached].tolist(),
            top_k_overlap=comparison.top_k_overlap[:reached].tolist(),
            shared_mass=comparison.shared_mass[:reached].tolist(),
            entropy_gap=comparison.entropy_gap[:reached].tolist(),
            count=comparison.count[:reached].long().tolist(),
        )

    @property
    def means(self) -> dict[str, float]:
        """Mean over all states of each curve, by its name."""
        return {
            "agreement": self.mean(self.agreement),
            "divergence": self.mean(self.divergence),
            "top_k_overlap": self.mean(self.top_k_overlap),
            "shared_mass": self.mean(self.shared_mass),
            "entropy_gap": self.mean(self.entropy_gap),
        }

    def mean(self, values: Sequence[float]) -> float:
        """Return the mean over all states of one of the curves."""
        weighted = zip(values, self.count, strict=True)
        return sum(value * states for value, states in weighted) / sum(self.count)


@dataclass(frozen=True)
class CompletionScore:
    """Quality of texts that the student starts and the teacher completes.

    Attributes:
        share: share of each text that the student wrote, in [0, 1].
        bleu: sacreBLEU, in [0, 100].
    """

    share: float
    bleu: float


@dataclass(frozen=True)
class ExposureBiasReport:
    """Diagnostics of one student; those that need a teacher are None without one.

    Attributes:
        length_ratio: tokens of the student's texts over tokens of the references.
        repetition_rate: of the student's texts, in [0, 1].
        bleu_by_reference_length: of the student's texts, grouped by the references' length.
        bleu_by_source_length: of the student's texts, grouped by the sources' length.
        teacher_pairs: number of pairs, from the first, that the figures below are computed on.
        positions: student and teacher compared by position, on the prefixes of each writer:
            "reference", "student" and "teacher".
        excess_accumulated_error: by position, percent; None where it is not finite.
        likelihood_risk: nats a token.
        coverage_risk: nats a token.
        teacher_finishes: quality of completed texts, from the teacher's own (share 0) to the
            student's (share 1).
    """

    length_ratio: float
    repetition_rate: float
    bleu_by_reference_length: list[LengthGroup]
    bleu_by_source_length: list[LengthGroup]
    teacher_pairs: int | None = None
    positions: dict[str, PositionCurves] | None = None
    excess_accumulated_error: list[float | None] | None = None
    likelihood_risk: float | None = None
    coverage_risk: float | None = None
    teacher_finishes: list[CompletionScore] | None = None

    def figures(self) -> dict[str, float]:
        """Return one number for each diagnostic that is not None, by its name in the log.

        Curves by position give their mean over all states. The excess accumulated error gives its
        last value, that of whole texts.
        """
        named = {
            "length_ratio": self.length_ratio,
            "repetition_rate": self.repetition_rate,
            "likelihood_risk": self.likelihood_risk,
            "coverage_risk": self.coverage_risk,
        }
        for writer, curves in (self.positions or {}).items():
            named |= {f"{writer}_prefix_{name}": mean for name, mean in curves.means.items()}
        if self.excess_accumulated_error:
            named["excess_accumulated_error"] = self.excess_accumulated_error[-1]
        for each in self.teacher_finishes or []:
            named[f"teacher_finishes_{each.share:g}"] = each.bleu
        return {name: value for name, value in named.items() if value is not None}


@dataclass(frozen=True)
class TeacherTexts:
    """Teacher and its texts for the examples, which are the same for all students.

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
        """Draw texts for the sources of `written`, the teacher's greedy texts.

        Args:
            expert: the teacher.
            written: its greedy texts; T is the length limit.
        """
        examples, steps = written.examples, written.actions.shape[1]

        def draw(generator: torch.Generator) -> Trajectories:
            drawn = expert.sample(
                examples, max_steps=steps, sampling=Sampling(), generator=generator
            )
            return trajectories_of(examples, drawn.reference, Writer.EXPERT, expert.special)

        return cls(expert, written, _draw_repeatedly(draw, "teacher draws", expert.special))


def _draw_repeatedly(
    draw: Callable[[torch.Generator], Trajectories], purpose: str, special: SpecialTokens
) -> Trajectories:
    """Return the texts of `NUM_DRAWS` calls of `draw`, each with a generator of its own."""
    generators = (generator_for(DRAW_SEED, purpose, number) for number in range(NUM_DRAWS))
    return Trajectories.cat([draw(generator) for generator in generators], special)


def measure_exposure_bias(
    student: SequenceModel,
    student_texts: Trajectories,
    pairs: Sequence[Pair],
    tokenizer: TextTokenizer,
    teacher: TeacherTexts | None,
    shares: Sequence[float] = STUDENT_SHARES,
    language: str | None = None,
) -> ExposureBiasReport:
    """Compute all diagnostics.

    Args:
        student: in evaluation mode.
        student_texts: its greedy texts for `pairs`; T is the length limit.
        pairs: sources and references.
        tokenizer: of sources and targets.
        teacher: the teacher with its texts for `pairs`, or for the first of them to save time;
            None for a student without a teacher.
        shares: shares of a text that the student writes before the teacher completes it; 0 and 1
            are added.
        language: code of the references' language, for BLEU.
    """
    hypotheses = tokenizer.decode(student_texts.actions.tolist())
    references = references_of(pairs)
    without_teacher = ExposureBiasReport(
        length_ratio=length_ratio(student_texts, student.special),
        repetition_rate=repetition_rate(student_texts),
        bleu_by_reference_length=bleu_by_length(hypotheses, references, references, language),
        bleu_by_source_length=bleu_by_length(
            hypotheses, references, [pair.source for pair in pairs], language
        ),
    )
    if teacher is None:
        return without_teacher
    count = len(teacher.written)
    student_texts = student_texts.select(torch.arange(count))
    on_student, on_teacher = _compare_drawn(student, student_texts, teacher)
    error = excess_accumulated_error(on_student, on_teacher).tolist()
    return replace(
        without_teacher,
        teacher_pairs=count,
        positions=_position_curves(student, student_texts, teacher),
        excess_accumulated_error=[value if math.isfinite(value) else None for value in error],
        likelihood_risk=likelihood_risk(on_student),
        coverage_risk=coverage_risk(on_teacher),
        teacher_finishes=[
            CompletionScore(
                share, bleu(tokenizer.decode(actions.tolist()), references[:count], language)
            )
            for share, actions in _completed_texts(student_texts, teacher, shares).items()
        ],
    )


def _compare_drawn(
    student: SequenceModel, student_texts: Trajectories, teacher: TeacherTexts
) -> tuple[TeacherComparison, TeacherComparison]:
    """Compare the models on texts drawn from the student, and on texts drawn from the teacher."""
    examples, steps = student_texts.examples, student_texts.actions.shape[1]

    def draw(generator: torch.Generator) -> Trajectories:
        decoder = partial(sample, sampling=Sampling(), generator=generator)
        return written_by(student, examples, steps, writer=Writer.STUDENT, decoder=decoder)

    drawn = _draw_repeatedly(draw, "student draws", student.special)
    return (
        compare_with_teacher(drawn, student, teacher.expert),
        compare_with_teacher(teacher.drawn, student, teacher.expert),
    )


def _position_curves(
    student: SequenceModel, student_texts: Trajectories, teacher: TeacherTexts
) -> dict[str, PositionCurves]:
    """Compare student and teacher by position on the prefixes of each writer."""
    prefixes = {
        "reference": Trajectories.from_examples(student_texts.examples, student.special),
        "student": student_texts,
        "teacher": teacher.written,
    }
    return {
        writer: PositionCurves.of(compare_with_teacher(texts, student, teacher.expert))
        for writer, texts in prefixes.items()
    }


def _completed_texts(
    student_texts: Trajectories, teacher: TeacherTexts, shares: Sequence[float]
) -> dict[float, Tensor]:
    """Return texts of which the student wrote a share and the teacher the rest, (B, T) int64."""
    return {
        0.0: teacher.written.actions,
        **{share: complete_with_teacher(student_texts, teacher.expert, share) for share in shares},
        1.0: student_texts.actions,
    }
