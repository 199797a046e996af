"""TVD++: total variation on the teacher's texts, as a policy gradient with less variance.

The gradient of total variation is that of an expected reward: an action of the student earns 1
where the teacher gives it more probability than the student. Estimated from one draw at each state,
it gains from rewards that are whitened, as those of reinforcement learning are.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from textgen_agents.agent import Agent
from textgen_agents.losses.labels import LabelledBatch, Labels
from textgen_agents.losses.state_chunks import StateChunk, label_states, mean_over_states
from textgen_agents.rollouts.behaviors import token_sampler
from textgen_agents.rollouts.context import Context
from textgen_agents.rollouts.rollout import data_rollout
from textgen_env.bounds import check_finite
from textgen_env.experts.expert import Expert
from textgen_env.generation.decoding import logits_from
from textgen_env.generation.sampling import Sampling
from textgen_env.models.layers import at_least_float32
from textgen_env.models.sequence_model import SequenceModel
from textgen_env.types import Examples, Trajectories

SMALLEST_REWARD_DEVIATION = 1e-4  # of rewards; where all are alike there is nothing to learn


@dataclass(frozen=True)
class TVDPlusPlus(Agent):
    """Policy gradient of total variation at the states of the teacher's sampled texts.

    Roll-in: texts drawn from the teacher once, before training. Label: at every state an action
    drawn from the student, and its reward, 1 if the teacher gives it more probability than the
    student and else 0. Loss: minus its log-probability, times the reward, less the mean of all
    rewards and divided by their deviation, both over the whole batch of the update.
    Differs from the paper in: one action a state is drawn anew for each batch; one temperature.

    Attributes:
        sampling: how the teacher writes the texts.
        whiten: False to take the rewards as they are; the expected gradient is then that of total
            variation itself.
        seed: of the teacher's draws.

    Source: Goel et al. 2024, section 3, arXiv:2403.00858.
    """

    expects_trained_student = True
    student_writes = False
    learns_without_references = True
    learning_rate_factor = 0.1  # whitened rewards of one draw a state are noisy
    sampling: Sampling = field(default_factory=Sampling)
    whiten: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        check_finite(self, "seed")

    def prepare(self, examples: Examples, expert: Expert, max_steps: int) -> Examples:
        """Return the sources with texts drawn from the teacher."""
        draws = torch.Generator(examples.source.device).manual_seed(self.seed)
        return expert.sample(examples, max_steps=max_steps, sampling=self.sampling, generator=draws)

    def labelled_data_share(self, progress: float) -> float:
        """Return 1: the teacher is asked about its text of every example."""
        del progress
        return 1.0

    def collect(self, context: Context) -> LabelledBatch:
        """Return the teacher's texts, with an action of the student at every state."""
        batch = data_rollout(context).trimmed(context.env.special)
        draw = token_sampler(Sampling(), context)

        def draw_actions(at: StateChunk) -> Labels:
            with logits_from("student"):
                drawn, _ = draw(at.student_logits)
            return {"drawn": drawn, "reward": rewards(at.student_logits, at.teacher_logits, drawn)}

        found = label_states(draw_actions, batch, context.student, context.env.expert)
        states = batch.trajectories
        decided = self.decide(states, found["drawn"], found["reward"], context.gather)
        return LabelledBatch(states, decided)

    def decide(
        self,
        states: Trajectories,
        drawn: Tensor,
        reward: Tensor,
        gather: Callable[[Tensor], Tensor],
    ) -> Labels:
        """Return what the whole batch of an update says about each of its states, (B, T) each.

        Args:
            states: of the teacher's texts.
            drawn: (B, T) int64, the student's actions.
            reward: (B, T) float, theirs.
            gather: that of the context.
        """
        advantage = reward
        if self.whiten:
            every = gather(reward[states.mask])
            deviation = every.std(correction=0) + SMALLEST_REWARD_DEVIATION
            advantage = (reward - every.mean()) / deviation
        return {"drawn": drawn, "advantage": advantage}

    def loss(self, batch: LabelledBatch, student: SequenceModel, expert: Expert) -> Tensor:
        """Return minus advantage times log-probability of the drawn actions, as a mean."""
        del expert
        return mean_over_states(self.losses, batch, student)

    def losses(self, at: StateChunk) -> Tensor:
        """Return minus advantage times log-probability of each drawn action, (K,) float."""
        log_prob = action_log_probs(at.student_logits, at.labels["drawn"])
        return -at.labels["advantage"] * log_prob


def rewards(student_logits: Tensor, teacher_logits: Tensor, actions: Tensor) -> Tensor:
    """Return 1 for actions that the teacher gives more probability than the student, else 0.

    Args:
        student_logits: (..., V) float.
        teacher_logits: (..., V) float.
        actions: (...) int64.

    Returns:
        (...) float, in the wider dtype of both, at least float32.
    """
    own = action_log_probs(student_logits, actions)
    teachers = action_log_probs(teacher_logits, actions)
    return (teachers > own).to(torch.promote_types(own.dtype, teachers.dtype))


def action_log_probs(logits: Tensor, actions: Tensor) -> Tensor:
    """Return the log-probabilities of actions, (...), nats, for logits (..., V)."""
    flat = logits.flatten(0, -2).to(at_least_float32(logits.dtype))
    return -F.cross_entropy(flat, actions.flatten(), reduction="none").view(actions.shape)
