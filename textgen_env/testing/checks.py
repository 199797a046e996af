"""What a vector environment may do against the contract: a function for each of its clauses.

Each looks at what was played (`playing.py`), or plays on, and says what it finds in words. Their
rules are in `testing.py`.
"""

import pickle
import random

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

from textgen_env.testing.recorder import (
    Arrays,
    Recording,
    Segment,
    Transition,
    as_array,
    copied,
    go_on,
    play_round,
    sizes,
)


def modes_agree(record: Recording) -> str | None:
    """Gymnasium reads the mode in the metadata, TorchRL the attribute."""
    attribute = getattr(record.env.unwrapped, "autoreset_mode", None)  # no attribute of every class
    if isinstance(record.mode, AutoresetMode) and attribute is record.mode:
        return None
    return f"{record.mode} in the metadata and {attribute} as attribute"


def spaces_hold(record: Recording) -> str | None:
    """Batched and single spaces."""
    env = record.env
    for shown, when in record.observations():
        if not env.observation_space.contains(shown):
            return f"an observation outside observation_space {when}"
        for slot in range(env.num_envs):
            row = {name: array[slot] for name, array in shown.items()}
            if not env.single_observation_space.contains(row):
                return f"an observation outside single_observation_space in slot {slot} {when}"
    for turn in record.turns:
        if not env.action_space.contains(turn.actions):
            return f"action_space without the actions of step {turn.number}"
    return None


def observations_have_their_form(record: Recording) -> str | None:
    """As the single space has it, a row for each slot."""
    space = record.env.single_observation_space
    assert isinstance(space, spaces.Dict), "else it could not have been played"
    for shown, when in record.observations():
        for name, part in space.items():
            array, shape = shown[name], (record.env.num_envs, *(part.shape or ()))
            if array.dtype != np.int64 or array.shape != shape:
                return f"{name} {array.dtype} {array.shape}, not int64 {shape}, {when}"
    return None


def padding_follows(record: Recording) -> str | None:
    """In source and prefix."""
    for shown, when in record.observations():
        for name, length in (("source", "source_length"), ("prefix", "length")):
            behind = np.arange(shown[name].shape[1]) >= shown[length][:, None]
            slots = np.flatnonzero((behind & (shown[name] != record.special.pad)).any(1))
            if len(slots):
                return f"another token in the {name} of slot {slots[0]} {when}"
    return None


def step_waits_for_reset(record: Recording) -> str | None:
    """The first one."""
    return "a step that was taken" if record.began_by_itself else None


def reset_begins(record: Recording) -> str | None:
    """Every slot, without a mask."""
    begun = [one.start["length"].any() for one in record.rounds]
    return "a length above 0" if any(begun) else None


def flags_are_bool(record: Recording) -> str | None:
    """One of each a slot."""
    for turn in record.turns:
        for flags in (turn.terminated, turn.truncated):
            if flags.dtype != np.bool_ or flags.shape != (record.env.num_envs,):
                return f"{flags.dtype} {flags.shape} at step {turn.number}"
    return None


def never_both(record: Recording) -> str | None:
    """A text that ends at the limit has ended."""
    return record.anywhere(lambda turn: turn.terminated & turn.truncated, "both")


def rewards_are_numbers(record: Recording) -> str | None:
    """One a slot."""
    for turn in record.turns:
        rewards = turn.rewards
        if rewards.dtype != np.float32 or rewards.shape != (record.env.num_envs,):
            return f"{rewards.dtype} {rewards.shape} at step {turn.number}"
    return record.anywhere(lambda turn: ~np.isfinite(turn.rewards), "another number")


def same_step_refills(record: Recording) -> str | None:
    """What was shown at the end is in `info`, exactly where an episode ended."""
    if record.mode != AutoresetMode.SAME_STEP:
        return None
    for turn in record.turns:
        for name in ("final_obs", "final_info"):
            if not np.array_equal(turn.info.get(f"_{name}", np.zeros_like(turn.done)), turn.done):
                return f"_{name} that does not say which slots ended at step {turn.number}"
            if name not in turn.info and turn.done.any():
                return f"no {name} at step {turn.number}"
    return record.anywhere(
        lambda turn: turn.done & (turn.shown["length"] != 0), "no new episode"
    ) or record.anywhere(
        lambda turn: turn.done & (turn.end["length"] != turn.before["length"] + 1),
        "another length than the episode's in final_obs",
    )


