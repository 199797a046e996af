"""Choice of the precision that a model acts in fastest on this machine, measured once."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from textgen_env.models.storage import Model
from textgen_experiments.evaluation.timing import interleaved_rates, ratio, step_batch
from textgen_experiments.runs.kept_measurements import measured_once
from textgen_experiments.runs.precisions import PrecisionName, load_to_act
from textgen_experiments.runs.progress import tell

FASTEST = "fastest"
ActingPrecision = Literal["float32", "bfloat16", "int8", "fastest"]
MIN_SPEEDUP = 1.1  # over a more exact precision
MEASURED_ROUNDS = 9
SOURCE_TOKENS, STEPS = 24, 16


@dataclass(frozen=True)
class ActingSpeeds:
    """Speeds of a model's steps as multiples of those in float32, medians over rounds.

    Attributes:
        bfloat16: speed in bfloat16, above 0.
        int8: speed in int8, above 0.
    """

    bfloat16: float
    int8: float

    @property
    def fastest(self) -> PrecisionName:
        """Fastest precision, the more exact one where another is less than 1.1 times as fast."""
        exact = self.fastest_of_floats
        speed = self.bfloat16 if exact == "bfloat16" else 1.0
        return "int8" if self.int8 >= MIN_SPEEDUP * speed else exact

    @property
    def fastest_of_floats(self) -> PrecisionName:
        """Fastest precision without int8, float32 where bfloat16 is less than 1.1 times as fast."""
        return "bfloat16" if self.bfloat16 >= MIN_SPEEDUP else "float32"


def resolve_precision(
    precision: ActingPrecision,
    folder: Path,
    rows: int,
    may_round: Callable[[], bool] = lambda: True,
) -> PrecisionName:
    """Return `precision`, or for "fastest" the one that the model in `folder` acts in fastest.

    It is measured on CPUs with steps of all three in turn, kept for this machine, and told.

    Args:
        precision: as the user chose.
        folder: of a model of this project's format or that of `transformers`.
        rows: texts written together.
        may_round: returns False if the model must not act in int8; asked where that is fastest.
    """
    if precision != FASTEST:
        return precision
    model = load_to_act(folder, "float32")
    threads = torch.get_num_threads()
    name = f"acting: {model.config}, {rows} rows, {threads} threads"
    speeds = measured_once(name, ActingSpeeds, partial(measure_speeds, model, folder, rows))
    chosen = speeds.fastest
    if chosen == "int8" and not may_round():
        chosen = speeds.fastest_of_floats
    tell(
        f"precision: {chosen} (at {rows} rows and {threads} threads bfloat16 has "
        f"{speeds.bfloat16:.2f} and int8 {speeds.int8:.2f} of float32's speed)"
    )
    return chosen


def measure_speeds(model: Model, folder: Path, rows: int) -> ActingSpeeds:
    """Measure the speeds of the model in `folder`, which is `model` in float32.

    Precisions take turns. Ratios are taken round by round: a busy machine slows all sides alike.
    """
    others = ("bfloat16", "int8")
    models = {"float32": model, **{name: load_to_act(folder, name) for name in others}}
    special = model.special
    generator = torch.Generator().manual_seed(0)
    source = torch.randint(model.vocab_size, (rows, SOURCE_TOKENS), generator=generator)
    source[source == special.pad] = special.end
    source[:, -1] = special.end
    steps = {name: partial(step_batch, each, source, STEPS, STEPS) for name, each in models.items()}
    rates = interleaved_rates(steps, MEASURED_ROUNDS)
    speeds = {name: ratio(rates[name], rates["float32"]) for name in others}
    return ActingSpeeds(**speeds)
