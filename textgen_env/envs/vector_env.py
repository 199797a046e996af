"""Vector environment of text generation: many episodes at once on the device, tensors in and out.

`step` never waits for the device. Every example is encoded once, and a slot that is refilled
gathers its row. User input is checked in `validation.py`, text to read is made in `rendering.py`.
"""

import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from textgen_env import dynamics
from textgen_env.dynamics import Observation, State
from textgen_env.envs.continuous_batching import PrefillPool, next_positions, shuffled_epochs
from textgen_env.envs.rendering import as_picture, as_text
from textgen_env.envs.rewards import Reward, Step, sentence_bleu
from textgen_env.envs.validation import (
    RENDER_MODES,
    RenderMode,
    check_after_end,
    check_examples,
    check_expert_given,
    check_rewards,
    check_settings,
    checked_actions,
    checked_device,
    checked_indices,
    checked_logits,
    checked_mask,
    checked_options,
    match_vocabulary,
)
from textgen_env.experts.expert import Expert, NoExpert
from textgen_env.experts.session import ExpertSession
from textgen_env.generation.decoding import logits_from, next_action
from textgen_env.tasks.task import Task, encode
from textgen_env.types import Examples

Info = dict[str, Any]
Noise = Callable[[Tensor, torch.Generator], Tensor]
"""(actions (B,) int64, generator) -> (B,) int64, the tokens that are written in their place."""


