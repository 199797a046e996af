"""Quality, exposure bias and speed of several models side by side, on their task's test split."""

import shlex
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
import tyro

from textgen_agents.evaluation.exposure_report import (
    ExposureBiasReport,
    TeacherTexts,
    measure_exposure_bias,
)
from textgen_agents.evaluation.quality import bootstrap
from textgen_env.bounds import check_at_least
from textgen_env.experts.expert import NeuralExpert
from textgen_env.generation.speculative import DraftCounts
from textgen_env.models.storage import load_tokenizer
from textgen_env.tasks.task import TextTask, encode, references_of
from textgen_env.tokenizers.subword import same_pieces
from textgen_env.types import Writer
from textgen_experiments.evaluation.drafts import counts_as_draft
from textgen_experiments.evaluation.fastest_precision import ActingPrecision, resolve_precision
from textgen_experiments.evaluation.given_runs import without_own_files
from textgen_experiments.evaluation.int8_quality import int8_keeps_quality
from textgen_experiments.evaluation.pareto import pareto_figure
from textgen_experiments.evaluation.results import (
    EXPOSURE,
    RESULTS,
    SAMPLES,
    TEACHER,
    ResultRow,
    Sample,
    digest_of_weights,
    print_results,
    run_names,
    write_exposure,
    write_results,
    write_samples,
)
from textgen_experiments.evaluation.same_test import check_same_test
from textgen_experiments.evaluation.scores import (
    EvaluatedModel,
    ScoredTexts,
    run_entry,
    score_texts,
    shipped_entry,
    teacher_entry,
)
from textgen_experiments.evaluation.seed_groups import (
    GroupRow,
    SeededRun,
    group_rows,
    print_groups,
)
from textgen_experiments.evaluation.timing import SPEED_SENTENCES, TimedModel, decode_speeds
from textgen_experiments.runs.factories import build_task, num_parameters
from textgen_experiments.runs.folder import (
    Run,
    RunError,
    check_tokenizers,
    read_config,
    read_runs,
)
from textgen_experiments.runs.lock import locked
from textgen_experiments.runs.memory import tell_peak_memory
from textgen_experiments.runs.outcome import read_outcome, words_of_plugins
from textgen_experiments.runs.precisions import PrecisionName
from textgen_experiments.runs.progress import progress, tell
from textgen_experiments.runs.run_log import log_evaluation
from textgen_experiments.runs.train import NUM_SAMPLES
from textgen_experiments.runs.validation import warn_of_obstacle

if TYPE_CHECKING:
    from matplotlib.figure import Figure  # slow to import

TEACHER_PAIRS = 300  # test pairs at most on which diagnostics query the teacher


