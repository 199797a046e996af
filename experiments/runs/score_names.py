"""Scores by which a run may keep its best weights: their names in the log and in words."""

from dataclasses import dataclass

from textgen_experiments.runs.experiment import Metric


@dataclass(frozen=True)
class ScoreName:
    """Names of a score.

    Attributes:
        figure: in the log, where larger is better.
        title: in words.
        is_loss: True if it is shown with the other sign, in nats; else it is in [0, 100].
    """

    figure: str
    title: str
    is_loss: bool = False

    def shown(self, logged: float) -> float:
        """Return the value that is shown for the one that is logged."""
        return -logged if self.is_loss else logged

    def words(self, shown: float) -> str:
        """Return the name with a value as it is shown."""
        return f"{self.title} {shown:.3f}" if self.is_loss else f"{self.title} {shown:.1f}"


SCORE_NAMES: dict[Metric, ScoreName] = {
    "reference-loss": ScoreName("negative_reference_loss", "reference loss", is_loss=True),
    "exact": ScoreName("exact_match", "exact"),
    "chrf": ScoreName("chrf", "chrF"),
    "bleu": ScoreName("bleu", "BLEU"),
}
