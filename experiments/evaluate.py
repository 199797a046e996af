"""Quality and speed of several models side by side: a table, and `results.json`."""

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro
from rich.console import Console
from rich.table import Table

from agents.evaluation import quality_on
from experiments.build import build_task, num_parameters
from experiments.configs import agent_name
from experiments.logging import progress
from experiments.run import Run, RunError, read_config, write_text
from experiments.speed import compare_speed
from experiments.train import Outcome, read_outcome
from textgen_env.models.storage import Model, load_model, load_tokenizer
from textgen_env.precision import onednn_float32
from textgen_env.tasks.task import TextTask, encode

TABLE_WIDTH = 110
SPEED_SENTENCES = 256  # test sentences that decode speed is measured on


@dataclass(frozen=True)
class Entry:
    """A model to be judged.

    Attributes:
        name: what the table calls it.
        agent: the algorithm it was trained with.
        seed: of its training.
        model: in the precision it shall run in.
        outcome: what its training reported; None for the teacher.
    """

    name: str
    agent: str
    seed: int | None
    model: Model
    outcome: Outcome | None


@dataclass(frozen=True)
class Row:
    """One line of the table; units as the names say, scores in [0, 100]."""

    model: str
    agent: str
    seed: int | None
    train_pairs: int | None
    parameters: int
    bleu: float
    chrf: float
    signature: str
    tokens_per_second: float
    sentences_per_second: float
    speedup_vs_teacher: float
    train_seconds: float | None
    teacher_tokens_queried: int | None


@dataclass(frozen=True)
class EvaluateOptions:
    """Score finished runs on their task's test split and time them beside their teacher.

    Attributes:
        runs: folders of finished runs of one task.
        beam_size: 1 for greedy.
        batch_size: sentences decoded together.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    beam_size: int = 1
    batch_size: int = 64


def evaluate(options: EvaluateOptions) -> None:
    """Print a table of the runs beside their teacher and write each run's `results.json`.

    Raises:
        RunError: a run is unfinished, or the runs differ in task or teacher.
    """
    task, rows = judge_runs(
        options.runs, beam_size=options.beam_size, batch_size=options.batch_size
    )
    show(rows, title=f"{task.name}: {len(task.test)} test pairs")
    offset = len(rows) - len(options.runs)
    for folder, row in zip(options.runs, rows[offset:], strict=True):
        write_results(folder / "results.json", task, [*rows[:offset], row])


def judge_runs(
    folders: Sequence[Path], *, beam_size: int = 1, batch_size: int = 64
) -> tuple[TextTask, list[Row]]:
    """The runs' task, and a row for their teacher, if they have one, and for each of them.

    Raises:
        RunError: there is no run, one is unfinished, or they differ in task or teacher.
    """
    if not folders:
        raise RunError("runs must be at least one folder, got none")
    runs = [read_config(folder) for folder in folders]
    first = runs[0]
    for folder, run in zip(folders, runs, strict=True):
        same = run.experiment.task == first.experiment.task
        if not same or run.experiment.teacher != first.experiment.teacher:
            raise RunError(
                f"runs in one table must have the same task and teacher as {folders[0]}, "
                f"got {folder} with others"
            )
    entries = [run_entry(folder, run) for folder, run in zip(folders, runs, strict=True)]
    if first.experiment.teacher:
        entries.insert(0, teacher_entry(first.experiment.teacher, first.dtype))
    task = build_task(first.experiment.task, load_tokenizer(folders[0] / "model"))
    with onednn_float32(first.onednn):
        return task, judge(entries, task, beam_size=beam_size, batch_size=batch_size)


def run_entry(folder: Path, run: Run) -> Entry:
    """The best model of a finished run.

    Raises:
        RunError: the run is not finished.
    """
    return Entry(
        name=folder.name,
        agent=agent_name(run.experiment.agent),
        seed=run.experiment.learner.seed,
        model=load_model(folder / "model", run.dtype),
        outcome=read_outcome(folder),
    )


def teacher_entry(folder: Path, dtype: torch.dtype) -> Entry:
    """The teacher, for the first line of a table."""
    return Entry("teacher", "teacher", None, load_model(folder, dtype), None)


def judge(
    entries: Sequence[Entry], task: TextTask, *, beam_size: int = 1, batch_size: int = 64
) -> list[Row]:
    """Translate the test split with each model and time all of them in turn.

    Args:
        entries: the first one is what speed is compared to.
        task: whose test split is used.
        beam_size: of the scored translations; speed is that of greedy decoding.
        batch_size: sentences decoded together.
    """
    with progress("evaluating", total=len(entries) + 1) as advance:
        qualities = []
        for entry in entries:
            qualities.append(
                quality_on(entry.model, task, task.test, beam_size=beam_size, batch_size=batch_size)
            )
            advance()
        speeds = compare_speed(
            [entry.model for entry in entries],
            encode(task.test[:SPEED_SENTENCES], task).source,
            max_steps=task.max_target_length,
            batch_size=batch_size,
        )
        advance()
    return [
        Row(
            model=entry.name,
            agent=entry.agent,
            seed=entry.seed,
            train_pairs=entry.outcome.train_pairs if entry.outcome else None,
            parameters=num_parameters(entry.model),
            bleu=quality.bleu,
            chrf=quality.chrf,
            signature=quality.signature,
            tokens_per_second=speed.tokens_per_second,
            sentences_per_second=speed.sentences_per_second,
            speedup_vs_teacher=speed.speedup,
            train_seconds=entry.outcome.train_seconds if entry.outcome else None,
            teacher_tokens_queried=(
                entry.outcome.teacher_tokens_queried if entry.outcome else None
            ),
        )
        for entry, quality, speed in zip(entries, qualities, speeds, strict=True)
    ]


def show(rows: Sequence[Row], title: str) -> None:
    """Print the table."""
    table = Table(title=title, caption=f"BLEU: {rows[0].signature}; speed: greedy")
    for name in ("model", "BLEU", "chrF", "parameters", "tokens/s", "sentences/s", "speed-up"):
        table.add_column(name, justify="left" if name == "model" else "right")
    table.add_column("training s", justify="right")
    table.add_column("teacher tokens", justify="right")
    for row in rows:
        table.add_row(
            row.model,
            f"{row.bleu:.1f}",
            f"{row.chrf:.1f}",
            f"{row.parameters / 1e6:.2f} M",
            f"{row.tokens_per_second:,.0f}",
            f"{row.sentences_per_second:,.0f}",
            f"{row.speedup_vs_teacher:.1f}x",
            "-" if row.train_seconds is None else f"{row.train_seconds:.0f}",
            "-" if row.teacher_tokens_queried is None else f"{row.teacher_tokens_queried:,}",
        )
    console = Console()
    console.width = max(console.width, TABLE_WIDTH)  # a pipe would cut the columns
    console.print(table)


def write_results(path: Path, task: TextTask, rows: Sequence[Row]) -> None:
    """Write `results.json`: machine, task, rows."""
    content = {
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        },
        "task": {
            "name": task.name,
            "test_pairs": len(task.test),
            "dropped": dict(task.dropped),
        },
        "rows": [asdict(row) for row in rows],
    }
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
