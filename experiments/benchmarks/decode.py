"""Decode speed of students beside their teacher: engines, precisions and batch sizes.

All decode the same sentences in one process, in turn, over several rounds. Memory is measured apart
from speed, each model in a process of its own, whose peak the kernel (Linux) reports.
"""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
import torch
import tyro
from torch import Tensor

from textgen_env.bounds import check_at_least
from textgen_env.generation.decoding import decode_all
from textgen_env.generation.speculative import DRAFT_TOKENS
from textgen_env.models.storage import load_model, load_tokenizer
from textgen_env.tasks.task import TextTask, encode
from textgen_env.types import SpecialTokens, trimmed
from textgen_experiments.benchmarks.candidates import (
    ENGINE_PRECISIONS,
    BenchmarkCase,
    Engine,
    TimedGeneration,
    benchmark_cases,
    peak_memory,
    timed_generations,
)
from textgen_experiments.evaluation.given_runs import without_own_files
from textgen_experiments.evaluation.results import machine_and_task, write_json
from textgen_experiments.evaluation.same_test import check_same_test
from textgen_experiments.evaluation.tables import optional_cell, print_table
from textgen_experiments.evaluation.timing import interleaved_rates, ratio
from textgen_experiments.models.export import same_share
from textgen_experiments.runs.factories import build_task
from textgen_experiments.runs.folder import RunError, check_tokenizers, read_runs
from textgen_experiments.runs.outcome import read_outcome
from textgen_experiments.runs.precisions import PrecisionName
from textgen_experiments.runs.progress import progress

DECODE_RESULTS = "decode.json"
TEXT_COLUMNS = ("model", "engine", "precision")
MAX_BATCHES_PER_ROUND = 32  # small batches cover fewer of the sentences


@dataclass(frozen=True)
class BenchmarkDecodeOptions:
    """Time greedy decoding of finished runs beside their teacher.

    Attributes:
        runs: folders of finished runs of one task.
        engines: eager is this project's own; compiled runs its step under `torch.compile`, after
            minutes of compiling; ctranslate2 runs Transformers alone, and onnx, that is ONNX
            Runtime, this project's own models; both need the extra `export`. speculative writes the
            teacher's texts with each run as a draft.
        precisions: bfloat16 is for all but ctranslate2 and onnx, int8 for all but compiled.
        batch_sizes: sentences decoded together; each waits for the last of its batch.
        sentences: the first sentences of the test split, in at most 32 batches.
        rounds: measured rounds, after one that is not.
        draft_tokens: tokens that a draft proposes at a time.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    engines: tuple[Engine, ...] = ("eager",)
    precisions: tuple[PrecisionName, ...] = ("float32", "bfloat16", "int8")
    batch_sizes: tuple[int, ...] = (1, 16, 64, 256)
    sentences: int = 256
    rounds: int = 5
    draft_tokens: int = DRAFT_TOKENS

    def __post_init__(self) -> None:
        smallest = min(self.batch_sizes, default=0)
        if smallest < 1:
            raise ValueError(f"batch_sizes must be at least 1, got {smallest}")
        check_at_least(self, sentences=1, rounds=1, draft_tokens=1)
        if not self.settings:
            raise ValueError(
                f"precisions must have one of {' or '.join(self.engines) or 'an engine'}, "
                f"got {' '.join(self.precisions) or 'none'}"
            )

    @property
    def settings(self) -> list[tuple[Engine, PrecisionName]]:
        """Engines and precisions to measure each model in."""
        return [
            (engine, precision)
            for engine in self.engines
            for precision in self.precisions
            if precision in ENGINE_PRECISIONS[engine]
        ]


@dataclass(frozen=True)
class DecodeRow:
    """Measurements of a model in one setting and batch size; rates are medians of the rounds.

    Attributes:
        model: name of the model in the table.
        parameters: number of parameters, each shared one counted once.
        engine: the engine that ran it.
        precision: precision of its weights.
        batch_size: sentences decoded together.
        sentences: sentences written in a round.
        tokens_per_second: target tokens per second, end tokens included.
        sentences_per_second: sentences per second.
        speedup_vs_teacher: tokens per second over the teacher's (without one, the first run's) in
            the same setting, median of the rounds' ratios; None where that one cannot run so.
        latency_p50: median seconds of a sentence over all rounds; each takes as long as its batch.
        latency_p95: 95th percentile of the same.
        compile_seconds: extra seconds of the round that is not counted; None where nothing is
            compiled.
        peak_mib: peak memory of loading it and writing the longest sentences; None where it is
            compiled.
        same: share of the sentences that are token for token those of float32 and eager; where it
            is a draft, those of the teacher.
        tokens_per_pass: tokens for each block that the teacher reads; None where it has no draft.
        acceptance: share of the draft's tokens that the teacher accepts, of those it has come to.
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
    tokens_per_pass: float | None = None
    acceptance: float | None = None


