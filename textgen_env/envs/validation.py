"""Checks of what users give the environment: settings, examples, expert, options, actions, logits.

A function named `check_...` only raises; one named `checked_...` also returns what it was given in
the form that the environment works with.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from torch import Tensor

from textgen_env.envs.rewards import COMPARING_WITH_REFERENCES, Reward
from textgen_env.experts.expert import Expert, NeuralExpert, NoExpert
from textgen_env.models.cache_ops import host_sync_is_free
from textgen_env.tasks.task import Task
from textgen_env.tokenizers.subword import TextTokenizer
from textgen_env.types import Examples, ShapeError, check_shape

Numbers = Sequence[int] | np.ndarray | Tensor

RENDER_MODES = ("human", "ansi", "rgb_array")
RenderMode = Literal["human", "ansi", "rgb_array"]
OPTIONS = ("indices", "order", "reset_mask")
MAX_VOCABULARY_PADDING = 1024  # entries beyond the tokenizer's vocabulary: Phi-2 has 905


def check_settings(
    task: Task,
    num_envs: int,
    autoreset_mode: AutoresetMode,
    render_mode: str | None,
    expert: object,
    reward: object,
    noise: object,
) -> None:
    """Raise `ValueError` or `TypeError` unless an environment can be made of these settings."""
    _check_parts(task, expert, reward, noise)
    if not isinstance(num_envs, int | np.integer):
        raise TypeError(f"num_envs must be an integer, got {num_envs!r}")
    if num_envs < 1:
        raise ValueError(f"num_envs must be at least 1, got {num_envs}")
    if not isinstance(autoreset_mode, AutoresetMode):
        raise TypeError(
            f"autoreset_mode must be a gymnasium.vector.AutoresetMode, got {autoreset_mode!r}"
        )
    if render_mode not in (None, *RENDER_MODES):
        raise ValueError(f"render_mode must be among {RENDER_MODES} or None, got {render_mode!r}")
    if task.max_target_length < 2:
        raise ValueError(
            f"the task's max_target_length must be at least 2, got {task.max_target_length}"
        )
    special = task.tokenizer.special
    if special.pad == special.end:
        raise ValueError(
            "the tokenizer's end token must differ from its padding, else no text is seen to end, "
            f"got {special.end} for both: give padding an id of its own"
        )


def _check_parts(task: object, expert: object, reward: object, noise: object) -> None:
    """Raise `TypeError` unless each is what the environment calls."""
    if not hasattr(task, "max_target_length"):
        raise TypeError(
            f"task must be a Task, got {task!r}; gymnasium.make knows tasks by their names"
        )
    if expert is not None and not isinstance(expert, Expert):
        raise TypeError(
            f"expert must be an Expert or None, got a {type(expert).__name__}; of a model it is "
            "NeuralExpert(model)"
        )
    if not callable(reward):
        raise TypeError(
            f"reward must be a function of a step, got {reward!r}; see textgen_env.envs.rewards"
        )
    if noise is not None and not callable(noise):
        raise TypeError(
            f"noise must be a function of actions and a generator, or None, got {noise!r}"
        )


def checked_device(given: torch.device | str) -> torch.device:
    """Return the device that `given` names.

    Raises:
        ValueError: there is none of that name here.
    """
    try:
        device = torch.device(given)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError):
        raise ValueError(
            f"device must be one that this machine has, got {given!r}; cpu is always there"
        ) from None
    return device


def check_examples(examples: object, task: Task, reward: Reward) -> None:
    """Raise unless the pairs fit `task`, and `reward` can score them.

    Raises:
        TypeError: they are no `Examples`.
        ValueError: there are none, a token is outside the vocabulary, or there are sources without
            references and the reward compares texts with those.
        ShapeError: sources or references have no tokens, or no integers, or sources are too long.
    """
    if not isinstance(examples, Examples):
        raise TypeError(
            f"examples must be Examples, got a {type(examples).__name__}; encode(pairs, task) "
            "makes them of texts"
        )
    if not len(examples):
        raise ValueError("examples must hold at least one pair, got none")
    if examples.source.shape[1] > task.max_source_length:
        raise ShapeError(
            f"the sources of examples must have at most {task.max_source_length} tokens, the "
            f"task's limit, got {examples.source.shape[1]}"
        )
    limit = task.tokenizer.vocab_size
    for name, ids in (("sources", examples.source), ("references", examples.reference)):
        if not ids.shape[1]:
            raise ShapeError(
                f"the {name} of examples must have at least one token, the end token, got none"
            )
        checked_ids(f"the {name} of examples", ids.cpu().flatten(), None, limit)
    _check_scorable(examples, task, reward)


def _check_scorable(examples: Examples, task: Task, reward: Reward) -> None:
    """Raise `ValueError` if the reward needs a reference and an example has none."""
    without = len(examples) - int(examples.has_reference(task.tokenizer.special).sum())
    if without and reward in COMPARING_WITH_REFERENCES:
        raise ValueError(
            f"reward must not compare with references where {without:,} of {len(examples):,} "
            "examples have none, got one that does: use expert_log_prob with ask_expert=True, or "
            "no_reward"
        )


def match_vocabulary(expert: Expert, tokenizer: TextTokenizer) -> Expert:
    """Return `expert` with the tokenizer's vocabulary, a view of it if its own is padded.

    Models pad their vocabulary to a round number, members of one family to different ones; other
    experts have no reason to. An expert that does not state its vocabulary is not checked.

    Raises:
        ValueError: the expert's vocabulary or special tokens cannot be the tokenizer's.
    """
    own, wanted = expert.vocab_size, tokenizer.vocab_size
    if own is None:
        return expert
    padding = MAX_VOCABULARY_PADDING if isinstance(expert, NeuralExpert) else 0
    if not wanted <= own <= wanted + padding:
        more = f" and at most {padding} more of padding" if padding else ""
        raise ValueError(
            f"the expert's vocabulary must be the tokenizer's, {wanted} tokens{more}, got {own}, "
            f"{abs(own - wanted)} {'fewer' if own < wanted else 'more'}: "
            "give the tokenizer that it was made for"
        )
    if expert.special != tokenizer.special:
        raise ValueError(
            f"the expert's special tokens must be the tokenizer's, {tokenizer.special}, "
            f"got {expert.special}"
        )
    if isinstance(expert, NeuralExpert) and own > wanted:
        return NeuralExpert(expert.model, wanted)
    return expert


def check_expert_given(expert: Expert) -> None:
    """Raise `ValueError` if there is no expert to query at every step."""
    if isinstance(expert, NoExpert):
        raise ValueError(
            "expert must be given where ask_expert is True, got none: give one, such as "
            "NeuralExpert(model)"
        )


def checked_options(given: object) -> Mapping[str, Any]:
    """Return the options of `reset`, an empty mapping for None.

    Raises:
        TypeError: no mapping.
        ValueError: an unknown option.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise TypeError(f"options must be a mapping from names, got {given!r}")
    if unknown := set(given) - set(OPTIONS):
        raise ValueError(f"options must be among {OPTIONS}, got {sorted(unknown, key=str)}")
    return given


