"""What several algorithms share: the data they start from, and how prefixes are written.

These are parts and no algorithms: label and loss are missing.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from textgen_agents.agent import Agent
from textgen_agents.losses.divergences import Divergence, forward_kl
from textgen_agents.losses.labels import Dense, Label, Top1, check_smoothing, label_loss
from textgen_agents.losses.objectives import token_loss
from textgen_agents.rollouts.behaviors import Behavior, Gate, Gated, StepView, token_sampler
from textgen_agents.rollouts.buffer import Buffer, LabelledBatch
from textgen_agents.rollouts.rollout import rollout, student_or_data
from textgen_agents.rollouts.schedules import Exponential, Schedule
from textgen_env.envs.vector_env import TextGenVectorEnv
from textgen_env.experts.expert import Expert
from textgen_env.generation.decoding import Sampling
from textgen_env.models.sequence_model import SequenceModel
from textgen_env.types import Examples, Trajectories, Writer


@dataclass(frozen=True)
class SmoothedTokens(Agent):
    """The loss is, or has as one of its terms, a cross-entropy on one token at every state.

    That alone is smoothed: no other term, and not what the learner adds. Where the label is the
    teacher's distribution there is nothing to smooth, for it takes the place of that.

    Attributes:
        label_smoothing: share of that token spread evenly over the vocabulary, in [0, 1).
    """

    label_smoothing: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        check_smoothing(self.label_smoothing)


@dataclass(frozen=True)
class OnDistributions(Agent):
    """The label is the expert's distribution at every state, or as much of it as shall be asked.

    Attributes:
        label: what is asked of the expert; less than all of it is no longer the paper's, and all
            that a server gives.
    """

    label: Label = field(default_factory=Dense, kw_only=True)

    @property
    def divergence(self) -> Divergence:
        """Of the student from the label: the paper's L_full, up to a constant, by default."""
        return forward_kl

    def check_expert(self, expert: Expert) -> None:
        """Raise, before any training, unless the expert gives the label."""
        self.label.check(expert)

    def loss(self, trajectories: Trajectories, student: SequenceModel, expert: Expert) -> Tensor:
        """The divergence on all prefixes."""
        return label_loss(trajectories, student, expert, self.label, self.divergence)


@dataclass(frozen=True)
class OnTokens(SmoothedTokens):
    """The label is one token at every state, and the loss is cross-entropy on it.

    Source: Lin et al. 2020, eq. 5, arXiv:2009.07253.
    """

    needs_distribution: ClassVar[bool] = False

    @abstractmethod
    def labels(self, trajectories: Trajectories, expert: Expert) -> Tensor:
        """(B, T) int64, the token to be learned at every state."""

    def loss(self, trajectories: Trajectories, student: SequenceModel, expert: Expert) -> Tensor:
        """Cross-entropy on the labels."""
        labels = self.labels(trajectories, expert)
        return token_loss(trajectories, student, labels, label_smoothing=self.label_smoothing)


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
    batches_per_rollout: int = 4

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
class WithExpert(Agent):
    """The expert goes along while the text is written, and what it says then are the labels.

    So it is asked once about each state. Its logits at all states of a rollout, of the whole pool,
    are held until they have been learned from, in its precision: 0.5 GB for 64 texts of 128 tokens,
    a vocabulary of 32,000 and bfloat16.
    """

    @abstractmethod
    def behavior(self, env: TextGenVectorEnv, generator: torch.Generator) -> Behavior:
        """Who writes in one rollout of `env`."""

    def collect(
        self,
        indices: Tensor,
        env: TextGenVectorEnv,
        student: SequenceModel,
        progress: float,
        generator: torch.Generator,
    ) -> Trajectories:
        """The states of `experience`."""
        return self.experience(indices, env, student, progress, generator, None).trajectories

    def experience(
        self,
        indices: Tensor,
        env: TextGenVectorEnv,
        student: SequenceModel,
        progress: float,
        generator: torch.Generator,
        buffer: Buffer | None,
    ) -> LabelledBatch:
        """What is written as `behavior` says, with what the expert said meanwhile."""
        del progress, buffer
        return noted_rollout(env, self.behavior(env, generator), indices, student)


@dataclass(frozen=True)
class GatedByExpert(WithExpert):
    """The student writes, and the expert wherever a gate refuses the student's token.

    Attributes:
        sampling: how the student writes; None for greedy.
        expert_sampling: how the expert writes; None for greedy.
    """

    sampling: Sampling | None = field(default_factory=Sampling)
    expert_sampling: Sampling | None = field(default_factory=Sampling)

    @abstractmethod
    def gate(self, env: TextGenVectorEnv, generator: torch.Generator) -> Gate:
        """What says, for one rollout of `env`, which of the student's tokens stay."""

    def behavior(self, env: TextGenVectorEnv, generator: torch.Generator) -> Behavior:
        """The student writes, and the expert as the gate says."""
        return Gated(
            gate=self.gate(env, generator),
            student=token_sampler(self.sampling, env, generator),
            expert=token_sampler(self.expert_sampling, env, generator),
        )


@dataclass(frozen=True)
class WithBuffer(Agent):
    """What was collected is kept with the expert's answers about it, to be learned from again.

    Of several processes each keeps its share of the rows, and draws from it.

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

    def make_buffer(self, env: TextGenVectorEnv, processes: int = 1) -> Buffer:
        """An empty one."""
        return Buffer(env, capacity=self.capacity, label=self.label, processes=processes)


def noted_rollout(
    env: TextGenVectorEnv, behavior: Behavior, indices: Tensor, student: SequenceModel
) -> LabelledBatch:
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
    return LabelledBatch(trajectories, {"logits": torch.stack(noted, 1)})


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