def observation_space(max_source_length: int, max_steps: int, vocab_size: int) -> spaces.Dict:
    """Return the space of one episode: source and prefix as token ids, and their lengths.

    Lengths are `Discrete`: Stable-Baselines3 cannot check the bounds of a `Box` without dimensions.
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
    """Vector environment whose B slots each write the target of one example of a task.

    Observations are dicts of int64 tensors (`dynamics.observation`); actions are (B,) token ids, as
    a tensor or an array. Rewards are (B,) float32. `terminated` (the end token was written) and
    `truncated` (the length limit was reached without it) are (B,) bool and never both True.
    Returned tensors may share memory with the state: do not write into them.

    The autoreset mode decides what happens to a slot whose episode has ended:
    - `DISABLED`: the slot takes PAD only and does not change. It keeps its flags and earns 0 until
      a `reset`, of all slots or with "reset_mask".
    - `SAME_STEP`: the step that ends the episode already returns the first observation of the next
      one. `info["final_obs"]` and `info["final_info"]` hold the last observation and info of the
      ended episode where `info["_final_obs"]` and `info["_final_info"]`, (B,) bool, are True;
      their other rows are undefined.
    - `NEXT_STEP`: the step after the end ignores its action, returns the first observation of the
      next episode, earns 0 and returns False for both flags.

    `info["index"]`, (B,) int64, is the example of each slot. `info["written"]`, (B,) int64, is the
    token that the step appended where `info["_written"]` is True, and PAD elsewhere. It is the
    action unless `noise` has replaced it.

    Slots take examples in turn from an order drawn with the seed: every example once, then every
    example again in another order, and so on (`shuffled_epochs`).

    Args:
        task: the task; gives tokenizer and length limits.
        num_envs: B, the number of slots.
        examples: encoded examples to use instead of the task's training split.
        expert: the oracle, available to agents as `expert`.
        ask_expert: query the expert at every step. `info["expert_action"]`, (B,) int64, is then its
            most probable token at the observed state, PAD where the episode is over, and rewards
            see its logits. Otherwise `reset` and `step` never query the expert.
        reward: the reward of a step.
        noise: replaces actions before they are written; None for no noise.
        autoreset_mode: when a slot begins its next episode.
        render_mode: "ansi" to have `render` return the text of each slot, "rgb_array" a picture of
            it, "human" to have it printed after `reset` and `step`, which wait for it; or None.
        device: where the state is held.

    Raises:
        ValueError: `num_envs` below 1, a length limit below 2, another render mode, no device, no
            examples, or of other tokens or lengths than the task's, or without references that the
            reward needs, a tokenizer that ends texts with padding, `ask_expert` without an expert,
            or one with another vocabulary (`validation.match_vocabulary`).
        TypeError: an argument of another kind.
    """

    def __init__(  # noqa: PLR0913 - settings that `gymnasium.make_vec` passes by name
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
        render_mode: RenderMode | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        check_settings(task, num_envs, autoreset_mode, render_mode, expert, reward, noise)
        examples = encode(task.train, task) if examples is None else examples
        check_examples(examples, task, reward)
        self.num_envs = num_envs
        self.tokenizer = task.tokenizer
        self.special = task.tokenizer.special
        self.vocab_size = task.tokenizer.vocab_size
        self.max_steps = task.max_target_length
        self.examples = examples.to(checked_device(device))
        self.device = self.examples.source.device  # with its number, as tensors have it
        self.expert = (
            NoExpert(self.special) if expert is None else match_vocabulary(expert, task.tokenizer)
        )
        self.reward = reward
        self.noise = noise
        self.autoreset_mode = autoreset_mode
        self.render_mode = render_mode
        self._set_spaces(task.max_source_length)
        missing = task.max_source_length - self.examples.source.shape[1]
        self._source = F.pad(self.examples.source, (0, missing), value=self.special.pad)
        self._ask_expert = ask_expert
        if ask_expert:
            check_expert_given(self.expert)
        self._session: ExpertSession | None = None
        self._pool = self._new_pool()
        self._expert_logits: Tensor | None = None  # (B, V), at the observed state
        self._order: Tensor | None = None  # (draws,) int64, examples in the order of their episodes
        self._next = torch.zeros((), dtype=torch.int64, device=self.device)  # position in the order
        self._all_slots = torch.ones(num_envs, dtype=torch.bool, device=self.device)
        self._index = torch.zeros(num_envs, dtype=torch.int64, device=self.device)
        self._reference = self.examples.reference[self._index]  # (B, R), of the slots' examples
        self._state: State | None = None
        self._generator = torch.Generator(self.device)  # for the noise

    def reset(
        self,
        *,
        seed: int | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> tuple[Observation, Info]:
        """Begin an episode in every slot. Options are checked before anything changes.

        Args:
            seed: restart the order of examples and the noise from this seed; None to continue.
            options: "indices", (B,) the example of each slot instead of the next ones; "order",
                (K,) an order of examples to repeat until a seed is given; "reset_mask", (B,) bool,
                the slots that begin an episode, in mode `DISABLED` only.

        Raises:
            ValueError: an unknown option, or one of the wrong size or value.
            TypeError: no mapping, a "reset_mask" that is not bool, indices that are no numbers.
            RuntimeError: a "reset_mask" before the first reset.
        """
        options = checked_options(options)
        mask = self._checked_mask(options.get("reset_mask"))
        limit, device = len(self.examples), self.device
        chosen = checked_indices("indices", options.get("indices"), self.num_envs, limit, device)
        order = checked_indices("order", options.get("order"), None, limit, device)
        super().reset(seed=seed)
        if seed is not None or self._order is None:
            drawn = shuffled_epochs(len(self.examples), self.np_random).to(self.device)
            order = drawn if order is None else order
            self._generator.manual_seed(int(self.np_random.integers(2**62)))
        if order is not None:
            self._order, self._next = order, torch.zeros_like(self._next)
        before, fresh = self._state, self._fresh_episodes(mask, chosen)
        self._state = fresh if before is None else dynamics.replace_rows(before, mask, fresh)
        if self._ask_expert:
            self._begin_session(self._state, mask)
        if self.render_mode == "human":
            self.render()
        return dynamics.observation(self._state), self._index_info() | self._expert_info()

    def step(
        self, actions: Tensor | np.ndarray, policy_logits: Tensor | np.ndarray | None = None
    ) -> tuple[Observation, Tensor, Tensor, Tensor, Info]:
        """Append one token to every unfinished episode.

        Args:
            actions: (B,) integer token ids, an array or a tensor on the environment's device; PAD
                for slots that have ended in mode `DISABLED`.
            policy_logits: (B, V) float, for rewards that compare the policy with the expert.

        Returns:
            The observation, (B,) float32 rewards, (B,) bool `terminated` and `truncated`, and info.

        Raises:
            RuntimeError: called before `reset`.
            ShapeError: another shape than these, also of rewards, or actions not integers.
            TypeError: actions or logits that are no numbers, or rewards that are no tensor.
            ValueError: a tensor is on another device, an id is outside the vocabulary, or a slot
                that has ended in mode `DISABLED` is given another token than PAD. Values of tensors
                on an accelerator are not checked: that would wait for the device.
        """
        before = self.state
        size = self.num_envs, self.vocab_size
        action = checked_actions(actions, *size, self.device)
        if self.autoreset_mode == AutoresetMode.DISABLED:
            check_after_end(action, before.done, self.special.pad)
        if policy_logits is not None:
            policy_logits = checked_logits(policy_logits, size).to(self.device)
        if self.noise is not None:
            written = self.noise(action, self._generator)
            action = checked_actions(written, *size, self.device, "what noise returns")
        step = Step(
            state=dynamics.transition(before, action, self.special),
            written=action.where(before.alive, self.special.pad),
            alive=before.alive,
            references=self._reference,
            special=self.special,
            expert_logits=self._expert_logits,
            policy_logits=policy_logits,
        )
        rewards, first = self.reward(step), self._next
        check_rewards(rewards, self.num_envs)
        flags, info = self._autoreset(step)
        if self._session is not None:
            self._continue_session(self._session, step.written, first)
        if self.render_mode == "human":
            self.render()
        return dynamics.observation(self.state), rewards, *flags, info | self._expert_info()

    @property
    def state(self) -> State:
        """The current episodes, read only; a RuntimeError before `reset`."""
        if self._state is None:
            raise RuntimeError("reset must come before all else, got none yet: call reset() first")
        return self._state

    def render(self) -> tuple[str, ...] | tuple[np.ndarray, ...] | None:
        """Return or print the text of each slot (`rendering.as_text`).

        It waits for the device and queries the expert.

        Returns:
            B strings in mode "ansi"; B pictures of them, (H, W, 3) uint8, in mode "rgb_array"; None
            in mode "human", which prints them, and without a mode.

        Raises:
            RuntimeError: called before `reset`.
        """
        if self.render_mode is None:
            return None
        shown = dynamics.observation(self.state)
        texts = as_text(shown, self.examples.select(self._index), self.tokenizer, self.expert)
        if self.render_mode == "ansi":
            return texts
        if self.render_mode == "rgb_array":
            return tuple(map(as_picture, texts))
        for slot, text in enumerate(texts):
            sys.stdout.write(f"slot {slot}\n{text}\n")
        return None

    def close_extras(self) -> None:
        """Drop the episodes: after `close`, called once or more, only `reset` may follow."""
        self._state = None

    def _set_spaces(self, max_source_length: int) -> None:
        """Set the spaces and the metadata that Gymnasium asks for."""
        self.metadata = {
            "render_modes": list(RENDER_MODES),
            "render_fps": 4,  # nothing here depends on it; Gymnasium warns where it is missing
            "autoreset_mode": self.autoreset_mode,
        }
        self.single_observation_space = observation_space(
            max_source_length, self.max_steps, self.vocab_size
        )
        self.single_action_space = spaces.Discrete(self.vocab_size)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

    def _autoreset(self, step: Step) -> tuple[tuple[Tensor, Tensor], Info]:
        """Advance to the state after `step`, with slots refilled as the autoreset mode says.

        Returns:
            `terminated` and `truncated`, (B,) bool each, and the info without the expert's part.
        """
        state, final = step.state, {}
        if self.autoreset_mode == AutoresetMode.NEXT_STEP:
            state = self._refilled(state, ~step.alive)
        info = self._index_info() | {"written": step.written, "_written": step.alive}
        self._state = state
        if self.autoreset_mode == AutoresetMode.SAME_STEP:
            finished = step.finished
            info["_index"] = finished
            final = {
                "final_obs": dynamics.observation(state),
                "_final_obs": finished,
                "final_info": info,
                "_final_info": finished,
            }
            self._state = self._refilled(state, finished)
        return (state.terminated, state.truncated), info | self._index_info() | final

    def _refilled(self, state: State, mask: Tensor) -> State:
        """Return `state` with fresh episodes of the next examples where `mask`, (B,) bool."""
        return dynamics.replace_rows(state, mask, self._fresh_episodes(mask))

    def _fresh_episodes(self, mask: Tensor, chosen: Tensor | None = None) -> State:
        """Return fresh episodes for the slots of `mask`, (B,) bool, and note their examples.

        They are those of `chosen`, (B,) int64, or else the next ones of the order.
        """
        if chosen is None:
            chosen = self._example_at(next_positions(self._next, mask))
            self._next = self._next + mask.sum()
        self._index = chosen.where(mask, self._index)
        self._reference = self.examples.reference.index_select(0, self._index)
        source = self._source.index_select(0, self._index)
        return dynamics.initial(source, self.max_steps, self.special)

    def _example_at(self, position: Tensor) -> Tensor:
        """Return the examples at int64 positions in the order, which repeats after its end."""
        assert self._order is not None, "reset draws the order"
        return self._order[position % len(self._order)]

    def _expert_source_at(self, position: Tensor) -> Tensor:
        return self.examples.expert_view.index_select(0, self._example_at(position))

    def _new_pool(self) -> PrefillPool:
        """Return an empty pool of the expert's caches for the examples to come."""
        return PrefillPool(self.expert.start, self._expert_source_at, self.max_steps)

    def _begin_session(self, state: State, mask: Tensor) -> None:
        """Query the expert at `state`, where the slots of `mask`, (B,) bool, begin an episode."""
        source = self.examples.expert_view.index_select(0, self._index)
        fresh = ExpertSession(self.expert, source, self.max_steps)
        logits = fresh.step(state, torch.full_like(state.length, self.expert.special.start))
        if self._session is None or self._expert_logits is None:
            self._session, self._expert_logits = fresh, logits
        else:
            rows = torch.arange(self.num_envs, device=self.device)
            self._session.reset_rows(mask, fresh.cache, rows)
            self._expert_logits = logits.where(mask[:, None], self._expert_logits)
        self._pool = self._new_pool()  # the order may be another one now

    def _continue_session(self, session: ExpertSession, written: Tensor, first: Tensor) -> None:
        """Query the expert at the state that the tokens `written`, (B,) int64, have led to.

        `first`, () int64, is the position of the first example that refilled slots have taken.
        """
        if self.autoreset_mode != AutoresetMode.DISABLED:
            begun = self.state.length == 0
            session.reset_rows(begun, *self._pool.prefilled(begun, first))
            written = written.masked_fill(begun, self.expert.special.start)
        self._expert_logits = session.step(self.state, written)

    def _index_info(self) -> Info:
        """Return the example of each slot; Gymnasium's "_index" marks the slots that have one."""
        return {"index": self._index, "_index": self._all_slots}

    def _expert_info(self) -> Info:
        """Return the expert's most probable token at the observed state, PAD after the end."""
        if self._expert_logits is None:
            return {}
        with logits_from("teacher"):
            best = next_action(
                self._expert_logits, special=self.expert.special, mask=self.state.alive
            )
        action = best.masked_fill(self.state.done, self.expert.special.pad)
        return {"expert_action": action, "_expert_action": self.state.alive}

    def _checked_mask(self, given: object) -> Tensor:
        if given is None:
            return self._all_slots
        if self.autoreset_mode != AutoresetMode.DISABLED:
            raise ValueError(
                "reset_mask must be used in autoreset mode DISABLED, "
                f"got {self.autoreset_mode.name}, in which slots begin anew by themselves"
            )
        if self._state is None:
            raise RuntimeError("reset_mask must come after a reset of all slots, got none yet")
        return checked_mask(given, self.num_envs).to(self.device)
