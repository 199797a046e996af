"""Tests of the Stable-Baselines3 adapter, with those of its own `VecEnv` tests that apply."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env as check_gymnasium_env
from gymnasium.vector import AutoresetMode
from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

from textgen_env.envs.single_env import TextGenEnv
from textgen_env.envs.vector_env import TextGenVectorEnv
from textgen_env.experts.dynamic_oracle import DynamicOracle
from textgen_env.experts.expert import NeuralExpert
from textgen_env.integrations.sb3 import ExpertPolicy, FlatObservation, SB3VecEnv, split_observation

SLOTS = 3


@pytest.fixture
def venv(tiny_task):
    return SB3VecEnv(TextGenVectorEnv(tiny_task, SLOTS))


def steps(venv, count, seed=0):
    """Yield random actions and the results of their steps."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        actions = rng.integers(2, venv.action_space.n, venv.num_envs)
        yield actions, *venv.step(actions)


def rows(observation):
    return [{name: array[i] for name, array in observation.items()} for i in range(SLOTS)]


def same(ours, theirs):
    return all(np.array_equal(ours[name], theirs[name]) for name in theirs)


def test_the_single_environment_passes_its_checker(tiny_task):
    check_env(TextGenEnv(tiny_task))


@pytest.mark.parametrize("name", ["TextGen/Copy-v0", "TextGen/Recovery-v0"])
def test_vectors_are_made_by_name(name):
    """Stable-Baselines3 asks for render mode `rgb_array` unless it is told another."""
    venv = make_vec_env(name, n_envs=2, seed=0)
    venv.reset()
    venv.step(np.array([3, 4]))
    pictures = venv.get_images()
    assert [picture.shape for picture in pictures] == [(240, 640, 3)] * 2
    assert venv.render().ndim == 3, "both in one picture"


def test_its_algorithms_learn_in_an_environment_given_by_name():
    ppo = PPO("MultiInputPolicy", "TextGen/Copy-v0", n_steps=8, batch_size=8, n_epochs=1, seed=0)
    ppo.learn(8)
    assert ppo.num_timesteps == 8


def test_gymnasium_checks_what_it_makes_with_every_render_mode():
    for mode in (None, *TextGenEnv.metadata["render_modes"]):
        env = gymnasium.make("TextGen/Copy-v0", render_mode=mode)
        check_gymnasium_env(env.unwrapped)


def test_observations_of_each_slot_lie_in_its_space(venv):
    shown = [venv.reset(), *(observation for _, observation, *_ in steps(venv, 20))]
    for observation in shown:
        assert observation.keys() == venv.observation_space.spaces.keys()
        assert all(venv.observation_space.contains(row) for row in rows(observation))


def test_types_are_those_of_a_dummy_vec_env(venv, tiny_task):
    dummy = DummyVecEnv([lambda: TextGenEnv(tiny_task)] * SLOTS)
    venv.reset()
    dummy.reset()
    for ours, theirs in zip(steps(venv, 12), steps(dummy, 12), strict=True):
        for name, array in theirs[1].items():
            assert ours[1][name].dtype == array.dtype, name
            assert ours[1][name].shape == array.shape, name
        for part in (2, 3):
            assert ours[part].dtype == theirs[part].dtype
            assert ours[part].shape == theirs[part].shape
        assert type(ours[4]) is list
        for our_info, their_info in zip(ours[4], theirs[4], strict=True):
            shared = {"index", "written", "TimeLimit.truncated"}
            assert shared <= our_info.keys() & their_info.keys()
            assert all(type(our_info[name]) is type(their_info[name]) for name in shared)


