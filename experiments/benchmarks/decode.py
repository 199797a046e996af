"""Decode speed of students beside their teacher: engines, precisions and batch sizes.

All write the same sentences in one process, in turn, several times over. Memory alone is measured
elsewhere, each model in a process of its own, whose peak the kernel (Linux) tells.
"""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor

from textgen_env.generation.decoding import decode_all
from textgen_env.models.storage import load_model, load_tokenizer
from textgen_env.tasks.task import TextTask, encode
from textgen_env.types import SpecialTokens, trimmed
from textgen_experiments.benchmarks.candidates import (
    ENGINE_PRECISIONS,
    BenchmarkCase,
    Engine,
    PrecisionName,
    TimedGeneration,
    benchmark_cases,
    peak_memory,
)
from textgen_experiments.evaluation.results import setting, write_json
from textgen_experiments.evaluation.timing import interleaved_rates, ratio
from textgen_experiments.models.export import same_share
from textgen_experiments.runs.factories import build_task
from textgen_experiments.runs.folder import RunError, check_tokenizers, read_runs
from textgen_experiments.runs.run_log import progress
from textgen_experiments.runs.train import read_outcome

DECODE_RESULTS = "decode.json"
TABLE_WIDTH = 150
TEXT_COLUMNS = ("model", "engine", "precision")  # columns
MAX_BATCHES_PER_ROUND = 32  # of a round: one by one, fewer of the sentences are written


