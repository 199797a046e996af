"""Single environment of text generation: one episode at a time, numpy in and out.

It is Gymnasium's plain interface to a vector environment with one slot, which decides everything:
dynamics, rewards and checks are those of `vector_env.py`.
"""

import sys
from collections.abc import Mapping
from typing import Any, cast

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from torch import Tensor

from textgen_env.dynamics import Observation
from textgen_env.envs.rewards import Reward, sentence_bleu
from textgen_env.envs.validation import RENDER_MODES, RenderMode, checked_logits
from textgen_env.envs.vector_env import Info, Noise, TextGenVectorEnv
from textgen_env.experts.expert import Expert
from textgen_env.tasks.task import Task
from textgen_env.types import Examples

ArrayObservation = dict[str, np.ndarray | np.int64]


class TextGenEnv(gymnasium.Env[ArrayObservation, np.int64]):
    """Environment in which one episode writes the target of one example of a task.

    After the end of an episode it takes PAD only, which changes nothing, as `TextGenVectorEnv` does
    in mode `DISABLED`.

    Args:
        task: the task; gives tokenizer and length limits.
        examples: encoded examples to use instead of the task's training split.
        expert: the oracle, available to agents as `expert` and queried by `render`.
        ask_expert: query the expert at every step. `info["expert_action"]` is then its most
            probable token at the observed state, PAD where the episode is over, and rewards see its
            logits.
        reward: the reward of a step.
        noise: replaces actions before they are written; None for no noise.
        render_mode: "ansi" to have `render` return the text, "rgb_array" a picture of it, "human"
            to have it printed after `reset` and every `step`; None for none of these.
        device: where the expert answers; returned values are on the host in any case.

    Raises:
        ValueError: whatever `TextGenVectorEnv` refuses.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 - Gymnasium declares it so
        "render_modes": list(RENDER_MODES),
        "render_fps": 4,  # nothing here depends on it; Gymnasium warns where it is missing
    }

    def __init__(  # noqa: PLR0913 - settings that `gymnasium.make` passes by name
        self,
        task: Task,
        *,
        examples: Examples | None = None,
        expert: Expert | None = None,
        ask_expert: bool = False,
        reward: Reward = sentence_bleu,
        noise: Noise | None = None,
        render_mode: RenderMode | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.task = task
        self.render_mode = render_mode
        self.vector_env = TextGenVectorEnv(
            task,
            examples=examples,
            expert=expert,
            ask_expert=ask_expert,
            reward=reward,
            noise=noise,
            autoreset_mode=AutoresetMode.DISABLED,
            render_mode="ansi" if render_mode == "human" else render_mode,
            device=device,
        )
        self.device = self.vector_env.device
        self.expert = self.vector_env.expert
        self.observation_space = cast(
            "spaces.Space[ArrayObservation]", self.vector_env.single_observation_space
        )
        self.action_space = self.vector_env.single_action_space

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[ArrayObservation, dict[str, Any]]:
        """Begin an episode; `options` may name its example: {"indices": [5]}."""
        super().reset(seed=seed)
        observation, info = self.vector_env.reset(seed=seed, options=options)
        if self.render_mode == "human":
            self.render()
        return _single_observation(observation), _single_info(info)

    def step(
        self, action: np.int64 | Tensor, policy_logits: np.ndarray | Tensor | None = None
    ) -> tuple[ArrayObservation, float, bool, bool, dict[str, Any]]:
        """Append one token.

        Args:
            action: an integer below the size of the vocabulary; a tensor may be on the host or on
                the environment's device.
            policy_logits: (V,) float, for rewards that compare the policy with the expert.

        Returns:
            The observation, the reward, `terminated`, `truncated`, and info.

        Raises:
            RuntimeError: called before `reset`.
            ShapeError: another shape than that, or an action that is no integer.
            TypeError: an action or logits that are no numbers.
            ValueError: an action outside the vocabulary, one on another device, or one other than
                PAD after the end.
        """
        on_device = isinstance(action, Tensor) and action.device.type != "cpu"
        actions = action.reshape(-1) if on_device else np.asarray(action).reshape(-1)
        if policy_logits is not None:
            policy_logits = checked_logits(policy_logits, (self.vector_env.vocab_size,))[None]
        observation, reward, *flags, info = self.vector_env.step(actions, policy_logits)
        if self.render_mode == "human":
            self.render()
        terminated, truncated = map(bool, flags)
        return (
            _single_observation(observation),
            float(reward),
            terminated,
            truncated,
            _single_info(info),
        )

    def render(self) -> str | np.ndarray | None:
        """Return or print the source, the text so far and the expert's choice of its last token.

        Returns:
            One line for each in mode "ansi"; a picture of them, (H, W, 3) uint8, in mode
            "rgb_array"; None in mode "human", which prints them, and without a mode.

        Raises:
            RuntimeError: called before `reset`.
        """
        shown = self.vector_env.render()
        if shown is None:
            return None
        if self.render_mode == "human":
            sys.stdout.write(f"{shown[0]}\n")
            return None
        return shown[0]

    def close(self) -> None:
        """Drop the episode: after this only `reset` may follow."""
        self.vector_env.close()


def _single_observation(observation: Observation) -> ArrayObservation:
    """Return the only row of an observation as arrays that share no memory with the state."""
    return {name: tensor[0].cpu().numpy()[()].copy() for name, tensor in observation.items()}


def _single_info(info: Info) -> dict[str, int]:
    """Return the only row of an info as integers, without Gymnasium's masks "_name"."""
    return {name: int(value) for name, value in info.items() if not name.startswith("_")}
