"""Decode speed of several models, measured so that it can be compared.

All models write the same sentences in one process, in turn, several times over; a model's ratio to
the first one is taken round by round, so that a machine that slows down for a while slows both.
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from textgen_env.decoding import decode_all
from textgen_env.models.sequence_model import SequenceModel


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
    rates: list[list[float]] = [[] for _ in models]
    sentences: list[list[float]] = [[] for _ in models]
    for turn in range(rounds + 1):
        for index, model in enumerate(models):
            start = time.perf_counter()
            written = decode_all(model, source, max_steps, batch_size=batch_size)
            seconds = time.perf_counter() - start
            if turn:
                tokens = int((written != model.special.pad).sum())
                rates[index].append(tokens / seconds)
                sentences[index].append(len(source) / seconds)
    return [
        Speed(
            tokens_per_second=statistics.median(own),
            sentences_per_second=statistics.median(per_sentence),
            speedup=statistics.median(
                mine / first for mine, first in zip(own, rates[0], strict=True)
            ),
        )
        for own, per_sentence in zip(rates, sentences, strict=True)
    ]
