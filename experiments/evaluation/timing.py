"""Comparable speeds: all workloads run in one process, in turn, for several rounds.

A ratio to the first workload is taken round by round, so that a machine that slows down for a while
slows both sides of it.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from textgen_env.generation.decoding import decode_all
from textgen_env.models.sequence_model import SequenceModel
from textgen_env.tasks.task import TextTask, encode_sources

SPEED_SENTENCES = 256  # test sentences that decode speed is measured on

Name = TypeVar("Name")
Workload = Callable[[], int]
"""Does some work and returns its amount, in steps or tokens."""


@dataclass(frozen=True)
class Speed:
    """Medians over the rounds.

    Attributes:
        tokens_per_second: target tokens written, end tokens included.
        sentences_per_second: the same in sentences.
        speedup: tokens per second over the first model's, median of the rounds' ratios; sentences
            per second where the models' tokens are not the same.
    """

    tokens_per_second: float
    sentences_per_second: float
    speedup: float


def rates_and_ratios(
    group: Mapping[str, Workload], rounds: int, *, is_warm: bool = False
) -> dict[str, tuple[float, float]]:
    """Return each workload's median rate per second and median ratio to the first one's rate."""
    rates = interleaved_rates(group, rounds, is_warm=is_warm)
    first = next(iter(rates.values()))
    return {name: (statistics.median(own), ratio(own, first)) for name, own in rates.items()}


def interleaved_rates(
    group: Mapping[Name, Workload], rounds: int, *, is_warm: bool = False
) -> dict[Name, list[float]]:
    """Return each workload's rates per second, by round.

    Unless they are warm from other work, a round that is not counted comes first. Every other round
    runs in reverse order, so that no workload always follows the same one.
    """
    rates: dict[Name, list[float]] = {name: [] for name in group}
    for turn in range(1 if is_warm else 0, rounds + 1):
        for name in group if turn % 2 else reversed(list(group)):
            start = time.perf_counter()
            done = group[name]()
            if turn:
                rates[name].append(done / (time.perf_counter() - start))
    return rates


def ratio(rates: Sequence[float], base: Sequence[float]) -> float:
    """Return the median of the ratios of two sides, taken round by round."""
    return statistics.median(own / other for own, other in zip(rates, base, strict=True))


@torch.no_grad()
def step_batch(model: SequenceModel, source: Tensor, steps: int, max_steps: int) -> int:
    """Read a batch and step all its rows, as if its texts had the same length; return the steps."""
    previous = torch.full((len(source),), model.special.start)
    cache = model.start(source, max_steps)
    for _ in range(steps):
        _, cache = model.step(previous, cache)
    return steps * len(source)


@dataclass(frozen=True)
class TimedModel:
    """A model with the sources that its speed is measured on.

    Attributes:
        model: in evaluation mode.
        source: (N, S) int64, in the model's own tokens.
        max_steps: most tokens of a sentence.
    """

    model: SequenceModel
    source: Tensor
    max_steps: int


def timed_model(model: SequenceModel, task: TextTask) -> TimedModel:
    """Return a model with the sources of the first test pairs of a task in its tokens."""
    sources = [pair.source for pair in task.test[:SPEED_SENTENCES]]
    return TimedModel(model, encode_sources(sources, task.tokenizer), task.max_target_length)


def decode_speeds(
    models: Sequence[TimedModel],
    *,
    same_tokens: bool,
    batch_size: int = 64,
    rounds: int = 5,
    is_warm: bool = False,
) -> list[Speed]:
    """Return the greedy decoding speed of each model on the same sentences.

    Args:
        models: speed is compared with the first one's.
        same_tokens: True if all models write the same tokens, so that tokens can be compared.
        batch_size: sentences decoded together.
        rounds: measured rounds.
        is_warm: whether the models have just written texts; if not, they do so before the first
            round that counts.
    """
    tokens: dict[str, int] = {}

    def write(name: str, timed: TimedModel) -> int:
        written = decode_all(timed.model, timed.source, timed.max_steps, batch_size=batch_size)
        tokens[name] = int((written != timed.model.special.pad).sum())
        return tokens[name]

    workloads = {str(i): partial(write, str(i), timed) for i, timed in enumerate(models)}
    compared, count = rates_and_ratios(workloads, rounds, is_warm=is_warm), len(models[0].source)
    return [
        Speed(
            tokens_per_second=rate,
            sentences_per_second=rate * count / tokens[name],
            speedup=ratio if same_tokens else ratio * tokens["0"] / tokens[name],
        )
        for name, (rate, ratio) in compared.items()
    ]
