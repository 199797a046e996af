import math
import pickle
import random

import cloudpickle
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.toy import permitted
from tests.support.waiting import NoWaiting, set_sync_is_free
from textgen_env.envs.continuous_batching import shuffled_epochs
from textgen_env.envs.rewards import exact_match, no_reward
from textgen_env.envs.vector_env import TextGenVectorEnv
from textgen_env.experts.expert import NoExpert
from textgen_env.tasks.copy import CopyConfig, copy_task
from textgen_env.tasks.task import encode
from textgen_env.types import ShapeError

SAME_STEP, NEXT_STEP, DISABLED = (
    AutoresetMode.SAME_STEP,
    AutoresetMode.NEXT_STEP,
    AutoresetMode.DISABLED,
)
TASK = copy_task(
    CopyConfig(num_words=6, min_length=1, max_length=4, num_train=40, num_validation=2, num_test=2)
)
EXAMPLES = encode(TASK.train, TASK)
MAX_STEPS, VOCAB_SIZE = TASK.max_target_length, TASK.tokenizer.vocab_size


def make(num_envs=3, mode=SAME_STEP, **settings):
    return TextGenVectorEnv(TASK, num_envs, autoreset_mode=mode, **settings)


def actions_for(index, length):
    """Return (B,) actions that depend on example and length alone."""
    mixed = index * 7 + length * 3
    return (mixed % 4 == 0).long() * 2 + (mixed % 4 != 0).long() * (3 + mixed % (VOCAB_SIZE - 3))


def assert_same(left, right):
    """Assert that nested results are equal, tensor by tensor."""
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_same(left[key], right[key])
    elif isinstance(left, tuple):
        for one, other in zip(left, right, strict=True):
            assert_same(one, other)
    else:
        assert torch.equal(left, right)


def play(env, actions):
    """Return the results of `env` for a list of actions."""
    return [env.step(permitted(env, action)) for action in actions]


