"""Many episodes at once, on the device: Gymnasium's vector interface with tensors in and out.

`step` never waits for the device. Every example is encoded once; a slot that is refilled gathers
its row. What users give is checked in `checks.py`, text to look at is made in `rendering.py`.
"""

import sys
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from textgen_env import dynamics
from textgen_env.dynamics import Observation, State
from textgen_env.envs.continuous_batching import Adviser, places, shuffled_epochs
from textgen_env.envs.rendering import as_text
from textgen_env.envs.rewards import Reward, Step, sentence_bleu
from textgen_env.envs.validation import (
    RENDER_MODES,
    Numbers,
    check_after_end,
    check_asked,
    check_examples,
    check_rewards,
    check_settings,
    checked_ids,
    checked_logits,
    checked_mask,
    checked_options,
    match_vocabulary,
)
from textgen_env.experts.expert import Expert, NoExpert
from textgen_env.tasks.task import Task, encode
from textgen_env.types import Examples

Info = dict[str, Any]
Noise = Callable[[Tensor, torch.Generator], Tensor]
"""(actions (B,) int64, generator) -> (B,) int64, the tokens that are written in their place."""


def observation_space(max_source_length: int, max_steps: int, vocab_size: int) -> spaces.Dict:
    """What one episode shows: source and prefix as token ids, and their lengths.

    Lengths are `Discrete`: of a `Box` without dimensions Stable-Baselines3 cannot check the bounds.
    """
    return spaces.Dict(
        {
            "source": spaces.Box(0, vocab_size - 1, (max_source_length,), np.int64),
            "source_length": spaces.Discrete(max_source_length + 1),
            "prefix": spaces.Box(0, vocab_size - 1, (max_steps,), np.int64),
            "length": spaces.Discrete(max_steps + 1),
        }
    )


