"""Measurement of the rates of matrix products in float32 and bfloat16.

The rates are measured because the features that a CPU reports do not predict them. This module
changes no setting by itself: a run decides what to do with the measurement.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

DECODING_STEPS = 16  # products of a decoding step for each product of a training pass
TIMED_ROUNDS = 15
MIN_BFLOAT16_SPEEDUP = 1.25  # bfloat16 makes products faster, but most other operators slower


@dataclass(frozen=True)
class MeasuredPrecision:
    """Rates of matrix products in GFLOP/s, and the precision that follows from them.

    Attributes:
        name: "bfloat16" if it is at least 1.25 times as fast as the faster float32, else "float32".
        float32: rate in float32 by torch's default, which is slow on AMD processors (MKL).
        float32_onednn: rate in float32 through oneDNN; None where it is not available with
            float32's accuracy.
        bfloat16: rate in bfloat16.
    """

    name: Literal["float32", "bfloat16"]
    float32: float
    float32_onednn: float | None
    bfloat16: float

    @property
    def dtype(self) -> torch.dtype:
        """Dtype with the name `name`."""
        return torch.bfloat16 if self.name == "bfloat16" else torch.float32

    @property
    def onednn(self) -> bool:
        """True if float32 products are faster through oneDNN than by default."""
        return self.float32_onednn is not None and self.float32_onednn > self.float32


def measure_precision(
    width: int, rows: int = 64, *, device: torch.device | str = "cpu"
) -> MeasuredPrecision:
    """Time products of a run's shapes, those of decoding steps and that of a training pass.

    With W of shape (2 width, width) these are 16 products of (rows, width) and one of
    (16 rows, width) with W transposed. Precisions take turns, and the best of 15 rounds counts.

    Args:
        width: width of the model.
        rows: number of sequences decoded together.
        device: device of the run.

    Raises:
        ValueError: `width` or `rows` below 1.
    """
    for name, value in (("width", width), ("rows", rows)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    device = torch.device(device)
    products = _Products.random(width, rows, device)
    with torch.no_grad():
        runs: dict[str, Callable[[], None]] = {
            "float32": products.run,
            "bfloat16": products.to(torch.bfloat16).run,
        }
        if _onednn_is_exact(products):
            runs["float32_onednn"] = products.run_onednn
        seconds = _fewest_seconds(runs, device)
    rate = {name: products.flops / value / 1e9 for name, value in seconds.items()}
    float32 = max(rate["float32"], rate.get("float32_onednn", 0.0))
    return MeasuredPrecision(
        name="bfloat16" if rate["bfloat16"] >= MIN_BFLOAT16_SPEEDUP * float32 else "float32",
        float32=rate["float32"],
        float32_onednn=rate.get("float32_onednn"),
        bfloat16=rate["bfloat16"],
    )


@contextmanager
def onednn_float32(enabled: bool) -> Iterator[None]:
    """Compute float32 products on CPUs through oneDNN within the context, if `enabled`.

    The setting permits oneDNN to round to bfloat16, which it does on processors with matrix units.
    `measure_precision` reports a rate for oneDNN only where it does not round.
    """
    settings = torch.backends.mkldnn.matmul  # pyright: ignore[reportAttributeAccessIssue]
    before = settings.fp32_precision
    settings.fp32_precision = "bf16" if enabled else before
    try:
        yield
    finally:
        settings.fp32_precision = before


@dataclass(frozen=True)
class _Products:
    """Matrix products of decoding steps and of a training pass.

    Attributes:
        step: (rows, width), input of a decoding step.
        training_pass: (DECODING_STEPS * rows, width), input of a training pass.
        weight: (2 width, width).
    """

    step: Tensor
    training_pass: Tensor
    weight: Tensor

    @classmethod
    def random(cls, width: int, rows: int, device: torch.device) -> "_Products":
        generator = torch.Generator().manual_seed(0)
        shapes = (rows, width), (DECODING_STEPS * rows, width), (2 * width, width)
        return cls(*(torch.randn(shape, generator=generator).to(device) for shape in shapes))

    @property
    def flops(self) -> int:
        """Number of multiplications and additions of one `run`."""
        return 2 * 2 * self.training_pass.numel() * self.weight.shape[0]

    def to(self, dtype: torch.dtype) -> "_Products":
        return _Products(*(each.to(dtype) for each in (self.step, self.training_pass, self.weight)))

    def run(self) -> None:
        for _ in range(DECODING_STEPS):
            F.linear(self.step, self.weight)
        F.linear(self.training_pass, self.weight)

    def run_onednn(self) -> None:
        with onednn_float32(True):
            self.run()


def _onednn_is_exact(products: _Products) -> bool:
    """Return True if oneDNN is available and about as accurate in float32 as torch's default."""
    if products.weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    for hidden in (products.step, products.training_pass):
        exact = F.linear(hidden.double(), products.weight.double())
        default = F.linear(hidden, products.weight)
        with onednn_float32(True):
            by_onednn = F.linear(hidden, products.weight)
        if (by_onednn - exact).abs().max() > 8 * (default - exact).abs().max():
            return False
    return True


def _fewest_seconds(
    runs: Mapping[str, Callable[[], None]], device: torch.device
) -> dict[str, float]:
    """Return the fewest seconds of each run over many rounds, after one round of warm-up.

    The runs take turns. The minimum is used because other work on the machine only adds time.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(TIMED_ROUNDS + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if device.type != "cpu":
                torch.accelerator.synchronize(device)
            times[name].append(time.perf_counter() - start)
    return {name: min(values[1:]) for name, values in times.items()}
