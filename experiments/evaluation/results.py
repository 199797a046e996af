"""Results of `evaluate`: the table, and the files in a run's folder.

`results.json` holds machine, task and the rows of the table, and a row for each group of runs where
some differ only in their seed, `samples.jsonl` a line for each test
pair in order, `exposure.json` the exposure-bias diagnostics. A figure that could not be measured is
null there, never a number.
"""

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from textgen_agents.evaluation.exposure_report import ExposureBiasReport
from textgen_agents.evaluation.quality import Quality
from textgen_env.digests import content_digest
from textgen_env.models.model_files import DIGESTS
from textgen_env.tasks.task import TextTask
from textgen_experiments.evaluation.seed_groups import GroupRow
from textgen_experiments.evaluation.tables import optional_cell, print_table
from textgen_experiments.runs.folder import RunError, write_text

TEACHER = "teacher"  # its name among the models
RESULTS, SAMPLES, EXPOSURE = "results.json", "samples.jsonl", "exposure.json"


@dataclass(frozen=True)
class ResultRow:
    """Results of one model; units as the names say, scores in [0, 100].

    Attributes:
        model: its name in the table.
        agent: the algorithm that trained it.
        precision: name of the precision that it ran in.
        seed: of its training; None for the teacher, like all figures of training.
        train_pairs: training pairs with references.
        train_sources: training sources without.
        parameters: number of weights, a shared one counted once.
        quality: of its greedy texts.
        bleu_confidence: half the width of the 95 % interval of the greedy texts' BLEU.
        baseline: the model that `p_value` compares it with; None for none.
        p_value: of the difference in BLEU from the baseline, in (0, 1].
        beam_size: of `beam`; None without beam search.
        beam: quality of its texts by beam search.
        tokens_per_second: of greedy decoding.
        sentences_per_second: of greedy decoding.
        speedup_vs_teacher: tokens per second over those of the first row; sentences per second
            where the first row's tokens are others.
        train_seconds: of its training.
        teacher_tokens_queried: states at which its training queried the teacher.
        acceptance: share of its tokens that the teacher's greedy decoding accepts with it as a
            draft, of those it has come to; None where it can be none.
        tokens_per_pass: tokens for each block that the teacher then reads.
    """

    model: str
    agent: str
    precision: str
    seed: int | None
    train_pairs: int | None
    train_sources: int | None
    parameters: int
    quality: Quality
    bleu_confidence: float
    baseline: str | None
    p_value: float | None
    beam_size: int | None
    beam: Quality | None
    tokens_per_second: float
    sentences_per_second: float
    speedup_vs_teacher: float
    train_seconds: float | None
    teacher_tokens_queried: int | None
    acceptance: float | None = None
    tokens_per_pass: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the row as in `results.json`: the scores of quality beside the other figures."""
        named = asdict(self)
        quality, beam, size = (named.pop(name) for name in ("quality", "beam", "beam_size"))
        return {**named, **quality, "beam": None if beam is None else {"size": size, **beam}}


@dataclass(frozen=True)
class Sample:
    """A test pair with the texts of teacher and student; `teacher` is None without a teacher."""

    source: str
    reference: str
    teacher: str | None
    hypothesis: str


def run_names(folders: Sequence[Path]) -> list[str]:
    """Return the shortest ends of the folders' paths that differ from each other and "teacher".

    Raises:
        RunError: there is no folder, or one is given twice.
    """
    if not folders:
        raise RunError("runs must be at least one folder, got none")
    parts = [folder.resolve().parts for folder in folders]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(path[-depth:]) for path in parts]
        if len({TEACHER, *names}) == 1 + len(names):
            return names
    raise RunError(f"runs must be different folders, got {', '.join(map(str, folders))}")


def print_results(rows: Sequence[ResultRow], title: str) -> None:
    """Print a table of the rows, which were evaluated together."""
    quality, beam_size = rows[0].quality, rows[0].beam_size
    caption = f"BLEU ± half its 95 % interval: {quality.signature}; speed: greedy"
    precisions = dict.fromkeys(row.precision for row in rows)
    if len(precisions) == 1:
        caption += f", {rows[0].precision}"
    if rows[0].baseline:
        caption += f"; p against {rows[0].baseline}"
    cells = [_result_cells(row, beam_size) for row in rows]
    if len(precisions) > 1:
        cells = [
            {**of_row, "precision": row.precision} for of_row, row in zip(cells, rows, strict=True)
        ]
    print_table(title, list(cells[0]), [[*row.values()] for row in cells], caption=caption)


def _result_cells(row: ResultRow, beam_size: int | None) -> dict[str, str]:
    """Return the text of each column by its heading."""
    quality, overlap = row.quality, (row.quality.rouge1, row.quality.rouge2, row.quality.rougeL)
    compared = {"p": optional_cell(row.p_value, "{:.3f}")}
    searched = {f"beam {beam_size}": f"{row.beam.bleu:.1f}" if row.beam else "-"}
    return {
        "model": row.model,
        "BLEU": f"{quality.bleu:.1f} ± {row.bleu_confidence:.1f}",
        **(compared if row.baseline else {}),
        **(searched if beam_size else {}),
        "chrF": f"{quality.chrf:.1f}",
        "ROUGE-1 / 2 / L": " / ".join(f"{score:.1f}" for score in overlap),
        "exact": f"{quality.exact_match:.1f} %",
        "parameters": f"{row.parameters / 1e6:.2f} M",
        "tokens/s": f"{row.tokens_per_second:,.0f}",
        "sentences/s": f"{row.sentences_per_second:,.0f}",
        "speed-up": f"{row.speedup_vs_teacher:.1f}x",
        "training s": optional_cell(row.train_seconds, "{:.0f}"),
        "teacher tokens": optional_cell(row.teacher_tokens_queried, "{:,}"),
    }


def write_results(
    path: Path,
    task: TextTask,
    rows: Sequence[ResultRow],
    groups: Sequence[GroupRow] = (),
    weights: str | None = None,
) -> None:
    """Write `results.json` with machine, task, rows and, if there are any, rows of groups.

    Args:
        path: of the file.
        task: whose test split was scored.
        rows: of the models.
        groups: of runs that differ only in their seed.
        weights: digest of those of a run, by which a report knows that they are its own still.
    """
    content = {**machine_and_task(task), "rows": [row.to_json() for row in rows]}
    grouped = {"groups": [asdict(group) for group in groups]} if groups else {}
    known = {} if weights is None else {"weights": weights}
    write_json(path, {**content, **grouped, **known})


def digest_of_weights(folder: Path) -> str | None:
    """Return the digest of the weights of the run in `folder`; None where it was not kept."""
    path = folder / "model" / DIGESTS
    return content_digest(path) if path.is_file() else None


def machine_and_task(task: TextTask) -> dict[str, object]:
    """Return what figures depend on besides the models: the machine and the task."""
    return {
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
    }


def write_samples(path: Path, samples: Sequence[Sample]) -> None:
    """Write `samples.jsonl` with a line for each test pair, in order."""
    lines = [json.dumps(asdict(sample), ensure_ascii=False) + "\n" for sample in samples]
    write_text(path, "".join(lines))


def write_exposure(path: Path, exposure: ExposureBiasReport) -> None:
    """Write the exposure-bias diagnostics as `exposure.json`."""
    write_json(path, asdict(exposure))


def write_json(path: Path, content: object) -> None:
    """Write indented JSON; NaN and infinities raise a ValueError."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")
