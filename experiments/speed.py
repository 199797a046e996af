"""Speeds that can be compared: all sides work in one process, in turn, several times over.

A ratio to the first side is taken round by round, so that a machine that slows down for a while
slows both.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from torch import Tensor

from textgen_env.decoding import decode_all
from textgen_env.models.sequence_model import SequenceModel

Name = TypeVar("Name")
Work = Callable[[], int]
"""Does something and says how many steps or tokens it was."""


@dataclass(frozen=True)
class Speed:
    """Medians over the rounds.

    Attributes:
        tokens_per_second: target tokens written, end tokens included.
        sentences_per_second: the same in sentences.
        speedup: tokens per second over the first model's, median of the rounds' ratios.
    """

    tokens_per_second: float
    sentences_per_second: float
    speedup: float


def compare(group: Mapping[str, Work], rounds: int) -> dict[str, tuple[float, float]]:
    """Median rate a second of each, and the median of its ratios to the first one."""
    rates = in_turn(group, rounds)
    first = next(iter(rates.values()))
    return {name: (statistics.median(own), ratio(own, first)) for name, own in rates.items()}


def in_turn(group: Mapping[Name, Work], rounds: int) -> dict[Name, list[float]]:
    """Rates a second of each, by round, after a round that is not counted.

    Every other round goes backwards, so that none always follows the same one.
    """
    rates: dict[Name, list[float]] = {name: [] for name in group}
    for turn in range(rounds + 1):
        for name in group if turn % 2 else reversed(list(group)):
            start = time.perf_counter()
            done = group[name]()
            if turn:
                rates[name].append(done / (time.perf_counter() - start))
    return rates


def ratio(rates: Sequence[float], base: Sequence[float]) -> float:
    """Median of the ratios, taken round by round."""
    return statistics.median(own / other for own, other in zip(rates, base, strict=True))


def compare_speed(
    models: Sequence[SequenceModel],
    source: Tensor,
    *,
    max_steps: int,
    batch_size: int = 64,
    rounds: int = 5,
) -> list[Speed]:
    """Greedy decoding speed of each model on the same sources.

    Args:
        models: the first one is what the others are compared to.
        source: (B, S) int64.
        max_steps: most tokens of a sentence.
        batch_size: sentences decoded together.
        rounds: measured rounds, after one that is not.
    """
    tokens: dict[str, int] = {}

    def writing(name: str, model: SequenceModel) -> int:
        written = decode_all(model, source, max_steps, batch_size=batch_size)
        tokens[name] = int((written != model.special.pad).sum())
        return tokens[name]

    names = [str(index) for index in range(len(models))]
    works = {name: partial(writing, name, model) for name, model in zip(names, models, strict=True)}
    return [
        Speed(rate, rate * len(source) / tokens[name], ratio)
        for name, (rate, ratio) in compare(works, rounds).items()
    ]
