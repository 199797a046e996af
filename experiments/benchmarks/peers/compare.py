"""Benchmark beside other libraries: updates by TRL, decoding by `transformers` and CTranslate2.

All sides have the same weights, data, batch and precision, and work in turn over several rounds. A
ratio is the median of the rounds' ratios. TRL and CTranslate2 run in processes of their own and
wait there while others work; all other sides share one process. Each side is free in everything
else: this project computes float32 products by oneDNN where that was measured to be faster.

Needs the extra `bench`.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Literal, cast

import torch
import tyro

from textgen_env.bounds import check_at_least
from textgen_env.models.acceleration.precision import measure_precision
from textgen_experiments.benchmarks.candidates import TimedGeneration
from textgen_experiments.benchmarks.peers.updates import (
    LearnerUpdates,
    TimedUpdates,
    distillation_updates,
)
from textgen_experiments.evaluation.tables import print_table
from textgen_experiments.evaluation.timing import Workload, interleaved_rates, ratio
from textgen_experiments.models.export import same_share
from textgen_experiments.models.formats import extra
from textgen_experiments.runs.folder import DTYPES

PeerComparison = Literal["gkd", "marian", "teacher", "updates"]
Sides = Mapping[str, Workload]
COMPARISON_TITLES: dict[PeerComparison, str] = {
    "gkd": "an update of on-policy distillation, a random pair of Llamas",
    "marian": "greedy decoding, a random Marian",
    "teacher": "greedy decoding, the shipped teacher",
    "updates": "an update with the shipped teacher and the demo's student",
}
FLOOR_CAPTION = "in brackets: fraction of the time that the matrix products alone take"


@dataclass(frozen=True)
class BenchmarkPeersOptions:
    """Time this project beside the tools that do the same.

    Attributes:
        comparisons: gkd, an update by TRL's `GKDTrainer`, its `DistillationTrainer` and the agent
            gkd; marian and teacher, greedy decoding by `transformers`, CTranslate2 (float32 alone)
            and this project; updates, one that learns from the student's texts (imitkd_full) beside
            one that learns from the teacher's (seqkd_full).
        precisions: precisions to measure, one after the other.
        rounds: measured rounds, after one that is not.
        student: folder of a trained student for `updates`; None for a fresh one.
        warm_up: updates of the student before `updates`; 0 for a trained one.
        device: device of all sides; CTranslate2, and the matrix products alone, run on CPUs only.
    """

    comparisons: Annotated[tuple[PeerComparison, ...], tyro.conf.Positional] = tuple(
        COMPARISON_TITLES
    )
    precisions: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")
    rounds: int = 5
    student: Path | None = None
    warm_up: int = 200
    device: Literal["cpu", "cuda"] = "cpu"

    def __post_init__(self) -> None:
        check_at_least(self, rounds=1, warm_up=0)
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device must be cpu where PyTorch finds no CUDA device, got cuda")


def benchmark_peers(options: BenchmarkPeersOptions) -> None:
    """Print a table for each comparison.

    Raises:
        RunError: a package of the extra `bench` is not installed.
    """
    with extra("bench"):
        from textgen_experiments.benchmarks.peers.decode import marian_writers, teacher_writers
        from textgen_experiments.benchmarks.peers.gkd import gkd_updates
        from textgen_experiments.benchmarks.peers.models import Size
    size = Size()
    onednn = measure_precision(size.width, size.batch_size).onednn
    makers: dict[PeerComparison, Callable[[Path, str], Sides]] = {
        "gkd": lambda folder, name: gkd_updates(folder, size, DTYPES[name], onednn, options.device),
        "marian": lambda folder, name: marian_writers(folder, size, name, options.device),
        "teacher": lambda folder, name: teacher_writers(
            folder, size.batch_size, name, options.device
        ),
        "updates": lambda folder, name: distillation_updates(
            folder,
            size.batch_size,
            options.student,
            options.warm_up,
            DTYPES[name],
            onednn,
            options.device,
        ),
    }
    for comparison in options.comparisons:
        sections = []
        for precision in options.precisions:
            with TemporaryDirectory() as folder:
                sides = makers[comparison](Path(folder), precision)
                sections.append(_side_rows(sides, precision, options.rounds))
        headings = list(sections[0][0])
        print_table(
            COMPARISON_TITLES[comparison],
            headings,
            *([list(row.values()) for row in rows] for rows in sections),
            caption=FLOOR_CAPTION if "whole s" in headings else None,
            left=("", "precision"),
        )


NamedCells = dict[str, str]
"""Heading -> cell, of each column."""


def _side_rows(sides: Sides, precision: str, rounds: int) -> list[NamedCells]:
    """Measure the sides and return a row for each."""
    rates = interleaved_rates(sides, rounds)
    speeds = list(rates.values())
    above = [None, *(ratio(own, other) for other, own in pairwise(speeds))]
    return [
        {
            "": name,
            "precision": precision,
            **_side_cells(sides, name, rates[name]),
            "speed to the first": f"{ratio(rates[name], speeds[0]):.2f}x",
            "to the one above": "" if before is None else f"{before:.2f}x",
        }
        for name, before in zip(sides, above, strict=True)
    ]


def _side_cells(sides: Sides, name: str, rates: Sequence[float]) -> NamedCells:
    """Return the figures of a side beyond its speed relative to others."""
    side = sides[name]
    if isinstance(side, TimedGeneration):
        first = cast("TimedGeneration", next(iter(sides.values())))
        same = same_share(torch.cat(side.written), torch.cat(first.written))
        rate = statistics.median(rates)
        return {"tokens/s": f"{rate:,.0f}", "texts as the first": f"{same:.1%}"}
    return update_cells(cast("TimedUpdates", side))


def update_cells(side: TimedUpdates) -> NamedCells:
    """Return the median seconds of an update and of its parts, without the first round."""
    floor = side.floor() if isinstance(side, LearnerUpdates) else None
    cells = {}
    for part in ("whole", "rollout", "label", "update"):
        seconds = statistics.median(getattr(each, part) for each in side.seconds[1:])
        share = "" if floor is None or not seconds else f" ({getattr(floor, part) / seconds:.0%})"
        cells[f"{part} s"] = f"{seconds:.3f}{share}"
    return {**cells, "tokens": f"{statistics.median(side.tokens[1:]):,.0f}"}
