"""PPO by Stable-Baselines3: the student learns from the environment's reward, without an expert.

Roll-in: the student draws every token. Label: none; the reward of each token and of all that follow
it. Loss: the clipped policy gradient and the critic's squared error, minus an entropy bonus.
Differs from the paper in: several slots instead of parallel actors, and the value at the length
limit is 0.
Source: Schulman et al. 2017, eq. 9 and algorithm 1, arXiv:1707.06347.

PPO is no `Agent`, for three reasons. Its update needs the probabilities and values at the time of
the rollout. It makes several passes over each rollout. Its critic has weights, and an agent holds
none. The training loop is therefore Stable-Baselines3's. This module adds a policy that wraps a
`SequenceModel`, as every trained student is, and a function that starts the training.

Stable-Baselines3 reads single states in any order. Each state costs a pass over its prefix, T times
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

from textgen_env.bounds import check_above, check_at_least, check_finite, check_shares
from textgen_env.envs.vector_env import TextGenVectorEnv
from textgen_env.integrations.sb3 import SB3VecEnv, split_observation
from textgen_env.models.sequence_model import SequenceModel
from textgen_env.models.storage import Model
from textgen_env.types import trimmed

SB3Observation = Tensor | dict[str, Tensor]


@dataclass(frozen=True)
class PPOConfig:
    """Hyperparameters of PPO.

    Attributes:
        steps: environment steps of all slots together; rounded up to whole rollouts.
        rollout_steps: steps of each slot in a rollout.
        batch_size: states in an optimizer update; a rollout that has fewer is one batch.
        num_epochs: passes over each rollout.
        learning_rate: of Adam, at the start; it decays linearly to 0.
        discount: of a step's reward, in [0, 1]; 1 does not discount, as episodes are finite.
        gae_lambda: of the generalized advantage estimate, in [0, 1].
        clip_range: largest distance from 1 of the ratio of new to old probability.
        entropy_weight: weight of the entropy bonus.
        seed: seed of weights, draws and the order of examples.
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

    def __post_init__(self) -> None:
        check_at_least(self, steps=1, rollout_steps=1, batch_size=2, num_epochs=1)
        check_at_least(self, learning_rate=0, entropy_weight=0)
        check_above(self, clip_range=0)
        check_shares(self, "discount", "gae_lambda")
        check_finite(self, "seed")


class SequenceModelPolicy(BasePolicy):
    """Actor-critic policy that wraps a `SequenceModel` and reads token ids.

    The actor is the student itself: training changes its weights. It never writes PAD or the start
    token. The critic is a copy of the student with one linear layer on its logits. Logits are
    linear in the last hidden state, so this is a linear value head.

    The value is 0 where the length limit is reached, because no step can follow. The critic is
    never trained there, and Stable-Baselines3 would add its untrained value to the last reward.
    Dropout stays off, whatever module or function it is made by: otherwise the ratio of new to old
    probability would compare two draws of it.

    Args:
        observation_space: observation space of the environment, flat or a dict.
        action_space: action space of the environment.
        lr_schedule: maps the remaining share of training to the learning rate.
        student: the actor.
        max_source_length: S, the length of the source in a flat observation; unused for a dict.
        use_sde: must be False; Stable-Baselines3 passes it to every policy.
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
        """Set training or evaluation mode of what has no dropout, evaluation mode of the rest.

        cuDNN's recurrent kernels have no backward pass in evaluation mode. Any other module may
        apply dropout by a function, as the attention of pretrained models does.
        """
        super().set_training_mode(False)
        for module in self.modules():
            if isinstance(module, nn.RNNCellBase) or (
                isinstance(module, nn.RNNBase) and not module.dropout
            ):
                module.train(mode)

    def forward(
        self, observation: SB3Observation, deterministic: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return actions (B,), values (B, 1) and log-probabilities of the actions (B,), in nats."""
        distribution = self.get_distribution(observation)
        actions = distribution.get_actions(deterministic=deterministic)
        return actions, self.predict_values(observation), distribution.log_prob(actions)

    def evaluate_actions(
        self, observation: SB3Observation, actions: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return values (B, 1), log-probabilities of `actions` (B,) and entropies (B,), in nats."""
        distribution = self.get_distribution(observation)
        values = self.predict_values(observation)
        return values, distribution.log_prob(actions), distribution.entropy()

    def get_distribution(self, observation: SB3Observation) -> CategoricalDistribution:
        """Return the distribution of the next token, without PAD and start."""
        logits, _ = self._next_logits(self.student, observation)
        special = self.student.special
        forbidden = torch.zeros_like(logits, dtype=torch.bool)
        forbidden[:, [special.pad, special.start]] = True
        distribution = CategoricalDistribution(logits.shape[1])
        return distribution.proba_distribution(logits.masked_fill(forbidden, float("-inf")))

    def predict_values(self, observation: SB3Observation) -> Tensor:
        """Return the critic's estimates of the returns from here on, (B, 1)."""
        logits, finished = self._next_logits(self.critic, observation)
        # Adam moves all V weights at once: the scale bounds the step of the value at any V.
        values = self.value_head(logits / logits.shape[1] ** 0.5)
        return values.masked_fill(finished[:, None], 0.0)

    def _predict(self, observation: SB3Observation, deterministic: bool = False) -> Tensor:
        """Return the next tokens, (B,) int64."""
        return self.get_distribution(observation).get_actions(deterministic=deterministic)

    def _next_logits(
        self, model: SequenceModel, observation: SB3Observation
    ) -> tuple[Tensor, Tensor]:
        """Return the next token's logits (B, V) in float32 and a (B,) bool mask of finished texts.

        A text is finished at the length limit; its logits are those of its last token.
        """
        source, prefix, length = split_observation(
            observation, self.max_source_length, model.special
        )
        last = length.clamp(max=prefix.shape[1] - 1)
        read = prefix[:, : int(last.max()) + 1]
        logits = model.sequence_logits(trimmed(source, model.special), read)
        rows = torch.arange(len(prefix), device=prefix.device)
        return logits[rows, last].float(), length == prefix.shape[1]


def train_ppo(
    student: Model,
    env: TextGenVectorEnv,
    config: PPOConfig,
    *,
    callback: BaseCallback | None = None,
) -> PPO:
    """Train `student` in place on the reward of `env`.

    Args:
        student: untrained, or trained by any agent; in evaluation mode afterwards.
        env: in autoreset mode SAME_STEP, with the reward to maximize.
        config: the hyperparameters.
        callback: a callback of Stable-Baselines3, to monitor or stop the training.

    Returns:
        The trainer of Stable-Baselines3; its `learn` continues the training.

    Source: Schulman et al. 2017, arXiv:1707.06347.
    """
    ppo = PPO(
        SequenceModelPolicy,  # pyright: ignore[reportArgumentType] # it has all that PPO calls
        VecMonitor(SB3VecEnv(env)),
        policy_kwargs={"student": student},
        n_steps=config.rollout_steps,
        batch_size=min(config.batch_size, config.rollout_steps * env.num_envs),
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
