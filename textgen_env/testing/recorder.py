"""Playing a vector environment with drawn actions, and keeping all that it shows.

What `testing.py` holds against the contract. Nothing is judged here.
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
        number: how many steps came before, from 0.
        mode: the autoreset mode.
        before: the observation that the actions answer.
        actions: (B,) int64.
        shown: the observation after.
        rewards: (B,).
        terminated: (B,).
        truncated: (B,).
        info: as it was given.
        earlier: the step before, None after a reset.
    """

    number: int
    mode: AutoresetMode | None
    before: Arrays
    actions: np.ndarray
    shown: Arrays
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    info: dict[str, Any]
    earlier: "Transition | None"

    @property
    def done(self) -> np.ndarray:
        """(B,) bool, either flag."""
        return self.terminated | self.truncated

    @property
    def over(self) -> np.ndarray:
        """(B,) bool, the episode had ended before this step and nothing had begun in its place."""
        if self.earlier is None or self.mode == AutoresetMode.SAME_STEP:
            return np.zeros_like(self.done)
        return self.earlier.done

    @property
    def end(self) -> Arrays:
        """What was shown after, with the episodes that this step ended as they were at the end."""
        end = {name: array.copy() for name, array in self.shown.items()}
        if self.mode == AutoresetMode.SAME_STEP:
            final = self.info["final_obs"] if self.done.any() else {}
            for row in np.flatnonzero(self.done):
                for name, array in end.items():
                    array[row] = final[name][row] if isinstance(final, dict) else final[row][name]
        return end

    @property
    def written(self) -> np.ndarray:
        """(B,) the token appended: what `info` says, else the action."""
        written = self.info.get("written", self.actions)
        if self.mode == AutoresetMode.SAME_STEP and self.done.any():
            return np.where(self.done, self.info["final_info"].get("written", written), written)
        return written

    @property
    def last(self) -> np.ndarray:
        """(B,) the token that the prefix ends in."""
        end = self.end
        return end["prefix"][np.arange(len(end["length"])), end["length"] - 1]


@dataclass(frozen=True)
class Segment:
    """Some steps after a reset: what it showed and said, and every observation as it was given."""

    mode: AutoresetMode | None
    start: Arrays
    info: dict[str, Any]
    turns: list[Transition]
    given: list[Any]


@dataclass(frozen=True)
class Recording:
    """What the clauses look at: an environment, and two rounds of it."""

    env: AnyVectorEnv
    special: SpecialTokens
    seed: int
    began_by_itself: bool  # it took a step before the first reset
    actions: list[np.ndarray]  # (steps, B) of each round
    rounds: list[Segment]

    @property
    def mode(self) -> AutoresetMode | None:
        """The autoreset mode that the metadata names."""
        return mode_of(self.env)

    @property
    def turns(self) -> Iterator[Transition]:
        """The steps of all rounds."""
        return (turn for one in self.rounds for turn in one.turns)

    def observations(self) -> Iterator[tuple[Arrays, str]]:
        """All that was shown, and when."""
        for one in self.rounds:
            yield one.start, "after a reset"
            yield from ((turn.shown, f"at step {turn.number}") for turn in one.turns)

    def anywhere(self, find: Callable[[Transition], np.ndarray], what: str) -> str | None:
        """`what` with the first slot and step where `find`, (B,) bool, or None."""
        for turn in self.turns:
            slots = np.flatnonzero(find(turn))
            if len(slots):
                return f"{what} in slot {slots[0]} at step {turn.number}"
        return None


def play(env: AnyVectorEnv, special: SpecialTokens, seed: int) -> Recording:
    """A step too early, and two rounds of drawn actions, the second after another seed."""
    actions = _draw_actions(env, special, np.random.default_rng(seed))
    began_by_itself = _takes(env, actions[0][0])
    steps = len(actions[0])
    rounds = [
        play_round(env, part, special.pad, seed=seed + number, first=number * steps)
        for number, part in enumerate(actions)
    ]
    return Recording(env, special, seed, began_by_itself, actions, rounds)


