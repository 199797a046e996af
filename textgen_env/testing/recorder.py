"""Recordings of a vector environment that is stepped with random actions.

A recording holds all that the environment returned. Nothing is judged here: `checker.py` compares
recordings with the contract.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import Tensor

from textgen_env.types import SpecialTokens

Arrays = dict[str, np.ndarray]
AnyVectorEnv = VectorEnv[Any, Any, Any]


@dataclass(frozen=True)
class Transition:
    """One step of B slots, copied to arrays.

    Attributes:
        number: the number of steps before this one.
        mode: the autoreset mode.
        before: the observation before the step.
        actions: (B,) int64.
        after: the observation that the step returned.
        rewards: (B,).
        terminated: (B,).
        truncated: (B,).
        info: the info that the step returned.
        previous: the step before, None after a reset.
    """

    number: int
    mode: AutoresetMode | None
    before: Arrays
    actions: np.ndarray
    after: Arrays
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    info: dict[str, Any]
    previous: "Transition | None"

    @property
    def done(self) -> np.ndarray:
        """Mask of the slots with either flag, (B,) bool."""
        return self.terminated | self.truncated

    @property
    def over(self) -> np.ndarray:
        """Mask of the slots whose episode was over before this step, (B,) bool."""
        if self.previous is None or self.mode == AutoresetMode.SAME_STEP:
            return np.zeros_like(self.done)
        return self.previous.done

    @property
    def before_refill(self) -> Arrays:
        """Observation after the step, with the last one of every episode that the step ended."""
        unfilled = {name: array.copy() for name, array in self.after.items()}
        if self.mode == AutoresetMode.SAME_STEP:
            final = self.info["final_obs"] if self.done.any() else {}
            for row in np.flatnonzero(self.done):
                for name, array in unfilled.items():
                    array[row] = final[name][row] if isinstance(final, dict) else final[row][name]
        return unfilled

    @property
    def written(self) -> np.ndarray:
        """Tokens that the step appended, (B,), from `info` or else the actions."""
        written = self.info.get("written", self.actions)
        if self.mode == AutoresetMode.SAME_STEP and self.done.any():
            return np.where(self.done, self.info["final_info"].get("written", written), written)
        return written

    @property
    def last_token(self) -> np.ndarray:
        """Last token of each prefix, (B,)."""
        unfilled = self.before_refill
        return unfilled["prefix"][np.arange(len(unfilled["length"])), unfilled["length"] - 1]


@dataclass(frozen=True)
class Segment:
    """Steps after one reset.

    Attributes:
        mode: the autoreset mode.
        first: the observation that the reset returned, copied to arrays.
        info: the info that the reset returned, copied to arrays.
        transitions: the steps.
        returned: every observation as it was returned, the reset's included, not copied.
    """

    mode: AutoresetMode | None
    first: Arrays
    info: dict[str, Any]
    transitions: list[Transition]
    returned: list[Any]


@dataclass(frozen=True)
class Recording:
    """An environment and two segments of its steps.

    Attributes:
        env: the environment.
        special: the ids of padding, start and end.
        seed: the seed of the first segment.
        stepped_before_reset: True if the environment took a step before its first reset.
        actions: (steps, B) int64 of each segment.
        segments: the two segments.
    """

    env: AnyVectorEnv
    special: SpecialTokens
    seed: int
    stepped_before_reset: bool
    actions: list[np.ndarray]
    segments: list[Segment]

    @property
    def mode(self) -> AutoresetMode | None:
        """The autoreset mode that the metadata names."""
        return metadata_mode(self.env)

    @property
    def transitions(self) -> Iterator[Transition]:
        """The steps of all segments."""
        return (step for segment in self.segments for step in segment.transitions)

    def observations(self) -> Iterator[tuple[Arrays, str]]:
        """Yield every observation, and in words when it was returned."""
        for segment in self.segments:
            yield segment.first, "after a reset"
            yield from ((step.after, f"at step {step.number}") for step in segment.transitions)

    def find(self, violates: Callable[[Transition], np.ndarray], violation: str) -> str | None:
        """Return `violation` with the first slot and step where `violates`, (B,) bool, or None."""
        for step in self.transitions:
            slots = np.flatnonzero(violates(step))
            if len(slots):
                return f"{violation} in slot {slots[0]} at step {step.number}"
        return None


def record_env(env: AnyVectorEnv, special: SpecialTokens, seed: int) -> Recording:
    """Try a step before the first reset, then record two segments with seeds of their own."""
    actions = _draw_actions(env, special, np.random.default_rng(seed))
    stepped_before_reset = _accepts(env, actions[0][0])
    steps = len(actions[0])
    segments = [
        record_segment(env, part, special.pad, seed=seed + number, first=number * steps)
        for number, part in enumerate(actions)
    ]
    return Recording(env, special, seed, stepped_before_reset, actions, segments)


def _accepts(env: AnyVectorEnv, actions: np.ndarray) -> bool:
    """Return whether the environment takes a step without an error."""
    try:
        env.step(actions)
    except Exception:  # the contract does not say of which class
        return False
    return True


def _draw_actions(
    env: AnyVectorEnv, special: SpecialTokens, generator: np.random.Generator
) -> list[np.ndarray]:
    """Draw the actions of two segments, (T + 3, B) int64 each.

    Every slot reaches the limit in one segment and writes the end token in the other. Each end is
    followed by three steps or more.
    """
    vocab_size, max_steps = vocab_size_and_limit(env)
    words = np.delete(np.arange(vocab_size), special.end)
    slots, segments = np.arange(env.num_envs), []
    for number in range(2):
        actions = generator.choice(words, (max_steps + 3, env.num_envs))
        position = generator.integers(max_steps, size=env.num_envs)
        ending = slots[(slots + number) % 2 == 1]
        actions[position[ending], ending] = special.end
        segments.append(actions)
    return segments


def record_segment(
    env: AnyVectorEnv,
    actions: np.ndarray,
    pad: int,
    *,
    seed: int,
    first: int = 0,
    indices: np.ndarray | None = None,
    as_arrays: bool = False,
) -> Segment:
    """Reset, to the examples at `indices` if they are given, and take (steps, B) `actions`."""
    options = None if indices is None else {"indices": indices}
    observation, info = env.reset(seed=seed, options=options)
    empty = Segment(metadata_mode(env), to_arrays(observation), to_arrays(info), [], [observation])
    return continue_segment(env, empty, actions, pad, first=first, as_arrays=as_arrays)


def continue_segment(
    env: AnyVectorEnv,
    segment: Segment,
    actions: np.ndarray,
    pad: int,
    *,
    first: int = 0,
    as_arrays: bool = False,
) -> Segment:
    """Return the segment with the steps of (steps, B) `actions` after its own.

    Args:
        env: in the state that the segment has led to.
        segment: the steps so far.
        actions: in mode `DISABLED`, slots that have ended are given `pad` instead.
        pad: the id of padding.
        first: the number of the first new step.
        as_arrays: give actions as arrays; otherwise in the form of the observations.
    """
    transitions, returned = [*segment.transitions], [*segment.returned]
    for number, row in enumerate(actions, first):
        previous = transitions[-1] if transitions else None
        if previous is not None and segment.mode == AutoresetMode.DISABLED:
            row = np.where(previous.done, pad, row)
        given = row if as_arrays else _in_form_of(returned[0], row)
        observation, *results, info = env.step(given)
        rewards, terminated, truncated = map(to_array, results)
        step = Transition(
            number=number,
            mode=segment.mode,
            before=segment.first if previous is None else previous.after,
            actions=row,
            after=to_arrays(observation),
            rewards=rewards,
            terminated=terminated,
            truncated=truncated,
            info=to_arrays(info),
            previous=previous,
        )
        transitions.append(step)
        returned.append(observation)
    return replace(segment, transitions=transitions, returned=returned)


def to_arrays(nested: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested dicts of tensors or arrays, copied to arrays."""
    return {
        name: to_arrays(part) if isinstance(part, dict) else to_array(part)
        for name, part in nested.items()
    }


