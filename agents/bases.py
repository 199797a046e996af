"""What several algorithms share: the data they start from, and how prefixes are written.

These are parts and no algorithms: label and loss are missing.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from agents.agent import Agent
from agents.behaviors import Behavior, Gate, Gated, StepView, chooser
from agents.buffer import Buffer, Experience
from agents.divergences import Divergence
from agents.labels import Label, Top1
from agents.rollout import rollout, student_or_data
from agents.schedules import Exponential, Schedule
from textgen_env.decoding import Sampling
from textgen_env.expert import Expert
from textgen_env.models.sequence_model import SequenceModel
from textgen_env.types import Examples, Trajectories, Writer
from textgen_env.vector_env import TextGenVectorEnv


@dataclass(frozen=True)
class OnTeacherText(Agent):
    """The data are what the teacher's beam search writes for each source: D* in the paper.

    Attributes:
        beam_size: hypotheses the teacher keeps, at least 1.

    Source: Kim and Rush 2016, section 3.2, arXiv:1606.07947.
    """

    beam_size: int = 5

    def prepare(self, examples: Examples, expert: Expert, max_steps: int) -> Examples:
        """The sources with what the teacher writes for them."""
        return expert.write(examples, max_steps=max_steps, beam_size=self.beam_size)


@dataclass(frozen=True)
class MixedByExample(Agent):
    """A coin for each example says who writes its prefix, the data or the student.

    Attributes:
        beta: progress -> probability that the data writes.
        sampling: how the student writes; None for greedy.
        pool: M, batches written together.

    Source: Lin et al. 2020, algorithm 1, arXiv:2009.07253.
    """

    beta: Schedule = field(default_factory=Exponential)
    sampling: Sampling | None = None
    pool: int = 4

    def coefficients(self, progress: float) -> Mapping[str, float]:
        """The present beta."""
        return {"beta": self.beta(progress)}

    def collect(
        self,
        indices: Tensor,
        env: TextGenVectorEnv,
        student: SequenceModel,
        progress: float,
        generator: torch.Generator,
    ) -> Trajectories:
        """Prefixes by student or data, as a coin for each example says."""
        return student_or_data(
            indices,
            env,
            student,
            beta=self.beta(progress),
            sampling=self.sampling,
            generator=generator,
        )


@dataclass(frozen=True)
class GatedByExpert(Agent):
    """The student writes, and the expert wherever a gate refuses the student's token.

    The expert goes along while the text is written: it is asked about each state then, and once
    more for the labels.

    Attributes:
        sampling: how the student writes; None for greedy.
        expert_sampling: how the expert writes; None for greedy.
    """

    sampling: Sampling | None = field(default_factory=Sampling)
    expert_sampling: Sampling | None = field(default_factory=Sampling)

    @abstractmethod
    def gate(self, env: TextGenVectorEnv, generator: torch.Generator) -> Gate:
        """What says, for one rollout of `env`, which of the student's tokens stay."""

    def collect(
        self,
        indices: Tensor,
        env: TextGenVectorEnv,
        student: SequenceModel,
        progress: float,
        generator: torch.Generator,
    ) -> Trajectories:
        """Prefixes by the student, and by the expert as the gate says."""
        del progress
        behavior = Gated(
            gate=self.gate(env, generator),
            student=chooser(self.sampling, env, generator),
            expert=chooser(self.expert_sampling, env, generator),
        )
        return rollout(env, behavior, indices, student, env.expert)


@dataclass(frozen=True)
class WithBuffer(Agent):
    """What was collected is kept with the expert's answers about it, to be learned from again.

    Attributes:
        capacity: rows kept, at least those that are collected together; the oldest go first.
        label: what is kept of the expert's answers.
    """

    capacity: int = 8192
    label: Label = field(default_factory=Top1)

    def __post_init__(self) -> None:
        if self.capacity < 1:
            raise ValueError(
                f"capacity must be at least 1, got {self.capacity}: use thousands, or imitkd, "
                "which keeps nothing"
            )

    def check_expert(self, expert: Expert) -> None:
        """Raise, before any training, unless the expert gives the label."""
        self.label.check(expert)

    def make_buffer(self, env: TextGenVectorEnv) -> Buffer:
        """An empty one."""
        return Buffer(env, capacity=self.capacity, label=self.label)


def noted_rollout(
    env: TextGenVectorEnv, behavior: Behavior, indices: Tensor, student: SequenceModel
) -> Experience:
    """A rollout with the environment's expert going along, and what it says meanwhile.

    Its logits at all states are held together, in its precision.

    Args:
        env: in autoreset mode DISABLED.
        behavior: who writes; it may look at the expert.
        indices: (B,) int64, the example of each slot.
        student: the policy.
    """
    noted: list[Tensor] = []

    def noting(view: StepView) -> tuple[Tensor, Tensor]:
        assert view.expert_logits is not None, "the expert goes along"
        logits = view.expert_logits.new_zeros(len(indices), view.expert_logits.shape[1])
        noted.append(logits.index_copy(0, view.rows, view.expert_logits))
        return behavior(view)

    trajectories = rollout(env, noting, indices, student, env.expert)
    return Experience(trajectories, {"logits": torch.stack(noted, 1)})


@dataclass(frozen=True)
class OnBothTexts(Agent):
    """For each example a text that the teacher drew once and one that the student draws each time.

    The teacher's texts are the data. Both texts of an example come into the same batch, which has
    twice as many rows.

    Attributes:
        sampling: how both draw.

    Source: Wen et al. 2023, section 3.2, arXiv:2307.15190; Ko et al. 2025, arXiv:2503.07067.
    """

    sampling: Sampling = field(default_factory=Sampling)

    @property
    @abstractmethod
    def terms(self) -> Mapping[Writer, Divergence]:
        """The loss at the states of each writer, data or student; others write nothing."""

    def prepare(self, examples: Examples, expert: Expert, max_steps: int) -> Examples:
        """The sources with what the teacher draws for them, the same whatever the run's seed."""
        if Writer.DATA not in self.terms:
            return examples
        generator = torch.Generator(examples.source.device).manual_seed(0)
        return expert.sample(
            examples, max_steps=max_steps, sampling=self.sampling, generator=generator
        )

    def collect(
        self,
        indices: Tensor,
        env: TextGenVectorEnv,
        student: SequenceModel,
        progress: float,
        generator: torch.Generator,
    ) -> Trajectories:
        """The data's texts, then the student's, of the same examples."""
        texts = []
        if Writer.DATA in self.terms:
            texts.append(super().collect(indices, env, student, progress, generator))
        if Writer.STUDENT in self.terms:
            own = student_or_data(
                indices, env, student, beta=0.0, sampling=self.sampling, generator=generator
            )
            texts.append(own)
        return Trajectories.cat(texts, env.special)