@dataclass(frozen=True)
class EvaluateOptions:
    """Score finished runs on their task's test split and time them beside their teacher.

    The results of a run are left in its folder: `results.json`, `samples.jsonl`, `exposure.json`,
    and figures for TensorBoard.

    Attributes:
        runs: folders of finished runs of one task.
        baseline: one of them; the others' difference in BLEU from it is tested (paired bootstrap).
        beam_size: score texts by beam search of this size, too; 1 for greedy alone.
        batch_size: sentences decoded together.
        rounds: measurements of speed, of which the median counts.
        diagnostics: compute the exposure-bias diagnostics, which take longest, and how well the
            students would serve the teacher as drafts.
        precision: that all models act in, the teacher too, or for each the fastest here, measured
            once for a machine; None for that of each run.
        teacher_precision: that the teacher acts in, which speed is compared with; where it is not
            the first run's, a further row has the teacher in that one. None for the first run's.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    baseline: Path | None = None
    beam_size: int = 5
    batch_size: int = 64
    rounds: int = 5
    diagnostics: bool = True
    precision: ActingPrecision | None = None
    teacher_precision: PrecisionName | None = None

    def __post_init__(self) -> None:
        check_at_least(self, beam_size=1, batch_size=1, rounds=1)


def evaluate(options: EvaluateOptions) -> None:
    """Evaluate the runs and print a table of them beside their teacher.

    Raises:
        RunError: a run is unfinished or given twice, the runs differ in task or teacher, or the
            baseline is none of them.
    """
    options = replace(options, runs=without_own_files(options.runs))
    task, rows, groups = evaluate_runs(options)
    print_results(rows, title=f"{task.name}: {len(task.test)} test pairs")
    if groups:
        print_groups(groups)
    warn_of_obstacle(task.test, task.target_language)
    if len(options.runs) > 1:
        runs = shlex.join(map(str, options.runs)) + words_of_plugins()
        tell(f"in what they differ: textgen settings {runs}")
    tell_peak_memory()


def evaluate_runs(
    options: EvaluateOptions, shipped: Mapping[str, Path] | None = None
) -> tuple[TextTask, list[ResultRow], list[GroupRow]]:
    """Evaluate runs of one task, and write the results of each to its folder.

    Args:
        options: the runs, and how thoroughly they are evaluated.
        shipped: folders of models of the project's own for the same task, by name in the table.

    Returns:
        The task; a row for the teacher, if the runs have one, for each run, and for each shipped
        model; and a row for each group of runs, if some differ only in their seed.

    Raises:
        RunError: there is no run, one is unfinished or given twice, they differ in task, teacher or
            tokenizer, or the baseline is none of them.
    """
    folders, baseline = options.runs, options.baseline
    if baseline is not None and baseline not in folders:
        raise RunError(f"baseline must be one of the runs, got {baseline}")
    entries = _entries(options)
    offset, task = len(entries) - len(folders), entries[-1].task
    student = entries[offset]
    entries += [shipped_entry(*each, student) for each in (shipped or {}).items()]
    if offset and options.teacher_precision is not None:
        entries += _teacher_again(folders[0], entries[0], student)
    steps = len(entries) + 1 + len(folders)
    with ExitStack() as locks, progress("evaluating", total=steps) as advance:
        for folder in folders:
            locks.enter_context(locked(folder))
        scored = []
        for entry in entries:
            texts = score_texts(entry, beam_size=options.beam_size, batch_size=options.batch_size)
            scored.append(texts)
            advance()
        base = None if baseline is None else offset + folders.index(baseline)
        rows = result_rows(scored, base, options)
        groups = _groups(folders, scored[offset:], rows[offset:], task)
        advance()
        teacher = _teacher(scored[0], task) if offset and options.diagnostics else None
        picture = pareto_figure(rows)
        for folder, texts, row in zip(folders, scored[offset:], rows[offset:], strict=False):
            samples = _samples(texts, task, scored[0].hypotheses if offset else None)
            report = _exposure_bias(texts, task, teacher) if options.diagnostics else None
            _write_evaluation(folder, report, samples, row, picture)
            # Written last: a folder with this file has all the others.
            weights = digest_of_weights(folder)
            write_results(folder / RESULTS, task, [*rows[:offset], row], groups, weights)
            advance()
    return task, rows, groups


def _groups(
    folders: Sequence[Path],
    scored: Sequence[ScoredTexts],
    rows: Sequence[ResultRow],
    task: TextTask,
) -> list[GroupRow]:
    """Return the rows of the groups of runs, whose texts and rows are the first ones."""
    runs = [
        SeededRun(row.model, read_config(folder).experiment, row.to_json(), texts.hypotheses)
        for folder, texts, row in zip(folders, scored, rows, strict=False)
    ]
    return group_rows(runs, references_of(task.test), task.target_language, rows[0].baseline)


def _exposure_bias(
    texts: ScoredTexts, task: TextTask, teacher: TeacherTexts | None
) -> ExposureBiasReport:
    return measure_exposure_bias(
        texts.entry.model,
        texts.written,
        task.test,
        task.tokenizer,
        teacher,
        language=task.target_language,
    )


def _write_evaluation(
    folder: Path,
    report: ExposureBiasReport | None,
    samples: Sequence[Sample],
    row: ResultRow,
    picture: "Figure",
) -> None:
    """Write diagnostics, samples and TensorBoard's figures of one run to its folder."""
    if report is None:
        (folder / EXPOSURE).unlink(missing_ok=True)  # of an earlier evaluation
    else:
        write_exposure(folder / EXPOSURE, report)
    write_samples(folder / SAMPLES, samples)
    first_samples = [asdict(sample) for sample in samples[:NUM_SAMPLES]]
    log_evaluation(folder, _figures(row, report), first_samples, picture)


def _entries(options: EvaluateOptions) -> list[EvaluatedModel]:
    """Return the models to evaluate: the runs' teacher, if they have one, and the runs'.

    Without a precision each run has its own, and the teacher the first run's.
    """

    def chosen(model: Path, run: Run) -> str:
        asked = options.precision
        if asked is None:
            return run.precision
        judge = partial(int8_keeps_quality, model, task)
        if asked == "int8":
            judge()
        return resolve_precision(asked, model, options.batch_size, judge)

    folders = options.runs
    runs, names = read_runs(folders), run_names(folders)
    first = runs[0]
    outcomes = [read_outcome(folder) for folder in folders]  # an unfinished run has no model
    check_tokenizers([folder / "model" for folder in folders])
    task = build_task(first.experiment.task, load_tokenizer(folders[0] / "model"))
    check_same_test(task, folders, runs)
    entries = [
        run_entry(name, folder, run, outcome, precision=chosen(folder / "model", run), task=task)
        for name, folder, run, outcome in zip(names, folders, runs, outcomes, strict=True)
    ]
    if teacher := first.experiment.teacher:
        precision = options.teacher_precision or chosen(teacher, first)
        entries.insert(0, teacher_entry(teacher, precision, task))
    return entries


