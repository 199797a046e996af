"""Command `report`: one page about several runs, with quality, speed and exposure bias."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from textgen_env.bounds import check_at_least
from textgen_experiments.evaluation.given_runs import without_own_files
from textgen_experiments.reporting.load_runs import read_reported_runs
from textgen_experiments.reporting.page import render
from textgen_experiments.reporting.token_view import read_sentences, tasks_of
from textgen_experiments.reporting.written_texts import written_texts
from textgen_experiments.runs.folder import write_text
from textgen_experiments.runs.progress import tell


@dataclass(frozen=True)
class ReportOptions:
    """Write a page about evaluated runs: one HTML file that needs nothing else.

    Attributes:
        runs: folders of runs of one task with one teacher.
        output: the page.
        sentences: number of test sentences shown token by token, chosen by a hash of their text.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("report.html")
    sentences: int = 50

    def __post_init__(self) -> None:
        check_at_least(self, sentences=1)


def report(options: ReportOptions) -> None:
    """Read the runs' figures, run their models on some sentences, and write the page.

    Raises:
        RunError: a run is not evaluated, or the runs do not belong on one page.
    """
    runs = read_reported_runs(without_own_files(options.runs))
    evaluated, sentences, texts = [run for run in runs if run.evaluation], [], None
    if evaluated:
        tasks = tasks_of(evaluated)
        sentences = read_sentences(evaluated, tasks, options.sentences)
        texts = written_texts(evaluated, tasks[0])
    page = render(runs, sentences, texts)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_text(options.output, page)
    tell(f"written to {options.output}")
