"""Texts that teacher and students wrote for the test split, beside what they are compared with."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from textgen_env.tasks.languages import letter_words
from textgen_env.tasks.task import TextTask
from textgen_experiments.evaluation.results import TEACHER
from textgen_experiments.reporting.load_runs import ReportedRun


@dataclass(frozen=True)
class WrittenTexts:
    """Texts of all systems for the same test pairs, in order.

    Attributes:
        sources: the texts to read.
        references: one for each source.
        systems: the texts of each system by its name: the teacher, if there is one, and the runs.
        occurrences: number of times that each word, in lower case, stands in a training reference.
        language: code of the references' language; None for one with spaces between words.
    """

    sources: Sequence[str]
    references: Sequence[str]
    systems: Mapping[str, Sequence[str]]
    occurrences: Mapping[str, int]
    language: str | None


def written_texts(runs: Sequence[ReportedRun], task: TextTask) -> WrittenTexts:
    """Return the texts of evaluated runs, at least one, and of their teacher.

    Args:
        runs: all evaluated on the test split of `task`.
        task: brings the training references, in which words are counted.
    """
    samples = runs[0].samples
    teacher = [sample.teacher for sample in samples if sample.teacher is not None]
    systems = {TEACHER: teacher} if len(teacher) == len(samples) else {}
    systems |= {run.name: [sample.hypothesis for sample in run.samples] for run in runs}
    references = (pair.reference for pair in task.train if pair.reference is not None)
    return WrittenTexts(
        [sample.source for sample in samples],
        [sample.reference for sample in samples],
        systems,
        Counter(word for text in references for word in words_of(text)),
        task.target_language,
    )


def words_of(text: str) -> list[str]:
    """Return the words of a text in lower case, as they are counted and compared."""
    return letter_words(text.lower())