def benchmark_decode(options: BenchmarkDecodeOptions) -> None:
    """Print a table of the runs beside their teacher and write the `decode.json` of each run.

    Raises:
        RunError: a run is unfinished, the runs differ in task or teacher, one of them or the
            teacher has another tokenizer, or a package is missing.
    """
    options = replace(options, runs=without_own_files(options.runs))
    runs = read_runs(options.runs)
    first = runs[0]
    for folder in options.runs:
        read_outcome(folder)
    models = {folder / "model": folder.name for folder in options.runs}
    if first.experiment.teacher:
        models = {first.experiment.teacher: "teacher", **models}
    check_tokenizers(list(models))
    task = build_task(first.experiment.task, load_tokenizer(options.runs[0] / "model"))
    check_same_test(task, options.runs, runs)
    with TemporaryDirectory() as exports:
        cases = list(benchmark_cases(models, options.settings, Path(exports), options.draft_tokens))
        if not cases:
            raise RunError(
                "a model must be a Transformer for ctranslate2, and a run beside its teacher or "
                f"another run for speculative, got {', '.join(models.values())}"
            )
        base = next(iter(models))
        rows = measure_cases(cases, base, task, options)
    print_decode_rows(
        [row for _, row in rows], f"{task.name}: greedy decoding, {options.rounds} rounds"
    )
    for folder in options.runs:
        own = [asdict(row) for case, row in rows if case.model in (base, folder / "model")]
        write_json(
            folder / DECODE_RESULTS,
            {**machine_and_task(task), "rounds": options.rounds, "rows": own},
        )


def measure_cases(
    cases: Sequence[BenchmarkCase], base: Path, task: TextTask, options: BenchmarkDecodeOptions
) -> list[tuple[BenchmarkCase, DecodeRow]]:
    """Return a row for each batch size and case.

    Args:
        cases: at least one.
        base: folder of the model that the others are compared to.
        task: task whose test split is decoded.
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
            for folder in {case.author for case in cases}
        }
        writers = {case: case.load_for_timing() for case in cases}
        for size, parts in batches.items():
            timed = timed_generations(writers, parts, max_steps, special.pad)
            rates = interleaved_rates(timed, options.rounds)
            base_rates = {case.setting: rates[case] for case in cases if case.model == base}
            for case in cases:
                row = decode_row(
                    case,
                    timed[case],
                    rates[case],
                    base=base_rates.get(case.setting),
                    peak=peaks[case][size],
                    eager_tokens=eager_tokens[case.author][torch.cat(order[size])],
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
    """Return the figures of one case over its rounds.

    Args:
        case: the case that was measured.
        timed: its rounds, after one that is not counted.
        rates: tokens per second, by round.
        base: tokens per second of the model that it is compared to, by round.
        peak: peak memory, MiB.
        eager_tokens: (B, T) tokens that its model writes eagerly in float32.
    """
    warm_up, *rounds = timed.seconds
    latencies = np.repeat(rounds, [len(batch) for batch in timed.batches], axis=1)
    written = torch.cat(timed.written)
    tokens, counts = int((written != timed.pad).sum()), timed.draft_counts
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
        tokens_per_pass=None if counts is None else counts.tokens_per_pass,
        acceptance=None if counts is None else counts.acceptance,
    )


def print_decode_rows(rows: Sequence[DecodeRow], title: str) -> None:
    """Print the table, a section for each batch size."""
    sections = [
        [list(_decode_cells(row).values()) for row in group]
        for _, group in groupby(rows, lambda row: row.batch_size)
    ]
    print_table(
        title,
        list(_decode_cells(rows[0])),
        *sections,
        caption="same: share of the sentences as in float32 and eager; ctranslate2: Transformers "
        "alone; speculative: the first model's texts, with the model as a draft",
        left=TEXT_COLUMNS,
    )


def _decode_cells(row: DecodeRow) -> dict[str, str]:
    """Return heading -> cell, of each column."""
    return {
        "batch": str(row.batch_size),
        "model": row.model,
        "engine": row.engine,
        "precision": row.precision,
        "parameters": f"{row.parameters / 1e6:.2f} M",
        "tokens/s": f"{row.tokens_per_second:,.0f}",
        "sentences/s": f"{row.sentences_per_second:,.1f}",
        "speed-up": optional_cell(row.speedup_vs_teacher, "{:.2f}x"),
        "p50 ms": f"{1000 * row.latency_p50:.1f}",
        "p95 ms": f"{1000 * row.latency_p95:.1f}",
        "MiB": optional_cell(row.peak_mib, "{:.0f}"),
        "compile s": optional_cell(row.compile_seconds, "{:.1f}"),
        "same": f"{row.same:.1%}",
        "tokens/pass": optional_cell(row.tokens_per_pass, "{:.2f}"),
        "acceptance": optional_cell(row.acceptance, "{:.1%}"),
    }


def length_sorted_batches(source: Tensor, batch_size: int, special: SpecialTokens) -> list[Tensor]:
    """Return row indices of the first sentences, in batches of like length, longest first."""
    length = (source[: MAX_BATCHES_PER_ROUND * batch_size] != special.pad).sum(1)
    return list(length.argsort(descending=True, stable=True).split(batch_size))