def to_array(values: Tensor | np.ndarray) -> np.ndarray:
    """Return a tensor or an array, copied to an array."""
    return values.cpu().numpy().copy() if isinstance(values, Tensor) else np.array(values)


def _in_form_of(observation: Mapping[str, Any], row: np.ndarray) -> Tensor | np.ndarray:
    """Return `row` as a tensor on the observation's device if that is made of tensors."""
    prefix = observation["prefix"]
    return torch.as_tensor(row, device=prefix.device) if isinstance(prefix, Tensor) else row


def metadata_mode(env: AnyVectorEnv) -> AutoresetMode | None:
    """Return the autoreset mode that the metadata names."""
    return env.metadata.get("autoreset_mode")


def vocab_size_and_limit(env: AnyVectorEnv) -> tuple[int, int]:
    """Return V and T as the spaces have them.

    Raises:
        TypeError: the spaces are not those of text.
    """
    action, observation = env.single_action_space, env.single_observation_space
    prefix = observation.get("prefix") if isinstance(observation, spaces.Dict) else None
    if not isinstance(action, spaces.Discrete) or not isinstance(prefix, spaces.Box):
        raise TypeError(
            'the single spaces must be a Discrete and a Dict with a Box "prefix", '
            f"got {action} and {observation}"
        )
    return int(action.n), prefix.shape[0]
