"""Bootstrap over seeds and test sentences, for the mean BLEU of runs that differ in their seed.

Each sample draws sentences, the same for all systems, and runs of each system, both with
replacement. Its score is the mean of the drawn runs' corpus BLEU on the drawn sentences. With one
run a system this is sacreBLEU's paired bootstrap, whose samples of sentences and p-value it has.
Systems with the same seeds draw the same of them, since runs of one seed share their data and
their random weights.

Few seeds say little about others: the variance among S drawn runs is S - 1 of S parts of the true
one, so that an interval of few seeds is too narrow.

Source: Koehn 2004, "Statistical significance tests for machine translation evaluation"; both
factors resampled as in Field and Welsh 2007, "Bootstrapping clustered data".
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from textgen_agents.evaluation.bleu_metric import bleu_of_counts, half_interval, ngram_counts

NUM_RESAMPLES = 1000
SAMPLING_SEED = 12345  # of sentences and of seeds; sacreBLEU's default
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class SeededTexts:
    """Texts of one system's runs for the same sources.

    Attributes:
        seeds: seed of each run.
        texts: the texts of each run.
    """

    seeds: tuple[int, ...]
    texts: Sequence[Sequence[str]]


@dataclass(frozen=True)
class SeedBootstrap:
    """Bootstrap estimates for the mean BLEU over a system's runs.

    Attributes:
        bleu: mean of the runs' corpus BLEU, in [0, 100].
        confidence: half the width of its 95 % interval, in BLEU.
        p_value: of the difference from the baseline, in (0, 1]; None for the baseline itself, or
            where there is none.
    """

    bleu: float
    confidence: float
    p_value: float | None


def bootstrap_over_seeds(
    systems: Sequence[SeededTexts],
    references: Sequence[str],
    baseline: int | None = None,
    language: str | None = None,
) -> list[SeedBootstrap]:
    """Estimate each system's mean BLEU, its interval, and its difference from a baseline.

    Args:
        systems: at least one run each.
        references: one for each source.
        baseline: index of the system that the others are compared with; None for no comparison.
        language: code of the texts' language.

    Raises:
        ValueError: a system has no run, or a run has another number of texts than of references.
    """
    for system in systems:
        _check_texts(system, len(references))
    size = len(references)
    rng = np.random.default_rng(SAMPLING_SEED)
    drawn = rng.choice(size, size=(NUM_RESAMPLES, size), replace=True)
    counted = np.stack([np.bincount(sample, minlength=size) for sample in drawn])
    weights = np.concatenate(
        [np.ones((1, size), dtype=counted.dtype), counted]
    )  # all of them first
    draws: dict[tuple[int, ...], NDArray[np.int64]] = {}
    scores = []
    for system in systems:
        runs = len(system.seeds)
        if system.seeds not in draws:
            draws[system.seeds] = rng.integers(runs, size=(NUM_RESAMPLES, runs))
        of_runs = np.stack(
            [_scores(texts, references, weights, language) for texts in system.texts]
        )
        samples = np.take_along_axis(of_runs[:, 1:], draws[system.seeds].T, axis=0).mean(axis=0)
        scores.append((float(of_runs[:, 0].mean()), samples))
    base = None if baseline is None else scores[baseline]
    return [
        SeedBootstrap(bleu, half_interval(samples), None)
        if base is None or index == baseline
        else SeedBootstrap(bleu, half_interval(samples), _p_value((bleu, samples), base))
        for index, (bleu, samples) in enumerate(scores)
    ]


def _scores(
    texts: Sequence[str],
    references: Sequence[str],
    weights: NDArray[np.int64],
    language: str | None,
) -> Floats:
    """Return the corpus BLEU of a run on each sample of sentences.

    Args:
        texts: (N,) of the run.
        references: (N,).
        weights: (samples, N), how often each sentence stands in a sample.
        language: code of the texts' language.
    """
    sums = weights @ ngram_counts(texts, references, language)
    return np.array([bleu_of_counts(each, language) for each in sums])


def _p_value(own: tuple[float, Floats], other: tuple[float, Floats]) -> float:
    """Return sacreBLEU's p-value of the difference of two scores, given with their samples.

    It is 1 for systems whose samples are all equal.
    """
    (bleu, samples), (base, base_samples) = own, other
    if np.array_equal(samples, base_samples):
        return 1.0
    differences = np.abs(samples - base_samples)
    larger = int(np.sum(differences - differences.mean() > abs(bleu - base)))
    return (larger + 1) / (NUM_RESAMPLES + 1)


def _check_texts(system: SeededTexts, size: int) -> None:
    """Raise unless a system has a text of each of its runs for each reference."""
    if not system.seeds or len(system.seeds) != len(system.texts):
        raise ValueError(
            f"texts must be those of at least one seed each, got {len(system.texts)} for "
            f"{len(system.seeds)} seeds"
        )
    for texts in system.texts:
        if len(texts) != size or not size:
            raise ValueError(f"texts must be as many as references ({size}), got {len(texts)}")