def some_actions(env, steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (steps, env.num_envs)
    return list(torch.randint(0, VOCAB_SIZE, shape, generator=generator))


def random_tokens(actions, generator):
    """Replace every action by a random word."""
    return torch.randint(3, VOCAB_SIZE, actions.shape, generator=generator)


# reset


def test_reset_returns_sources_and_an_empty_prefix():
    env = make()
    shown, info = env.reset(seed=0)
    width = EXAMPLES.source.shape[1]
    assert torch.equal(shown["source"][:, :width], EXAMPLES.source[info["index"]])
    assert not shown["prefix"].any()
    assert shown["length"].tolist() == [0, 0, 0]
    assert torch.equal(shown["source_length"], (shown["source"] != 0).sum(1))


def test_a_seed_gives_the_same_order_again():
    env, other = make(), make()
    first = env.reset(seed=5)[1]["index"]
    env.reset()
    assert torch.equal(env.reset(seed=5)[1]["index"], first)
    assert torch.equal(other.reset(seed=5)[1]["index"], first)
    assert not torch.equal(other.reset(seed=6)[1]["index"], first)


def test_without_a_seed_the_order_continues_through_all_examples():
    env = make(4)
    seen = torch.cat([env.reset(seed=1)[1]["index"], *(env.reset()[1]["index"] for _ in range(9))])
    assert sorted(seen.tolist()) == list(range(40))
    again = torch.cat([env.reset()[1]["index"] for _ in range(10)])
    assert sorted(again.tolist()) == list(range(40))
    assert not torch.equal(again, seen)


def test_the_order_repeats_after_its_last_draw(monkeypatch):
    monkeypatch.setattr("textgen_env.envs.continuous_batching.MIN_DRAWS", 1)
    env = make(40)
    first, second, third = (env.reset(**given)[1]["index"] for given in ({"seed": 1}, {}, {}))
    assert torch.equal(first, third)
    assert not torch.equal(first, second)


def test_many_examples_are_drawn_for_two_epochs():
    order = shuffled_epochs(70_000, np.random.default_rng(0)).view(2, 70_000)
    assert (order.sort(1).values == torch.arange(70_000)).all()


def test_without_any_seed_two_environments_differ():
    orders = [torch.cat([env.reset()[1]["index"] for _ in range(10)]) for env in (make(), make())]
    assert not torch.equal(*orders)


def test_the_order_does_not_depend_on_the_number_of_slots():
    def order(num_envs):
        env = make(num_envs)
        env.reset(seed=3)
        return env._order

    assert torch.equal(order(1), order(7))


@pytest.mark.parametrize("mode", AutoresetMode)
def test_no_global_random_state_is_touched(mode):
    torch.manual_seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    env = make(mode=mode, render_mode="ansi", noise=random_tokens)
    env.reset(seed=4)
    play(env, some_actions(env, 8))
    env.render()
    env.reset()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    assert random.getstate() == before[2]


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_indices_choose_the_examples(kind):
    env = make(mode=DISABLED)
    shown, info = env.reset(options={"indices": kind([7, 7, 0])})
    assert info["index"].tolist() == [7, 7, 0]
    width = EXAMPLES.source.shape[1]
    assert torch.equal(shown["source"][:, :width], EXAMPLES.source[[7, 7, 0]])


def test_indices_take_nothing_from_the_order():
    env = make()
    first = env.reset(seed=2, options={"indices": [1, 2, 3]})
    assert first[1]["index"].tolist() == [1, 2, 3]
    following = env.reset()[1]["index"]
    assert torch.equal(following, make().reset(seed=2)[1]["index"])


def test_a_mask_begins_its_slots_and_no_others():
    env = make(mode=DISABLED)
    start = env.reset(seed=0)[1]["index"]
    env.step(torch.tensor([2, 3, 2]))
    shown, info = env.reset(options={"reset_mask": np.array([True, False, False])})
    assert shown["length"].tolist() == [0, 1, 1]
    assert torch.equal(info["index"][1:], start[1:])
    assert info["index"][0] == make(mode=DISABLED, num_envs=4).reset(seed=0)[1]["index"][3]
    _, _, terminated, _, _ = env.step(torch.tensor([3, 3, 0]))
    assert terminated.tolist() == [False, False, True]


def test_a_mask_with_indices_begins_the_example_named():
    env = make(mode=DISABLED)
    start = env.reset(seed=0)[1]["index"]
    options = {"reset_mask": torch.tensor([False, True, False]), "indices": [9, 8, 7]}
    info = env.reset(options=options)[1]
    assert info["index"].tolist() == [start[0], 8, start[2]]


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        ([True, False], ShapeError, r"reset_mask must have shape \(3\), got \(2,\)"),
        ([1, 0, 0], TypeError, "reset_mask must be bool, got torch.int64"),
        ([False, False, False], ValueError, "reset_mask must have at least one True"),
    ],
)
@pytest.mark.parametrize("kind", [np.array, torch.tensor])
def test_an_invalid_mask_is_refused(mask, error, message, kind):
    env = make(mode=DISABLED)
    env.reset(seed=0)
    with pytest.raises(error, match=message):
        env.reset(options={"reset_mask": kind(mask)})


def test_a_mask_needs_a_first_reset_and_the_mode_disabled():
    mask = {"reset_mask": np.array([True, True, False])}
    with pytest.raises(RuntimeError, match="after a reset of all slots"):
        make(mode=DISABLED).reset(options=mask)
    for mode in (SAME_STEP, NEXT_STEP):
        env = make(mode=mode)
        env.reset()
        with pytest.raises(ValueError, match=f"autoreset mode DISABLED, got {mode.name}"):
            env.reset(options=mask)


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([0, 1], r"indices must have shape \(3\), got \(2,\)"),
        ([[0], [1], [2]], "indices must have shape"),
        ([0.0, 1.0, 2.0], "indices must be integers, got torch.float64"),
        ([True, False, True], "indices must be integers, got torch.bool"),
        ([0, 1, 40], r"indices must be in \[0, 40\), got 0 to 40"),
        ([-1, 1, 2], r"indices must be in \[0, 40\), got -1 to 2"),
    ],
)
@pytest.mark.parametrize("kind", [np.array, torch.tensor])
def test_invalid_indices_are_refused(indices, message, kind):
    values = kind(indices)
    if kind is torch.tensor and values.is_floating_point():
        values = values.double()
    with pytest.raises(ValueError, match=message):
        make().reset(options={"indices": values})


