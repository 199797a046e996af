import math
import pickle
import warnings

import cloudpickle
import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.utils.env_match import check_environments_match
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from tests.support.toy import permitted
from textgen_env.envs.rewards import NegativeDivergence, expert_log_prob, sentence_bleu
from textgen_env.envs.single_env import TextGenEnv
from textgen_env.envs.vector_env import TextGenVectorEnv
from textgen_env.experts.expert import NeuralExpert
from textgen_env.tasks.copy import CopyConfig, copy_task
from textgen_env.types import ShapeError

TASK = copy_task(
    CopyConfig(num_words=6, min_length=1, max_length=4, num_train=40, num_validation=2, num_test=2)
)
VOCAB_SIZE = TASK.tokenizer.vocab_size


@pytest.fixture
def env():
    return TextGenEnv(TASK, render_mode="ansi")


def play(env, actions):
    """Return the results of `env` for a list of actions, as text that can be compared."""
    return [str(env.step(np.int64(action))) for action in actions]


def test_gymnasiums_checker_passes(env):
    check_env(env, skip_render_check=True)  # the check of rendering needs a registered id


def test_stable_baselines3s_checker_passes(env):
    sb3_check_env(env)


@pytest.mark.parametrize("ask_expert", [False, True])
def test_results_equal_those_of_a_slot_of_the_vector_environment(ask_expert, make_table_model):
    settings = {
        "expert": NeuralExpert(make_table_model(TASK, 3)),
        "ask_expert": ask_expert,
        "reward": expert_log_prob if ask_expert else sentence_bleu,
    }
    env = TextGenEnv(TASK, **settings)
    many = TextGenVectorEnv(TASK, 3, autoreset_mode=AutoresetMode.DISABLED, **settings)
    names = ["index", *["expert_action"] * ask_expert]
    for index in range(10):
        shown, info = env.reset(options={"indices": [index]})
        batch, infos = many.reset(options={"indices": [0, index, 1]})
        assert info == {name: infos[name][1].item() for name in names}
        for action in (3, 4, 0, 2, 0):
            assert all((shown[name] == batch[name][1].numpy()).all() for name in shown)
            shown, reward, terminated, truncated, info = env.step(np.int64(action))
            batch, rewards, terminations, truncations, infos = many.step(np.full(3, action))
            assert reward == rewards[1].item()
            assert terminated == terminations[1].item()
            assert truncated == truncations[1].item()
            assert info == {name: infos[name][1].item() for name in [*names, "written"]}


class Slot(gymnasium.Env):
    """One slot of a vector environment as an environment; the others are given other actions."""

    render_mode = "ansi"

    def __init__(self, many, slot):
        self.many, self.slot = many, slot
        self.observation_space = many.single_observation_space
        self.action_space = many.single_action_space

    def reset(self, *, seed=None, options=None):
        index = self.many.reset(seed=seed)[1]["index"]
        shown, info = self.many.reset(options={"indices": index.roll(self.slot)})
        return self.row(shown), self.numbers(info)

    def step(self, action):
        actions = permitted(self.many, torch.arange(self.many.num_envs) + 1)
        actions[self.slot] = int(action)
        shown, *results, info = self.many.step(actions)
        return (
            self.row(shown),
            *(result[self.slot].item() for result in results),
            self.numbers(info),
        )

    def render(self):
        return self.many.render()[self.slot]

    def row(self, shown):
        return {name: tensor[self.slot].numpy()[()] for name, tensor in shown.items()}

    def numbers(self, info):
        return {name: value[self.slot].item() for name, value in info.items() if name[0] != "_"}


@pytest.mark.parametrize("slot", range(3))
def test_gymnasium_finds_no_difference_from_any_slot(env, slot, make_table_model):
    expert = NeuralExpert(make_table_model(TASK, 3))
    settings = {"expert": expert, "ask_expert": True, "render_mode": "ansi"}
    many = TextGenVectorEnv(TASK, 3, autoreset_mode=AutoresetMode.DISABLED, **settings)
    check_environments_match(TextGenEnv(TASK, **settings), Slot(many, slot), num_steps=40)


