"""Runs that differ only in their seed as one row: means, an interval, a test against a group."""

import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from textgen_agents.evaluation.seed_bootstrap import SeededTexts, bootstrap_over_seeds
from textgen_experiments.evaluation.tables import mean_of_all, optional_cell, print_table
from textgen_experiments.runs.differences import settings_digest
from textgen_experiments.runs.experiment import Experiment, agent_name
from textgen_experiments.runs.plain_settings import differing_alike, plain_settings
from textgen_experiments.runs.records import to_json

SEED_OF_A_NAME = re.compile(r"[\W_]*(seed)?[\W_]*\d+$")  # as in mle-0, or clip=1,seed=0


class SeededRun(NamedTuple):
    """An evaluated run.

    Attributes:
        name: its name in the table.
        experiment: its settings.
        figures: its figures by their names in `results.json`.
        texts: its text for each test pair.
    """

    name: str
    experiment: Experiment
    figures: Mapping[str, float | None]
    texts: Sequence[str]


@dataclass(frozen=True)
class GroupRow:
    """Results of runs that differ only in their seed; scores in [0, 100].

    Attributes:
        model: name of the group.
        runs: names of its runs.
        seeds: their seeds.
        settings: settings in which groups differ, in words; options of an agent, or of another
            part, where groups with the same one do.
        bleu: mean of their sacreBLEU.
        bleu_deviation: standard deviation of one run; None for a single one.
        bleu_confidence: half the width of the mean's 95 % interval, over seeds and sentences.
        baseline: the group that `p_value` compares it with; None for none.
        p_value: of the difference in mean BLEU from the baseline, in (0, 1].
        chrf: mean, as all below; None where a run lacks the figure.
        tokens_per_second: of greedy decoding.
        speedup_vs_teacher: as in a run's row.
        train_seconds: of training.
        teacher_tokens_queried: states at which training queried the teacher.
    """

    model: str
    runs: list[str]
    seeds: list[int]
    settings: dict[str, str]
    bleu: float
    bleu_deviation: float | None
    bleu_confidence: float
    baseline: str | None
    p_value: float | None
    chrf: float | None
    tokens_per_second: float | None
    speedup_vs_teacher: float | None
    train_seconds: float | None
    teacher_tokens_queried: float | None


def group_rows(
    runs: Sequence[SeededRun],
    references: Sequence[str],
    language: str | None = None,
    baseline: str | None = None,
) -> list[GroupRow]:
    """Return a row for each group, none where no two runs differ only in their seed.

    Args:
        runs: evaluated on the same test pairs.
        references: of these pairs.
        language: code of their language.
        baseline: name of a run, with whose group the others are compared; None for no test.
    """
    groups = groups_of(runs)
    if all(len(group) == 1 for group in groups):
        return []
    names, settings = _names(groups), _different_settings(groups)
    base = next(
        (place for place, group in enumerate(groups) if baseline in {run.name for run in group}),
        None,
    )
    systems = [
        SeededTexts(tuple(map(_seed, group)), [run.texts for run in group]) for group in groups
    ]
    estimates = bootstrap_over_seeds(systems, references, base, language)
    return [
        GroupRow(
            model=name,
            runs=[run.name for run in group],
            seeds=[*system.seeds],
            settings=different,
            bleu=estimate.bleu,
            bleu_deviation=_deviation(group),
            bleu_confidence=estimate.confidence,
            baseline=None if base is None else names[base],
            p_value=estimate.p_value,
            chrf=_mean(group, "chrf"),
            tokens_per_second=_mean(group, "tokens_per_second"),
            speedup_vs_teacher=_mean(group, "speedup_vs_teacher"),
            train_seconds=_mean(group, "train_seconds"),
            teacher_tokens_queried=_mean(group, "teacher_tokens_queried"),
        )
        for name, group, different, system, estimate in zip(
            names, groups, settings, systems, estimates, strict=True
        )
    ]


def groups_of(runs: Sequence[SeededRun]) -> list[list[SeededRun]]:
    """Return the runs in groups of equal settings but for the seeds, each by its seeds."""
    groups: dict[str, list[SeededRun]] = {}
    for run in runs:
        groups.setdefault(settings_digest(_without_seed(run.experiment)), []).append(run)
    return [sorted(group, key=_seed) for group in groups.values()]


def print_groups(rows: Sequence[GroupRow]) -> None:
    """Print a table of the groups' rows, at least one."""
    caption = "BLEU: mean over the seeds ± half its 95 % interval, over seeds and sentences"
    if rows[0].baseline:
        caption += f"; p against {rows[0].baseline}"
    cells = [group_cells(row) for row in rows]
    title = "runs that differ only in their seed"
    print_table(title, list(cells[0]), [[*row.values()] for row in cells], caption=caption)


def group_cells(row: GroupRow) -> dict[str, str]:
    """Return the text of each column by its heading."""
    compared = {"p": optional_cell(row.p_value, "{:.3f}")}
    return {
        "runs": row.model,
        **row.settings,
        "seeds": str(len(row.seeds)),
        "BLEU": f"{row.bleu:.1f} ± {row.bleu_confidence:.1f}",
        "deviation": optional_cell(row.bleu_deviation, "{:.1f}"),
        **(compared if row.baseline else {}),
        "chrF": optional_cell(row.chrf, "{:.1f}"),
        "tokens/s": optional_cell(row.tokens_per_second, "{:,.0f}"),
        "speed-up": optional_cell(row.speedup_vs_teacher, "{:.1f}x"),
        "training s": optional_cell(row.train_seconds, "{:.0f}"),
        "teacher tokens": optional_cell(row.teacher_tokens_queried, "{:,.0f}"),
    }


def _seed(run: SeededRun) -> int:
    return run.experiment.learner.seed


def _without_seed(experiment: Experiment) -> Experiment:
    """Return the experiment with one seed and one draw of the training pairs for all."""
    return replace(experiment, learner=replace(experiment.learner, seed=0), train_draw=0)


def _different_settings(groups: Sequence[Sequence[SeededRun]]) -> list[dict[str, str]]:
    """Return the settings in which the groups differ, in words."""
    first = [_without_seed(group[0].experiment) for group in groups]
    words = {
        str(place): {**plain_settings(to_json(each)), "agent": agent_name(each.agent)}
        for place, each in enumerate(first)
    }
    names = differing_alike(words)
    return [{name: own.get(name, "-") for name in names} for own in words.values()]


def _names(groups: Sequence[Sequence[SeededRun]]) -> list[str]:
    """Return the groups' names, those of their first runs where two would be alike."""
    names = [*map(_name, groups)]
    return [
        name if names.count(name) == 1 else group[0].name
        for name, group in zip(names, groups, strict=True)
    ]


def _name(group: Sequence[SeededRun]) -> str:
    """Return the name that the runs have without their seeds, or else that of their agent.

    That of a single run is its own.
    """
    if len(group) == 1:
        return group[0].name
    stem, *others = {SEED_OF_A_NAME.sub("", run.name) for run in group}
    return stem if stem and not others else agent_name(group[0].experiment.agent)


def _mean(group: Sequence[SeededRun], figure: str) -> float | None:
    """Return the mean of a figure over the runs, None where one lacks it."""
    return mean_of_all(run.figures.get(figure) for run in group)


def _deviation(group: Sequence[SeededRun]) -> float | None:
    """Return the standard deviation of the runs' BLEU, None for a single run."""
    values = [value for run in group if (value := run.figures.get("bleu")) is not None]
    return statistics.stdev(values) if len(values) > 1 else None