def test_an_unknown_option_is_refused():
    with pytest.raises(ValueError, match=r"options must be among .*, got \['index'\]"):
        make().reset(options={"index": [0, 1, 2]})


@pytest.mark.parametrize("options", ["indices", [("indices", [0, 1, 2])], [], 3])
def test_options_that_are_no_mapping_are_refused(options):
    with pytest.raises(TypeError, match="options must be a mapping from names, got"):
        make().reset(options=options)


def test_a_refused_reset_changes_nothing():
    env, other = make(), make()
    env.reset(seed=0)
    other.reset(seed=0)
    with pytest.raises(ValueError, match="indices"):
        env.reset(seed=1, options={"indices": [0]})
    actions = some_actions(env, 6)
    for left, right in zip(play(env, actions), play(other, actions), strict=True):
        assert_same(left, right)


# step


def test_step_needs_a_reset():
    with pytest.raises(
        RuntimeError, match=r"reset must come before all else.*call reset\(\) first"
    ):
        make().step(torch.tensor([3, 3, 3]))


@pytest.mark.parametrize("kind", [np.array, torch.tensor])
@pytest.mark.parametrize(
    "actions", [[3, 3], [[3, 3, 3]], 3, [3.0, 3.0, 3.0], [True, True, True], [3j, 3j, 3j]]
)
def test_actions_of_another_shape_or_kind_are_refused(actions, kind):
    env = make()
    env.reset()
    with pytest.raises(ShapeError, match="actions must"):
        env.step(kind(actions))


@pytest.mark.parametrize("actions", [[3, -1, 3], [3, 3, VOCAB_SIZE], [3, 2**63, 3]])
@pytest.mark.parametrize("kind", [np.array, torch.from_numpy])
def test_an_id_outside_the_vocabulary_is_refused(actions, kind):
    env = make()
    env.reset()
    array = np.array(actions, np.uint64 if max(actions) > 2**62 else np.int64)
    with pytest.raises(ValueError, match=rf"actions must be in \[0, {VOCAB_SIZE}\)"):
        env.step(kind(array))


@pytest.mark.parametrize("actions", [["3", "4", "5"], [None, 3, 3], None])
def test_actions_that_are_no_numbers_are_refused(actions):
    env = make()
    env.reset()
    with pytest.raises(TypeError, match="actions must be made of numbers, got"):
        env.step(actions)


def test_actions_in_rows_of_several_lengths_are_refused():
    env = make()
    env.reset()
    with pytest.raises(ShapeError, match="actions must have rows of one length"):
        env.step([[3], [4, 5], 6])


@pytest.mark.parametrize("shape", [(3,), (2, VOCAB_SIZE), (3, VOCAB_SIZE - 1)])
@pytest.mark.parametrize("kind", [np.zeros, torch.zeros])
def test_policy_logits_of_another_shape_are_refused(shape, kind):
    env = make()
    env.reset()
    with pytest.raises(ShapeError, match=rf"policy_logits must have shape \(3, {VOCAB_SIZE}\)"):
        env.step(torch.full((3,), 3), kind(shape))


