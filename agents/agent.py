"""The interface of an algorithm: `collect` writes and labels prefixes, `loss` learns from them.

An agent is a frozen dataclass and thereby its own configuration. It holds no weights, no optimizer
and no loop. Each algorithm has a file of its own beside this one; what several share are functions
in `rollouts/` and `losses/`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from textgen_agents.losses.labels import Dense, Label, LabelledBatch, Top1
from textgen_agents.rollouts.buffer import Buffer
from textgen_agents.rollouts.context import Context
from textgen_env.envs.vector_env import TextGenVectorEnv
from textgen_env.experts.expert import Expert
from textgen_env.generation.sampling import Sampling
from textgen_env.models.sequence_model import SequenceModel
from textgen_env.types import Examples, SpecialTokens


class LearnsFrom(Enum):
    """The most that an algorithm asks of an expert; each value includes those before it."""

    REFERENCES = "references"  # nothing: the data set's own texts
    TEXTS = "texts"  # texts that the expert writes
    TOKENS = "tokens"  # its most probable token at a state
    DISTRIBUTION = "distribution"  # its probabilities at a state


class Agent(ABC):
    """An imitation-learning algorithm.

    Attributes:
        learns_from: the most that it asks of the expert.
        queries_while_writing: whether the expert is queried at every step of its rollouts.
        student_writes: whether the student writes texts or parts of them, in `rollouts.rollout`.
        expects_trained_student: whether its paper begins with a student that can write already.
        learns_without_references: whether sources without references are examples to it, because
            the teacher or the student writes their texts.
        needs_expert_view: whether the expert must read another view of each example than the
            student, such as a prompt with the source.
        needs_mixture: whether its teacher must be a mixture, of several models or of experts in its
            layers.
        bridges_tokenizers: whether it can ask a teacher with another tokenizer about its states.
        learning_rate_factor: learning rate that it wants, as a multiple of cross-entropy's.
        companion_rate_factor: learning rate of its companions, as a multiple of the student's.
        label: what the expert is asked at every state, if it learns from tokens or distributions.
        batches_per_rollout: M, the batches that are collected together. A batch is learned from up
            to M - 1 updates after its prefixes were written.
    """

    learns_from: ClassVar[LearnsFrom] = LearnsFrom.DISTRIBUTION
    queries_while_writing: ClassVar[bool] = False
    student_writes: ClassVar[bool] = True
    expects_trained_student: ClassVar[bool] = False
    learns_without_references: ClassVar[bool] = False
    needs_expert_view: ClassVar[bool] = False
    needs_mixture: ClassVar[bool] = False
    bridges_tokenizers: ClassVar[bool] = False
    learning_rate_factor: ClassVar[float] = 1.0
    companion_rate_factor: ClassVar[float] = 1.0
    label: Label = Dense()
    batches_per_rollout: int = 1

    @property
    def needs_expert(self) -> bool:
        """True unless it learns from the references alone."""
        return self.learns_from is not LearnsFrom.REFERENCES

    @property
    def student_draws(self) -> bool:
        """True if two texts of the student for one source may differ.

        An agent says how its student writes in a field `sampling`, which is None for greedy.
        """
        return self.student_writes and vars(self).get("sampling", Sampling()) is not None

    @property
    def asks_distribution(self) -> bool:
        """True if it asks the expert for probabilities, and not for texts or tokens alone."""
        asked_at_states = self.learns_from in (LearnsFrom.TOKENS, LearnsFrom.DISTRIBUTION)
        return asked_at_states and not isinstance(self.label, Top1)

    def check_expert(self, expert: Expert) -> None:
        """Raise, before any training, if the expert cannot give what will be asked of it.

        Raises:
            ExpertError: the expert knows less than the whole distribution, and that is needed.
            ValueError: more tokens are asked for than the vocabulary has.
        """
        if self.learns_from in (LearnsFrom.TOKENS, LearnsFrom.DISTRIBUTION):
            self.label.check(expert)
        if self.queries_while_writing:
            Dense().check(expert)

    def check_examples(self, examples: Examples, special: SpecialTokens) -> None:
        """Raise, before any training, if examples lack references that it needs.

        Raises:
            ValueError: there are sources without references.
        """
        without = len(examples) - int(examples.has_reference(special).sum())
        if without and not self.learns_without_references:
            raise ValueError(
                f"examples must have references for {type(self).__name__}, got {without:,} of "
                f"{len(examples):,} without: choose an agent that learns from the teacher's texts "
                "or on the student's own (seqkd, imitkd_full), or leave these sources out"
            )

    def prepare(self, examples: Examples, expert: Expert, max_steps: int) -> Examples:
        """Return the data to learn from, made once before training; by default the references.

        Args:
            examples: the task's training pairs, and its sources without references.
            expert: may write texts in place of the references.
            max_steps: T, the longest text in tokens.
        """
        del expert, max_steps
        return examples

    def make_buffer(self, env: TextGenVectorEnv, processes: int = 1) -> Buffer | None:
        """Return where one of `processes` keeps its batches; None to use each batch once."""
        del env, processes
        return None

    def companions(self, student: SequenceModel, expert: Expert) -> nn.ModuleDict:
        """Return the modules that are trained beside the student; by default none.

        One optimizer trains both, and a checkpoint has both, so that a stopped run continues to the
        same weights. Companions are no part of the model that a run leaves.

        Args:
            student: the model to be trained.
            expert: the teacher.

        Raises:
            ValueError: the student has not what they act on.
        """
        del student, expert
        return nn.ModuleDict()

    def adapted(self, validation_losses: Sequence[float]) -> Self:
        """Return the algorithm as the evaluations so far change it; by default unchanged.

        Args:
            validation_losses: mean cross-entropy on the references of validation pairs, nats,
                before training and at each evaluation.
        """
        del validation_losses
        return self

    def coefficients(self, progress: float) -> Mapping[str, float]:
        """Return the values of its schedules at `progress`, in [0, 1], by name, to be logged."""
        del progress
        return {}

    def calibrate(self, context: Context) -> float | None:
        """Return a constant that is found on the first batch of a run, and kept with the run.

        It is `context.calibration` in every collection. By default there is none.

        Args:
            context: of the first collection.
        """
        del context

    def labelled_data_share(self, progress: float) -> float:
        """Return the share of a batch's examples whose data texts the expert is asked about.

        The same questions are asked again in every epoch, so that their answers can be kept.

        Args:
            progress: fraction of training done, in [0, 1].

        Returns:
            The expected share, in [0, 1]; 0 by default.
        """
        del progress
        return 0.0

    @abstractmethod
    def collect(self, context: Context) -> LabelledBatch:
        """Return prefixes, and what is known of them, for the next `batches_per_rollout` updates.

        Args:
            context: the examples, the environment and the student, without gradient.
        """

    @abstractmethod
    def loss(self, batch: LabelledBatch, student: SequenceModel, expert: Expert) -> Tensor:
        """Return the mean loss over the counted actions of `batch`, scalar, in nats.

        Args:
            batch: rows that `collect` returned. They may be a part of an update's batch, so a
                statistic of the whole belongs in `collect`.
            student: the model to be trained.
            expert: answers about `batch`, from its labels where they hold the answer.
        """

    def joint_loss(
        self,
        batch: LabelledBatch,
        student: SequenceModel,
        expert: Expert,
        companions: nn.ModuleDict,
    ) -> Tensor:
        """Return the mean loss that student and companions are trained by, scalar, in nats.

        Args:
            batch: as for `loss`.
            student: the model to be trained.
            expert: the teacher, or its recorded answers.
            companions: modules from `companions`; by default there are none, and this is `loss`.
        """
        del companions
        return self.loss(batch, student, expert)


class CompanionAgent(Agent):
    """An algorithm that trains modules beside the student.

    A subclass implements `companions` and `joint_loss`.
    """

    @abstractmethod
    def companions(self, student: SequenceModel, expert: Expert) -> nn.ModuleDict:
        """Return the modules that are trained beside the student, as the base class says."""

    @abstractmethod
    def joint_loss(
        self,
        batch: LabelledBatch,
        student: SequenceModel,
        expert: Expert,
        companions: nn.ModuleDict,
    ) -> Tensor:
        """Return the mean loss that student and companions are trained by, as in the base class."""

    def loss(self, batch: LabelledBatch, student: SequenceModel, expert: Expert) -> Tensor:
        """Return the joint loss with the companions as they are at the start of a run."""
        companions = first_companions(self, student, expert).to(batch.trajectories.source.device)
        return self.joint_loss(batch, student, expert, companions)


def first_companions(agent: Agent, student: SequenceModel, expert: Expert) -> nn.ModuleDict:
    """Return the agent's companions as a run begins with them, the same whatever its seed."""
    with torch.random.fork_rng(devices=[]):  # they are made on the CPU
        torch.manual_seed(0)
        return agent.companions(student, expert)
