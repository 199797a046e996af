"""Quality, exposure bias and speed of several models side by side, on their task's test split."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

from textgen_agents.evaluation.exposure_bias import written_by
from textgen_agents.evaluation.exposure_report import ExposureBiasReport, Teacher, exposure
from textgen_agents.evaluation.quality import Quality, bootstrap, score
from textgen_env.experts.expert import NeuralExpert
from textgen_env.generation.beam_search import decoder_of
from textgen_env.generation.decoding import Decoder, greedy
from textgen_env.models.acceleration.prepacked import with_prepacked_weights
from textgen_env.models.storage import Model, load_model, load_tokenizer
from textgen_env.tasks.task import TextTask, encode, in_tokens_of
from textgen_env.tokenizers.subword import same_pieces
from textgen_env.types import Trajectories, Writer
from textgen_experiments.evaluation.results import (
    EXPOSURE,
    RESULTS,
    SAMPLES,
    TEACHER,
    Row,
    Sample,
    names_of,
    show,
    write_exposure,
    write_results,
    write_samples,
)
from textgen_experiments.evaluation.timing import Reader, compare_speed
from textgen_experiments.runs.experiment import agent_name
from textgen_experiments.runs.factories import build_task, num_parameters
from textgen_experiments.runs.folder import Run, RunError, check_tokenizers, read_runs
from textgen_experiments.runs.run_log import log_evaluation, progress
from textgen_experiments.runs.train import NUM_SAMPLES, Outcome, read_outcome

SPEED_SENTENCES = 256  # test sentences that decode speed is measured on
TEACHER_PAIRS = 300  # test pairs at most that the exposure-bias instruments ask the teacher about


@dataclass(frozen=True)
class Entry:
    """A model to be judged.

    Attributes:
        name: what the table calls it.
        agent: the algorithm it was trained with.
        precision: name of the dtype it runs in.
        seed: of its training.
        model: in that precision.
        task: in the model's own tokens.
        outcome: what its training reported; None for the teacher.
    """

    name: str
    agent: str
    precision: str
    seed: int | None
    model: Model
    task: TextTask
    outcome: Outcome | None

    @property
    def writer(self) -> Writer:
        """Whose texts its texts are."""
        return Writer.STUDENT if self.outcome else Writer.EXPERT


@dataclass(frozen=True)
class ModelScores:
    """A model and what it writes for the test split.

    Attributes:
        entry: the model.
        written: its greedy texts.
        hypotheses: the same as text.
        quality: of these.
        beam: quality of what beam search writes; None where it was not asked for.
    """

    entry: Entry
    written: Trajectories
    hypotheses: list[str]
    quality: Quality
    beam: Quality | None


@dataclass(frozen=True)
class EvaluateOptions:
    """Score finished runs on their task's test split and time them beside their teacher.

    What was measured of a run is left in its folder: `results.json`, `samples.jsonl`,
    `exposure.json`, and figures for TensorBoard.

    Attributes:
        runs: folders of finished runs of one task.
        baseline: one of them; the others' difference in BLEU from it is tested (paired bootstrap).
        beam_size: score what beam search of this size writes, too; 1 for greedy alone.
        batch_size: sentences decoded together.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    baseline: Path | None = None
    beam_size: int = 5
    batch_size: int = 64

    def __post_init__(self) -> None:
        for name in ("beam_size", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


def evaluate(options: EvaluateOptions) -> None:
    """Measure the runs and print a table of them beside their teacher.

    Raises:
        RunError: a run is unfinished or there twice, the runs differ in task or teacher, or the
            baseline is none of them.
    """
    task, rows = evaluate_runs(
        options.runs,
        baseline=options.baseline,
        beam_size=options.beam_size,
        batch_size=options.batch_size,
    )
    show(rows, title=f"{task.name}: {len(task.test)} test pairs")


def evaluate_runs(
    folders: Sequence[Path],
    *,
    baseline: Path | None = None,
    beam_size: int = 1,
    batch_size: int = 64,
) -> tuple[TextTask, list[Row]]:
    """The runs' task, and a row for their teacher, if they have one, and for each of them.

    Leaves in each run's folder what was measured of it.

    Raises:
        RunError: there is no run, one is unfinished or there twice, they differ in task, teacher or
            tokenizer, or the baseline is none of them.
    """
    if baseline is not None and baseline not in folders:
        raise RunError(f"baseline must be one of the runs, got {baseline}")
    from textgen_experiments.evaluation.pareto import (
        pareto_figure,
    )  # matplotlib: half a second no other command needs

    entries = _entries(folders)
    offset, task = len(entries) - len(folders), entries[-1].task
    with progress("evaluating", total=len(entries) + 1 + len(folders)) as advance:
        judged = []
        for entry in entries:
            judged.append(judge(entry, beam_size=beam_size, batch_size=batch_size))
            advance()
        base = None if baseline is None else offset + folders.index(baseline)
        rows = table(judged, base, beam_size=beam_size, batch_size=batch_size)
        advance()
        teacher = None
        if offset and same_pieces(entries[0].task.tokenizer, task.tokenizer):
            first_texts = judged[0].written.select(torch.arange(min(TEACHER_PAIRS, len(task.test))))
            teacher = Teacher.of(NeuralExpert(entries[0].model), first_texts)
        picture = pareto_figure(rows)
        for folder, each, row in zip(folders, judged[offset:], rows[offset:], strict=True):
            found = exposure(each.entry.model, each.written, task.test, task.tokenizer, teacher)
            samples = _samples(each, task, judged[0].hypotheses if offset else None)
            write_exposure(folder / EXPOSURE, found)
            write_samples(folder / SAMPLES, samples)
            some = [asdict(sample) for sample in samples[:NUM_SAMPLES]]
            log_evaluation(folder, _figures(row, found), some, picture)
            write_results(folder / RESULTS, task, [*rows[:offset], row])  # last: all is there
            advance()
    return task, rows


def _entries(folders: Sequence[Path]) -> list[Entry]:
    """What is to be judged: the runs' teacher, if they have one, and they."""
    runs, names = read_runs(folders), names_of(folders)
    first = runs[0]
    outcomes = [read_outcome(folder) for folder in folders]  # an unfinished run has no model
    check_tokenizers([folder / "model" for folder in folders])
    task = build_task(first.experiment.task, load_tokenizer(folders[0] / "model"))
    entries = [run_entry(*each, task) for each in zip(names, folders, runs, outcomes, strict=True)]
    if first.experiment.teacher:
        entries.insert(0, teacher_entry(first.experiment.teacher, first, task))
    return entries


def run_entry(name: str, folder: Path, run: Run, outcome: Outcome, task: TextTask) -> Entry:
    """The best model of a finished run."""
    return Entry(
        name=name,
        agent=agent_name(run.experiment.agent),
        precision=run.precision,
        seed=run.experiment.learner.seed,
        model=with_prepacked_weights(load_model(folder / "model", run.dtype)),
        task=task,
        outcome=outcome,
    )


def teacher_entry(folder: Path, run: Run, task: TextTask) -> Entry:
    """A run's teacher, for the first line; `task` may be in other tokens than its own."""
    model = with_prepacked_weights(load_model(folder, run.dtype))
    own = in_tokens_of(load_tokenizer(folder), task)
    return Entry(TEACHER, TEACHER, run.precision, None, model, own, None)


def judge(entry: Entry, *, beam_size: int = 1, batch_size: int = 64) -> ModelScores:
    """Write and score the test split, greedily and, with a beam above 1, by beam search.

    Args:
        entry: the model; a teacher reads its own view of the sources.
        beam_size: 1 for greedy alone.
        batch_size: sentences decoded together.
    """
    task, test = entry.task, encode(entry.task.test, entry.task)
    references = [pair.reference for pair in task.test]

    def texts(decoder: Decoder) -> tuple[Trajectories, list[str], Quality]:
        written = written_by(
            entry.model,
            test,
            task.max_target_length,
            writer=entry.writer,
            decoder=decoder,
            batch_size=batch_size,
        )
        hypotheses = task.tokenizer.decode(written.actions.tolist())
        return written, hypotheses, score(hypotheses, references)

    *_, beam = texts(decoder_of(beam_size)) if beam_size > 1 else (None,)
    return ModelScores(entry, *texts(greedy), beam)


def table(
    judged: Sequence[ModelScores],
    baseline: int | None = None,
    *,
    beam_size: int = 1,
    batch_size: int = 64,
) -> list[Row]:
    """A row for each model: what was judged, how sure it is, and decode speed, timed in turn.

    Args:
        judged: the first one is what speed is compared to.
        baseline: place of the model that the others' BLEU is compared with; None for no test.
        beam_size: of the beams that were scored; speed is that of greedy decoding.
        batch_size: sentences decoded together.
    """
    tasks = [each.entry.task for each in judged]
    references = [pair.reference for pair in tasks[0].test]
    resampled = bootstrap([each.hypotheses for each in judged], references, baseline)
    readers = [_reader(each.entry) for each in judged]
    same = all(same_pieces(tasks[0].tokenizer, task.tokenizer) for task in tasks)
    speeds = compare_speed(readers, same_tokens=same, batch_size=batch_size)
    base = None if baseline is None else judged[baseline].entry.name
    return [
        Row(
            model=each.entry.name,
            agent=each.entry.agent,
            precision=each.entry.precision,
            seed=each.entry.seed,
            train_pairs=each.entry.outcome.train_pairs if each.entry.outcome else None,
            parameters=num_parameters(each.entry.model),
            quality=each.quality,
            bleu_confidence=sure.confidence,
            baseline=base,
            p_value=sure.p_value,
            beam_size=beam_size if each.beam else None,
            beam=each.beam,
            tokens_per_second=speed.tokens_per_second,
            sentences_per_second=speed.sentences_per_second,
            speedup_vs_teacher=speed.speedup,
            train_seconds=each.entry.outcome.train_seconds if each.entry.outcome else None,
            teacher_tokens_queried=(
                each.entry.outcome.teacher_tokens_queried if each.entry.outcome else None
            ),
        )
        for each, sure, speed in zip(judged, resampled, speeds, strict=True)
    ]


def _reader(entry: Entry) -> Reader:
    """The model with what it reads of the first test pairs: as the teacher, its own view."""
    test = encode(entry.task.test[:SPEED_SENTENCES], entry.task)
    source = test.expert_source if entry.writer == Writer.EXPERT else test.source
    return Reader(entry.model, source, entry.task.max_target_length)


def _samples(judged: ModelScores, task: TextTask, teachers: Sequence[str] | None) -> list[Sample]:
    """The test pairs with what the teacher, if there is one, and the student wrote."""
    return [
        Sample(pair.source, pair.reference, by_teacher, hypothesis)
        for pair, by_teacher, hypothesis in zip(
            task.test, teachers or [None] * len(task.test), judged.hypotheses, strict=True
        )
    ]


def _figures(row: Row, found: ExposureBiasReport) -> dict[str, float]:
    """All figures of a row, and one of each instrument."""
    named = {name: value for name, value in row.to_json().items() if isinstance(value, float)}
    beam = {} if row.beam is None else {"beam_bleu": row.beam.bleu}
    return {**named, **beam, **found.figures()}
