"""One episode at a time, numpy in and out: Gymnasium's plain interface over a single slot.

Nothing is decided here: what an episode is and earns is the business of the vector environment.
"""

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

ArrayObservation = dict[str, np.ndarray | np.int64]


class TextGenEnv(gymnasium.Env[ArrayObservation, np.int64]):
    """A `TextGenVectorEnv` of one slot, seen as a `gymnasium.Env`.

    Args:
        task: whose text is written; gives tokenizer and length limits.
        examples: what is written instead of the task's training split, encoded.
        expert: the oracle, kept for agents at `expert`.
        reward: what a step earns.
        render_mode: "ansi" to have `render` give the source and the text so far.

    Raises:
        ValueError: another render mode, or what `TextGenVectorEnv` refuses.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 - Gymnasium declares it so
        "render_modes": ["ansi"],
        "render_fps": 4,  # nothing here depends on it; Gymnasium warns where it is missing
    }

    def __init__(
        self,
        task: Task,
        *,
        examples: Examples | None = None,
        expert: Expert | None = None,
        reward: Reward = exact_match,
        render_mode: Literal["ansi"] | None = None,
    ) -> None:
        if render_mode not in (None, "ansi"):
            raise ValueError(f'render_mode must be "ansi" or None, got {render_mode!r}')
        self.task = task
        self.render_mode = render_mode
        self.slot = TextGenVectorEnv(
            task,
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
        self._shown: Observation | None = None

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[ArrayObservation, dict[str, Any]]:
        """Begin an episode; `options` may name the example: {"indices": [5]}."""
        super().reset(seed=seed)
        self._shown, info = self.slot.reset(seed=seed, options=options)
        return _row(self._shown), {"index": int(info["index"])}

    def step(self, action: np.int64) -> tuple[ArrayObservation, float, bool, bool, dict[str, Any]]:
        """Append one token; `action` is an integer below the size of the vocabulary."""
        actions = np.asarray(action).reshape(-1)
        self._shown, reward, terminated, truncated, info = self.slot.step(actions)
        flags = bool(terminated), bool(truncated)
        numbers = {name: int(info[name]) for name in ("index", "written")}
        return _row(self._shown), float(reward), *flags, numbers

    def render(self) -> str | None:
        """The source and the text so far, a line each; None without a render mode.

        Raises:
            RuntimeError: called before `reset`.
        """
        if self.render_mode is None:
            return None
        if self._shown is None:
            raise RuntimeError("render must come after reset, got no reset yet: call reset() first")
        shown = [self._shown[name][0].tolist() for name in ("source", "prefix")]
        source, prefix = self.task.tokenizer.decode(shown)
        return f"source: {source}\ntext:   {prefix}"


def _row(observation: Observation) -> ArrayObservation:
    """The only row of an observation: arrays of its own, and numbers for lengths."""
    return {name: tensor[0].cpu().numpy()[()].copy() for name, tensor in observation.items()}