def checked_logits(given: object, shape: tuple[int, ...]) -> Tensor:
    """Return the policy's logits as a tensor of `shape`, on the device where they are.

    Raises:
        TypeError: they are no numbers.
        ShapeError: another shape.
    """
    logits = _as_tensor("policy_logits", given)
    check_shape("policy_logits", logits, shape)
    return logits


def check_rewards(rewards: object, num_envs: int) -> None:
    """Raise `TypeError` or `ShapeError` unless `rewards` are a tensor of shape (num_envs,)."""
    if not isinstance(rewards, Tensor):
        raise TypeError(f"reward must return a tensor, a number for each slot, got {rewards!r}")
    check_shape("the return value of reward", rewards, (num_envs,))


def checked_ids(name: str, given: Numbers, num: int | None, limit: int) -> Tensor:
    """Return `given` as (num,) int64 in [0, limit).

    Values on a device that the host would have to wait for are not checked.

    Args:
        name: of the argument, for errors.
        given: token ids, or indices of examples.
        num: how many there must be; None for any number but 0.
        limit: all ids must be below it.

    Raises:
        ShapeError: another shape, or not integers.
        ValueError: an id outside the range.
    """
    values = _as_tensor(name, given)
    check_shape(name, values, (num,))
    if not len(values):
        raise ShapeError(f"{name} must hold at least one integer, got none")
    if values.dtype == torch.bool or values.is_floating_point() or values.is_complex():
        raise ShapeError(f"{name} must be integers, got {values.dtype}")
    ids = values.long()
    if host_sync_is_free(ids.device):
        low, high = (int(end) for end in ids.aminmax())
        if low < 0 or high >= limit:
            raise ValueError(f"{name} must be in [0, {limit}), got {low} to {high}")
    return ids


