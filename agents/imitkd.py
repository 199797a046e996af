"""ImitKD: the student is corrected on the prefixes that it writes itself.

DAgger with the teacher as the expert: each example's prefix comes from the data with probability
beta, which falls during training, and from the student otherwise, or where there is no reference.
Every rollout is used once, and no gradient flows through the student's writing. The paper's four
variants differ in two choices:

                  the data's prefixes are     the label is
    ImitKD        references                  the prefix's own token on data prefixes, the teacher's
                                              most probable token on the student's
    ImitKDFull    references                  the teacher's distribution on all prefixes
    ImitKDStar    the teacher's texts         as ImitKD
    ImitKDStarFull  the teacher's texts       as ImitKDFull

Source: Lin et al. 2020, algorithm 1, arXiv:2009.07253.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from textgen_agents.agent import Agent, LearnsFrom
from textgen_agents.losses.divergences import forward_kl
from textgen_agents.losses.labels import Dense, Label, LabelledBatch, Top1, check_smoothing
from textgen_agents.losses.objectives import labels_by_writer, loss_for, token_loss
from textgen_agents.rollouts.context import Context
from textgen_agents.rollouts.rollout import mixed_rollout
from textgen_agents.rollouts.schedules import Exponential, Schedule
from textgen_env.bounds import check_at_least
from textgen_env.experts.expert import Expert
from textgen_env.generation.sampling import Sampling
from textgen_env.models.sequence_model import SequenceModel
from textgen_env.types import Examples


@dataclass(frozen=True)
class ImitKD(Agent):
    """Imitation of the teacher's best token on the student's prefixes, of the data on the data's.

    Roll-in: each example by the data with probability beta, else by the student. Label: the data's
    token on data prefixes, the teacher's most probable one on the student's. Loss: cross-entropy.
    Differs from the paper in: greedy roll-ins by default (its IWSLT runs sample from the best 5).

    Attributes:
        beta: progress -> probability that the data writes an example.
        sampling: how the student writes; None for greedy.
        batches_per_rollout: M, batches whose prefixes are written together.
        label_smoothing: share of the label spread evenly over the vocabulary, in [0, 1).

    Source: Lin et al. 2020, algorithm 1 and eq. 5, arXiv:2009.07253.
    """

    learns_from = LearnsFrom.TOKENS
    learns_without_references = True
    label = Top1()
    beta: Schedule = field(default_factory=Exponential)
    sampling: Sampling | None = None
    batches_per_rollout: int = 4
    label_smoothing: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        check_smoothing(self.label_smoothing)
        check_at_least(self, batches_per_rollout=1)

    def coefficients(self, progress: float) -> Mapping[str, float]:
        """Return beta at `progress`, to be logged."""
        return {"beta": self.beta(progress)}

    def collect(self, context: Context) -> LabelledBatch:
        """Write each example by the data or by the student."""
        return mixed_rollout(context, beta=self.beta(context.progress), sampling=self.sampling)

    def loss(self, batch: LabelledBatch, student: SequenceModel, expert: Expert) -> Tensor:
        """Return the cross-entropy on the label of each prefix's writer."""
        labels = labels_by_writer(batch.trajectories, expert)
        return token_loss(batch.trajectories, student, labels, label_smoothing=self.label_smoothing)


@dataclass(frozen=True)
class ImitKDFull(Agent):
    """Imitation of the teacher's distribution on the student's and the data's prefixes.

    Roll-in: each example by the data with probability beta, else by the student. Label: the
    teacher's distribution. Loss: forward KL.
    Differs from the paper in: nothing.

    Attributes:
        beta: progress -> probability that the data writes an example.
        sampling: how the student writes; None for greedy.
        batches_per_rollout: M, batches whose prefixes are written together.
        label: what the teacher is asked; less than its distribution is no longer the paper's, and
            `Top1()` is ImitKD with the teacher's token on data prefixes too.

    Source: Lin et al. 2020, algorithm 1 and eq. 6, arXiv:2009.07253.
    """

    learns_without_references = True
    beta: Schedule = field(default_factory=Exponential)
    sampling: Sampling | None = None
    batches_per_rollout: int = 4
    label: Label = field(default_factory=Dense, kw_only=True)

    def __post_init__(self) -> None:
        check_at_least(self, batches_per_rollout=1)

    def coefficients(self, progress: float) -> Mapping[str, float]:
        """Return beta at `progress`, to be logged."""
        return {"beta": self.beta(progress)}

    def labelled_data_share(self, progress: float) -> float:
        """Return beta: the teacher is asked about what the data has written, too."""
        return self.beta(progress)

    def collect(self, context: Context) -> LabelledBatch:
        """Write each example by the data or by the student."""
        return mixed_rollout(context, beta=self.beta(context.progress), sampling=self.sampling)

    def loss(self, batch: LabelledBatch, student: SequenceModel, expert: Expert) -> Tensor:
        """Return the forward KL from the teacher's distribution on all prefixes."""
        return loss_for(self.label, forward_kl, batch.trajectories, student, expert)


