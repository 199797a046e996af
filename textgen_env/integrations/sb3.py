"""The environment and the expert as Stable-Baselines3 sees them; imitation takes them as well.

Stable-Baselines3 refuses a Gymnasium `VectorEnv` (its issue 1745) and moves observations through
numpy (772), so tensors that live on a device are copied to the host here at every step. The slots
are rows of one environment, not environments of their own: what `get_attr`, `set_attr` and
`env_method` reach is shared by all of them. Images are not drawn.
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

Info = dict[str, Any]


class SB3VecEnv(VecEnv):
    """A `TextGenVectorEnv` as a Stable-Baselines3 `VecEnv`, numpy in and out.

    A slot's info holds "index" and "written" of the step, "expert_action" if the environment asks
    the expert, "TimeLimit.truncated", and at the end of an episode "terminal_observation";
    `reset_infos` says which example a slot is at since and what the expert would write first.
    Options of `set_options` are those of `TextGenEnv`: {"indices": [5]} for every slot.

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
        """Begin an episode in every slot, with the seed and the options given before.

        The order of examples, which all slots share, has the seed of slot 0.
        """
        shown, info = self.env.reset(seed=self._seeds[0], options=_joined(self._options))
        self._reset_seeds()
        self._reset_options()
        self.reset_infos = _rows(info)
        return _arrays(shown)

    def step_async(self, actions: np.ndarray) -> None:
        """Remember (B,) token ids for `step_wait`."""
        self._actions = np.asarray(actions)

    def step_wait(self) -> VecEnvStepReturn:
        """Append them: observations, (B,) float32 rewards, (B,) bool dones, and infos."""
        shown, rewards, terminated, truncated, info = self.env.step(self._actions)
        ended = terminated | truncated
        said = info["final_info"] | {"TimeLimit.truncated": truncated}
        begun = {"index": info["index"]}
        if "expert_action" in info:  # of what is shown, which after an end is the next episode
            begun["expert_action"] = info["expert_action"]
            said["expert_action"] = info["expert_action"].masked_fill(ended, self.env.special.pad)
        done, infos = ended.cpu().numpy(), _rows(said)
        if done.any():
            final, rows = _arrays(info["final_obs"]), _rows(begun)
            for slot in np.flatnonzero(done):
                infos[slot]["terminal_observation"] = {k: v[slot] for k, v in final.items()}
                self.reset_infos[slot] = rows[slot]
        return _arrays(shown), rewards.cpu().numpy(), done, infos

    def close(self) -> None:
        """Close the environment."""
        self.env.close()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """The environment's attribute, once for each slot asked for."""
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
        """Call the environment's method once; its answer, once for each slot asked for."""
        answer = getattr(self.env, method_name)(*method_args, **method_kwargs)
        return [answer] * len(self._slots(indices))

    def env_is_wrapped(
        self, wrapper_class: type[gymnasium.Wrapper], indices: VecEnvIndices = None
    ) -> list[bool]:
        """False for each slot asked for: a slot is not a `gymnasium.Env` that could be wrapped."""
        del wrapper_class
        return [False] * len(self._slots(indices))

    def _slots(self, indices: VecEnvIndices) -> list[int]:
        """The slots that `indices` name, negative ones counted from the end."""
        return [range(self.num_envs)[index] for index in self._get_indices(indices)]


class FlatObservation(VecEnvWrapper):
    """Observations as one row of token ids, the source and after it the prefix, (B, S + T) int64.

    For libraries that take no dict, such as imitation. Lengths are left out: PAD, which no policy
    writes, shows them.

    Args:
        venv: a `SB3VecEnv`, or a `DummyVecEnv` of `TextGenEnv`s.
    """

    def __init__(self, venv: VecEnv) -> None:
        shown = venv.observation_space
        if not isinstance(shown, spaces.Dict):
            raise TypeError(f"venv must show a dict, got {shown}: is it flat already?")
        sides = [cast("spaces.Box", shown[name]) for name in ("source", "prefix")]
        low, high = (
            np.concatenate(ends) for ends in zip(*((s.low, s.high) for s in sides), strict=True)
        )
        flat = spaces.Box(low, high, dtype=np.int64)
        super().__init__(venv, observation_space=flat)

    def reset(self) -> np.ndarray:
        """Begin an episode in every slot."""
        return _flat(self.venv.reset())

    def step_wait(self) -> VecEnvStepReturn:
        """The step's outcome, the terminal observations flat as well."""
        shown, rewards, dones, infos = self.venv.step_wait()
        for slot in np.flatnonzero(dones):
            infos[slot]["terminal_observation"] = _flat(infos[slot]["terminal_observation"])
        return _flat(shown), rewards, dones, infos


class ExpertPolicy(BasePolicy):
    """An `Expert` as a Stable-Baselines3 policy: writes its most probable token, always.

    The expert is asked anew at every step about the whole prefix; one state is counted for each. It
    reads the source that is observed: a view of its own, where a task has one, is not to be seen.

    Args:
        expert: the oracle; one that looks at references, which no observation shows, cannot answer.
        observation_space: of the `VecEnv` that is to be written in, flat or not.
        action_space: of the same.
        max_source_length: S, where a flat observation's source ends.

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
                "expert must answer by what is observed, got a DynamicOracle, which looks at "
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
    """Source (B, S), prefix (B, T) and its length (B,), int64, of dicts or flat observations."""
    if isinstance(observation, dict):
        source, prefix, length = (observation[name] for name in ("source", "prefix", "length"))
        return source.long(), prefix.long(), length.long().flatten()
    source, prefix = observation.long().tensor_split([max_source_length], dim=1)
    return source, prefix, (prefix != special.pad).sum(1)


def _arrays(observation: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """The same as arrays of their own: writing into them changes no state."""
    return {name: tensor.cpu().numpy().copy() for name, tensor in observation.items()}


def _flat(observation: VecEnvObs) -> np.ndarray:
    assert isinstance(observation, dict), "FlatObservation has checked the space"
    return np.concatenate([observation["source"], observation["prefix"]], axis=-1)


def _rows(info: Info) -> list[Info]:
    """A dict of (B,) tensors as a dict for each row; Gymnasium's masks "_name" are left out."""
    columns = {k: tensor.tolist() for k, tensor in info.items() if not k.startswith("_")}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _joined(options: Sequence[Info]) -> dict[str, list[Any]]:
    """The options of all slots as those of one environment: {"indices": [5]} to (B,) indices."""
    names = dict.fromkeys(name for option in options for name in option)
    return {name: [value for option in options for value in option.get(name, ())] for name in names}
