"""Score by which a run keeps its best weights, and warnings of scores that stay 0."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

from textgen_agents.evaluation.bleu_metric import bleu_obstacle, bleu_signature
from textgen_agents.evaluation.quality import bleu, chrf, exact_match_rate
from textgen_agents.losses.objectives import reference_loss
from textgen_agents.training.checkpoint import Counters
from textgen_env.models.sequence_model import SequenceModel
from textgen_env.tasks.task import Pair, references_of
from textgen_env.types import Examples
from textgen_experiments.runs.experiment import Experiment, Metric
from textgen_experiments.runs.outcome import Outcome
from textgen_experiments.runs.progress import tell
from textgen_experiments.runs.run_log import RunLog
from textgen_experiments.runs.score_names import SCORE_NAMES

ZEROS_BEFORE_WARNING = 3  # evaluations with a score of 0 before a warning


@dataclass(frozen=True)
class Validation:
    """Scores of texts for the validation pairs of a run.

    Attributes:
        metric: score by which the best weights are kept.
        references: of the validation pairs.
        language: code of their language; None for one with spaces between words.
        examples: the validation pairs as tokens.
        updates: number of updates of the run, the last of which is followed by an evaluation.
    """

    metric: Metric
    references: Sequence[str]
    language: str | None
    examples: Examples
    updates: int

    @classmethod
    def of(
        cls,
        experiment: Experiment,
        pairs: Sequence[Pair],
        language: str | None,
        examples: Examples,
    ) -> Self:
        """Return the validation of an experiment on `pairs`, whose tokens are `examples`."""
        references = references_of(pairs)
        return cls(experiment.metric, references, language, examples, experiment.learner.updates)

    @property
    def figure(self) -> str:
        """Name of the score in the log."""
        return SCORE_NAMES[self.metric].figure

    @property
    def obstacle(self) -> str | None:
        """Reason why the score stays 0, with the remedy; None if it can rise."""
        return bleu_obstacle(self.references, self.language) if self.metric == "bleu" else None

    def describe(self, done: int) -> None:
        """Print where the run goes on, after `done` updates, and by which score weights are kept.

        Warn if that score stays 0.
        """
        if done:
            tell(f"the run goes on after update {done:,} of {self.updates:,}")
        tell(f"best weights by {self.metric}; BLEU is {bleu_signature(self.language)}")
        _warn(self.obstacle)

    def scores(self, hypotheses: Sequence[str]) -> dict[str, float]:
        """Return BLEU and the score of the texts, by their names in the log."""
        named = {"bleu": bleu(hypotheses, self.references, self.language)}
        if self.metric == "chrf":
            named["chrf"] = chrf(hypotheses, self.references)
        if self.metric == "exact":
            named["exact_match"] = exact_match_rate(hypotheses, self.references)
        return named

    def score(self, model: SequenceModel, scores: Mapping[str, float], counters: Counters) -> float:
        """Return the score of a model, where larger is better; warn once if it was always 0.

        Args:
            model: in evaluation mode.
            scores: of its texts.
            counters: progress of the run before this evaluation.
        """
        if self.metric == "reference-loss":
            return -reference_loss(model, self.examples)
        score = scores[self.figure]
        self._warn_of_zeros([*counters.validation, score], counters.update == self.updates)
        return score

    def with_scores(self, outcome: Outcome, counters: Counters, log: RunLog) -> Outcome:
        """Return the outcome with the scores of the weights that were kept."""
        best = counters.best
        return replace(
            outcome,
            validation_bleu=best if self.metric == "bleu" else log.bleu_at(counters.best_update),
            metric=self.metric,
            validation_score=SCORE_NAMES[self.metric].shown(best),
        )

    def _warn_of_zeros(self, scores: Sequence[float], is_last: bool) -> None:
        count = len(scores)
        is_time = count == ZEROS_BEFORE_WARNING or (is_last and count < ZEROS_BEFORE_WARNING)
        if is_time and not any(scores) and self.obstacle is None:
            _warn(
                f"{self.metric} was 0 at every evaluation so far, and the reference loss chooses "
                "the best weights: train longer, or choose another score (--metric)"
            )


def warn_of_obstacle(pairs: Sequence[Pair], language: str | None) -> None:
    """Warn if BLEU is 0 whatever is written for the pairs."""
    _warn(bleu_obstacle(references_of(pairs), language))


def _warn(message: str | None) -> None:
    if message is not None:
        tell(f"warning: {message}")
