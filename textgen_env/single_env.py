"""One episode at a time, numpy in and out: Gymnasium's plain interface over a single slot."""

from collections.abc import Mapping
from typing import Any, Literal, cast

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

from textgen_env.dynamics import Observation
from textgen_env.expert import Expert
from textgen_env.rewards import Reward, exact_match
from textgen_env.tasks.task import Task
from textgen_env.types import Examples
from textgen_env.vector_env import TextGenVectorEnv

ArrayObservation = dict[str, np.ndarray]


class TextGenEnv(gymnasium.Env[ArrayObservation, np.int64]):
    """A `TextGenVectorEnv` of one slot, seen as a `gymnasium.Env`.

    Args:
        task: whose text is written; gives tokenizer and length limits.
        examples: what is written instead of the task's training split, encoded.
        expert: the oracle, kept for agents at `expert`.
        reward: what a step earns.
        render_mode: "ansi" to have `render` give the source and the text so far.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi"]}  # noqa: RUF012 - Gymnasium declares it so

    def __init__(
        self,
        task: Task,
        *,
        examples: Examples | None = None,
        expert: Expert | None = None,
        reward: Reward = exact_match,
        render_mode: Literal["ansi"] | None = None,
    ) -> None:
        self.task = task
        self.render_mode = render_mode
        self.slot = TextGenVectorEnv(
            task,
            1,
            examples=examples,
            expert=expert,
            reward=reward,
            autoreset_mode=AutoresetMode.DISABLED,
        )
        self.expert = self.slot.expert
        self.observation_space = cast(
            "spaces.Space[ArrayObservation]", self.slot.single_observation_space
        )
        self.action_space = self.slot.single_action_space
        self._shown: ArrayObservation | None = None

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[ArrayObservation, dict[str, Any]]:
        """Begin an episode; `options` may name the example: {"indices": [5]}."""
        super().reset(seed=seed)
        observation, info = self.slot.reset(seed=seed, options=options)
        self._shown = _row(observation)
        return self._shown, {"index": int(info["index"])}

    def step(
        self, action: np.int64
    ) -> tuple[ArrayObservation, float, bool, bool, dict[str, Any]]:
        """Append one token; `action` is an integer below the size of the vocabulary."""
        actions = np.asarray(action, dtype=np.int64).reshape(1)
        observation, reward, terminated, truncated, info = self.slot.step(actions)
        self._shown = _row(observation)
        flags = bool(terminated), bool(truncated)
        return self._shown, float(reward), *flags, {"index": int(info["index"])}

    def render(self) -> str:
        """The source and the text so far, a line each.

        Raises:
            RuntimeError: called before `reset`.
        """
        if self._shown is None:
            raise RuntimeError("render must come after reset, got no reset yet: call reset() first")
        source, prefix = self.task.tokenizer.decode(
            [self._shown["source"].tolist(), self._shown["prefix"].tolist()]
        )
        return f"source: {source}\ntext:   {prefix}"


def _row(observation: Observation) -> ArrayObservation:
    """The only row of an observation, as arrays of its own."""
    return {name: np.array(tensor[0].cpu().numpy()) for name, tensor in observation.items()}
