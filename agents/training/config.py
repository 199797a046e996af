"""Configuration of the learner: its options, whatever the agent."""

from collections.abc import Mapping
from dataclasses import dataclass

from textgen_agents.agent import Agent
from textgen_agents.training.self_teacher import check_self_taught
from textgen_env.bounds import (
    check_at_least,
    check_finite,
    check_positive_shares,
    check_shares,
)
from textgen_env.experts.expert import Expert, ExpertError


@dataclass(frozen=True)
class LearnerConfig:
    """Settings of a training run, whatever the agent.

    Attributes:
        updates: number of optimizer updates.
        batch_size: examples of an update.
        texts_per_source: texts that the student draws of each source of a batch, at least 1; a
            batch has as many times fewer sources.
        accumulate: parts a batch is cut into, to save memory; the result does not depend on it.
        learning_rate: its maximum.
        warmup: updates in which the rate rises from 0.
        decay: share of the updates, at the end, in which the rate falls to 0 along a line; None to
            let it fall from the warm-up on as one over the square root of the update (Vaswani et
            al. 2017, section 5.3, arXiv:1706.03762).
        weight_decay: AdamW's.
        clip: largest norm of the gradient; infinity does not clip.
        reference_weight: of the mean cross-entropy on the references' tokens after their own
            prefixes, in a batch of its own, which is added to the agent's loss, at least 0.
        ewc_weight: of the penalty on leaving the weights that the student starts with, as far as
            they matter on the references' prefixes (`regularizers.EWC`), at least 0.
        frozen: parts of the student that keep their weights, such as `encoder` and `embedding` of a
            student made of its teacher's layers.
        ema: decay of a moving average of the weights, in [0, 1), such as 0.999, which is evaluated,
            kept and saved in their place; rollouts are still written with the weights themselves.
            None for no average.
        self_teacher: decay of a moving average of the weights, in [0, 1), which takes the teacher's
            place and reads the expert's view of the sources; None for a teacher of its own.
        roll_in_share: share of a text after which the student stops writing, in (0, 1], and then is
            not taught any further (arXiv:2602.15260): of the reference's tokens, or of the number
            that the source lets expect; at 1 texts are whole, however long.
        roll_in_share_end: that share at the end of training, to which it moves along a line; None
            to leave it as it is.
        prefix_weight: extra weight of the first state of a text that the student has written, at
            least 0; it falls to 0 along the text as the distance between teacher and student adds
            up (arXiv:2606.22600, which has 0.5). The teacher is asked once more for it.
        evaluate_every: updates between two evaluations on validation, each with a checkpoint.
        checkpoint_every: minutes after a checkpoint, at least 0, until the next one is written
            without an evaluation; infinity for none between evaluations. What is learned does not
            depend on it.
        seed: of every random choice.
    """

    updates: int = 1200
    batch_size: int = 64
    texts_per_source: int = 1
    accumulate: int = 1
    learning_rate: float = 4e-3
    warmup: int = 200
    decay: float | None = 0.9
    weight_decay: float = 0.01
    clip: float = 1.0
    reference_weight: float = 0.0
    ewc_weight: float = 0.0
    frozen: tuple[str, ...] = ()
    ema: float | None = None
    self_teacher: float | None = None
    roll_in_share: float = 1.0
    roll_in_share_end: float | None = None
    prefix_weight: float = 0.0
    evaluate_every: int = 200
    checkpoint_every: float = 10.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_at_least(self, updates=1, batch_size=1, accumulate=1, evaluate_every=1)
        check_at_least(self, "1 is one text of each source", texts_per_source=1)
        check_at_least(self, learning_rate=0, warmup=0, weight_decay=0)
        check_at_least(self, reference_weight=0, ewc_weight=0, prefix_weight=0)
        check_shares(self, "decay", "ema", "self_teacher")
        check_positive_shares(self, "1 is for whole texts", "roll_in_share", "roll_in_share_end")
        check_finite(self, "seed")
        if not self.checkpoint_every >= 0:
            raise ValueError(
                f"checkpoint_every must be at least 0 minutes, got {self.checkpoint_every}; "
                "infinity writes none between evaluations"
            )
        for name, value in (("ema", self.ema), ("self_teacher", self.self_teacher)):
            if value == 1:
                raise ValueError(
                    f"{name} must be below 1, got 1: the first weights would stay; try 0.999"
                )
        if not self.clip > 0:
            raise ValueError(f"clip must be above 0, got {self.clip}; infinity does not clip")
        for name, parts in (
            ("accumulate", self.accumulate),
            ("texts_per_source", self.texts_per_source),
        ):
            if self.batch_size % parts:
                raise ValueError(f"{name} must divide batch_size ({self.batch_size}), got {parts}")

    def check_agent(self, agent: Agent) -> None:
        """Raise `ValueError` if settings are about texts or a teacher that `agent` lacks."""
        if self.self_teacher is not None:
            check_self_taught(agent, self.self_teacher)
        if self.texts_per_source > 1 and not agent.student_draws:
            raise ValueError(
                f"texts_per_source must be 1 for {type(agent).__name__}, whose student draws no "
                f"texts, got {self.texts_per_source}: let it draw (--roll-in sampled), or choose "
                "another agent"
            )
        if self.cuts_roll_ins and not agent.student_writes:
            raise ValueError(
                f"roll_in_share must be 1 for {type(agent).__name__}, whose student writes "
                f"nothing, got {self.roll_in_share}: leave it out, or choose another agent"
            )
        if self.prefix_weight and not (agent.student_writes and agent.asks_distribution):
            raise ValueError(
                f"prefix_weight must be 0 for {type(agent).__name__}, which asks for no "
                f"distribution on texts of the student, got {self.prefix_weight}: leave it out, or "
                "choose another agent or label"
            )

    def check_expert(self, expert: Expert) -> None:
        """Raise `ExpertError` if `expert` cannot give what the settings ask beside the agent."""
        if self.prefix_weight and expert.largest_k is not None:
            raise ExpertError(
                "prefix_weight must be 0 for a teacher that does not give its whole distribution, "
                f"got {self.prefix_weight}: leave it out, or use a teacher on this machine"
            )

    @property
    def cuts_roll_ins(self) -> bool:
        """True if the student does not write whole texts all the time."""
        return not {self.roll_in_share, self.roll_in_share_end} <= {1, None}

    def roll_in_share_at(self, progress: float) -> float:
        """Return the share of a text that the student writes at `progress`, in [0, 1]."""
        first, last = self.roll_in_share, self.roll_in_share_end
        return first if last is None else first + (last - first) * progress

    def coefficients(self, progress: float) -> Mapping[str, float]:
        """Return the values of schedules that are in use, at `progress`, by name, to be logged."""
        return {"roll_in_share": self.roll_in_share_at(progress)} if self.cuts_roll_ins else {}

    def learning_rate_at(self, update: int) -> float:
        """Return the learning rate of update number `update`, counted from 0."""
        rising = (update + 1) / max(1, self.warmup)
        if self.decay is None:
            falling = max(rising, 1.0) ** -0.5
        else:
            falling = (self.updates - update) / max(1.0, self.decay * self.updates)
        return self.learning_rate * min(1.0, rising, falling)
