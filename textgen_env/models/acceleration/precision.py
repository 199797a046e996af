"""Which precision is fast here: measured, because what a CPU says of itself does not tell.

On two x86 machines that both report `avx512_bf16`, bfloat16 products ran at 5 and at 0.6 times the
rate of float32 ones. Nothing is chosen for anyone: a run decides what to do with the measurement.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

STEPS = 16  # positions of a training pass, for each of which decoding makes a product of its own
ROUNDS = 5
GAIN = 1.25  # bfloat16 makes products faster and most other operators slower


@dataclass(frozen=True)
class Precision:
    """Rates of the matrix products of a run, in GFLOP/s, and what follows from them.

    Attributes:
        name: "bfloat16" if its products are at least 1.25 times as fast as float32, else "float32".
        float32: rate in float32, as torch does it by itself.
        float32_onednn: rate in float32 through oneDNN; None where it cannot be had with float32's
            accuracy. On AMD processors torch's own way, MKL, leaves half of the rate unused.
        bfloat16: rate in bfloat16.
    """

    name: str
    float32: float
    float32_onednn: float | None
    bfloat16: float

    @property
    def dtype(self) -> torch.dtype:
        """The dtype called `name`."""
        return torch.bfloat16 if self.name == "bfloat16" else torch.float32

    @property
    def onednn(self) -> bool:
        """Whether oneDNN is the faster way to make float32 products."""
        return self.float32_onednn is not None and self.float32_onednn > self.float32


def measure_precision(
    width: int, rows: int = 64, *, device: torch.device | str = "cpu"
) -> Precision:
    """Time the products of a run's shapes: of one decoding step, and of one training pass.

    With W of shape (2 width, width) these are 16 products of (rows, width) and one of
    (16 rows, width) with W transposed; each kind in turn, the best of 5. Takes a tenth of a
    second on 2 cores at width 256.

    Args:
        width: of the model.
        rows: sequences decoded together.
        device: where the run computes.

    Raises:
        ValueError: `width` or `rows` below 1.
    """
    for name, value in (("width", width), ("rows", rows)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    device = torch.device(device)
    products = _Products.random(width, rows, device)
    with torch.no_grad():
        kinds: dict[str, Callable[[], None]] = {
            "float32": products.run,
            "bfloat16": products.to(torch.bfloat16).run,
        }
        if _onednn_is_exact(products):
            kinds["float32_onednn"] = products.run_onednn
        seconds = _best(kinds, device)
    rate = {kind: products.flops / value / 1e9 for kind, value in seconds.items()}
    float32 = max(rate["float32"], rate.get("float32_onednn", 0.0))
    return Precision(
        name="bfloat16" if rate["bfloat16"] >= GAIN * float32 else "float32",
        float32=rate["float32"],
        float32_onednn=rate.get("float32_onednn"),
        bfloat16=rate["bfloat16"],
    )


@contextmanager
def onednn_float32(enabled: bool) -> Iterator[None]:
    """Make float32 products on CPUs through oneDNN within, if `enabled`.

    The setting that leads there permits oneDNN to round to bfloat16, which it does on processors
    with matrix units. `measure_precision` reports a rate only where it does not.
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
    """Input of a step (rows, width), of a pass (STEPS * rows, width), weight (2 width, width)."""

    step: Tensor
    whole: Tensor
    weight: Tensor

    @classmethod
    def random(cls, width: int, rows: int, device: torch.device) -> "_Products":
        generator = torch.Generator().manual_seed(0)
        shapes = (rows, width), (STEPS * rows, width), (2 * width, width)
        return cls(*(torch.randn(shape, generator=generator).to(device) for shape in shapes))

    @property
    def flops(self) -> int:
        """Multiplications and additions of one `run`."""
        return 2 * 2 * self.whole.numel() * self.weight.shape[0]

    def to(self, dtype: torch.dtype) -> "_Products":
        return _Products(self.step.to(dtype), self.whole.to(dtype), self.weight.to(dtype))

    def run(self) -> None:
        for _ in range(STEPS):
            F.linear(self.step, self.weight)
        F.linear(self.whole, self.weight)

    def run_onednn(self) -> None:
        with onednn_float32(True):
            self.run()


def _onednn_is_exact(products: _Products) -> bool:
    """Whether float32 through oneDNN is there and about as accurate as torch's own."""
    if products.weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    for hidden in (products.step, products.whole):
        exact = F.linear(hidden.double(), products.weight.double())
        own = F.linear(hidden, products.weight)
        with onednn_float32(True):
            other = F.linear(hidden, products.weight)
        if (other - exact).abs().max() > 8 * (own - exact).abs().max():
            return False
    return True


def _best(kinds: dict[str, Callable[[], None]], device: torch.device) -> dict[str, float]:
    """Fewest seconds of each, run in turn, after a round that is not counted.

    The fewest and not the median: other work on the machine only ever adds.
    """
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(ROUNDS + 1):
        for kind, run in kinds.items():
            start = time.perf_counter()
            run()
            if device.type != "cpu":
                torch.accelerator.synchronize(device)
            times[kind].append(time.perf_counter() - start)
    return {kind: min(values[1:]) for kind, values in times.items()}