def checked_indices(
    name: str, given: Numbers | None, num: int | None, limit: int, device: torch.device
) -> Tensor | None:
    """Return indices of examples as (num,) int64 in [0, limit) on `device`, None for None.

    Their values are always checked: a tensor is copied to the host first.

    Raises:
        ShapeError: another shape, or not integers.
        ValueError: an index outside the range.
    """
    if given is None:
        return None
    values = given.cpu() if isinstance(given, Tensor) else given
    return checked_ids(name, values, num, limit).to(device)


def checked_actions(
    given: Numbers, num_envs: int, vocab_size: int, device: torch.device, name: str = "actions"
) -> Tensor:
    """Return actions as (num_envs,) int64 in [0, vocab_size) on `device`; errors call them `name`.

    Raises:
        TypeError: no numbers.
        ShapeError: another shape, or not integers.
        ValueError: a tensor on another device, or an action outside the vocabulary.
    """
    if isinstance(given, Tensor) and given.device != device:
        raise ValueError(
            f"{name} must be on {device}, where the environment is, got a tensor on "
            f"{given.device}: call .to(env.device)"
        )
    return checked_ids(name, given, num_envs, vocab_size).to(device)


def check_after_end(action: Tensor, done: Tensor, pad: int) -> None:
    """Raise `ValueError` if a slot that has ended is given another token than padding.

    Nothing is checked where the host would have to wait for the device.

    Args:
        action: (B,) int64.
        done: (B,) bool, the slots that have ended.
        pad: the id of padding.
    """
    if not host_sync_is_free(action.device) or torch.equal(action, action.masked_fill(done, pad)):
        return
    slot = int((done & (action != pad)).nonzero()[0])
    raise ValueError(
        f"actions must be PAD ({pad}) in slots whose episode is over, got {int(action[slot])} in "
        f"slot {slot}: reset it, or give it PAD"
    )


def checked_mask(given: object, num_envs: int) -> Tensor:
    """Return the option "reset_mask" as a (num_envs,) bool tensor.

    Raises:
        TypeError: not bool.
        ShapeError: another shape.
        ValueError: True for no slot.
    """
    mask = _as_tensor("reset_mask", given)
    if mask.dtype != torch.bool:
        raise TypeError(f"reset_mask must be bool, got {mask.dtype}")
    check_shape("reset_mask", mask, (num_envs,))
    if not mask.any():
        raise ValueError("reset_mask must have at least one True, got none")
    return mask


def _as_tensor(name: str, given: object) -> Tensor:
    """Return a tensor unchanged, anything else as a tensor that shares no memory with it.

    Raises:
        TypeError: the values are no numbers.
        ShapeError: the rows have different lengths.
    """
    if isinstance(given, Tensor):
        return given
    try:
        values = np.array(given)
    except ValueError:
        raise ShapeError(f"{name} must have rows of one length, got {given!r}") from None
    if values.dtype.kind not in "biufc":
        raise TypeError(f"{name} must be made of numbers, got {given!r}")
    return torch.from_numpy(values)
