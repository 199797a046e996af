import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

import textgen_env
from textgen_env.expert import NoExpert
from textgen_env.rewards import no_reward
from textgen_env.tasks.copy import CopyConfig, copy_task
from textgen_env.tasks.text_files import TextFilesConfig

SMALL = CopyConfig(num_words=4, max_length=4, num_train=20, num_validation=2, num_test=2)


@pytest.fixture
def text_config(tmp_path):
    path = tmp_path / "pairs.tsv"
    path.write_text("one two\teins zwei\nthree\tdrei\n")
    return TextFilesConfig(path, validation=path, test=path)


def test_make_gives_one_episode_at_a_time():
    env = gymnasium.make("TextGen/Copy-v0", config=SMALL, render_mode="ansi")
    assert isinstance(env.unwrapped, textgen_env.TextGenEnv)
    env.reset(seed=0)
    _, _, terminated, truncated, _ = env.step(2)
    assert (terminated, truncated) == (True, False)
    assert env.render().startswith("source: w")
    check_env(env.unwrapped)
    env.close()


def test_the_wrappers_of_make_let_a_whole_episode_pass():
    env = gymnasium.make("TextGen/Copy-v0", config=SMALL)
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(3)
    env.reset(seed=0)
    flags = [env.step(3)[2:4] for _ in range(5)]
    assert flags == [(False, False)] * 4 + [(False, True)]


def test_make_vec_gives_many_at_once():
    env = gymnasium.make_vec(
        "TextGen/Copy-v0",
        num_envs=3,
        config=SMALL,
        autoreset_mode=AutoresetMode.DISABLED,
        device="cpu",
        reward=no_reward,
        expert=NoExpert(),
    )
    assert isinstance(env, textgen_env.TextGenVectorEnv)
    assert env.autoreset_mode is AutoresetMode.DISABLED
    assert env.spec.id == "TextGen/Copy-v0"
    env.reset(seed=0)
    assert env.step(torch.tensor([2, 3, 3]))[2].tolist() == [True, False, False]
    env.close()


def test_make_vec_gives_the_default_task_and_mode():
    env = gymnasium.make_vec("TextGen/Copy-v0", num_envs=2)
    assert len(env.examples) == CopyConfig().num_train
    assert env.autoreset_mode is AutoresetMode.SAME_STEP


def test_make_vec_over_single_environments():
    env = gymnasium.make_vec("TextGen/Copy-v0", num_envs=2, vectorization_mode="sync", config=SMALL)
    env.reset(seed=0)
    shown = env.step(np.array([3, 4]))[0]
    assert shown["prefix"][:, 0].tolist() == [3, 4]
    env.close()


def test_a_task_that_was_made_before_is_used():
    task = copy_task(SMALL)
    env = gymnasium.make("TextGen/Copy-v0", task=task)
    assert env.unwrapped.task is task
    with pytest.raises(ValueError, match="config must be left out where task is given"):
        gymnasium.make("TextGen/Copy-v0", task=task, config=SMALL)


def test_text_of_the_users_own(text_config):
    env = gymnasium.make("TextGen/Text-v0", config=text_config, render_mode="ansi")
    env.reset(options={"indices": [0]})
    assert env.render() == "source: one two\ntext:   "
    many = gymnasium.make_vec("TextGen/Text-v0", num_envs=2, config=text_config)
    assert many.reset(seed=0)[0]["source"].shape[0] == 2


@pytest.mark.parametrize("make", [gymnasium.make, gymnasium.make_vec])
def test_text_needs_a_configuration(make):
    message = "config must be a TextFilesConfig for the task 'text', got None"
    with pytest.raises(ValueError, match=message):
        make("TextGen/Text-v0")


@pytest.mark.parametrize(("name", "kind"), [("Copy", "CopyConfig"), ("Verses", "VersesConfig")])
def test_the_configuration_of_another_task_is_refused(name, kind, text_config):
    with pytest.raises(ValueError, match=f"config must be a {kind} for the task"):
        gymnasium.make(f"TextGen/{name}-v0", config=text_config)


def test_an_argument_that_there_is_not_is_refused():
    with pytest.raises(TypeError, match="num_slots"):
        gymnasium.make_vec("TextGen/Copy-v0", num_envs=2, config=SMALL, num_slots=3)


def test_every_task_has_an_id():
    ids = {name for name in gymnasium.registry if name.startswith("TextGen/")}
    assert ids == {"TextGen/Copy-v0", "TextGen/Verses-v0", "TextGen/Text-v0"}


def test_public_names_are_there():
    assert all(hasattr(textgen_env, name) for name in textgen_env.__all__)