def _takes(env: AnyVectorEnv, row: np.ndarray) -> bool:
    try:
        env.step(row)
    except Exception:  # of whatever class: which one is not the contract's
        return False
    return True


def _draw_actions(
    env: AnyVectorEnv, special: SpecialTokens, generator: np.random.Generator
) -> list[np.ndarray]:
    """Two rounds, T + 3 steps each; every slot meets the limit in one, the end token in the other.

    So episodes end in both ways, and three steps at least come after each end.
    """
    vocabulary, max_steps = sizes(env)
    others = np.delete(np.arange(vocabulary), special.end)
    slots, rounds = np.arange(env.num_envs), []
    for number in range(2):
        actions = generator.choice(others, (max_steps + 3, env.num_envs))
        place = generator.integers(max_steps, size=env.num_envs)
        ending = slots[(slots + number) % 2 == 1]
        actions[place[ending], ending] = special.end
        rounds.append(actions)
    return rounds


def play_round(
    env: AnyVectorEnv,
    actions: np.ndarray,
    pad: int,
    *,
    seed: int,
    first: int = 0,
    indices: np.ndarray | None = None,
    as_arrays: bool = False,
) -> Segment:
    """Reset, to the examples at `indices` if there are any, and take (steps, B) `actions`."""
    options = None if indices is None else {"indices": indices}
    shown, info = env.reset(seed=seed, options=options)
    begun = Segment(mode_of(env), copied(shown), copied(info), [], [shown])
    return go_on(env, begun, actions, pad, first=first, as_arrays=as_arrays)


def go_on(
    env: AnyVectorEnv,
    begun: Segment,
    actions: np.ndarray,
    pad: int,
    *,
    first: int = 0,
    as_arrays: bool = False,
) -> Segment:
    """A round that goes on from where `begun` has come to, by (steps, B) `actions`.

    In mode `DISABLED`, slots that have ended are given `pad` instead. Actions are given in the form
    of the observations, or all `as_arrays`.
    """
    turns, given = [*begun.turns], [*begun.given]
    for number, row in enumerate(actions, first):
        earlier = turns[-1] if turns else None
        if earlier is not None and begun.mode == AutoresetMode.DISABLED:
            row = np.where(earlier.done, pad, row)
        shown, *results, info = env.step(row if as_arrays else _in_form_of(given[0], row))
        rewards, terminated, truncated = map(as_array, results)
        turn = Transition(
            number=number,
            mode=begun.mode,
            before=begun.start if earlier is None else earlier.shown,
            actions=row,
            shown=copied(shown),
            rewards=rewards,
            terminated=terminated,
            truncated=truncated,
            info=copied(info),
            earlier=earlier,
        )
        turns.append(turn)
        given.append(shown)
    return replace(begun, turns=turns, given=given)


def copied(given: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of nested dicts of tensors or arrays, as arrays."""
    return {
        name: copied(part) if isinstance(part, dict) else as_array(part)
        for name, part in given.items()
    }


def as_array(given: Tensor | np.ndarray) -> np.ndarray:
    """A copy of a tensor or an array, as an array."""
    return given.cpu().numpy().copy() if isinstance(given, Tensor) else np.array(given)


def _in_form_of(shown: Mapping[str, Any], row: np.ndarray) -> Tensor | np.ndarray:
    """`row` as a tensor on the device of the observation if that is made of tensors."""
    like = shown["prefix"]
    return torch.as_tensor(row, device=like.device) if isinstance(like, Tensor) else row


def mode_of(env: AnyVectorEnv) -> AutoresetMode | None:
    """What the metadata names."""
    return env.metadata.get("autoreset_mode")


def sizes(env: AnyVectorEnv) -> tuple[int, int]:
    """V and T.

    Raises:
        TypeError: the spaces are not those of text.
    """
    action, shown = env.single_action_space, env.single_observation_space
    prefix = shown.get("prefix") if isinstance(shown, spaces.Dict) else None
    if not isinstance(action, spaces.Discrete) or not isinstance(prefix, spaces.Box):
        raise TypeError(
            'the single spaces must be a Discrete and a Dict with a Box "prefix", '
            f"got {action} and {shown}"
        )
    return int(action.n), prefix.shape[0]
