"""Table of agents over several seeds, each seed compared with a baseline's of the same seed.

A row is made from `scores.json` and `outcome.json` of its runs alone, so that a table can be made
again where their weights are not kept.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from textgen_agents.evaluation.bleu_metric import bleu_signature
from textgen_agents.evaluation.quality import LENGTH_LIMITS, paired_bootstrap
from textgen_env.tasks.task import TextTask, references_of
from textgen_experiments.evaluation.results import RESULTS, write_json
from textgen_experiments.evaluation.scores import ModelScores, read_scores
from textgen_experiments.evaluation.tables import markdown_table, mean_of_all, print_table
from textgen_experiments.runs.folder import write_text
from textgen_experiments.runs.outcome import read_outcome
from textgen_experiments.runs.progress import tell

SIGNIFICANCE_LEVEL = 0.05
BASELINE = "seqkd"  # the agent that others are compared with


@dataclass(frozen=True)
class SeedRow:
    """Results of one agent: means over its seeds.

    Attributes:
        name: name of the agent, or what the row is about.
        seeds: number of seeds.
        pairs: training pairs.
        bleu: sacreBLEU.
        bleu_error: standard error of its mean; None for one seed.
        chrf: chrF2.
        length_ratio: tokens written over those of the references; None if a run lacks it.
        repetition: share of repeated 4-grams, in [0, 1]; None if a run lacks it.
        bleu_by_length: as in `ModelScores`.
        better: seeds in which it is significantly better than the baseline (paired bootstrap); None
            for the baseline itself.
        worse: seeds in which it is significantly worse; None for the baseline itself.
        student_prefix_agreement: share of states at which it agrees with the teacher, in [0, 1].
        reference_prefix_agreement: the same on the references' prefixes, in [0, 1].
        expert_share: share of the tokens learned from that the teacher wrote; None if a run lacks
            it.
        teacher_tokens: states at which the teacher was queried.
        train_seconds: seconds of training, on as many cores as each run had.
        signature: sacreBLEU's signature of `bleu`.
    """

    name: str
    seeds: int
    pairs: int
    bleu: float
    bleu_error: float | None
    chrf: float
    length_ratio: float | None
    repetition: float | None
    bleu_by_length: list[float | None]
    better: int | None
    worse: int | None
    student_prefix_agreement: float
    reference_prefix_agreement: float
    expert_share: float | None
    teacher_tokens: float
    train_seconds: float
    signature: str


def seed_row(
    name: str, folders: Sequence[Path], baselines: Sequence[Path], task: TextTask
) -> SeedRow:
    """Return the row of the finished and scored runs in `folders`, one for each seed.

    Args:
        name: name of the row.
        folders: of the runs.
        baselines: folders of the baseline's runs with the same seeds; those of `folders` for the
            baseline itself.
        task: whose test split they were scored on.

    Raises:
        RunError: a run is not finished or not scored.
    """
    scores, outcomes = [*map(read_scores, folders)], [*map(read_outcome, folders)]
    compared = None if folders == baselines else _compared(scores, baselines, task)
    bleu = [each.bleu for each in scores]

    return SeedRow(
        name=name,
        seeds=len(folders),
        pairs=outcomes[0].train_pairs,
        bleu=statistics.mean(bleu),
        bleu_error=statistics.stdev(bleu) / len(bleu) ** 0.5 if len(bleu) > 1 else None,
        chrf=statistics.mean(each.chrf for each in scores),
        length_ratio=mean_of_all(each.length_ratio for each in scores),
        repetition=mean_of_all(each.repetition for each in scores),
        bleu_by_length=[
            mean_of_all(column)
            for column in zip(*(each.bleu_by_length for each in scores), strict=True)
        ],
        better=compared and compared[0],
        worse=compared and compared[1],
        student_prefix_agreement=statistics.mean(each.student_prefix_agreement for each in scores),
        reference_prefix_agreement=statistics.mean(
            each.reference_prefix_agreement for each in scores
        ),
        expert_share=mean_of_all(each.expert_share for each in scores),
        teacher_tokens=statistics.mean(each.teacher_tokens_queried for each in outcomes),
        train_seconds=statistics.mean(each.train_seconds for each in outcomes),
        signature=scores[0].signature or bleu_signature(task.target_language),
    )


def _compared(
    scores: Sequence[ModelScores], baselines: Sequence[Path], task: TextTask
) -> tuple[int, int]:
    """Return in how many seeds the scores are significantly better and worse than the baseline."""
    references, language = references_of(task.test), task.target_language
    better = worse = 0
    for own, folder in zip(scores, baselines, strict=True):
        other = read_scores(folder)
        p_value = paired_bootstrap(other.hypotheses, own.hypotheses, references, language)
        better += p_value < SIGNIFICANCE_LEVEL and own.bleu > other.bleu
        worse += p_value < SIGNIFICANCE_LEVEL and own.bleu < other.bleu
    return better, worse


def seed_cells(row: SeedRow, baseline: str) -> dict[str, str]:
    """Return the cells of a row by their headings; `baseline` is the name it is compared with."""
    error = "" if row.bleu_error is None else f" ± {row.bleu_error:.1f}"
    limits = [*(f"BLEU to {limit} words" for limit in LENGTH_LIMITS), "longer"]
    return {
        "agent": row.name,
        "BLEU": f"{row.bleu:.1f}{error}",
        "chrF": f"{row.chrf:.1f}",
        f"better / worse than {baseline}": (
            "" if row.better is None else f"{row.better} / {row.worse} of {row.seeds}"
        ),
        "length ratio": _optional(row.length_ratio, "{:.2f}"),
        "repeated 4-grams": _optional(row.repetition, "{:.1%}"),
        "like the teacher on own prefixes": f"{row.student_prefix_agreement:.1%}",
        "on references": f"{row.reference_prefix_agreement:.1%}",
        **dict(
            zip(limits, (_optional(bleu, "{:.1f}") for bleu in row.bleu_by_length), strict=True)
        ),
        "written by the teacher": _optional(row.expert_share, "{:.0%}"),
        "teacher tokens": f"{row.teacher_tokens / 1e6:.2f} M",
        "seconds": f"{row.train_seconds:,.0f}",
    }


def _optional(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def markdown_tables(tables: Mapping[str, Sequence[SeedRow]], baseline: str) -> str:
    """Return a Markdown table of rows for each title, with BLEU's signature below."""
    lines, signatures = [], {}
    for title, rows in tables.items():
        cells = [seed_cells(row, baseline) for row in rows]
        lines += [f"## {title}", "", markdown_table(cells), ""]
        signatures |= {row.signature: None for row in rows}
    return "\n".join([*lines, f"BLEU: {', '.join(f'`{each}`' for each in signatures)}", ""])


def print_seed_rows(title: str, rows: Sequence[SeedRow], baseline: str) -> None:
    """Print a table of rows."""
    cells = [seed_cells(row, baseline) for row in rows]
    caption = f"± standard error of the mean over {rows[0].seeds} seeds; BLEU: {rows[0].signature}"
    print_table(title, list(cells[0]), [[*row.values()] for row in cells], caption=caption)


def write_seed_tables(
    output: Path,
    tables: Mapping[str, Sequence[SeedRow]],
    content: object,
    baseline: str = BASELINE,
) -> None:
    """Print a table for each title, and write `results.json` and `tables.md`.

    Args:
        output: folder of the files.
        tables: rows of each table by its title.
        content: what `results.json` holds.
        baseline: name of what the rows are compared with.
    """
    write_json(output / RESULTS, content)
    write_text(output / "tables.md", markdown_tables(tables, baseline))
    for title, rows in tables.items():
        print_seed_rows(title, rows, baseline)
    tell(f"written to {output}")