def test_policy_logits_may_be_lists_of_numbers():
    seen = []
    env = make(reward=lambda step: seen.append(step.policy_logits) or no_reward(step))
    env.reset()
    env.step([3, 3, 3], [[0.5] * VOCAB_SIZE] * 3)
    assert torch.equal(seen[0], torch.full((3, VOCAB_SIZE), 0.5, dtype=torch.float64))
    with pytest.raises(TypeError, match="policy_logits must be made of numbers"):
        env.step([3, 3, 3], [["a"] * VOCAB_SIZE] * 3)
    with pytest.raises(ShapeError, match="policy_logits must have rows of one length"):
        env.step([3, 3, 3], [[0.5], [0.5, 1.0], [0.5]])


@pytest.mark.parametrize("mode", AutoresetMode)
@pytest.mark.parametrize(
    ("earned", "error", "message"),
    [
        (
            torch.zeros(3, 1),
            ShapeError,
            r"return value of reward must have shape \(3\), got \(3, 1\)",
        ),
        (torch.zeros(1), ShapeError, r"return value of reward must have shape \(3\), got \(1,\)"),
        (torch.tensor(0.5), ShapeError, r"return value of reward must have shape \(3\), got \(\)"),
        (0.5, TypeError, "reward must return a tensor, a number for each slot, got 0.5"),
    ],
)
def test_a_reward_of_another_form_is_refused_and_changes_nothing(mode, earned, error, message):
    env = make(mode=mode, reward=lambda step: earned)
    start, _ = env.reset(seed=0)
    with pytest.raises(error, match=message):
        env.step(torch.tensor([3, 2, 3]))
    env.reward, other = no_reward, make(mode=mode, reward=no_reward)
    assert_same(start, other.reset(seed=0)[0])
    actions = torch.tensor([4, 3, 2])
    assert_same(env.step(actions), other.step(actions))


def test_actions_on_another_device_are_refused():
    env = make()
    env.reset()
    actions = torch.zeros(3, dtype=torch.int64, device="meta")
    with pytest.raises(ValueError, match=r"actions must be on cpu.*got .* meta: call \.to\("):
        env.step(actions)


def test_when_all_slots_have_ended_padding_changes_nothing():
    env = make(mode=DISABLED)
    env.reset(seed=0)
    before = env.step(torch.tensor([2, 2, 2]))
    after = env.step(torch.tensor([0, 0, 0]))
    assert_same(before[0], after[0])
    assert_same(before[2:4], after[2:4])
    assert not after[1].any()


@pytest.mark.parametrize("action", [2, 3, VOCAB_SIZE - 1])
@pytest.mark.parametrize("kind", [np.array, torch.tensor])
def test_a_slot_that_has_ended_takes_only_padding(kind, action):
    env = make(mode=DISABLED)
    env.reset(seed=0)
    ended = env.step(torch.tensor([3, 2, 3]))[0]
    with pytest.raises(ValueError, match=rf"PAD \(0\) in slots .* over, got {action} in slot 1"):
        env.step(kind([3, action, 3]))
    assert torch.equal(env.step(torch.tensor([3, 0, 3]))[0]["prefix"][1], ended["prefix"][1])


def test_actions_after_the_end_are_not_checked_on_an_accelerator(monkeypatch):
    set_sync_is_free(monkeypatch, False)
    env = make(mode=DISABLED)
    env.reset(seed=0)
    ended = env.step(torch.tensor([3, 2, 3]))
    later = env.step(torch.tensor([3, 3, 3]))
    assert torch.equal(later[0]["prefix"][1], ended[0]["prefix"][1])
    assert later[2].tolist() == [False, True, False]


def test_a_refused_action_changes_nothing():
    env = make()
    env.reset(seed=0)
    with pytest.raises(ValueError, match="actions"):
        env.step(np.array([3, 3, -1]))
    assert env.step(np.array([3, 3, 3]))[0]["length"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("mode", AutoresetMode)
@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8, np.uint16])
def test_arrays_and_tensors_do_the_same(mode, dtype):
    by_tensor, by_array = make(mode=mode), make(mode=mode)
    assert_same(by_tensor.reset(seed=0), by_array.reset(seed=0))
    for drawn in some_actions(by_tensor, 12):
        actions = permitted(by_tensor, drawn)
        array = actions.numpy().astype(dtype)
        array.flags.writeable = False
        assert_same(by_tensor.step(actions), by_array.step(array))


