"""Configuration of the learner: its options, whatever the agent."""

from dataclasses import dataclass

BOUNDS = (
    (("updates", "batch_size", "accumulate", "evaluate_every"), "at least 1", lambda n: n >= 1),
    (("clip",), "above 0", lambda norm: norm > 0),
    (
        ("learning_rate", "warmup", "weight_decay", "reference_weight", "ewc_weight"),
        "at least 0",
        lambda value: value >= 0,
    ),
)
"""Names of settings, the rule for their values, and its test."""


@dataclass(frozen=True)
class LearnerConfig:
    """Settings of a training run, whatever the agent.

    Attributes:
        updates: number of optimizer updates.
        batch_size: examples of an update.
        accumulate: parts a batch is cut into, to save memory; the result does not depend on it.
        learning_rate: its maximum.
        warmup: updates in which the rate rises from 0.
        decay: share of the updates, at the end, in which the rate falls to 0 along a line; None to
            let it fall from the warm-up on as one over the square root of the update (Vaswani et
            al. 2017, section 5.3, arXiv:1706.03762).
        weight_decay: AdamW's.
        clip: largest norm of the gradient.
        reference_weight: of the mean cross-entropy on the references' tokens after their own
            prefixes, in a batch of its own, which is added to the agent's loss, at least 0.
        ewc_weight: of the penalty on leaving the weights that the student starts with, as far as
            they matter on the references' prefixes (`regularizers.EWC`), at least 0.
        evaluate_every: updates between two evaluations on validation, each with a checkpoint.
        seed: of every random choice.
    """

    updates: int = 1200
    batch_size: int = 64
    accumulate: int = 1
    learning_rate: float = 4e-3
    warmup: int = 200
    decay: float | None = 0.9
    weight_decay: float = 0.01
    clip: float = 1.0
    reference_weight: float = 0.0
    ewc_weight: float = 0.0
    evaluate_every: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        for names, rule, holds in BOUNDS:
            for name in names:
                if not holds(getattr(self, name)):
                    raise ValueError(f"{name} must be {rule}, got {getattr(self, name)}")
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"accumulate must divide batch_size ({self.batch_size}), got {self.accumulate}"
            )
        if self.decay is not None and not 0 <= self.decay <= 1:
            raise ValueError(f"decay must be in [0, 1] or None, got {self.decay}")

    def learning_rate_at(self, update: int) -> float:
        """Return the learning rate of update number `update`, counted from 0."""
        rising = (update + 1) / max(1, self.warmup)
        if self.decay is None:
            falling = max(rising, 1.0) ** -0.5
        else:
            falling = (self.updates - update) / max(1.0, self.decay * self.updates)
        return self.learning_rate * min(1.0, rising, falling)
