"""Adapters of the environment and the expert to Stable-Baselines3, which imitation takes as well.

Stable-Baselines3 refuses a Gymnasium `VectorEnv` (its issue 1745) and passes observations as numpy
arrays (its issue 772), so tensors are copied to the host at every step. The slots are rows of one
environment, not environments of their own: `get_attr`, `set_attr` and `env_method` reach attributes
and methods that all slots share. Images are not drawn.
"""

from collections.abc import Sequence
from typing import Any, cast

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import (
    VecEnvIndices,
    VecEnvObs,
    VecEnvStepReturn,
)
from torch import Tensor

from textgen_env.envs.vector_env import TextGenVectorEnv
from textgen_env.experts.dynamic_oracle import DynamicOracle
from textgen_env.experts.expert import Expert
from textgen_env.types import SpecialTokens

SlotInfo = dict[str, Any]


class SB3VecEnv(VecEnv):
    """Stable-Baselines3 `VecEnv` of a `TextGenVectorEnv`, numpy in and out.

    A slot's info holds "index" and "written" of the step, "expert_action" if the environment
    queries the expert, "TimeLimit.truncated", and at the end of an episode "terminal_observation".
    `reset_infos` holds the "index" of each slot's current example, and the first "expert_action".
    Options of `set_options` are those of `TextGenEnv`, such as {"indices": [5]}, for every slot.

    Args:
        env: in autoreset mode SAME_STEP.

    Raises:
        ValueError: another autoreset mode.
    """

    def __init__(self, env: TextGenVectorEnv) -> None:
        if env.autoreset_mode != AutoresetMode.SAME_STEP:
            raise ValueError(
                f"env must be in autoreset mode SAME_STEP, got {env.autoreset_mode.name}"
            )
        self.env = env
        self._actions = np.zeros(env.num_envs, np.int64)
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

    def reset(self) -> VecEnvObs:
        """Begin an episode in every slot, with the seed and the options that were set before.

        The order of examples, which all slots share, is drawn with the seed of slot 0.
        """
        observation, info = self.env.reset(
            seed=self._seeds[0], options=_merged_options(self._options)
        )
        self._reset_seeds()
        self._reset_options()
        self.reset_infos = _slot_infos(info)
        return _arrays(observation)

    def step_async(self, actions: np.ndarray) -> None:
        """Keep (B,) token ids for `step_wait`."""
        self._actions = np.asarray(actions)

    def step_wait(self) -> VecEnvStepReturn:
        """Take the step of the kept actions.

        Returns:
            Observations, (B,) float32 rewards, (B,) bool dones, and a list of B infos.
        """
        observation, rewards, terminated, truncated, info = self.env.step(self._actions)
        ended = terminated | truncated
        step_info = info["final_info"] | {"TimeLimit.truncated": truncated}
        reset_info = {"index": info["index"]}
        if "expert_action" in info:  # at the observed state: after an end, of the next episode
            best = info["expert_action"]
            reset_info["expert_action"] = best
            step_info["expert_action"] = best.masked_fill(ended, self.env.special.pad)
        dones, infos = ended.cpu().numpy(), _slot_infos(step_info)
        if dones.any():
            final, reset_infos = _arrays(info["final_obs"]), _slot_infos(reset_info)
            for slot in np.flatnonzero(dones):
                infos[slot]["terminal_observation"] = {k: v[slot] for k, v in final.items()}
                self.reset_infos[slot] = reset_infos[slot]
        return _arrays(observation), rewards.cpu().numpy(), dones, infos

    def close(self) -> None:
        """Close the environment inside; only `reset` may follow."""
        self.env.close()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Return the environment's attribute, once for each of the slots at `indices`."""
        return [getattr(self.env, attr_name)] * len(self._slots(indices))

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:  # noqa: ANN401 - as the base class has it
        """Set the environment's attribute, for all slots at once.

        Raises:
            ValueError: `indices` leave a slot out.
        """
        if set(self._slots(indices)) != set(range(self.num_envs)):
            raise ValueError(
                f"indices must be None or name all {self.num_envs} slots, which share their "
                f"attributes, got {indices}"
            )
        setattr(self.env, attr_name, value)

    def env_method(
        self,
        method_name: str,
        *method_args: Any,  # noqa: ANN401 - as the base class has it
        indices: VecEnvIndices = None,
        **method_kwargs: Any,  # noqa: ANN401
    ) -> list[Any]:
        """Call the environment's method once and return its result for each of the slots."""
        result = getattr(self.env, method_name)(*method_args, **method_kwargs)
        return [result] * len(self._slots(indices))

    def env_is_wrapped(
        self, wrapper_class: type[gymnasium.Wrapper], indices: VecEnvIndices = None
    ) -> list[bool]:
        """Return False for each of the slots, none of which is a `gymnasium.Env` to be wrapped."""
        del wrapper_class
        return [False] * len(self._slots(indices))

    def _slots(self, indices: VecEnvIndices) -> list[int]:
        """Return the slots at `indices`, negative ones counted from the end."""
        return [range(self.num_envs)[index] for index in self._get_indices(indices)]