@pytest.mark.parametrize("ask_expert", [False, True])
def test_a_slot_behaves_like_a_single_environment(tiny_task, tiny_teacher, ask_expert):
    """Compare every result over many episodes with those of single environments."""
    settings = {"expert": NeuralExpert(tiny_teacher), "ask_expert": ask_expert}
    venv = SB3VecEnv(TextGenVectorEnv(tiny_task, SLOTS, **settings))
    single = [TextGenEnv(tiny_task, **settings) for _ in range(SLOTS)]

    def begin(slot):
        reset_info = venv.reset_infos[slot]
        start, info = single[slot].reset(options={"indices": [reset_info["index"]]})
        assert reset_info == info
        return start

    venv.seed(4)
    shown, ends = venv.reset(), [0, 0]
    for slot in range(SLOTS):
        assert same(rows(shown)[slot], begin(slot))
    for actions, observation, rewards, dones, infos in steps(venv, 40):
        for slot, env in enumerate(single):
            expected, reward, terminated, truncated, info = env.step(actions[slot])
            got = dict(infos[slot])
            assert rewards[slot] == reward
            assert dones[slot] == (terminated or truncated)
            assert got.pop("TimeLimit.truncated") == truncated
            assert ("terminal_observation" in got) == dones[slot]
            if dones[slot]:
                ends[truncated] += 1
                assert same(got.pop("terminal_observation"), expected)
                expected = begin(slot)
            assert got == info
            assert same(rows(observation)[slot], expected)
    assert min(ends) > 2, "episodes must end in both ways"


def test_a_seed_decides_everything_and_is_used_once(venv):
    def played():
        first = str(venv.reset())
        return first, str(list(steps(venv, 20)))

    venv.seed(3)
    once = played()
    venv.seed(3)
    assert played() == once
    assert played() != once


def test_slots_begin_with_different_examples_without_a_seed_too(venv):
    venv.seed()
    venv.reset()
    assert len({info["index"] for info in venv.reset_infos}) == SLOTS


def test_options_choose_examples_for_one_reset(venv):
    venv.set_options([{"indices": [index]} for index in (5, 6, 5)])
    venv.reset()
    assert venv.reset_infos == [{"index": 5}, {"index": 6}, {"index": 5}]
    venv.set_options({"indices": [7]})
    venv.reset()
    assert venv.reset_infos == [{"index": 7}] * SLOTS
    venv.seed(0)
    venv.reset()
    assert len({info["index"] for info in venv.reset_infos}) == SLOTS


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([{"indices": [1]}, {}, {}], "indices must have shape"),
        ({"hello": [1]}, "options must be among"),
    ],
)
def test_invalid_options_are_refused(venv, options, message):
    venv.set_options(options)
    with pytest.raises(ValueError, match=message):
        venv.reset()


def test_attributes_and_methods_are_shared_by_the_slots(venv):
    assert not venv.has_attr("dummy")
    assert venv.set_attr("dummy", 12) is None
    assert venv.has_attr("dummy")
    assert venv.get_attr("dummy") == [12] * SLOTS
    assert venv.env.dummy == 12
    venv.set_attr("dummy", 42, indices=range(SLOTS))
    assert venv.get_attr("dummy", indices=[0, -1]) == [42, 42]
    assert venv.get_attr("dummy", indices=1) == [42]
    with pytest.raises(ValueError, match="slots, which share their attributes"):
        venv.set_attr("dummy", 1, indices=[0, 1])
    with pytest.raises(IndexError):
        venv.get_attr("dummy", indices=SLOTS)
    assert venv.env_is_wrapped(Monitor) == [False] * SLOTS
    assert venv.env_is_wrapped(Monitor, indices=0) == [False]


def test_a_method_is_called_once_for_all(venv):
    calls = []
    venv.env.noted = lambda first, second: calls.append((first, second)) or len(calls)
    assert venv.env_method("noted", 1, indices=[0, 2], second=3) == [1, 1]
    assert calls == [(1, 3)]


def test_writing_into_an_observation_changes_no_state(venv):
    source = venv.reset()["source"].copy()
    observation = venv.step(np.full(SLOTS, 3))[0]
    for array in observation.values():
        array[:] = 1
    again = venv.step(np.full(SLOTS, 4))[0]
    assert (again["source"] == source).all()
    assert again["prefix"][:, :3].tolist() == [[3, 4, 0]] * SLOTS