def test_following_the_expert_writes_its_text(make_table_model):
    """Write the expert's actions: the episode ends where the expert ends its text."""
    expert = NeuralExpert(make_table_model(TASK, 3))
    env = TextGenEnv(TASK, expert=expert, ask_expert=True)
    for index in range(10):
        _, info = env.reset(options={"indices": [index]})
        text, over = [], False
        while not over:
            text.append(info["expert_action"])
            *_, terminated, truncated, info = env.step(info["expert_action"])
            over = terminated or truncated
        assert info["expert_action"] == 0, "PAD after the end"
        one = env.vector_env.examples.select(torch.tensor([index]))
        alone = expert.write(one, max_steps=TASK.max_target_length, beam_size=1)
        assert text == [token for token in alone.reference[0].tolist() if token]


@pytest.mark.parametrize("kind", [torch.tensor, np.array, list])
def test_rewards_compare_the_policy_with_the_expert(kind, make_table_model):
    expert = NeuralExpert(make_table_model(TASK, 3))
    env = TextGenEnv(
        TASK,
        expert=expert,
        ask_expert=True,
        reward=NegativeDivergence(lambda mine, its: mine[:, 5]),
    )
    env.reset(seed=0)
    policy_logits = kind([float(token) for token in range(VOCAB_SIZE)])
    assert env.step(np.int64(3), policy_logits)[1] == -5.0
    with pytest.raises(ShapeError, match="policy_logits must have shape"):
        env.step(np.int64(3), policy_logits[1:])


def test_the_default_reward_is_sentence_bleu(env):
    references = env.vector_env.examples.reference
    longest = int((references != 0).sum(1).argmax())
    env.reset(options={"indices": [longest]})
    first, second, *_ = references[longest].tolist()
    earned = [env.step(np.int64(action))[1] for action in (first, second, 2)]
    assert earned == [0, 0, pytest.approx(math.exp(-1))], "two words of four"


def test_results_are_numpy_and_python_values(make_table_model):
    env = TextGenEnv(TASK, expert=NeuralExpert(make_table_model(TASK, 3)), ask_expert=True)
    shown, info = env.reset(seed=0)
    assert env.observation_space.contains(shown)
    assert {name: type(value) for name, value in info.items()} == {
        "index": int, "expert_action": int
    }  # fmt: skip
    shown, reward, terminated, truncated, _ = env.step(np.int64(3))
    assert env.observation_space.contains(shown)
    assert [type(value) for value in (reward, terminated, truncated)] == [float, bool, bool]


def test_writing_into_an_observation_changes_no_state(env):
    shown, _ = env.reset(seed=0)
    source = shown["source"].copy()
    shown["source"][:] = 9
    shown["prefix"][:] = 9
    later = env.step(np.int64(3))[0]
    assert (later["source"] == source).all()
    assert later["prefix"].tolist() == [3, 0, 0, 0, 0]
    before = env.render()
    later["prefix"][:] = 9
    assert env.render() == before


@pytest.mark.parametrize("action", [3, np.int32(3), np.array(3), np.array([3]), torch.tensor(3)])
def test_an_action_may_come_in_many_forms(env, action):
    env.reset(seed=0)
    assert env.step(action)[0]["prefix"][0] == 3


@pytest.mark.parametrize(
    ("action", "error", "message"),
    [
        (VOCAB_SIZE, ValueError, r"actions must be in \[0"),
        (-1, ValueError, r"actions must be in \[0"),
        (3.5, ShapeError, "actions must be integers"),
        ("w3", TypeError, "actions must be made of numbers"),
        ([3, 3], ShapeError, "actions must have shape"),
        ([], ShapeError, "actions must have shape"),
    ],
)
def test_an_action_that_is_no_token_is_refused(env, action, error, message):
    env.reset(seed=0)
    with pytest.raises(error, match=message):
        env.step(action)


def test_an_action_on_another_device_is_refused(env):
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"actions must be on cpu, .* got a tensor on meta: call"):
        env.step(torch.tensor(3, device="meta"))
    assert env.device == torch.device("cpu"), "what the message names"


def test_policy_logits_that_are_no_numbers_are_refused(env):
    env.reset(seed=0)
    for given in (["a"] * VOCAB_SIZE, {3: 0.5}):
        with pytest.raises(TypeError, match="policy_logits must be made of numbers"):
            env.step(np.int64(3), given)
    for given in (0.5, [[0.5] * VOCAB_SIZE]):
        with pytest.raises(ShapeError, match=rf"policy_logits must have shape \({VOCAB_SIZE}\)"):
            env.step(np.int64(3), given)


