"""Sweeps of `train`: several command lines that differ in some options, and the runs they make."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, cast

from textgen_experiments.command_line.parse import parse
from textgen_experiments.command_line.table import option_of
from textgen_experiments.runs.differences import settings_digest
from textgen_experiments.runs.experiment import Experiment

SWEEP = "--sweep"
NOT_OF_A_RUN = ("output", "seeds", "sweep", "at-once", "shard", "cluster", "slurm")
NEGATED = {"True": "", "False": "no-"}
"""Value of an option that is given without one -> what stands before its last part."""

SweptValues = Mapping[str, Sequence[str]]
"""Option without hyphens in front, such as `learner.seed` -> its values."""


def split_sweeps(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the other words, and the texts that the options --sweep are followed by.

    Raises:
        ValueError: nothing follows one.
    """
    others, sweeps, waiting = [], [], iter(words)
    for word in waiting:
        option, is_joined, value = word.partition("=")
        if option != SWEEP:
            others.append(word)
            continue
        value = value if is_joined else next(waiting, "")
        if not value:
            raise ValueError("sweep must be followed by OPTION=VALUE,VALUE, got nothing")
        sweeps.append(value)
    return others, sweeps


def read_axes(sweeps: Sequence[str], given: Sequence[str]) -> dict[str, list[str]]:
    """Return the options that sweeps are over, with their values.

    Args:
        sweeps: such as "learner.learning-rate=1e-3,2e-3".
        given: the other words of the command line.

    Raises:
        ValueError: a sweep is no such text, or its option stands elsewhere, too, or is none of a
            single run.
    """
    axes: dict[str, list[str]] = {}
    options = set(map(option_of, given))
    for text in sweeps:
        name, _, listed = text.partition("=")
        name, values = name.strip("-").replace("_", "-"), listed.split(",")
        if not name or not all(values):
            raise ValueError(f"sweep must be OPTION=VALUE,VALUE, got {text!r}")
        if name.split(".")[0] in NOT_OF_A_RUN:
            raise ValueError(f"sweep must name an option of a single run, got {name}")
        if name in axes or f"--{name}" in options:
            raise ValueError(f"sweep must name options that stand once, got {name} again")
        axes[name] = values
    return axes


def points_of(axes: SweptValues) -> list[dict[str, str]]:
    """Return the value of each option in each run: the product of the axes, the last one fastest.

    Without axes there is one run, which has no options of theirs.
    """
    return [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]


def words_of_point(point: Mapping[str, str]) -> list[str]:
    """Return the words that set the options of a run.

    True and False set options that stand without a value, such as --no-diagnostics.
    """
    words = []
    for name, value in point.items():
        *parts, last = name.split(".")
        if value in NEGATED:
            words.append(f"--{'.'.join([*parts, NEGATED[value] + last])}")
        else:
            words += [f"--{name}", value]
    return words


def swept_cells(
    output: Path, words: Sequence[str], sweeps: Sequence[str], *, seeds: int
) -> dict[Path, Experiment]:
    """Return the runs that sweeps and seeds make, by folder; the seeds go fastest.

    Args:
        output: folder of their folders.
        words: words of `train` that all of them have.
        sweeps: such as "learner.learning-rate=1e-3,2e-3".
        seeds: runs of each combination, from the seed of the words on.

    Raises:
        SystemExit: a value is none of its option; one line has been printed.
        ValueError: two runs have the same settings, or as `read_axes`.
    """
    cells: dict[Path, Experiment] = {}
    names: dict[str, str] = {}  # by the digest of the settings
    for point in points_of(read_axes(sweeps, words)):
        parsed = parse(["train", *words, *words_of_point(point)])
        first: Experiment = cast("Any", parsed).experiment
        for seed in range(first.learner.seed, first.learner.seed + seeds):
            experiment = replace(first, learner=replace(first.learner, seed=seed))
            name = folder_name({**point, "seed": str(seed)} if seeds > 1 else point)
            same = names.setdefault(settings_digest(experiment), name)
            if same != name or output / name in cells:
                raise ValueError(f"runs must have different settings, got {same} and {name}")
            cells[output / name] = experiment
    return cells


def folder_name(point: Mapping[str, str]) -> str:
    """Return the name of a run's folder: the options in which it differs from others.

    An option goes by the last part of its name, unless two of them end alike.
    """
    last = [name.split(".")[-1] for name in point]
    names = last if len({*last}) == len(last) else [*point]
    named = ",".join(map("=".join, zip(names, point.values(), strict=True)))
    return re.sub(r"[^\w.,=+-]", "-", named)