def test_an_array_may_be_reused_by_its_owner():
    env = make(mode=DISABLED)
    env.reset(seed=0)
    actions = np.array([3, 4, 5])
    shown = env.step(actions)[0]
    actions[:] = 2
    assert shown["prefix"][:, 0].tolist() == [3, 4, 5]


@pytest.mark.parametrize("mode", AutoresetMode)
def test_results_lie_in_the_spaces(mode):
    env = make(mode=mode)
    shown, _ = env.reset(seed=0)
    for drawn in [*some_actions(env, 12), torch.tensor([0, 1, VOCAB_SIZE - 1])]:
        actions = permitted(env, drawn)
        arrays = {name: tensor.numpy() for name, tensor in shown.items()}
        assert env.observation_space.contains(arrays)
        row = {name: array[1] for name, array in arrays.items()}
        assert env.single_observation_space.contains(row)
        shown, rewards, terminated, truncated, _ = env.step(actions)
        assert rewards.dtype == torch.float32
        assert terminated.dtype == truncated.dtype == torch.bool
        assert rewards.shape == terminated.shape == truncated.shape == (3,)


def test_after_its_end_a_slot_is_absorbing():
    env = make(2, DISABLED)
    env.reset(options={"indices": [0, 0]})
    reference = EXAMPLES.reference[0][EXAMPLES.reference[0] != 0]
    for action in reference:
        shown, rewards, terminated, _, _ = env.step(torch.stack([action, torch.tensor(3)]))
    assert terminated.tolist() == [True, False]
    assert rewards.tolist() == [1.0, 0.0]
    for step in range(MAX_STEPS):
        later, rewards, terminated, truncated, info = env.step(
            permitted(env, torch.tensor([2 + step, 3]))
        )
        assert rewards.tolist() == [0.0, 0.0]
        assert torch.equal(later["prefix"][0], shown["prefix"][0])
        assert later["length"][0] == len(reference)
        assert (terminated[0], truncated[0]) == (True, False)
        assert set(info) == {"index", "_index", "written", "_written"}
        assert info["written"][0] == 0
        assert info["_written"].tolist() == [False, step < MAX_STEPS - len(reference)]
        assert info["_index"].all()
    assert (terminated[1], truncated[1]) == (False, True)


def test_noise_changes_what_is_written():
    env = make(4, DISABLED, noise=lambda actions, generator: actions + 1)
    env.reset(seed=0)
    shown, _, _, _, info = env.step(torch.tensor([3, 4, 5, 6]))
    assert info["written"].tolist() == shown["prefix"][:, 0].tolist() == [4, 5, 6, 7]


def test_noise_is_drawn_by_the_seed():
    def written(seed):
        env = make(50, DISABLED, noise=random_tokens)
        env.reset(seed=seed)
        return env.step(torch.full((50,), 3))[-1]["written"]

    assert torch.equal(written(1), written(1))
    assert not torch.equal(written(1), written(2))


def test_a_slot_that_ends_is_refilled_at_once():
    env = make(3)
    order = make(20).reset(seed=0)[1]["index"]
    env.reset(seed=0)
    shown, _, terminated, truncated, info = env.step(torch.tensor([3, 2, 2]))
    assert terminated.tolist() == [False, True, True]
    assert not truncated.any()
    assert info["_final_obs"].tolist() == info["_final_info"].tolist() == [False, True, True]
    assert info["index"].tolist() == [order[0], order[3], order[4]]
    assert info["final_info"]["index"][1:].tolist() == order[1:3].tolist()
    assert info["final_info"]["_index"].tolist() == [False, True, True]
    assert info["_index"].all()
    assert shown["length"].tolist() == [1, 0, 0]
    assert info["final_obs"]["length"][1:].tolist() == [1, 1]
    assert info["final_obs"]["prefix"][1:, 0].tolist() == [2, 2]
    width = EXAMPLES.source.shape[1]
    assert torch.equal(info["final_obs"]["source"][1:, :width], EXAMPLES.source[order[1:3]])
    assert torch.equal(shown["source"][:, :width], EXAMPLES.source[info["index"]])


