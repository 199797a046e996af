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

from textgen_env.generation.decoding import decode_all
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
        speedup: tokens per second over the first model's, median of the rounds' ratios; where the
            models' tokens are not the same, sentences per second.
    """

    tokens_per_second: float
    sentences_per_second: float
    speedup: float


def compare(group: Mapping[str, Work], rounds: int) -> dict[str, tuple[float, float]]:
    """Median rate a second of each, and the median of its ratios to the first one."""
    rates = interleaved_rates(group, rounds)
    first = next(iter(rates.values()))
    return {name: (statistics.median(own), ratio(own, first)) for name, own in rates.items()}


def interleaved_rates(group: Mapping[Name, Work], rounds: int) -> dict[Name, list[float]]:
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


@dataclass(frozen=True)
class Reader:
    """A model and what it reads.

    Attributes:
        model: in evaluation mode.
        source: (N, S) int64, in its own tokens.
        max_steps: most tokens of a sentence.
    """

    model: SequenceModel
    source: Tensor
    max_steps: int


def compare_speed(
    readers: Sequence[Reader], *, same_tokens: bool, batch_size: int = 64, rounds: int = 5
) -> list[Speed]:
    """Greedy decoding speed of each model on the same sentences.

    Args:
        readers: the first one is what the others are compared to.
        same_tokens: whether a token of one is as much text as one of another.
        batch_size: sentences decoded together.
        rounds: measured rounds, after one that is not.
    """
    tokens: dict[str, int] = {}

    def writing(name: str, reader: Reader) -> int:
        written = decode_all(reader.model, reader.source, reader.max_steps, batch_size=batch_size)
        tokens[name] = int((written != reader.model.special.pad).sum())
        return tokens[name]

    works = {str(place): partial(writing, str(place), each) for place, each in enumerate(readers)}
    compared, count = compare(works, rounds), len(readers[0].source)
    return [
        Speed(
            tokens_per_second=rate,
            sentences_per_second=rate * count / tokens[name],
            speedup=ratio if same_tokens else ratio * tokens["0"] / tokens[name],
        )
        for name, (rate, ratio) in compared.items()
    ]
