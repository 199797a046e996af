"""PPO by Stable-Baselines3: the student learns from the environment's reward, without an expert.

Roll-in: the student draws every token. Label: none, the reward that each token and all after it
earn. Loss: the clipped policy gradient, the critic's squared error, less the entropy.
Differs from the paper in: several slots instead of parallel actors, and no value is looked for at
the length limit.
Source: Schulman et al. 2017, eq. 9 and algorithm 1, arXiv:1707.06347.

This is no `Agent`, for three reasons: its update needs what the policy thought when it wrote (old
probabilities and values), it goes over a rollout several times, and its critic has weights, which
an agent never holds. So the loop is Stable-Baselines3's own, and what is here is the policy that
wraps a `SequenceModel`, which any trained student is, and the function that puts both together.

Stable-Baselines3 looks at single states in any order, so each costs a pass over its prefix, T times
the work of an agent that learns from whole trajectories. It also seeds the global generators.
"""

from copy import deepcopy
from dataclasses import dataclass

import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.distributions import CategoricalDistribution
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.vec_env import VecMonitor
from torch import Tensor, nn

from textgen_env.envs.vector_env import TextGenVectorEnv
from textgen_env.integrations.sb3 import SB3VecEnv, split_observation
from textgen_env.models.layers import Dropout
from textgen_env.models.sequence_model import SequenceModel
from textgen_env.models.storage import Model
from textgen_env.types import trimmed

SB3Observation = Tensor | dict[str, Tensor]


@dataclass(frozen=True)
class PPOConfig:
    """How PPO trains.

    Attributes:
        steps: of all slots together; rounded up to whole rollouts.
        rollout_steps: of each slot between two updates of the policy.
        batch_size: states of an optimizer update.
        num_epochs: how often a rollout is gone over.
        learning_rate: of Adam, at the start; it falls to 0 in a straight line.
        discount: of a step; 1 for none, since texts end.
        gae_lambda: of the advantage's estimate, in [0, 1].
        clip_range: how far the ratio of new to old probability is followed.
        entropy_weight: of the entropy bonus.
        seed: of weights, draws and the order of examples.
    """

    steps: int = 200_000
    rollout_steps: int = 16
    batch_size: int = 256
    num_epochs: int = 4
    learning_rate: float = 3e-3
    discount: float = 1.0
    gae_lambda: float = 0.95
    clip_range: float = 0.2
    entropy_weight: float = 0.01
    seed: int = 0


class SequenceModelPolicy(BasePolicy):
    """A `SequenceModel` as an actor-critic policy that reads token ids as ids.

    The actor is the student itself: training changes its weights. It never writes PAD nor the start
    token. The critic is a copy of the student whose logits are read by one linear layer, which is a
    linear head on its last hidden state, as logits are linear in it. Where the length limit is
    reached no step can follow, so the value is 0: a critic is never trained there, and
    Stable-Baselines3 would add what it happens to say to the last reward.
    Dropout stays off, or the ratio of new to old probability would compare two draws of it.

    Args:
        observation_space: the environment's, flat or not.
        action_space: the environment's.
        lr_schedule: remaining share of training -> learning rate.
        student: the actor.
        max_source_length: S, where a flat observation's source ends; not looked at in a dict.
        use_sde: must be False; Stable-Baselines3 passes it on.
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        *,
        student: Model,
        max_source_length: int = 0,
        use_sde: bool = False,
    ) -> None:
        assert not use_sde, "state-dependent exploration is for continuous actions"
        super().__init__(observation_space, action_space)
        self.max_source_length = max_source_length
        self.student = student
        self.critic = deepcopy(student)
        self.value_head = nn.Linear(student.vocab_size, 1)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)
        self.optimizer = torch.optim.Adam(self.parameters(), lr=lr_schedule(1), eps=1e-5)

    def set_training_mode(self, mode: bool) -> None:
        """As the base class, but for dropout."""
        super().set_training_mode(mode)
        for module in self.modules():
            if isinstance(module, Dropout):
                module.eval()

    def forward(
        self, observation: SB3Observation, deterministic: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Actions (B,), values (B, 1) and log-probabilities of the actions (B,)."""
        distribution = self.get_distribution(observation)
        actions = distribution.get_actions(deterministic=deterministic)
        return actions, self.predict_values(observation), distribution.log_prob(actions)

    def evaluate_actions(
        self, observation: SB3Observation, actions: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Values (B, 1), log-probabilities of `actions` (B,) and entropies (B,), in nats."""
        distribution = self.get_distribution(observation)
        values = self.predict_values(observation)
        return values, distribution.log_prob(actions), distribution.entropy()

    def get_distribution(self, observation: SB3Observation) -> CategoricalDistribution:
        """Of the next token, without PAD and start."""
        logits, _ = self._next_logits(self.student, observation)
        special = self.student.special
        never = torch.zeros_like(logits, dtype=torch.bool)
        never[:, [special.pad, special.start]] = True
        distribution = CategoricalDistribution(logits.shape[1])
        return distribution.proba_distribution(logits.masked_fill(never, float("-inf")))

    def predict_values(self, observation: SB3Observation) -> Tensor:
        """(B, 1), what is still to be earned."""
        logits, over = self._next_logits(self.critic, observation)
        # Adam moves all V weights at once: the scale keeps a large vocabulary's steps small.
        values = self.value_head(logits / logits.shape[1] ** 0.5)
        return values.masked_fill(over[:, None], 0.0)

    def _predict(self, observation: SB3Observation, deterministic: bool = False) -> Tensor:
        return self.get_distribution(observation).get_actions(deterministic=deterministic)

    def _next_logits(
        self, model: SequenceModel, observation: SB3Observation
    ) -> tuple[Tensor, Tensor]:
        """(B, V) float32 logits of the next token, and (B,) bool, True where there is none.

        Where the length limit is reached, the logits are those of the last token.
        """
        source, prefix, length = split_observation(
            observation, self.max_source_length, model.special
        )
        place = length.clamp(max=prefix.shape[1] - 1)
        read = prefix[:, : int(place.max()) + 1]
        logits = model.sequence_logits(trimmed(source, model.special), read)
        rows = torch.arange(len(prefix), device=prefix.device)
        return logits[rows, place].float(), length == prefix.shape[1]


def train_ppo(
    student: Model,
    env: TextGenVectorEnv,
    config: PPOConfig,
    *,
    callback: BaseCallback | None = None,
) -> PPO:
    """Train `student` in place on the reward of `env`.

    Args:
        student: fresh, or trained before by any agent; in evaluation mode afterwards.
        env: in autoreset mode SAME_STEP, with the reward that is to be earned.
        config: how.
        callback: Stable-Baselines3's, to look on or to stop.

    Returns:
        What Stable-Baselines3 knows of the training, to be gone on with by its `learn`.

    Source: Schulman et al. 2017, arXiv:1707.06347.
    """
    ppo = PPO(
        SequenceModelPolicy,  # pyright: ignore[reportArgumentType] # it offers what PPO asks of a policy
        VecMonitor(SB3VecEnv(env)),
        policy_kwargs={"student": student},
        n_steps=config.rollout_steps,
        batch_size=config.batch_size,
        n_epochs=config.num_epochs,
        learning_rate=lambda remaining: remaining * config.learning_rate,
        gamma=config.discount,
        gae_lambda=config.gae_lambda,
        clip_range=config.clip_range,
        ent_coef=config.entropy_weight,
        seed=config.seed,
        device=env.device,
    )
    ppo.learn(config.steps, callback=callback)
    student.eval()
    return ppo