def test_a_slot_at_the_limit_is_refilled_too():
    env = make(2)
    env.reset(seed=0)
    for _ in range(MAX_STEPS):
        shown, _, terminated, truncated, info = env.step(torch.tensor([3, 3]))
    assert truncated.all()
    assert not terminated.any()
    assert shown["length"].tolist() == [0, 0]
    assert info["final_obs"]["length"].tolist() == [MAX_STEPS, MAX_STEPS]
    assert not env.step(torch.tensor([3, 3]))[3].any()


def test_the_step_after_an_end_begins_the_next_episode_whatever_the_action():
    env = make(3, NEXT_STEP)
    order = make(20).reset(seed=0)[1]["index"].tolist()
    env.reset(seed=0)
    ended, _, terminated, _, info = env.step(torch.tensor([3, 2, 2]))
    assert terminated.tolist() == [False, True, True]
    assert ended["length"].tolist() == [1, 1, 1]
    assert info["index"].tolist() == order[:3]
    shown, rewards, terminated, truncated, info = env.step(torch.tensor([2, 2, 3]))
    assert shown["length"].tolist() == [2, 0, 0]
    assert not shown["prefix"][1:].any()
    assert not rewards[1:].any()
    assert terminated.tolist() == [True, False, False]
    assert not truncated.any()
    assert info["index"].tolist() == [order[0], order[3], order[4]]
    assert info["written"].tolist() == [2, 0, 0]
    assert info["_written"].tolist() == [True, False, False]
    assert info.keys() == {"index", "_index", "written", "_written"}
    shown, *_, info = env.step(torch.tensor([3, 4, 5]))
    assert shown["prefix"][:, 0].tolist() == [0, 4, 5]
    assert info["index"].tolist() == [order[5], order[3], order[4]]


def test_in_the_mode_next_step_an_episode_at_the_limit_ends_too():
    env = make(1, NEXT_STEP)
    env.reset(seed=0)
    flags = [env.step(torch.tensor([3]))[3].item() for _ in range(2 * MAX_STEPS + 1)]
    assert [step for step, flag in enumerate(flags) if flag] == [MAX_STEPS - 1, 2 * MAX_STEPS]


def episodes(num_envs, steps):
    """Return tokens, reward and flags at the end of each finished episode, by example."""
    env = make(num_envs)
    shown, info = env.reset(seed=0)
    found = {}
    for _ in range(steps):
        actions = actions_for(info["index"], shown["length"])
        shown, rewards, terminated, truncated, info = env.step(actions)
        final = info["final_obs"]
        for row in info["_final_obs"].nonzero().flatten().tolist():
            end = final["prefix"][row].tolist(), final["source"][row].tolist(), rewards[row].item()
            flags = terminated[row].item(), truncated[row].item()
            found.setdefault(info["final_info"]["index"][row].item(), set()).add(
                (*map(str, end), *flags)
            )
    return found


def test_an_episode_is_the_same_in_any_number_of_slots():
    alone = episodes(1, 300)
    assert len(alone) == len(EXAMPLES)
    assert all(len(ends) == 1 for ends in alone.values())
    assert episodes(3, 100) == episodes(7, 50) == alone


