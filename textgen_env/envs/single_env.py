"""One episode at a time, numpy in and out: Gymnasium's plain interface over a single slot.

Nothing is decided here: what an episode is and earns is the business of the vector environment.
"""

import sys
from collections.abc import Mapping
from typing import Any, Literal, cast

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from torch import Tensor

from textgen_env.dynamics import Observation
from textgen_env.envs.rewards import Reward, sentence_bleu
from textgen_env.envs.validation import RENDER_MODES, checked_logits
from textgen_env.envs.vector_env import Info, Noise, TextGenVectorEnv
from textgen_env.experts.expert import Expert
from textgen_env.tasks.task import Task
from textgen_env.types import Examples

ArrayObservation = dict[str, np.ndarray | np.int64]


class TextGenEnv(gymnasium.Env[ArrayObservation, np.int64]):
    """A `TextGenVectorEnv` of one slot, seen as a `gymnasium.Env`.

    After its end it takes PAD alone, which changes nothing, as in mode `DISABLED` there.

    Args:
        task: whose text is written; gives tokenizer and length limits.
        examples: what is written instead of the task's training split, encoded.
        expert: the oracle, kept for agents at `expert` and asked by `render`.
        ask_expert: let the expert go along: `info["expert_action"]` is then what it would write at
            the state that is shown, PAD where that is over, and rewards see its logits.
        reward: what a step earns.
        noise: what the environment does to actions before they are written; None for nothing.
        render_mode: "ansi" to have `render` give the text, "human" to have it printed after `reset`
            and every `step`; None for neither.
        device: where the expert is; what is returned is on the host in any case.

    Raises:
        ValueError: what `TextGenVectorEnv` refuses.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 - Gymnasium declares it so
        "render_modes": list(RENDER_MODES),
        "render_fps": 4,  # nothing here depends on it; Gymnasium warns where it is missing
    }

    def __init__(
        self,
        task: Task,
        *,
        examples: Examples | None = None,
        expert: Expert | None = None,
        ask_expert: bool = False,
        reward: Reward = sentence_bleu,
        noise: Noise | None = None,
        render_mode: Literal["human", "ansi"] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.task = task
        self.render_mode = render_mode
        self.slot = TextGenVectorEnv(
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
        self.device = self.slot.device
        self.expert = self.slot.expert
        self.observation_space = cast(
            "spaces.Space[ArrayObservation]", self.slot.single_observation_space
        )
        self.action_space = self.slot.single_action_space

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[ArrayObservation, dict[str, Any]]:
        """Begin an episode; `options` may name the example: {"indices": [5]}."""
        super().reset(seed=seed)
        shown, info = self.slot.reset(seed=seed, options=options)
        if self.render_mode == "human":
            self.render()
        return _row(shown), _numbers(info)

    def step(
        self, action: np.int64 | Tensor, policy_logits: np.ndarray | Tensor | None = None
    ) -> tuple[ArrayObservation, float, bool, bool, dict[str, Any]]:
        """Append one token.

        Args:
            action: an integer below the size of the vocabulary; a tensor may be on the host or on
                the environment's device.
            policy_logits: (V,) float, for rewards that compare the policy with the expert.

        Raises:
            RuntimeError: called before `reset`.
            ShapeError: another shape than that, or an action that is no integer.
            TypeError: an action or logits that are no numbers.
            ValueError: an action outside the vocabulary, one on another device, or another one than
                PAD after the end.
        """
        elsewhere = isinstance(action, Tensor) and action.device.type != "cpu"
        actions = action.reshape(-1) if elsewhere else np.asarray(action).reshape(-1)
        if policy_logits is not None:
            policy_logits = checked_logits(policy_logits, (self.slot.vocab_size,))[None]
        shown, reward, terminated, truncated, info = self.slot.step(actions, policy_logits)
        if self.render_mode == "human":
            self.render()
        flags = bool(terminated), bool(truncated)
        return _row(shown), float(reward), *flags, _numbers(info)

    def render(self) -> str | None:
        """The source, the text so far and what the expert would have written last, a line each.

        Returns:
            The lines in mode "ansi"; None in mode "human", which prints them, and without a mode.

        Raises:
            RuntimeError: called before `reset`.
        """
        texts = self.slot.render()
        if texts is None:
            return None
        if self.render_mode == "ansi":
            return texts[0]
        sys.stdout.write(f"{texts[0]}\n")
        return None

    def close(self) -> None:
        """Forget the episode: after this only `reset` may follow."""
        self.slot.close()


def _row(observation: Observation) -> ArrayObservation:
    """The only row of an observation: arrays of its own, and numbers for lengths."""
    return {name: tensor[0].cpu().numpy()[()].copy() for name, tensor in observation.items()}


def _numbers(info: Info) -> dict[str, int]:
    """The only row of an info, without Gymnasium's masks "_name"."""
    return {name: int(value) for name, value in info.items() if not name.startswith("_")}
