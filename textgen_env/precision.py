"""Which precision is faster here: measured, because processor flags do not tell.

Of two x86 machines that both report bfloat16 instructions, one ran bfloat16 products 5 times as
fast as float32 ones and the other 0.6 times.
"""

import statistics
import time
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear

ROUNDS = 7
SECONDS_A_ROUND = 0.02


@dataclass(frozen=True)
class Precision:
    """What was measured.

    Attributes:
        name: "float32" or "bfloat16", the faster one.
        float32: rate of the products, GFLOP/s.
        bfloat16: the same.
    """

    name: str
    float32: float
    bfloat16: float


def measure_precision(
    width: int, vocab_size: int, *, rows: int = 1024, device: torch.device | str = "cpu"
) -> Precision:
    """Time two matrix products of a model's own shapes in both precisions, in turn; under 1 s.

    Args:
        width: of the model.
        vocab_size: V.
        rows: tokens that go through a product together.
        device: where the model will run.
    """
    rates: dict[torch.dtype, list[float]] = {torch.float32: [], torch.bfloat16: []}
    shapes = (width, 4 * width), (width, vocab_size)
    operands = {
        dtype: [
            (
                torch.ones(rows, inner, device=device, dtype=dtype),
                torch.ones(outer, inner, device=device, dtype=dtype),
            )
            for inner, outer in shapes
        ]
        for dtype in rates
    }
    operations = sum(2 * rows * inner * outer for inner, outer in shapes)
    for _ in range(ROUNDS):
        for dtype, pairs in operands.items():
            rates[dtype].append(operations / _seconds(pairs) / 1e9)
    float32, bfloat16 = (statistics.median(values[1:]) for values in rates.values())
    name = "bfloat16" if bfloat16 > float32 else "float32"
    return Precision(name, round(float32, 1), round(bfloat16, 1))


def _seconds(pairs: list[tuple[Tensor, Tensor]]) -> float:
    """Seconds for one pass through the products, the device's queue emptied."""
    passes, start = 0, time.perf_counter()
    while True:
        result = [linear(inputs, weight) for inputs, weight in pairs]
        passes += 1
        if time.perf_counter() - start > SECONDS_A_ROUND:
            result[-1][0, 0].item()  # waits for the device
            return (time.perf_counter() - start) / passes
