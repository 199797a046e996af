"""Many episodes at once, on the device: Gymnasium's vector interface with tensors in and out.

`step` never waits for the device. What an episode needs of the text is encoded once; a slot that is
refilled gathers its row. Autoreset modes: `SAME_STEP` refills a slot at once with the next example,
`DISABLED` runs one batch to its end.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from textgen_env import dynamics
from textgen_env.dynamics import Observation, State
from textgen_env.expert import Expert, NoExpert
from textgen_env.rewards import Reward, exact_match
from textgen_env.tasks.task import Task, encode
from textgen_env.types import Examples, ShapeError

Info = dict[str, Any]
MODES = (AutoresetMode.SAME_STEP, AutoresetMode.DISABLED)
OPTIONS = ("indices", "reset_mask")


def observation_space(max_source_length: int, max_steps: int, vocab_size: int) -> spaces.Dict:
    """What one episode shows: source and prefix as token ids, and their lengths."""
    return spaces.Dict(
        {
            "source": spaces.Box(0, vocab_size - 1, (max_source_length,), np.int64),
            "source_length": spaces.Box(0, max_source_length, (), np.int64),
            "prefix": spaces.Box(0, vocab_size - 1, (max_steps,), np.int64),
            "length": spaces.Box(0, max_steps, (), np.int64),
        }
    )


class TextGenVectorEnv(VectorEnv[Observation, Tensor, Tensor]):
    """B slots, each writing the target of one example of a task.

    Observations are dicts of int64 tensors (`dynamics.observation`), actions (B,) int64 token ids as
    a tensor or an array, rewards (B,) float32, `terminated` (end token written) and `truncated`
    (length limit reached without it) (B,) bool and never both. After its end a slot takes no notice of
    actions: it shows PAD, its flags stay and it earns 0. `info["index"]`, (B,) int64, says which
    example a slot is at; in mode `SAME_STEP` `info["final_obs"]` and `info["final_info"]` hold what
    a slot that has just ended showed before it was refilled, `info["_final_obs"]` which slots did.

    Args:
        task: whose text is written; gives tokenizer and length limits.
        num_envs: B, slots.
        examples: what is written instead of the task's training split, encoded.
        expert: the oracle, kept for agents at `expert`; never asked by `step`.
        reward: what a step earns.
        autoreset_mode: `SAME_STEP` or `DISABLED`.
        device: where the state lives.

    Raises:
        ValueError: `num_envs` below 1, a length limit below 2, another autoreset mode.
    """

    def __init__(
        self,
        task: Task,
        num_envs: int = 1,
        *,
        examples: Examples | None = None,
        expert: Expert | None = None,
        reward: Reward = exact_match,
        autoreset_mode: AutoresetMode = AutoresetMode.SAME_STEP,
        device: torch.device | str = "cpu",
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, got {num_envs}")
        if autoreset_mode not in MODES:
            names = " or ".join(mode.name for mode in MODES)
            raise ValueError(f"autoreset_mode must be {names}, got {autoreset_mode}")
        if task.max_target_length < 2:
            raise ValueError(
                f"the task's max_target_length must be at least 2, got {task.max_target_length}"
            )
        self.num_envs = num_envs
        self.device = torch.device(device)
        self.special = task.tokenizer.special
        self.vocab_size = task.tokenizer.vocab_size
        self.max_steps = task.max_target_length
        self.examples = (examples or encode(task.train, task)).to(self.device)
        self.expert = expert or NoExpert()
        self.reward = reward
        self.autoreset_mode = autoreset_mode
        self.metadata = {"render_modes": [], "autoreset_mode": autoreset_mode}
        self.single_observation_space = observation_space(
            task.max_source_length, self.max_steps, self.vocab_size
        )
        self.single_action_space = spaces.Discrete(self.vocab_size)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._source = _widened(self.examples.source, task.max_source_length, self.special.pad)
        self._order: Tensor | None = None  # (N,) int64, examples as they come
        self._next = torch.zeros((), dtype=torch.int64, device=self.device)  # how many have come
        self._index = torch.zeros(num_envs, dtype=torch.int64, device=self.device)
        self._state: State | None = None

    def reset(
        self,
        *,
        seed: int | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> tuple[Observation, Info]:
        """Begin an episode in every slot.

        Args:
            seed: start anew with the order of examples that this seed gives; None to go on.
            options: "indices", (B,) the example of each slot instead of the next ones;
                "reset_mask", (B,) bool, the slots that begin, in mode `DISABLED` only.

        Raises:
            ValueError: an unknown option, or one of the wrong kind, size or value.
            RuntimeError: a "reset_mask" before the first reset.
        """
        super().reset(seed=seed)
        options = options or {}
        if unknown := set(options) - set(OPTIONS):
            raise ValueError(f"options must be among {OPTIONS}, got {sorted(unknown)}")
        if seed is not None or self._order is None:
            self._shuffle(seed)
        mask = self._reset_mask(options.get("reset_mask"))
        if "indices" in options:
            chosen = self._checked_indices(options["indices"])
        else:
            chosen = self._following(mask)
        self._index = chosen.where(mask, self._index)
        fresh = dynamics.initial(self._source[self._index], self.max_steps, self.special)
        self._state = (
            fresh if self._state is None else dynamics.replace_rows(self._state, mask, fresh)
        )
        return dynamics.observation(self._state, self.special), {"index": self._index}

    def step(
        self, actions: Tensor | np.ndarray
    ) -> tuple[Observation, Tensor, Tensor, Tensor, Info]:
        """Append one token to every unfinished episode.

        Args:
            actions: (B,) integer token ids; those of finished slots are ignored.

        Raises:
            RuntimeError: called before `reset`.
            ShapeError: another shape than (B,), or not integers.
            ValueError: an array holds an id outside the vocabulary. Tensors are not looked into: that
                would wait for the device.
        """
        if self._state is None:
            raise RuntimeError("step must come after reset, got no reset yet: call reset() first")
        before = self._state
        state = dynamics.transition(before, self._checked_actions(actions), self.special)
        finished = state.done & ~before.done
        references = self.examples.reference[self._index]
        rewards = self.reward(state, references, finished, self.special)
        info: Info = {"index": self._index}
        shown = dynamics.observation(state, self.special)
        if self.autoreset_mode == AutoresetMode.SAME_STEP:
            info = {
                "final_obs": shown,
                "_final_obs": finished,
                "final_info": {"index": self._index},
                "_final_info": finished,
            }
            self._index = self._following(finished).where(finished, self._index)
            fresh = dynamics.initial(self._source[self._index], self.max_steps, self.special)
            self._state = dynamics.replace_rows(state, finished, fresh)
            info["index"] = self._index
            shown = dynamics.observation(self._state, self.special)
        else:
            self._state = state
        return shown, rewards, state.terminated, state.truncated, info

    def _shuffle(self, seed: int | None) -> None:
        """Draw the order in which examples come."""
        drawn = seed if seed is not None else int(self.np_random.integers(2**31))
        generator = torch.Generator().manual_seed(drawn)
        self._order = torch.randperm(len(self.examples), generator=generator).to(self.device)
        self._next = torch.zeros_like(self._next)

    def _following(self, mask: Tensor) -> Tensor:
        """(B,) the next examples for the slots where `mask` is True, in the order of the slots."""
        assert self._order is not None, "reset draws the order"
        place = (self._next + mask.cumsum(0) - 1) % len(self._order)
        self._next = self._next + mask.sum()
        return self._order[place]

    def _reset_mask(self, given: object) -> Tensor:
        if given is None:
            return torch.ones(self.num_envs, dtype=torch.bool, device=self.device)
        if self.autoreset_mode != AutoresetMode.DISABLED:
            raise ValueError(
                f"reset_mask must be used in autoreset mode DISABLED, got {self.autoreset_mode.name}"
            )
        if self._state is None:
            raise RuntimeError("reset_mask must come after a full reset, got none yet")
        mask = torch.as_tensor(cast("Any", given), device=self.device)
        if mask.dtype != torch.bool or mask.shape != (self.num_envs,):
            raise ShapeError(
                f"reset_mask must be bool of shape ({self.num_envs},), "
                f"got {mask.dtype} of shape {tuple(mask.shape)}"
            )
        if not mask.any():
            raise ValueError("reset_mask must have at least one True, got none")
        return mask

    def _checked_indices(self, given: Sequence[int] | Tensor) -> Tensor:
        indices = torch.as_tensor(given, device=self.device)
        if indices.shape != (self.num_envs,) or indices.is_floating_point():
            raise ShapeError(
                f"indices must be integers of shape ({self.num_envs},), one for each slot, "
                f"got {indices.dtype} of shape {tuple(indices.shape)}"
            )
        if int(indices.min()) < 0 or int(indices.max()) >= len(self.examples):
            raise ValueError(
                f"indices must be in [0, {len(self.examples)}), "
                f"got {int(indices.min())} to {int(indices.max())}"
            )
        return indices.long()

    def _checked_actions(self, given: Tensor | np.ndarray) -> Tensor:
        if isinstance(given, np.ndarray) and given.size and given.dtype.kind in "iu":
            low, high = given.min(), given.max()
            if low < 0 or high >= self.vocab_size:
                raise ValueError(
                    f"actions must be in [0, {self.vocab_size}), got {low} to {high}"
                )
        actions = torch.as_tensor(given, device=self.device)
        kind = actions.dtype
        if actions.shape != (self.num_envs,) or kind == torch.bool or kind.is_floating_point:
            raise ShapeError(
                f"actions must be integers of shape ({self.num_envs},), "
                f"got {kind} of shape {tuple(actions.shape)}"
            )
        return actions.long()


def _widened(tokens: Tensor, width: int, pad: int) -> Tensor:
    """`tokens` padded on the right to `width` columns."""
    return torch.nn.functional.pad(tokens, (0, width - tokens.shape[1]), value=pad)
