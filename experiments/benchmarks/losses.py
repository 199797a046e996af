"""Memory of a loss over a large vocabulary: the whole (B, T, V) at once beside `chunked`.

Both project hidden states onto the vocabulary, take the forward KL and its gradient, each in a
process of its own, whose peak the kernel (Linux) tells. It leaves out the rest of the model, and
the holes in the heap that `retain_freed_memory` trades for speed.
"""

import ctypes
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor

from textgen_agents.losses.divergences import chunked, forward_kl

MIB_PER_KIB = 1 / 1024
M_MMAP_THRESHOLD, BYTES_PER_MIB = -3, 2**20  # the first is from <malloc.h>


@dataclass(frozen=True)
class BenchmarkLossesOptions:
    """Measure the memory of a loss over large vocabularies, whole and in chunks.

    Attributes:
        vocab_sizes: V, in turn.
        states: B times T.
        width: D of the hidden states.
        rows: states of a chunk.
    """

    vocab_sizes: Annotated[tuple[int, ...], tyro.conf.Positional] = (32_000, 250_000)
    states: int = 512
    width: int = 64
    rows: int = 64


@dataclass(frozen=True)
class LossCost:
    """What one pass and its gradient took.

    Attributes:
        peak: MiB, at its highest, beyond hidden states and weights.
        seconds: of both.
        gradient: of hidden states and weights, in one row.
    """

    peak: float
    seconds: float
    gradient: np.ndarray


def benchmark_losses(options: BenchmarkLossesOptions) -> None:
    """Print a table: peak memory, seconds, and how far the gradients are apart."""
    table = Table(title=f"forward KL of {options.states} states, width {options.width}, float32")
    for name in ("V", "path", "peak MiB", "of the whole", "seconds", "gradient differs by"):
        table.add_column(name, justify="left" if name == "path" else "right")
    for vocab_size in options.vocab_sizes:
        whole, cut = (
            measure_in_new_process(vocab_size, options, rows) for rows in (None, options.rows)
        )
        for path, cost in (("whole", whole), (f"chunks of {options.rows}", cut)):
            table.add_row(
                f"{vocab_size:,}",
                path,
                f"{cost.peak:.0f}",
                f"{cost.peak / whole.peak:.0%}",
                f"{cost.seconds:.2f}",
                f"{relative_difference(cost.gradient, whole.gradient):.1e}",
            )
    Console().print(table)


def measure_in_new_process(
    vocab_size: int, options: BenchmarkLossesOptions, rows: int | None
) -> LossCost:
    """`measure` where no earlier work has left memory behind."""
    with ProcessPoolExecutor(1, get_context("spawn")) as executor:
        threads = torch.get_num_threads()
        return executor.submit(_measure_loss, vocab_size, options, rows, threads).result()


def _measure_loss(
    vocab_size: int, options: BenchmarkLossesOptions, rows: int | None, threads: int
) -> LossCost:
    """One forward KL and its gradient; `rows` None for all states at once."""
    torch.set_num_threads(threads)
    return_freed_memory()
    loss_and_gradient(vocab_size=2, states=2, width=2, rows=rows)  # what PyTorch loads at first use
    return loss_and_gradient(vocab_size, options.states, options.width, rows)


def return_freed_memory() -> None:
    """Tell glibc to give every tensor above 1 MiB its own pages, so that the peak is of tensors."""
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(M_MMAP_THRESHOLD, BYTES_PER_MIB)


def loss_and_gradient(vocab_size: int, states: int, width: int, rows: int | None) -> LossCost:
    """A forward KL of random states and its gradient."""
    generator = torch.Generator().manual_seed(0)
    hidden, teacher_hidden = torch.randn(2, 1, states, width, generator=generator)
    weight, teacher_weight = torch.randn(2, vocab_size, width, generator=generator)
    hidden.requires_grad_()
    weight.requires_grad_()

    def loss(hidden: Tensor, teacher_hidden: Tensor) -> Tensor:
        return forward_kl(hidden @ weight.T, teacher_hidden @ teacher_weight.T)

    before, start = process_memory("VmRSS"), time.perf_counter()
    if rows is None:
        values = loss(hidden, teacher_hidden)
    else:
        values = chunked(loss, hidden, teacher_hidden, rows=rows)
    gradients = torch.autograd.grad(values.mean(), [hidden, weight])
    seconds, peak = time.perf_counter() - start, process_memory("VmHWM") - before
    return LossCost(peak, seconds, torch.cat([each.flatten() for each in gradients]).numpy())


def relative_difference(gradient: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, as a share of the largest entry."""
    return float(np.abs(gradient - expected).max() / np.abs(expected).max())


def process_memory(entry: str) -> float:
    """MiB of this process, now (VmRSS) or at its highest (VmHWM)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(entry):
            return int(line.split()[1]) * MIB_PER_KIB
    raise OSError(f"this system does not tell {entry} of a process")
