"""Benchmark of a decoding step beside its floor, the time of its matrix products alone."""

import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from textgen_env.bounds import check_at_least
from textgen_env.models.acceleration.prepacked import with_prepacked_weights
from textgen_env.models.sequence_model import SequenceModel
from textgen_env.models.storage import load_model
from textgen_experiments.evaluation.tables import print_table
from textgen_experiments.models.generate import model_folder
from textgen_experiments.runs.folder import DTYPES

SOURCE_TOKENS, TARGET_TOKENS = 30, 32
MEASURED_DECODES = 7
MIN_SECONDS_PER_PRODUCT = 0.05
MATRIX_PRODUCT_OPS = (
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.addmm_.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten.baddbmm.default,
)
PREPACKED_LINEAR_OP = "mkldnn::_linear_pointwise"  # as `with_prepacked_weights` makes them

ProductShape = tuple[int, ...]
"""(rows, inner, outer) of a matrix product; a batched one has its batch dimensions before."""


@dataclass(frozen=True)
class BenchmarkOptions:
    """Time decoding steps of models beside their floor: their matrix products alone.

    Attributes:
        models: folders of finished runs or of models.
        batch_size: sentences decoded together.
        precisions: precisions to measure, one after the other.
    """

    models: Annotated[tuple[Path, ...], tyro.conf.Positional]
    batch_size: int = 64
    precisions: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")

    def __post_init__(self) -> None:
        check_at_least(self, batch_size=1)


def benchmark(options: BenchmarkOptions) -> None:
    """Print a table: tokens per second, those of the floor, and the fraction reached."""
    rows = []
    for path in options.models:
        for precision in options.precisions:
            model = with_prepacked_weights(load_model(model_folder(path), DTYPES[precision]))
            step, floor = step_and_floor(model, options.batch_size, DTYPES[precision])
            rates = [f"{options.batch_size / seconds:,.0f}" for seconds in (step, floor)]
            rows.append((path.name, precision, *rates, f"{floor / step:.0%}"))
    print_table(
        f"{options.batch_size} sentences, {SOURCE_TOKENS} source and {TARGET_TOKENS} target tokens",
        ("model", "precision", "tokens/s", "floor tokens/s", "fraction of the floor"),
        rows,
        left=("model", "precision"),
    )


@torch.no_grad()
def step_and_floor(model: SequenceModel, rows: int, dtype: torch.dtype) -> tuple[float, float]:
    """Return the median seconds of a decoding step, and the seconds of its matrix products alone.

    Both are means over the steps of a text.

    Args:
        model: model with weights of `dtype`.
        rows: sentences decoded together.
        dtype: dtype of the products.
    """
    source = torch.full((rows, SOURCE_TOKENS), model.special.end + 1)
    previous = torch.full((rows,), model.special.end + 1)
    cache = model.start(source, TARGET_TOKENS)
    with ProductRecorder() as recorder:
        for _ in range(TARGET_TOKENS):
            _, cache = model.step(previous, cache)
    seconds = [_decode_seconds(model, source, previous) for _ in range(MEASURED_DECODES + 1)]
    floor = products_seconds(recorder.shapes, dtype)
    return statistics.median(seconds[1:]) / TARGET_TOKENS, floor / TARGET_TOKENS


@torch.no_grad()
def products_seconds(shapes: Mapping[ProductShape, int], dtype: torch.dtype) -> float:
    """Return the seconds of all products of the given shapes, each timed by itself.

    This is a lower bound. A product with weights is timed with plain and with prepacked weights,
    and the faster one counts. Operands also stay in the processor's cache between the timings,
    unlike the keys and values that a step reads.

    Args:
        shapes: shape of a product -> how often it is computed.
        dtype: dtype of the operands.
    """
    total = 0.0
    for (*batch, rows, inner, outer), count in shapes.items():
        left = torch.ones(*batch, rows, inner, dtype=dtype)
        if batch:
            ways = [partial(torch.bmm, mat2=torch.ones(*batch, inner, outer, dtype=dtype))]
        else:
            layer = nn.Linear(inner, outer, bias=False, dtype=dtype)
            ways = [layer, with_prepacked_weights(layer)]
        total += count * min(_median_seconds(partial(way, left)) for way in ways)
    return total


class ProductRecorder(TorchDispatchMode):
    """Dispatch mode that counts matrix products by shape, attention's where it is written out."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: Counter[ProductShape] = Counter()

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        """Run the operator and count the shape of its product."""
        if func in MATRIX_PRODUCT_OPS:
            left, right = args[-2:]
            self.shapes[(*left.shape, right.shape[-1])] += 1
        elif func.name() == PREPACKED_LINEAR_OP:
            left, weight = args[:2]
            self.shapes[(left.shape[:-1].numel(), *weight.shape[::-1])] += 1
        elif torch.is_inference_mode_enabled():  # where composite operators arrive undecomposed
            with self:
                parts = func.decompose(*args, **(kwargs or {}))
            if parts is not NotImplemented:
                return parts
        return func(*args, **(kwargs or {}))


def _decode_seconds(model: SequenceModel, source: Tensor, previous: Tensor) -> float:
    cache = model.start(source, TARGET_TOKENS)
    start = time.perf_counter()
    for _ in range(TARGET_TOKENS):
        logits, cache = model.step(previous, cache)
        logits.argmax(-1)
    return time.perf_counter() - start


def _median_seconds(run: Callable[[], object]) -> float:
    times, last = [], time.perf_counter() + MIN_SECONDS_PER_PRODUCT
    while len(times) < 3 or time.perf_counter() < last:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)
