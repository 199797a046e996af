"""Functions that find violations of the environment's contract, one for each check.

Each looks at a recording (`recorder.py`), or steps its environment further, and returns in words
what it found, or None. The rules and remedies are in `checker.py`.
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
    continue_segment,
    record_segment,
    to_array,
    to_arrays,
    vocab_size_and_limit,
)


def modes_agree(recording: Recording) -> str | None:
    """Find two autoreset modes: Gymnasium reads the one in the metadata, TorchRL the attribute."""
    env = recording.env.unwrapped
    attribute = getattr(env, "autoreset_mode", None)  # not every class has the attribute
    if isinstance(recording.mode, AutoresetMode) and attribute is recording.mode:
        return None
    return f"{recording.mode} in the metadata and {attribute} as attribute"


def spaces_hold(recording: Recording) -> str | None:
    """Find an observation or action outside the batched or the single spaces."""
    env = recording.env
    for observation, when in recording.observations():
        if not env.observation_space.contains(observation):
            return f"an observation outside observation_space {when}"
        for slot in range(env.num_envs):
            row = {name: array[slot] for name, array in observation.items()}
            if not env.single_observation_space.contains(row):
                return f"an observation outside single_observation_space in slot {slot} {when}"
    for step in recording.transitions:
        if not env.action_space.contains(step.actions):
            return f"action_space without the actions of step {step.number}"
    return None


def observations_have_their_form(recording: Recording) -> str | None:
    """Find a part of an observation that is not int64 or has another shape than the spaces say."""
    space = recording.env.single_observation_space
    assert isinstance(space, spaces.Dict), "otherwise nothing could have been recorded"
    for observation, when in recording.observations():
        for name, part in space.items():
            array, shape = observation[name], (recording.env.num_envs, *(part.shape or ()))
            if array.dtype != np.int64 or array.shape != shape:
                return f"{name} {array.dtype} {array.shape}, not int64 {shape}, {when}"
    return None


def padding_follows(recording: Recording) -> str | None:
    """Find a token other than PAD behind the length of a source or prefix."""
    for observation, when in recording.observations():
        for name, length in (("source", "source_length"), ("prefix", "length")):
            tokens = observation[name]
            behind = np.arange(tokens.shape[1]) >= observation[length][:, None]
            slots = np.flatnonzero((behind & (tokens != recording.special.pad)).any(1))
            if len(slots):
                return f"another token in the {name} of slot {slots[0]} {when}"
    return None


def step_waits_for_reset(recording: Recording) -> str | None:
    """Find a step before the first reset."""
    return "a step that was taken" if recording.stepped_before_reset else None


def reset_begins(recording: Recording) -> str | None:
    """Find a slot with a written token right after a reset."""
    begun = [segment.first["length"].any() for segment in recording.segments]
    return "a length above 0" if any(begun) else None


def flags_are_bool(recording: Recording) -> str | None:
    """Find flags of another type or shape than (B,) bool."""
    for step in recording.transitions:
        for flags in (step.terminated, step.truncated):
            if flags.dtype != np.bool_ or flags.shape != (recording.env.num_envs,):
                return f"{flags.dtype} {flags.shape} at step {step.number}"
    return None


def never_both(recording: Recording) -> str | None:
    """Find a slot with both flags: a text that ends at the limit has terminated."""
    return recording.find(lambda step: step.terminated & step.truncated, "both")


def rewards_are_numbers(recording: Recording) -> str | None:
    """Find rewards of another type or shape than (B,) float32, or one that is not finite."""
    for step in recording.transitions:
        rewards = step.rewards
        if rewards.dtype != np.float32 or rewards.shape != (recording.env.num_envs,):
            return f"{rewards.dtype} {rewards.shape} at step {step.number}"
    return recording.find(lambda step: ~np.isfinite(step.rewards), "another number")


def same_step_refills(recording: Recording) -> str | None:
    """Find an end in mode `SAME_STEP` without a new episode or without its last observation."""
    if recording.mode != AutoresetMode.SAME_STEP:
        return None
    for step in recording.transitions:
        for name in ("final_obs", "final_info"):
            if not np.array_equal(step.info.get(f"_{name}", np.zeros_like(step.done)), step.done):
                return f"_{name} that does not say which slots ended at step {step.number}"
            if name not in step.info and step.done.any():
                return f"no {name} at step {step.number}"
    return recording.find(
        lambda step: step.done & (step.after["length"] != 0), "no new episode"
    ) or recording.find(
        lambda step: step.done & (step.before_refill["length"] != step.before["length"] + 1),
        "another length than the episode's in final_obs",
    )


def next_step_refills(recording: Recording) -> str | None:
    """Find a step after an end in mode `NEXT_STEP` that does not begin the next episode."""
    if recording.mode != AutoresetMode.NEXT_STEP:
        return None
    return recording.find(
        lambda step: step.over & ((step.after["length"] != 0) | step.done), "no new episode"
    )


def disabled_absorbs(recording: Recording) -> str | None:
    """Find a slot in mode `DISABLED` whose observation or flags change after its end."""
    if recording.mode != AutoresetMode.DISABLED:
        return None
    return recording.find(
        lambda step: step.over & (_differs(step.before, step.after) | _flags_changed(step)),
        "a change",
    )


def _flags_changed(step: Transition) -> np.ndarray:
    previous = step.previous or step
    return (step.terminated != previous.terminated) | (step.truncated != previous.truncated)


def terminated_by_end_token(recording: Recording) -> str | None:
    """Find a `terminated` that does not say whether the end token was written."""
    end = recording.special.end
    return recording.find(
        lambda step: ~step.over & (step.terminated != (step.last_token == end)), "another flag"
    )


def truncated_by_limit(recording: Recording) -> str | None:
    """Find a `truncated` that does not say whether the limit was reached without the end token."""
    _, max_steps = vocab_size_and_limit(recording.env)

    def violates(step: Transition) -> np.ndarray:
        at_limit = step.before_refill["length"] == max_steps
        cut_off = at_limit & (step.last_token != recording.special.end)
        return ~step.over & (step.truncated != cut_off)

    return recording.find(violates, "another flag")


def prefix_grows(recording: Recording) -> str | None:
    """Find a step that changes anything but the prefix by the token that was written."""

    def violates(step: Transition) -> np.ndarray:
        expected = {name: array.copy() for name, array in step.before.items()}
        rows = np.flatnonzero(~step.over)
        expected["prefix"][rows, expected["length"][rows]] = step.written[rows]
        expected["length"][rows] += 1
        return ~step.over & _differs(expected, step.before_refill)

    return recording.find(violates, "another observation")


def rewards_end(recording: Recording) -> str | None:
    """Find a reward after the end, also in the step in which `NEXT_STEP` begins an episode."""
    return recording.find(lambda step: step.over & (step.rewards != 0), "a reward")


def observations_stay(recording: Recording) -> str | None:
    """Find an observation that a later step has changed."""
    for segment in recording.segments:
        copies = [segment.first, *(step.after for step in segment.transitions)]
        for steps, (returned, copy) in enumerate(zip(segment.returned, copies, strict=True)):
            if _differs(to_arrays(returned), copy).any():
                return f"a change in the observation {steps} steps after a reset"
    return None


def seed_reproduces(recording: Recording) -> str | None:
    """Find a segment that the same seed and actions do not give again."""
    pad, pairs = recording.special.pad, zip(recording.segments, recording.actions, strict=True)
    for number, (segment, actions) in enumerate(pairs):
        again = record_segment(recording.env, actions, pad, seed=recording.seed + number)
        if violation := _first_difference(segment, again):
            return violation
    return None


def _first_difference(segment: Segment, other: Segment) -> str | None:
    """Return in words the first difference of two segments."""
    if _differs(segment.first, other.first).any():
        return "another example"
    for step, again in zip(segment.transitions, other.transitions, strict=True):
        if _steps_differ(step, again).any():
            return f"another step {step.number}"
    return None


def _steps_differ(step: Transition, other: Transition) -> np.ndarray:
    flags = (step.terminated != other.terminated) | (step.truncated != other.truncated)
    return flags | (step.rewards != other.rewards) | _differs(step.after, other.after)


def global_generators_rest(recording: Recording) -> str | None:
    """Find a global generator that was seeded or drawn from: torch, numpy or `random`."""
    before = _global_states()
    record_segment(recording.env, recording.actions[0], recording.special.pad, seed=recording.seed)
    after = _global_states()
    changed = [name for name in before if before[name] != after[name]]
    return f"a change in that of {' and '.join(changed)}" if changed else None


def _global_states() -> dict[str, str]:
    return {
        "torch": str(torch.get_rng_state().tolist()),
        "numpy": str([np.asarray(part).tolist() for part in np.random.get_state()]),
        "random": str(random.getstate()),
    }


def indices_choose(recording: Recording) -> str | None:
    """Find an example that `reset` does not show again when its index is given for another slot."""
    for segment in recording.segments:
        if "index" not in segment.info:
            return 'no info["index"]'
        index = segment.info["index"][::-1].copy()
        observation, info = recording.env.reset(options={"indices": index})
        if not np.array_equal(to_array(info["index"]), index):
            return 'another info["index"]'
        if _rows_differ(to_array(observation["source"]), segment.first["source"][::-1]).any():
            return "another source"
    return None


def index_follows(recording: Recording) -> str | None:
    """Find an `info["index"]` that does not name the source that its step shows."""
    for segment in recording.segments:
        index = segment.info["index"]
        for step in segment.transitions:
            if recording.mode == AutoresetMode.SAME_STEP:
                ended = step.info.get("final_info", {}).get("index")
                if (step.done & (index != ended)).any():
                    return f"another one in final_info at step {step.number}"
            index = step.info.get("index")
            if index is None:
                return f"none at step {step.number}"
            try:
                observation, _ = recording.env.reset(options={"indices": index})
            except Exception as error:
                return f"{index} at step {step.number}, which reset refuses by {error!r}"
            if _rows_differ(to_array(observation["source"]), step.after["source"]).any():
                return f"that of another source at step {step.number}"
    return None


def mask_chooses(recording: Recording) -> str | None:
    """Find a slot that a "reset_mask", which exists in mode `DISABLED` only, treats wrongly."""
    if recording.mode != AutoresetMode.DISABLED:
        return None
    env, pad = recording.env, recording.special.pad
    segment = record_segment(env, recording.actions[0], pad, seed=recording.seed)
    before = segment.transitions[-1].after
    mask = np.arange(env.num_envs) % 2 == 0
    observation = to_arrays(env.reset(options={"reset_mask": mask})[0])
    if observation["length"][mask].any():
        return "a slot that it names and that did not begin"
    if _differs(observation, before)[~mask].any():
        return "a change in a slot that it does not name"
    return None


def neighbors_do_not_matter(recording: Recording) -> str | None:
    """Find an example whose first episode differs in another slot."""
    env, pad, seed = recording.env, recording.special.pad, recording.seed
    index, actions = recording.segments[0].info["index"], recording.actions[0]
    moved = np.roll(np.arange(env.num_envs), 1)
    segment = record_segment(env, actions, pad, seed=seed, indices=index)
    other = record_segment(env, actions[:, moved], pad, seed=seed, indices=index[moved])
    in_first_episode = np.ones(env.num_envs, dtype=bool)
    for step, elsewhere in zip(segment.transitions, other.transitions, strict=True):
        rows = {name: array[moved] for name, array in step.before_refill.items()}
        differs = _differs(rows, elsewhere.before_refill)
        differs |= step.rewards[moved] != elsewhere.rewards
        differs |= step.done[moved] != elsewhere.done
        if (differs & in_first_episode[moved]).any():
            return f"another result of the same example in another slot at step {step.number}"
        in_first_episode &= ~step.done
    return None


def arrays_are_taken(recording: Recording) -> str | None:
    """Find a difference between actions given as arrays and those given as tensors."""
    env, pad, actions = recording.env, recording.special.pad, recording.actions[0]
    try:
        other = record_segment(env, actions, pad, seed=recording.seed, as_arrays=True)
    except Exception as error:
        return repr(error)
    return _first_difference(recording.segments[0], other)


def copies_go_on(recording: Recording) -> str | None:
    """Find a difference between an environment and its pickled copy, made amid episodes."""
    env, pad = recording.env, recording.special.pad
    early, late = np.array_split(recording.actions[0], 2)
    begun = record_segment(env, early, pad, seed=recording.seed)
    try:
        copy = pickle.loads(pickle.dumps(env))
        other = continue_segment(copy, begun, late, pad, first=len(early))
    except Exception as error:
        return repr(error)
    return _first_difference(continue_segment(env, begun, late, pad, first=len(early)), other)


def closes(recording: Recording) -> str | None:
    """Find an error of `close`, called twice; no check may follow."""
    for time in ("first", "second"):
        try:
            recording.env.close()
        except Exception as error:
            return f"{error!r} at the {time} call"
    return None


def _differs(left: Arrays, right: Arrays) -> np.ndarray:
    """Return a (B,) bool mask of the slots in which two observations differ."""
    return np.any([_rows_differ(left[name], right[name]) for name in left], axis=0)


def _rows_differ(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return (left != right).reshape(len(left), -1).any(1)