def test_rendering_without_a_mode_warns(venv):
    with pytest.warns(UserWarning, match="no `render_mode` was passed"):
        assert venv.render() is None


def test_another_autoreset_mode_is_refused(tiny_task):
    env = TextGenVectorEnv(tiny_task, SLOTS, autoreset_mode=AutoresetMode.DISABLED)
    with pytest.raises(ValueError, match="env must be in autoreset mode SAME_STEP, got DISABLED"):
        SB3VecEnv(env)


def test_flat_observations_are_source_and_prefix_side_by_side(tiny_task):
    dicts, flats = (SB3VecEnv(TextGenVectorEnv(tiny_task, SLOTS)) for _ in range(2))
    flats = FlatObservation(VecMonitor(flats))
    dicts.seed(1)
    flats.seed(1)

    def joined(observation):
        return np.concatenate([observation["source"], observation["prefix"]], -1)

    assert (flats.reset() == joined(dicts.reset())).all()
    assert flats.observation_space.shape == (tiny_task.max_source_length + 6,)
    assert flats.observation_space.dtype == np.int64
    for ours, theirs in zip(steps(flats, 20), steps(dicts, 20), strict=True):
        assert (ours[1] == joined(theirs[1])).all()
        assert all(flats.observation_space.contains(row) for row in ours[1])
        for info, dict_info in zip(ours[4], theirs[4], strict=True):
            if final := dict_info.get("terminal_observation"):
                assert (info["terminal_observation"] == joined(final)).all()
    with pytest.raises(TypeError, match="is it flat already"):
        FlatObservation(flats)


def test_both_forms_hold_the_same_texts(tiny_task):
    dicts = SB3VecEnv(TextGenVectorEnv(tiny_task, SLOTS))
    dicts.reset()
    observation = list(steps(dicts, 3))[-1][1]
    tensors = {name: torch.from_numpy(array) for name, array in observation.items()}
    flat = torch.cat([tensors["source"], tensors["prefix"]], 1).float()
    width, special = tiny_task.max_source_length, dicts.env.special
    for ours, theirs in zip(
        split_observation(tensors, width, special),
        split_observation(flat, width, special),
        strict=True,
    ):
        assert torch.equal(ours, theirs)
        assert ours.dtype == theirs.dtype == torch.int64


def test_an_expert_that_needs_references_is_refused_as_a_policy(venv):
    """Refuse it, since without references it would always write the end token."""
    expert = DynamicOracle(venv.env.examples, venv.env.vocab_size)
    spaces = venv.observation_space, venv.action_space
    with pytest.raises(TypeError, match=r'got a DynamicOracle.*ask_expert=True and .*"expert_act'):
        ExpertPolicy(expert, *spaces, max_source_length=5)


@pytest.mark.parametrize("flat", [False, True])
def test_the_expert_policy_writes_the_experts_text(tiny_task, make_table_model, flat):
    expert = NeuralExpert(make_table_model(tiny_task, 3))
    env = TextGenVectorEnv(tiny_task, SLOTS)
    venv = FlatObservation(SB3VecEnv(env)) if flat else SB3VecEnv(env)
    policy = ExpertPolicy(
        expert,
        venv.observation_space,
        venv.action_space,
        max_source_length=tiny_task.max_source_length,
    )
    shown, written, queried = venv.reset(), [[] for _ in range(SLOTS)], 0
    first = env.examples.select(
        torch.tensor([info["index"] for info in venv.unwrapped.reset_infos])
    )
    alive = np.ones(SLOTS, bool)
    while alive.any():
        actions, _ = policy.predict(shown)
        queried += SLOTS
        for slot in np.flatnonzero(alive):
            written[slot].append(int(actions[slot]))
        shown, _, dones, _ = venv.step(actions)
        alive &= ~dones
    assert expert.queries.tokens == queried
    expected = expert.write(first, max_steps=env.max_steps, beam_size=1).reference
    assert [row[row != 0].tolist() for row in expected] == written
