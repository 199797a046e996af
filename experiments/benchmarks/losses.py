"""Benchmark of a loss's memory over a large vocabulary: all of (B, T, V) at once, or `chunked`.

Both ways project hidden states onto the vocabulary and compute the forward KL with its gradient.
Each runs in a process of its own, whose peak memory the kernel (Linux) reports. The rest of a model
is left out, and so is the fragmentation that `retain_freed_memory` trades for speed.
"""

import time
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
import tyro
from torch import Tensor

from textgen_agents.losses.divergences import chunked, forward_kl
from textgen_env.bounds import check_at_least
from textgen_experiments.evaluation.tables import print_table
from textgen_experiments.runs.memory import process_memory, return_freed_memory
from textgen_experiments.runs.worker_processes import run_in_new_process


@dataclass(frozen=True)
class BenchmarkLossesOptions:
    """Measure the memory of a loss over large vocabularies, whole and in chunks.

    Attributes:
        vocab_sizes: vocabulary sizes V to measure, one after the other.
        states: number of states, B times T.
        width: D, the width of the hidden states.
        rows: states of a chunk.
    """

    vocab_sizes: Annotated[tuple[int, ...], tyro.conf.Positional] = (32_000, 250_000)
    states: int = 512
    width: int = 64
    rows: int = 64

    def __post_init__(self) -> None:
        check_at_least(self, states=1, width=1, rows=1)
        if min(self.vocab_sizes, default=1) < 1:
            raise ValueError(f"vocab_sizes must be at least 1 each, got {self.vocab_sizes}")


@dataclass(frozen=True)
class LossCost:
    """Cost and result of a loss and its gradient.

    Attributes:
        peak: MiB at the peak, beyond hidden states and weights.
        seconds: time of the loss and its gradient.
        gradient: gradients of hidden states and weights, flattened into one array.
    """

    peak: float
    seconds: float
    gradient: np.ndarray


def benchmark_losses(options: BenchmarkLossesOptions) -> None:
    """Print a table of peak memory, seconds, and how far the gradients differ."""
    rows = []
    for vocab_size in options.vocab_sizes:
        whole = measure_in_new_process(vocab_size, options, None)
        cut = measure_in_new_process(vocab_size, options, options.rows)
        for path, cost in (("whole", whole), (f"chunks of {options.rows}", cut)):
            row = (
                f"{vocab_size:,}",
                path,
                f"{cost.peak:.0f}",
                f"{cost.peak / whole.peak:.0%}",
                f"{cost.seconds:.2f}",
                f"{relative_difference(cost.gradient, whole.gradient):.1e}",
            )
            rows.append(row)
    print_table(
        f"forward KL of {options.states} states, width {options.width}, float32",
        ("V", "path", "peak MiB", "of the whole", "seconds", "gradient differs by"),
        rows,
        left=("path",),
    )


def measure_in_new_process(
    vocab_size: int, options: BenchmarkLossesOptions, rows: int | None
) -> LossCost:
    """Return the cost of a forward KL and its gradient, measured in a process of its own.

    Args:
        vocab_size: V.
        options: number and width of the states.
        rows: states of a chunk; None for all states at once.
    """
    return run_in_new_process(_measure_loss, vocab_size, options.states, options.width, rows)


def _measure_loss(vocab_size: int, states: int, width: int, rows: int | None) -> LossCost:
    return_freed_memory()
    loss_and_gradient(vocab_size=2, states=2, width=2, rows=rows)  # loads what PyTorch loads late
    return loss_and_gradient(vocab_size, states, width, rows)


def loss_and_gradient(vocab_size: int, states: int, width: int, rows: int | None) -> LossCost:
    """Compute the forward KL of random hidden states and its gradient."""
    generator = torch.Generator().manual_seed(0)
    hidden, teacher_hidden = torch.randn(2, 1, states, width, generator=generator)
    weight, teacher_weight = torch.randn(2, vocab_size, width, generator=generator)
    hidden.requires_grad_()
    weight.requires_grad_()

    def loss(hidden: Tensor, teacher_hidden: Tensor) -> Tensor:
        return forward_kl(hidden @ weight.T, teacher_hidden @ teacher_weight.T)

    before, start = process_memory("VmRSS"), time.perf_counter()
    if rows is None:
        divergence = loss(hidden, teacher_hidden)
    else:
        divergence = chunked(loss, hidden, teacher_hidden, rows=rows)
    gradients = torch.autograd.grad(divergence.mean(), [hidden, weight])
    seconds, peak = time.perf_counter() - start, process_memory("VmHWM") - before
    return LossCost(peak, seconds, torch.cat([each.flatten() for each in gradients]).numpy())


def relative_difference(gradient: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference, as a fraction of the largest expected entry."""
    return float(np.abs(gradient - expected).max() / np.abs(expected).max())