class TextGenVectorEnv(VectorEnv[Observation, Tensor, Tensor]):
    """B slots, each writing the target of one example of a task.

    Observations are dicts of int64 tensors (`dynamics.observation`), actions (B,) token ids as a
    tensor or an array, rewards (B,) float32, `terminated` (end token written) and `truncated`
    (length limit reached without it) (B,) bool and never both. Tensors that are handed out may
    share memory with the state: they are to be read, not written into.

    What happens to a slot whose episode has ended is the autoreset mode's to say:
    - `DISABLED`: it takes PAD alone and stays as it is, also when all slots have ended: its flags
      stay and it earns 0, until a `reset`, of all slots or by "reset_mask".
    - `SAME_STEP`: the step that ends it already shows the next episode; `info["final_obs"]` and
      `info["final_info"]` hold what was shown at the end where `info["_final_obs"]` and
      `info["_final_info"]`, (B,) bool, and nothing of meaning elsewhere.
    - `NEXT_STEP`: the step after takes no notice of its action, shows the next episode, earns 0
      and gives both flags False.

    `info["index"]`, (B,) int64, says which example a slot is at; `info["written"]`, (B,) int64,
    which token the step appended where `info["_written"]` (PAD elsewhere): the action, unless there
    is `noise`.

    Examples come in an order drawn by the seed, slots in turn taking the next one: all of them
    once, then all of them in another order, and so on (`shuffled_epochs`).

    Args:
        task: whose text is written; gives tokenizer and length limits.
        num_envs: B, slots.
        examples: what is written instead of the task's training split, encoded.
        expert: the oracle, kept for agents at `expert`.
        ask_expert: let the expert go along: `info["expert_action"]`, (B,) int64, is then what it
            would write at the state that is shown, PAD where that is over, and rewards see its
            logits. Without it, the expert is never asked by `reset` or `step`.
        reward: what a step earns.
        noise: what the environment does to actions before they are written; None for nothing.
        autoreset_mode: when a slot begins its next episode.
        render_mode: "ansi" to have `render` give each slot's text, "human" to have it printed after
            `reset` and every `step`, which then wait for the device; None for neither.
        device: where the state lives.

    Raises:
        ValueError: `num_envs` below 1, a length limit below 2, another render mode, no examples,
            sources longer than the task's limit, a tokenizer that ends texts with padding, an
            expert with another vocabulary (`checks.match_vocabulary`), or none where it is to be
            asked.
        TypeError: an autoreset mode that is none of Gymnasium's, `num_envs` that is no integer.
    """

    def __init__(
        self,
        task: Task,
        num_envs: int = 1,
        *,
        examples: Examples | None = None,
        expert: Expert | None = None,
        ask_expert: bool = False,
        reward: Reward = sentence_bleu,
        noise: Noise | None = None,
        autoreset_mode: AutoresetMode = AutoresetMode.SAME_STEP,
        render_mode: Literal["human", "ansi"] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        check_settings(task, num_envs, autoreset_mode, render_mode)
        examples = encode(task.train, task) if examples is None else examples
        check_examples(examples, task)
        self.num_envs = num_envs
        self.tokenizer = task.tokenizer
        self.special = task.tokenizer.special
        self.vocab_size = task.tokenizer.vocab_size
        self.max_steps = task.max_target_length
        self.examples = examples.to(device)
        self.device = self.examples.source.device  # with its number, as tensors have it
        self.expert = (
            NoExpert(self.special) if expert is None else match_vocabulary(expert, task.tokenizer)
        )
        self.reward = reward
        self.noise = noise
        self.autoreset_mode = autoreset_mode
        self.render_mode = render_mode
        self.metadata = {
            "render_modes": list(RENDER_MODES),
            "render_fps": 4,  # nothing here depends on it; Gymnasium warns where it is missing
            "autoreset_mode": autoreset_mode,
        }
        self.single_observation_space = observation_space(
            task.max_source_length, self.max_steps, self.vocab_size
        )
        self.single_action_space = spaces.Discrete(self.vocab_size)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        missing = task.max_source_length - self.examples.source.shape[1]
        self._source = F.pad(self.examples.source, (0, missing), value=self.special.pad)
        self._adviser: Adviser | None = None
        if ask_expert:
            check_asked(self.expert)
            self._adviser = Adviser(self.expert, self._expert_source_at, self.max_steps)
        self._order: Tensor | None = None  # (draws,) int64, examples as they come
        self._everywhere = torch.ones(num_envs, dtype=torch.bool, device=self.device)
        self._next = torch.zeros((), dtype=torch.int64, device=self.device)  # how many have come
        self._index = torch.zeros(num_envs, dtype=torch.int64, device=self.device)
        self._reference = self.examples.reference[self._index]  # (B, R), of the slots' examples
        self._state: State | None = None
        self._generator = torch.Generator(self.device)  # of the noise

    def reset(
        self,
        *,
        seed: int | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> tuple[Observation, Info]:
        """Begin an episode in every slot. Options are checked before anything changes.

        Args:
            seed: start anew with the order of examples that this seed gives; None to go on.
            options: "indices", (B,) the example of each slot instead of the next ones; "order",
                (K,) the examples as they shall come, over and over, until a seed is given;
                "reset_mask", (B,) bool, the slots that begin, in mode `DISABLED` only.

        Raises:
            ValueError: an unknown option, or one of the wrong size or value.
            TypeError: no mapping, a "reset_mask" that is not bool, indices that are no numbers.
            RuntimeError: a "reset_mask" before the first reset.
        """
        options = checked_options(options)
        mask = self._checked_mask(options.get("reset_mask"))
        chosen = self._checked_indices("indices", options.get("indices"), self.num_envs)
        order = self._checked_indices("order", options.get("order"), None)
        super().reset(seed=seed)
        if seed is not None or self._order is None:
            drawn = shuffled_epochs(len(self.examples), self.np_random).to(self.device)
            order = drawn if order is None else order
            self._generator.manual_seed(int(self.np_random.integers(2**62)))
        if order is not None:
            self._order, self._next = order, torch.zeros_like(self._next)
        before, fresh = self._state, self._begin(mask, chosen)
        self._state = fresh if before is None else dynamics.replace_rows(before, mask, fresh)
        if self._adviser is not None:
            source = self.examples.expert_view.index_select(0, self._index)
            self._adviser.begin(self._state, source, mask)
        if self.render_mode == "human":
            self.render()
        return dynamics.observation(self._state), self._info() | self._advice()

    def step(
        self, actions: Tensor | np.ndarray, policy_logits: Tensor | np.ndarray | None = None
    ) -> tuple[Observation, Tensor, Tensor, Tensor, Info]:
        """Append one token to every unfinished episode.

        Args:
            actions: (B,) integer token ids, an array or a tensor on the environment's device; PAD
                for slots that have ended in mode `DISABLED`.
            policy_logits: (B, V) float, for rewards that compare the policy with the expert.

        Raises:
            RuntimeError: called before `reset`.
            ShapeError: another shape than these, also of rewards, or actions not integers.
            TypeError: actions or logits that are no numbers, or rewards that are no tensor.
            ValueError: a tensor is on another device, an id is outside the vocabulary, or a slot
                that has ended in mode `DISABLED` is given another token than PAD. On an accelerator
                tensors are not looked into: that would wait for the device.
        """
        before = self.state
        action, alive = self._checked_actions(actions, before), before.alive
        if policy_logits is not None:
            shape = self.num_envs, self.vocab_size
            policy_logits = checked_logits(policy_logits, shape).to(self.device)
        if self.noise is not None:
            action = self.noise(action, self._generator)
        state = dynamics.transition(before, action, self.special)
        written = action.where(alive, self.special.pad)
        asked = None if self._adviser is None else self._adviser.logits
        step = Step(state, written, alive, self._reference, self.special, asked, policy_logits)
        rewards, coming = self.reward(step), self._next
        check_rewards(rewards, self.num_envs)
        if self.autoreset_mode == AutoresetMode.NEXT_STEP:
            state = self._refilled(state, ~alive)
        shown = dynamics.observation(state)
        info = self._info() | {"written": written, "_written": alive}
        self._state = state
        if self.autoreset_mode == AutoresetMode.SAME_STEP:
            finished = step.finished
            info["_index"] = finished
            final = {
                "final_obs": shown,
                "_final_obs": finished,
                "final_info": info,
                "_final_info": finished,
            }
            self._state = self._refilled(state, finished)
            shown = dynamics.observation(self._state)
            info = info | self._info() | final
        if self._adviser is not None:
            refills = self.autoreset_mode != AutoresetMode.DISABLED
            begun = self._state.length == 0 if refills else None
            self._adviser.follow(self._state, written, begun, coming)
        if self.render_mode == "human":
            self.render()
        return shown, rewards, state.terminated, state.truncated, info | self._advice()

    @property
    def state(self) -> State:
        """The episodes as they are now, to be read; a RuntimeError before `reset`."""
        if self._state is None:
            raise RuntimeError("reset must come before all else, got none yet: call reset() first")
        return self._state

    def render(self) -> tuple[str, ...] | None:
        """The text of each slot (`rendering.as_text`); waits for the device and asks the expert.

        Returns:
            B strings in mode "ansi"; None in mode "human", which prints them, and without a mode.

        Raises:
            RuntimeError: called before `reset`.
        """
        if self.render_mode is None:
            return None
        shown = dynamics.observation(self.state)
        texts = as_text(shown, self.examples.select(self._index), self.tokenizer, self.expert)
        if self.render_mode == "ansi":
            return texts
        for slot, text in enumerate(texts):
            sys.stdout.write(f"slot {slot}\n{text}\n")
        return None

    def close_extras(self) -> None:
        """Forget the episodes: after `close`, called once or more, only `reset` may follow."""
        self._state = None

    def _info(self) -> Info:
        """Which example each slot is at; Gymnasium marks by "_index" the slots that say so."""
        return {"index": self._index, "_index": self._everywhere}

    def _refilled(self, state: State, mask: Tensor) -> State:
        """`state` with the next examples where `mask`, (B,) bool."""
        return dynamics.replace_rows(state, mask, self._begin(mask))

    def _advice(self) -> Info:
        """What the expert would write, where an episode is not over."""
        if self._adviser is None or self._state is None:
            return {}
        action = self._adviser.action(self._state)
        return {"expert_action": action, "_expert_action": self._state.alive}

    def _expert_source_at(self, place: Tensor) -> Tensor:
        return self.examples.expert_view.index_select(0, self._example_at(place))

    def _example_at(self, place: Tensor) -> Tensor:
        """The examples, int64, at places in the order; after its end it begins again."""
        assert self._order is not None, "reset draws the order"
        return self._order[place % len(self._order)]

    def _begin(self, mask: Tensor, chosen: Tensor | None = None) -> State:
        """Fresh episodes; where `mask`, (B,) bool, of `chosen` or else of the next examples."""
        if chosen is None:
            chosen = self._example_at(places(self._next, mask))
            self._next = self._next + mask.sum()
        self._index = chosen.where(mask, self._index)
        self._reference = self.examples.reference.index_select(0, self._index)
        source = self._source.index_select(0, self._index)  # 4 times as fast as indexing
        return dynamics.initial(source, self.max_steps, self.special)

    def _checked_mask(self, given: object) -> Tensor:
        if given is None:
            return self._everywhere
        if self.autoreset_mode != AutoresetMode.DISABLED:
            raise ValueError(
                "reset_mask must be used in autoreset mode DISABLED, "
                f"got {self.autoreset_mode.name}, in which slots begin anew by themselves"
            )
        if self._state is None:
            raise RuntimeError("reset_mask must come after a reset of all slots, got none yet")
        return checked_mask(given, self.num_envs).to(self.device)

    def _checked_indices(
        self, name: str, given: Numbers | None, count: int | None
    ) -> Tensor | None:
        if given is None:
            return None
        values = given.cpu() if isinstance(given, Tensor) else given
        return checked_ids(name, values, count, len(self.examples)).to(self.device)

    def _checked_actions(self, given: Numbers, state: State) -> Tensor:
        if isinstance(given, Tensor) and given.device != self.device:
            raise ValueError(
                f"actions must be on {self.device}, where the environment is, got a tensor on "
                f"{given.device}: call .to(env.device)"
            )
        action = checked_ids("actions", given, self.num_envs, self.vocab_size).to(self.device)
        if self.autoreset_mode == AutoresetMode.DISABLED:
            check_after_end(action, state.done, self.special.pad)
        return action
