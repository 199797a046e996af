"""Results of a finished run: `outcome.json`, and the lines that tell them."""

import shlex
from dataclasses import asdict, dataclass
from pathlib import Path

from textgen_agents.training.checkpoint import LAST
from textgen_env.registry import plugins
from textgen_experiments.runs.experiment import Metric
from textgen_experiments.runs.folder import CHECKPOINTS, OUTCOME, RunError, read_record
from textgen_experiments.runs.score_names import SCORE_NAMES


@dataclass(frozen=True)
class Outcome:
    """Results that a finished run reports.

    Attributes:
        validation_bleu: sacreBLEU of the weights kept.
        best_update: the update they are from.
        train_seconds: rollouts, labels, updates, and the expert's texts and kept labels of before
            training; evaluation left out.
        teacher_tokens_queried: states at which the expert was asked, in preparation and training;
            one whose label is kept counts once.
        train_pairs: training pairs with references that the student was trained on.
        test_pairs: pairs of the test split.
        train_sources: training sources without references that it was trained on.
        peak_memory_mib: MiB of its process at their peak, perhaps before this run; 0 if unknown.
        metric: score by which the weights were chosen.
        validation_score: that score of the weights kept, in [0, 100], or nats of a reference loss;
            None in runs of before it was kept here.
    """

    validation_bleu: float
    best_update: int
    train_seconds: float
    teacher_tokens_queried: int
    train_pairs: int
    test_pairs: int
    train_sources: int = 0  # of runs before they were counted
    peak_memory_mib: float = 0.0
    metric: Metric = "bleu"
    validation_score: float | None = None

    def figures(self) -> dict[str, float]:
        """Return what is a number, by its name."""
        named = asdict(self).items()
        return {name: value for name, value in named if isinstance(value, int | float)}

    @property
    def words_of_scores(self) -> str:
        """Validation scores in words: the one that chose the weights, and BLEU."""
        chosen, score = SCORE_NAMES[self.metric], self.validation_score
        by = "" if self.metric == "bleu" or score is None else f"{chosen.words(score)}, "
        return f"validation {by}{SCORE_NAMES['bleu'].words(self.validation_bleu)}"


def read_outcome(folder: Path) -> Outcome:
    """Return the results that the finished run in `folder` reported.

    Raises:
        RunError: it is not finished, or the file cannot be understood.
    """
    path = folder / OUTCOME
    if not path.is_file():
        raise RunError(f"run must be finished, got {folder} without {OUTCOME}: train it to the end")
    return read_record(path, Outcome)


def words_of_plugins() -> str:
    """Return the options that load the plugins of this command, for the next one; perhaps none."""
    return "".join(f" --plugin {shlex.quote(plugin)}" for plugin in plugins)


def summary_of(folder: Path, outcome: Outcome, updates: int) -> str:
    """Return a finished run's score, the place of its model and the commands that come next.

    Args:
        folder: the run's folder.
        outcome: results of the run.
        updates: number of its updates.
    """
    run = shlex.quote(str(folder)) + words_of_plugins()
    lines = [
        f"{folder} is finished: {outcome.words_of_scores} at update "
        f"{outcome.best_update:,} of {updates:,}, whose weights are in {folder / 'model'}",
        *([f"peak memory: {outcome.peak_memory_mib:,.0f} MiB"] if outcome.peak_memory_mib else []),
        f"test and time it: textgen evaluate {run}",
        f"write with it: echo TEXT | textgen generate {run}",
    ]
    if (folder / CHECKPOINTS / LAST).exists():
        lines.append("train it longer: the same command with more --learner.updates")
    return "\n".join(lines)