class FlatObservation(VecEnvWrapper):
    """Wrapper that joins source and prefix into one observation, (B, S + T) int64.

    It serves libraries that take no dict, such as imitation. Lengths are left out: they follow from
    PAD, which no policy writes.

    Args:
        venv: a `SB3VecEnv`, or a `DummyVecEnv` of `TextGenEnv`s.

    Raises:
        TypeError: the observations are no dicts.
    """

    def __init__(self, venv: VecEnv) -> None:
        space = venv.observation_space
        if not isinstance(space, spaces.Dict):
            raise TypeError(f"venv must have a Dict space, got {space}: is it flat already?")
        sides = [cast("spaces.Box", space[name]) for name in ("source", "prefix")]
        low, high = (
            np.concatenate(ends) for ends in zip(*((s.low, s.high) for s in sides), strict=True)
        )
        flat = spaces.Box(low, high, dtype=np.int64)
        super().__init__(venv, observation_space=flat)

    def reset(self) -> np.ndarray:
        """Begin an episode in every slot."""
        return _flat(self.venv.reset())

    def step_wait(self) -> VecEnvStepReturn:
        """Return the results of the step, with terminal observations flat as well."""
        observation, rewards, dones, infos = self.venv.step_wait()
        for slot in np.flatnonzero(dones):
            infos[slot]["terminal_observation"] = _flat(infos[slot]["terminal_observation"])
        return _flat(observation), rewards, dones, infos


class ExpertPolicy(BasePolicy):
    """Stable-Baselines3 policy that always writes an expert's most probable token.

    At every step the expert reads the whole prefix again, and one state is counted. It reads the
    observed source, even where a task gives it a view of its own, which no observation holds.

    Args:
        expert: the oracle; it must not depend on references, which no observation holds.
        observation_space: the space of the `VecEnv` that it acts in, flat or not.
        action_space: the space of the same.
        max_source_length: S, where the source ends in a flat observation.

    Raises:
        TypeError: a `DynamicOracle`.
    """

    def __init__(
        self,
        expert: Expert,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        *,
        max_source_length: int,
    ) -> None:
        if isinstance(expert, DynamicOracle):
            raise TypeError(
                "expert must answer from observations, got a DynamicOracle, which depends on "
                "references: make the environment with ask_expert=True and take "
                'info["expert_action"]'
            )
        super().__init__(observation_space, action_space)
        self.expert = expert
        self.max_source_length = max_source_length

    def _predict(
        self, observation: Tensor | dict[str, Tensor], deterministic: bool = False
    ) -> Tensor:
        del deterministic
        source, prefix, length = split_observation(
            observation, self.max_source_length, self.expert.special
        )
        return self.expert.best_actions_at(source, prefix, length, reference=prefix[:, :0])


def split_observation(
    observation: Tensor | dict[str, Tensor], max_source_length: int, special: SpecialTokens
) -> tuple[Tensor, Tensor, Tensor]:
    """Return source (B, S), prefix (B, T) and its length (B,) of an observation, int64 each."""
    if isinstance(observation, dict):
        source, prefix, length = (observation[name] for name in ("source", "prefix", "length"))
        return source.long(), prefix.long(), length.long().flatten()
    source, prefix = observation.long().tensor_split([max_source_length], dim=1)
    return source, prefix, (prefix != special.pad).sum(1)


def _arrays(observation: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """Return the observation as arrays that share no memory with the state."""
    return {name: tensor.cpu().numpy().copy() for name, tensor in observation.items()}


def _flat(observation: VecEnvObs) -> np.ndarray:
    """Return source and prefix side by side."""
    assert isinstance(observation, dict), "FlatObservation has checked the space"
    return np.concatenate([observation["source"], observation["prefix"]], axis=-1)


def _slot_infos(info: dict[str, Any]) -> list[SlotInfo]:
    """Return a dict of (B,) tensors as B dicts, without Gymnasium's masks "_name"."""
    columns = {k: tensor.tolist() for k, tensor in info.items() if not k.startswith("_")}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _merged_options(options: Sequence[SlotInfo]) -> dict[str, list[Any]]:
    """Merge the options of all slots: B dicts {"indices": [5]} become one with (B,) indices."""
    names = dict.fromkeys(name for option in options for name in option)
    return {name: [value for option in options for value in option.get(name, ())] for name in names}