@dataclass(frozen=True)
class ImitKDStar(Agent):
    """ImitKD that begins with the teacher's texts in place of the references.

    Roll-in: each example by the teacher's text with probability beta, else by the student. Label:
    the text's token on its prefixes, the teacher's most probable one on the student's.
    Loss: cross-entropy.
    Differs from the paper in: one schedule for all data sets (there base 2 for WMT, 10 for CNN/DM);
    beam search divides a hypothesis' score by its length.

    Attributes:
        beam_size: hypotheses the teacher keeps, at least 1.
        beta: progress -> probability that the teacher's text is the prefix.
        sampling: how the student writes; None for greedy.
        batches_per_rollout: M, batches whose prefixes are written together.
        label_smoothing: share of the label spread evenly over the vocabulary, in [0, 1).

    Source: Lin et al. 2020, section 4, arXiv:2009.07253.
    """

    learns_from = LearnsFrom.TOKENS
    learns_without_references = True
    label = Top1()
    beta: Schedule = field(default_factory=Exponential)
    sampling: Sampling | None = None
    batches_per_rollout: int = 4
    beam_size: int = 5
    label_smoothing: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        check_smoothing(self.label_smoothing)
        check_at_least(self, beam_size=1, batches_per_rollout=1)

    def coefficients(self, progress: float) -> Mapping[str, float]:
        """Return beta at `progress`, to be logged."""
        return {"beta": self.beta(progress)}

    def prepare(self, examples: Examples, expert: Expert, max_steps: int) -> Examples:
        """Return the sources with the teacher's texts."""
        return expert.write(examples, max_steps=max_steps, beam_size=self.beam_size)

    def collect(self, context: Context) -> LabelledBatch:
        """Write each example by the teacher's text or by the student."""
        return mixed_rollout(context, beta=self.beta(context.progress), sampling=self.sampling)

    def loss(self, batch: LabelledBatch, student: SequenceModel, expert: Expert) -> Tensor:
        """Return the cross-entropy on the label of each prefix's writer."""
        labels = labels_by_writer(batch.trajectories, expert)
        return token_loss(batch.trajectories, student, labels, label_smoothing=self.label_smoothing)


@dataclass(frozen=True)
class ImitKDStarFull(Agent):
    """ImitKD + Full that begins with the teacher's texts in place of the references.

    Roll-in: each example by the teacher's text with probability beta, else by the student. Label:
    the teacher's distribution. Loss: forward KL.
    Differs from the paper in: one schedule for all data sets (there base 2 for WMT, 10 for CNN/DM);
    beam search divides a hypothesis' score by its length.

    Attributes:
        beam_size: hypotheses the teacher keeps, at least 1.
        beta: progress -> probability that the teacher's text is the prefix.
        sampling: how the student writes; None for greedy.
        batches_per_rollout: M, batches whose prefixes are written together.
        label: what the teacher is asked; less than its distribution is no longer the paper's.

    Source: Lin et al. 2020, section 4, arXiv:2009.07253.
    """

    learns_without_references = True
    beta: Schedule = field(default_factory=Exponential)
    sampling: Sampling | None = None
    batches_per_rollout: int = 4
    beam_size: int = 5
    label: Label = field(default_factory=Dense, kw_only=True)

    def __post_init__(self) -> None:
        check_at_least(self, beam_size=1, batches_per_rollout=1)

    def coefficients(self, progress: float) -> Mapping[str, float]:
        """Return beta at `progress`, to be logged."""
        return {"beta": self.beta(progress)}

    def prepare(self, examples: Examples, expert: Expert, max_steps: int) -> Examples:
        """Return the sources with the teacher's texts."""
        return expert.write(examples, max_steps=max_steps, beam_size=self.beam_size)

    def labelled_data_share(self, progress: float) -> float:
        """Return beta: the teacher is asked about what the data has written, too."""
        return self.beta(progress)

    def collect(self, context: Context) -> LabelledBatch:
        """Write each example by the teacher's text or by the student."""
        return mixed_rollout(context, beta=self.beta(context.progress), sampling=self.sampling)

    def loss(self, batch: LabelledBatch, student: SequenceModel, expert: Expert) -> Tensor:
        """Return the forward KL from the teacher's distribution on all prefixes."""
        return loss_for(self.label, forward_kl, batch.trajectories, student, expert)


ImitKDVariant = ImitKD | ImitKDFull | ImitKDStar | ImitKDStarFull