def test_neighbors_do_not_matter():
    seen = []
    for num_envs in (1, 3, 7):
        env = make(num_envs, DISABLED)
        env.reset(options={"indices": [5, *range(num_envs - 1)]})
        rows = []
        for step in range(MAX_STEPS):
            actions = torch.full((num_envs,), 2)
            actions[0] = 3 + step
            shown, rewards, terminated, truncated, _ = env.step(permitted(env, actions))
            first = {name: tensor[0].tolist() for name, tensor in shown.items()}
            rows.append((first, rewards[0].item(), terminated[0].item(), truncated[0].item()))
        seen.append(rows)
    assert seen[0] == seen[1] == seen[2]


@pytest.mark.parametrize("mode", AutoresetMode)
def test_step_never_waits_for_the_device(mode, monkeypatch):
    set_sync_is_free(monkeypatch, False)
    env = make(mode=mode)
    env.reset(seed=0)
    actions = some_actions(env, 12)
    with NoWaiting():
        play(env, actions)


def test_no_waiting_fails_on_operators_that_wait():
    mask = torch.tensor([True, False])
    waits = [mask.any().item, mask.nonzero, mask.unique, mask.long().bincount]
    waits += [lambda: mask[mask], lambda: bool(mask[0]), lambda: mask.equal(mask)]
    waits += [lambda: mask.masked_select(mask), lambda: mask.repeat_interleave(mask.long())]
    for wait in waits:
        with NoWaiting(), pytest.raises(AssertionError, match="waits"):
            wait()


# Comparison with plain Python


class PlainEnv:
    """Reference implementation with lists, slot by slot."""

    def __init__(self, order, num_envs, mode):
        self.order, self.mode, self.taken = order, mode, 0
        self.slots = [self.begin() for _ in range(num_envs)]

    def begin(self):
        index = self.order[self.taken % len(self.order)]
        self.taken += 1
        return {"index": index, "prefix": [], "terminated": False, "truncated": False}

    def step(self, actions):
        return [self.act(row, action) for row, action in enumerate(actions)]

    def act(self, row, action):
        slot = self.slots[row]
        if slot["terminated"] or slot["truncated"]:
            if self.mode is NEXT_STEP:
                slot = self.slots[row] = self.begin()
            return slot, 0.0, slot, False
        prefix = [*slot["prefix"], action]
        terminated = action == 2
        truncated = len(prefix) == MAX_STEPS and not terminated
        after = {**slot, "prefix": prefix, "terminated": terminated, "truncated": truncated}
        ended = terminated or truncated
        reference = [token for token in EXAMPLES.reference[slot["index"]].tolist() if token]
        refill = ended and self.mode is SAME_STEP
        self.slots[row] = self.begin() if refill else after
        return after, float(ended and prefix == reference), self.slots[row], refill