@dataclass(frozen=True)
class BenchmarkDecodeOptions:
    """Time greedy decoding of finished runs beside their teacher.

    Attributes:
        runs: folders of finished runs of one task.
        engines: eager is this project's own; compiled runs its step under `torch.compile`, after
            minutes of compiling; ctranslate2, for Transformers alone, needs the extra `export`.
        precisions: bfloat16 is for eager and compiled, int8 for ctranslate2.
        batch_sizes: sentences decoded together; each waits for the last of its batch.
        sentences: of the test split, the first ones, and no more than 32 batches of them.
        rounds: measured rounds, after one that is not.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    engines: tuple[Engine, ...] = ("eager",)
    precisions: tuple[PrecisionName, ...] = ("float32", "bfloat16", "int8")
    batch_sizes: tuple[int, ...] = (1, 16, 64, 256)
    sentences: int = 256
    rounds: int = 5

    def __post_init__(self) -> None:
        smallest = min(self.batch_sizes, default=0)
        for name, value in (
            ("batch_sizes", smallest),
            ("sentences", self.sentences),
            ("rounds", self.rounds),
        ):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not self.settings:
            raise ValueError(
                f"precisions must have one of {' or '.join(self.engines) or 'an engine'}, "
                f"got {' '.join(self.precisions) or 'none'}"
            )

    @property
    def settings(self) -> list[tuple[Engine, PrecisionName]]:
        """What each model is measured in."""
        return [
            (engine, precision)
            for engine in self.engines
            for precision in self.precisions
            if precision in ENGINE_PRECISIONS[engine]
        ]


@dataclass(frozen=True)
class DecodeRow:
    """What was measured of a model in one setting and batch size; rates are medians of the rounds.

    Attributes:
        model: what the table calls it.
        parameters: a shared one counted once.
        engine: that ran it.
        precision: of its weights.
        batch_size: sentences decoded together.
        sentences: written in a round.
        tokens_per_second: target tokens, end tokens included.
        sentences_per_second: the same in sentences.
        speedup_vs_teacher: tokens per second over the teacher's (without one, the first run's) in
            the same setting, median of the rounds' ratios; None where that one cannot run so.
        latency_p50: seconds that half of the sentences took at most, in all rounds; each takes as
            long as its batch.
        latency_p95: the same of 95 %.
        compile_seconds: that the round which is not counted took longer than the others; None where
            nothing is compiled.
        peak_mib: memory, at its highest, of loading it and writing the longest sentences; None
            where it is compiled.
        same: share of the sentences that are token for token those of float32 and eager.
    """

    model: str
    parameters: int
    engine: Engine
    precision: PrecisionName
    batch_size: int
    sentences: int
    tokens_per_second: float
    sentences_per_second: float
    speedup_vs_teacher: float | None
    latency_p50: float
    latency_p95: float
    compile_seconds: float | None
    peak_mib: float | None
    same: float


def benchmark_decode(options: BenchmarkDecodeOptions) -> None:
    """Print a table of the runs beside their teacher and write each run's `decode.json`.

    Raises:
        RunError: a run is unfinished, the runs differ in task or teacher, one of them or the
            teacher has another tokenizer, or a package is missing.
    """
    first = read_runs(options.runs)[0]
    for folder in options.runs:
        read_outcome(folder)
    models = {folder / "model": folder.name for folder in options.runs}
    if first.experiment.teacher:
        models = {first.experiment.teacher: "teacher", **models}
    check_tokenizers(list(models))
    task = build_task(first.experiment.task, load_tokenizer(options.runs[0] / "model"))
    with TemporaryDirectory() as exports:
        cases = list(benchmark_cases(models, options.settings, Path(exports)))
        if not cases:
            raise RunError(
                "a model must be a Transformer for ctranslate2, got recurrent ones alone"
            )
        base = next(iter(models))
        rows = measure_cases(cases, base, task, options)
    print_decode_rows(
        [row for _, row in rows], f"{task.name}: greedy decoding, {options.rounds} rounds"
    )
    for folder in options.runs:
        own = [asdict(row) for case, row in rows if case.model in (base, folder / "model")]
        write_json(
            folder / DECODE_RESULTS, {**setting(task), "rounds": options.rounds, "rows": own}
        )


def measure_cases(
    cases: Sequence[BenchmarkCase], base: Path, task: TextTask, options: BenchmarkDecodeOptions
) -> list[tuple[BenchmarkCase, DecodeRow]]:
    """A row for each batch size and contestant.

    Args:
        cases: at least one.
        base: folder of the model that the others are compared to.
        task: whose test split is written.
        options: batch sizes, sentences and rounds.
    """
    special, max_steps = task.tokenizer.special, task.max_target_length
    source = encode(task.test[: options.sentences], task).source
    sizes = sorted({min(size, len(source)) for size in options.batch_sizes})
    order = {size: length_sorted_batches(source, size, special) for size in sizes}
    batches = {
        size: [trimmed(source[rows], special) for rows in parts] for size, parts in order.items()
    }
    longest = [parts[0] for parts in batches.values()]
    rows = []
    with progress("measuring", total=len(cases) + len(order)) as advance:
        peaks = {}
        for case in cases:
            peaks[case] = dict(zip(order, peak_memory(case, longest, max_steps), strict=True))
            advance()
        eager_tokens = {
            folder: decode_all(load_model(folder), source, max_steps)
            for folder in {case.model for case in cases}
        }
        writers = {case: case.load_for_timing() for case in cases}
        for size, parts in batches.items():
            group = {
                case: TimedGeneration(write, parts, max_steps, special.pad)
                for case, write in writers.items()
            }
            rates = interleaved_rates(group, options.rounds)
            bases = {each.setting: rates[each] for each in cases if each.model == base}
            for case, timed in group.items():
                row = decode_row(
                    case,
                    timed,
                    rates[case],
                    base=bases.get(case.setting),
                    peak=peaks[case][size],
                    eager_tokens=eager_tokens[case.model][torch.cat(order[size])],
                )
                rows.append((case, row))
            advance()
    return rows


def decode_row(
    case: BenchmarkCase,
    timed: TimedGeneration,
    rates: Sequence[float],
    *,
    base: Sequence[float] | None,
    peak: float | None,
    eager_tokens: Tensor,
) -> DecodeRow:
    """What the rounds of one contestant come to.

    Args:
        case: the case.
        timed: its rounds, after one that is not counted.
        rates: its tokens per second, by round.
        base: those of what it is compared to.
        peak: its memory, in MiB.
        eager_tokens: (B, T) tokens that its model writes eagerly in float32.
    """
    warm_up, *rounds = timed.seconds
    latencies = np.repeat(rounds, [len(batch) for batch in timed.batches], axis=1)
    written = torch.cat(timed.written)
    tokens = int((written != timed.pad).sum())
    rate = statistics.median(rates)
    return DecodeRow(
        model=case.name,
        parameters=case.parameters,
        engine=case.engine,
        precision=case.precision,
        batch_size=len(timed.batches[0]),
        sentences=len(written),
        tokens_per_second=rate,
        sentences_per_second=rate * len(written) / tokens,
        speedup_vs_teacher=None if base is None else ratio(rates, base),
        latency_p50=float(np.percentile(latencies, 50)),
        latency_p95=float(np.percentile(latencies, 95)),
        compile_seconds=(
            max(0.0, sum(warm_up) - statistics.median(map(sum, rounds)))
            if case.engine == "compiled"
            else None
        ),
        peak_mib=peak,
        same=same_share(written, eager_tokens),
    )


def print_decode_rows(rows: Sequence[DecodeRow], title: str) -> None:
    """Print the table, a part for each batch size."""
    caption = (
        "same: share of the sentences as in float32 and eager; ctranslate2: Transformers alone"
    )
    table = Table(title=title, caption=caption)
    for name, _ in _decode_cells(rows[0]):
        table.add_column(name, justify="left" if name in TEXT_COLUMNS else "right")
    for row, following in zip_longest(rows, rows[1:]):
        last = following is not None and following.batch_size != row.batch_size
        table.add_row(*(cell for _, cell in _decode_cells(row)), end_section=last)
    console = Console()
    console.width = max(console.width, TABLE_WIDTH)  # a pipe would cut the columns
    console.print(table)


def _decode_cells(row: DecodeRow) -> list[tuple[str, str]]:
    """The heading and the text of each column."""
    return [
        ("batch", str(row.batch_size)),
        ("model", row.model),
        ("engine", row.engine),
        ("precision", row.precision),
        ("parameters", f"{row.parameters / 1e6:.2f} M"),
        ("tokens/s", f"{row.tokens_per_second:,.0f}"),
        ("sentences/s", f"{row.sentences_per_second:,.1f}"),
        ("speed-up", _format_optional(row.speedup_vs_teacher, "{:.2f}x")),
        ("p50 ms", f"{1000 * row.latency_p50:.1f}"),
        ("p95 ms", f"{1000 * row.latency_p95:.1f}"),
        ("MiB", _format_optional(row.peak_mib, "{:.0f}")),
        ("compile s", _format_optional(row.compile_seconds, "{:.1f}")),
        ("same", f"{row.same:.1%}"),
    ]


def _format_optional(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def length_sorted_batches(source: Tensor, batch_size: int, special: SpecialTokens) -> list[Tensor]:
    """Places of the first sentences in batches of like length, the longest first."""
    length = (source[: MAX_BATCHES_PER_ROUND * batch_size] != special.pad).sum(1)
    return list(length.argsort(descending=True, stable=True).split(batch_size))