def _teacher_again(
    folder: Path, teacher: EvaluatedModel, student: EvaluatedModel
) -> list[EvaluatedModel]:
    """Return the teacher in the precision of a student, if it acts in another one."""
    path = read_config(folder).experiment.teacher
    if path is None or teacher.precision == student.precision:
        return []
    again = teacher_entry(path, student.precision, student.task)
    return [replace(again, name=f"{TEACHER}, {student.precision}")]


def _teacher(scored: ScoredTexts, task: TextTask) -> TeacherTexts | None:
    """Return the teacher for diagnostics on the first test pairs.

    Args:
        scored: the teacher's texts.
        task: in the students' tokens; the result is None if the teacher's are others.
    """
    if not same_pieces(scored.entry.task.tokenizer, task.tokenizer):
        return None
    first = torch.arange(min(TEACHER_PAIRS, len(task.test)))
    return TeacherTexts.of(NeuralExpert(scored.entry.model), scored.written.select(first))


def result_rows(
    scored: Sequence[ScoredTexts], baseline: int | None, options: EvaluateOptions
) -> list[ResultRow]:
    """Return a row for each model: scores, their confidence, and greedy speed, timed in turn.

    Args:
        scored: the texts of each model; speed is compared with the first one's.
        baseline: index of the model that the others' BLEU is compared with; None for no test.
        options: how thoroughly they are evaluated.
    """
    tasks = [each.entry.task for each in scored]
    # In the students' Unicode form, from which a teacher's with another tokenizer may differ.
    references = references_of(tasks[-1].test)
    resampled = bootstrap(
        [each.hypotheses for each in scored], references, baseline, tasks[-1].target_language
    )
    same = all(same_pieces(tasks[0].tokenizer, task.tokenizer) for task in tasks)
    timed = [_timed_model(each.entry) for each in scored]
    speeds = decode_speeds(
        timed,
        same_tokens=same,
        batch_size=options.batch_size,
        rounds=options.rounds,
        is_warm=True,
    )
    drafts = _draft_counts([each.entry for each in scored], options)
    base = None if baseline is None else scored[baseline].entry.name
    return [
        ResultRow(
            model=each.entry.name,
            agent=each.entry.agent,
            precision=each.entry.precision,
            seed=each.entry.seed,
            train_pairs=each.entry.outcome.train_pairs if each.entry.outcome else None,
            train_sources=each.entry.outcome.train_sources if each.entry.outcome else None,
            parameters=num_parameters(each.entry.model),
            quality=each.quality,
            bleu_confidence=bootstrapped.confidence,
            baseline=base,
            p_value=bootstrapped.p_value,
            beam_size=options.beam_size if each.beam else None,
            beam=each.beam,
            tokens_per_second=speed.tokens_per_second,
            sentences_per_second=speed.sentences_per_second,
            speedup_vs_teacher=speed.speedup,
            train_seconds=each.entry.outcome.train_seconds if each.entry.outcome else None,
            teacher_tokens_queried=(
                each.entry.outcome.teacher_tokens_queried if each.entry.outcome else None
            ),
            acceptance=draft.acceptance if draft else None,
            tokens_per_pass=draft.tokens_per_pass if draft else None,
        )
        for each, bootstrapped, speed, draft in zip(scored, resampled, speeds, drafts, strict=True)
    ]


def _draft_counts(
    entries: Sequence[EvaluatedModel], options: EvaluateOptions
) -> list[DraftCounts | None]:
    """Return the counts of each model as a draft of the teacher, which is the first, if any is.

    Without diagnostics there are none.
    """
    first = entries[0]
    return [
        counts_as_draft(each, first, batch_size=options.batch_size)
        if options.diagnostics and first.writer == Writer.EXPERT and each.writer == Writer.STUDENT
        else None
        for each in entries
    ]


def _timed_model(entry: EvaluatedModel) -> TimedModel:
    """Return the model with its sources of the first test pairs: a teacher's own view of them."""
    test = encode(entry.task.test[:SPEED_SENTENCES], entry.task)
    source = test.expert_view if entry.writer == Writer.EXPERT else test.source
    return TimedModel(entry.model, source, entry.task.max_target_length)


def _samples(
    scored: ScoredTexts, task: TextTask, teacher_texts: Sequence[str] | None
) -> list[Sample]:
    """Return the test pairs with the texts of the teacher, if there is one, and the student."""
    return [
        Sample(pair.source, reference, by_teacher, hypothesis)
        for pair, reference, by_teacher, hypothesis in zip(
            task.test,
            references_of(task.test),
            teacher_texts or [None] * len(task.test),
            scored.hypotheses,
            strict=True,
        )
    ]


def _figures(row: ResultRow, report: ExposureBiasReport | None) -> dict[str, float]:
    """Return all figures of a row, and one of each diagnostic."""
    named = {name: value for name, value in row.to_json().items() if isinstance(value, float)}
    beam = {} if row.beam is None else {"beam_bleu": row.beam.bleu}
    return {**named, **beam, **(report.figures() if report else {})}