@given(
    mode=st.sampled_from(AutoresetMode),
    seed=st.integers(0, 2**40),
    steps=st.integers(1, 4).flatmap(
        lambda rows: st.lists(
            st.lists(st.sampled_from([0, 1, 2, 2, 3, 4, 5]), min_size=rows, max_size=rows),
            min_size=1,
            max_size=2 * MAX_STEPS,
        )
    ),
    follow=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_any_actions_give_the_results_of_plain_python(mode, seed, steps, follow):
    env = make(len(steps[0]), mode, reward=exact_match)
    env.reset(seed=seed)
    plain = PlainEnv(env._order.tolist(), env.num_envs, mode)
    for actions in steps:
        if follow:  # the references, else a match would be rare
            references = [EXAMPLES.reference[slot["index"]].tolist() for slot in plain.slots]
            actions = [
                (row + [0] * MAX_STEPS)[min(len(slot["prefix"]), MAX_STEPS)]
                for row, slot in zip(references, plain.slots, strict=True)
            ]
        if mode is DISABLED:
            actions = permitted(env, torch.tensor(actions)).tolist()
        shown, rewards, terminated, truncated, info = env.step(torch.tensor(actions))
        for row, (after, reward, showing, refilled) in enumerate(plain.step(actions)):
            assert rewards[row].item() == reward
            assert terminated[row].item() == after["terminated"]
            assert truncated[row].item() == after["truncated"]
            assert info["index"][row].item() == showing["index"]
            assert written(shown, row) == showing["prefix"]
            if mode is SAME_STEP:
                assert info["_final_obs"][row].item() == info["_final_info"][row].item() == refilled
            if refilled:
                assert written(info["final_obs"], row) == after["prefix"]
                assert info["final_info"]["index"][row].item() == after["index"]


def written(shown, row):
    length = shown["length"][row].item()
    assert not shown["prefix"][row, length:].any()
    return shown["prefix"][row, :length].tolist()


# close and copies


def test_after_close_only_a_reset_may_follow():
    env = make(render_mode="ansi")
    env.reset(seed=0)
    env.close()
    env.close()
    assert env.closed
    with pytest.raises(RuntimeError, match="reset must come before all else"):
        env.step(torch.tensor([3, 3, 3]))
    assert env.reset(seed=0)[0]["length"].tolist() == [0, 0, 0]


@pytest.mark.parametrize("mode", AutoresetMode)
@pytest.mark.parametrize("pickler", [pickle, cloudpickle])
def test_a_copy_pickled_amid_episodes_continues_in_the_same_way(mode, pickler):
    env = make(mode=mode, noise=random_tokens, expert=NoExpert())
    env.reset(seed=0)
    play(env, some_actions(env, 2))
    copy = pickle.loads(pickler.dumps(env))
    for drawn in some_actions(env, 12, seed=1):
        actions = permitted(env, drawn)
        assert_same(env.step(actions), copy.step(actions))
    assert_same(env.reset(), copy.reset())
    assert_same(env.reset(seed=7), copy.reset(seed=7))
    assert copy.autoreset_mode is copy.metadata["autoreset_mode"] is mode


# Construction


def test_examples_expert_and_reward_are_the_given_ones():
    expert = NoExpert()
    env = make(1, examples=EXAMPLES.select(torch.tensor([4])), expert=expert, reward=no_reward)
    assert len(env.examples) == 1
    assert env.expert is expert
    env.reset()
    for action in EXAMPLES.reference[4][:5]:
        assert not env.step(action[None])[1].any()


def test_the_default_reward_is_sentence_bleu():
    env = make(1, DISABLED)
    longest = (EXAMPLES.reference != 0).sum(1).argmax()
    first, second, *_, end = EXAMPLES.reference[longest][EXAMPLES.reference[longest] != 0]
    env.reset(options={"indices": longest[None]})
    earned = [env.step(action[None])[1].item() for action in (first, second, end)]
    assert earned == [0, 0, pytest.approx(math.exp(-1))], "two words of four"


def test_the_mode_is_an_attribute_and_in_the_metadata():
    for mode in AutoresetMode:
        env = make(mode=mode)
        assert env.autoreset_mode is env.metadata["autoreset_mode"] is mode
    assert make().metadata is not make().metadata


def test_more_slots_than_examples_are_filled_over_and_over():
    env = make(5, examples=EXAMPLES.select(torch.tensor([3, 9])))
    index = env.reset(seed=0)[1]["index"].tolist()
    assert index == [index[0], index[1]] * 2 + [index[0]]
    assert set(index) == {0, 1}


def test_gymnasium_wrappers_convert_tensors_to_arrays_and_infos_to_lists():
    pytest.importorskip("array_api_compat")
    from gymnasium.wrappers.vector import ArrayConversion, DictInfoToList

    env = DictInfoToList(ArrayConversion(make(), env_xp=torch, target_xp=np))
    env.reset(seed=0)
    shown, rewards, _, _, infos = env.step(np.array([3, 2, 3]))
    assert isinstance(shown["prefix"], np.ndarray)
    assert isinstance(rewards, np.ndarray)
    assert ["final_obs" in info for info in infos] == [False, True, False]
    assert infos[1]["final_obs"]["length"] == 1