def test_options_that_are_no_mapping_are_refused(env):
    with pytest.raises(TypeError, match=r"options must be a mapping from names, got \[5\]"):
        env.reset(options=[5])


def test_render_returns_source_and_text(env):
    _, info = env.reset(seed=0)
    source = TASK.train[info["index"]].source
    assert env.render() == f"source: {source}\ntext:   "
    env.step(np.int64(TASK.tokenizer.encode(["w2"])[0][0]))
    assert env.render() == f"source: {source}\ntext:   w2"


def test_render_needs_a_reset_and_a_mode(env):
    with pytest.raises(RuntimeError, match="reset must come before all else"):
        env.render()
    silent = TextGenEnv(TASK)
    silent.reset()
    assert silent.render() is None


def test_another_render_mode_is_refused():
    with pytest.raises(ValueError, match=r"render_mode must be among .*, got 'depth_array'"):
        TextGenEnv(TASK, render_mode="depth_array")


def test_human_mode_prints_after_reset_and_every_step(env, capsys):
    human = TextGenEnv(TASK, render_mode="human")
    for act in (lambda env: env.reset(seed=0), lambda env: env.step(np.int64(3))):
        act(env)
        act(human)
        assert capsys.readouterr().out == f"{env.render()}\n"
    assert human.render() is None
    assert capsys.readouterr().out.startswith("source: ")


def test_noise_changes_what_is_written():
    env = TextGenEnv(TASK, noise=lambda actions, generator: actions + 1)
    env.reset(seed=0)
    shown, *_, info = env.step(np.int64(3))
    assert info["written"] == shown["prefix"][0] == 4


def test_after_the_end_only_padding_is_taken(env):
    env.reset(seed=0)
    ended, _, *flags, _ = env.step(np.int64(2))
    with pytest.raises(ValueError, match=r"PAD \(0\) in slots .* over, got 3 in slot 0: reset it"):
        env.step(np.int64(3))
    later, reward, *still, _ = env.step(np.int64(0))
    assert str(later) == str(ended)
    assert (reward, still) == (0.0, flags)


def test_after_close_only_a_reset_may_follow(env):
    env.reset(seed=0)
    env.close()
    env.close()
    with pytest.raises(RuntimeError, match="reset must come before all else"):
        env.step(np.int64(3))
    env.reset()


def test_step_needs_a_reset(env):
    with pytest.raises(RuntimeError, match="reset must come before all else"):
        env.step(np.int64(3))


@pytest.mark.parametrize("pickler", [pickle, cloudpickle])
@pytest.mark.parametrize("ask_expert", [False, True])
def test_a_pickled_copy_continues_in_the_same_way(pickler, ask_expert, make_table_model):
    expert = NeuralExpert(make_table_model(TASK, 3))
    env = TextGenEnv(TASK, expert=expert, ask_expert=ask_expert, render_mode="ansi")
    env.reset(seed=0)
    env.step(np.int64(3))
    copy = pickle.loads(pickler.dumps(env))
    assert copy.render() == env.render()
    for _ in range(3):
        assert play(env, (4, 0, 2, 0)) == play(copy, (4, 0, 2, 0))
        assert str(env.reset()) == str(copy.reset())
    assert str(env.reset(seed=7)) == str(copy.reset(seed=7))


def test_gymnasium_can_make_a_vector_environment_of_it():
    many = SyncVectorEnv([lambda: TextGenEnv(TASK)] * 3, autoreset_mode=AutoresetMode.SAME_STEP)
    alone = TextGenEnv(TASK)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shown, _ = many.reset(seed=5)
        first, _ = alone.reset(seed=6)
        assert (shown["source"][1] == first["source"]).all()
        shown, _, terminated, _, info = many.step(np.array([3, 2, 3]))
    assert terminated.tolist() == [False, True, False]
    assert info["_final_obs"].tolist() == [False, True, False]
    assert info["final_obs"][1]["prefix"].tolist() == [2, 0, 0, 0, 0]
    assert many.observation_space.contains(shown)
    many.close()