def next_step_refills(record: Recording) -> str | None:
    """The action after an end does nothing."""
    if record.mode != AutoresetMode.NEXT_STEP:
        return None
    return record.anywhere(
        lambda turn: turn.over & ((turn.shown["length"] != 0) | turn.done), "no new episode"
    )


def disabled_absorbs(record: Recording) -> str | None:
    """Observation and flags stay."""
    if record.mode != AutoresetMode.DISABLED:
        return None
    return record.anywhere(
        lambda turn: turn.over & (_differs(turn.before, turn.shown) | _flags_changed(turn)),
        "a change",
    )


def _flags_changed(turn: Transition) -> np.ndarray:
    earlier = turn.earlier or turn
    return (turn.terminated != earlier.terminated) | (turn.truncated != earlier.truncated)


def terminated_by_end_token(record: Recording) -> str | None:
    """Where the episode was not over."""
    end = record.special.end
    return record.anywhere(
        lambda turn: ~turn.over & (turn.terminated != (turn.last == end)), "another flag"
    )


def truncated_by_limit(record: Recording) -> str | None:
    """Where the episode was not over."""
    _, max_steps = sizes(record.env)

    def wrong(turn: Transition) -> np.ndarray:
        at_limit = (turn.end["length"] == max_steps) & (turn.last != record.special.end)
        return ~turn.over & (turn.truncated != at_limit)

    return record.anywhere(wrong, "another flag")


def prefix_grows(record: Recording) -> str | None:
    """By the token that was written; the source stays."""

    def wrong(turn: Transition) -> np.ndarray:
        expected = {name: array.copy() for name, array in turn.before.items()}
        rows = np.flatnonzero(~turn.over)
        expected["prefix"][rows, expected["length"][rows]] = turn.written[rows]
        expected["length"][rows] += 1
        return ~turn.over & _differs(expected, turn.end)

    return record.anywhere(wrong, "another observation")


def rewards_end(record: Recording) -> str | None:
    """Also in the step that `NEXT_STEP` spends on the next episode."""
    return record.anywhere(lambda turn: turn.over & (turn.rewards != 0), "a reward")


def observations_stay(record: Recording) -> str | None:
    """What was handed out is the receiver's."""
    for one in record.rounds:
        copies = [one.start, *(turn.shown for turn in one.turns)]
        for steps, (given, before) in enumerate(zip(one.given, copies, strict=True)):
            if _differs(copied(given), before).any():
                return f"a change in the observation {steps} steps after a reset"
    return None


def seed_reproduces(record: Recording) -> str | None:
    """The same actions give the same rounds."""
    for number, (one, actions) in enumerate(zip(record.rounds, record.actions, strict=True)):
        again = play_round(record.env, actions, record.special.pad, seed=record.seed + number)
        if found := _other_round(one, again):
            return found
    return None


def _other_round(one: Segment, other: Segment) -> str | None:
    """The first step that is not the same, in words."""
    if _differs(one.start, other.start).any():
        return "another example"
    for turn, again in zip(one.turns, other.turns, strict=True):
        if _turns_differ(turn, again).any():
            return f"another step {turn.number}"
    return None


def _turns_differ(turn: Transition, other: Transition) -> np.ndarray:
    flags = (turn.terminated != other.terminated) | (turn.truncated != other.truncated)
    return flags | (turn.rewards != other.rewards) | _differs(turn.shown, other.shown)


def global_generators_rest(record: Recording) -> str | None:
    """Those of torch, numpy and the standard library; neither seeded nor drawn from."""
    before = _global_states()
    play_round(record.env, record.actions[0], record.special.pad, seed=record.seed)
    after = _global_states()
    moved = [name for name in before if before[name] != after[name]]
    return f"a change in that of {' and '.join(moved)}" if moved else None


def _global_states() -> dict[str, str]:
    return {
        "torch": str(torch.get_rng_state().tolist()),
        "numpy": str([np.asarray(part).tolist() for part in np.random.get_state()]),
        "random": str(random.getstate()),
    }


def indices_choose(record: Recording) -> str | None:
    """The examples of earlier episodes come back, in the opposite order of slots."""
    for one in record.rounds:
        if "index" not in one.info:
            return 'no info["index"]'
        shown, info = record.env.reset(options={"indices": one.info["index"][::-1].copy()})
        if not np.array_equal(as_array(info["index"]), one.info["index"][::-1]):
            return 'another info["index"]'
        if _rows_differ(as_array(shown["source"]), one.start["source"][::-1]).any():
            return "another source"
    return None


def index_follows(record: Recording) -> str | None:
    """At every step; a reset to what it says shows the same source."""
    for one in record.rounds:
        index = one.info["index"]
        for turn in one.turns:
            if record.mode == AutoresetMode.SAME_STEP:
                ended = turn.info.get("final_info", {}).get("index")
                if (turn.done & (index != ended)).any():
                    return f"another one in final_info at step {turn.number}"
            index = turn.info.get("index")
            if index is None:
                return f"none at step {turn.number}"
            try:
                shown, _ = record.env.reset(options={"indices": index})
            except Exception as error:
                return f"{index} at step {turn.number}, which reset refuses by {error!r}"
            if _rows_differ(as_array(shown["source"]), turn.shown["source"]).any():
                return f"that of another source at step {turn.number}"
    return None


def mask_chooses(record: Recording) -> str | None:
    """In mode `DISABLED`, where alone there is one."""
    if record.mode != AutoresetMode.DISABLED:
        return None
    pad = record.special.pad
    before = play_round(record.env, record.actions[0], pad, seed=record.seed).turns[-1].shown
    mask = np.arange(record.env.num_envs) % 2 == 0
    shown = copied(record.env.reset(options={"reset_mask": mask})[0])
    if shown["length"][mask].any():
        return "a slot that it names and that did not begin"
    if _differs(shown, before)[~mask].any():
        return "a change in a slot that it does not name"
    return None


def neighbors_do_not_matter(record: Recording) -> str | None:
    """The same examples in other slots, up to each one's first end, give the same."""
    index, actions, pad = record.rounds[0].info["index"], record.actions[0], record.special.pad
    moved = np.roll(np.arange(record.env.num_envs), 1)
    one = play_round(record.env, actions, pad, seed=record.seed, indices=index)
    other = play_round(record.env, actions[:, moved], pad, seed=record.seed, indices=index[moved])
    first = np.ones(record.env.num_envs, dtype=bool)
    for turn, elsewhere in zip(one.turns, other.turns, strict=True):
        differs = _differs({name: row[moved] for name, row in turn.end.items()}, elsewhere.end)
        differs |= turn.rewards[moved] != elsewhere.rewards
        differs |= turn.done[moved] != elsewhere.done
        if (differs & first[moved]).any():
            return f"another result of the same example in another slot at step {turn.number}"
        first &= ~turn.done
    return None


def arrays_are_taken(record: Recording) -> str | None:
    """Where observations are arrays, all actions were."""
    pad, [one, *_], [actions, *_] = record.special.pad, record.rounds, record.actions
    try:
        other = play_round(record.env, actions, pad, seed=record.seed, as_arrays=True)
    except Exception as error:
        return repr(error)
    return _other_round(one, other)


def copies_go_on(record: Recording) -> str | None:
    """From the middle of episodes."""
    pad, actions = record.special.pad, record.actions[0]
    first, later = np.array_split(actions, 2)
    begun = play_round(record.env, first, pad, seed=record.seed)
    try:
        copy = pickle.loads(pickle.dumps(record.env))
        other = go_on(copy, begun, later, pad, first=len(first))
    except Exception as error:
        return repr(error)
    return _other_round(go_on(record.env, begun, later, pad, first=len(first)), other)


def closes(record: Recording) -> str | None:
    """Also when it is closed already; nothing can be looked at after this."""
    for time in ("first", "second"):
        try:
            record.env.close()
        except Exception as error:
            return f"{error!r} at the {time} call"
    return None


def _differs(left: Arrays, right: Arrays) -> np.ndarray:
    """(B,) bool, the slots in which two observations are not the same."""
    return np.any([_rows_differ(left[name], right[name]) for name in left], axis=0)


def _rows_differ(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return (left != right).reshape(len(left), -1).any(1)
