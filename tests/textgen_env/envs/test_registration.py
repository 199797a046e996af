import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.utils.performance import (
    benchmark_init,
    benchmark_render,
    benchmark_step,
    benchmark_vector_step,
)
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers.vector import ArrayConversion

import textgen_env
from textgen_env.envs.recovery import UNDO, RecoveryConfig, recovered, recovery_task
from textgen_env.envs.rewards import no_reward
from textgen_env.experts.expert import NoExpert
from textgen_env.tasks import TASKS
from textgen_env.tasks.copy import CopyConfig, copy_task
from textgen_env.tasks.text_files import TextFilesConfig

SMALL = CopyConfig(num_words=4, max_length=4, num_train=20, num_validation=2, num_test=2)
SLIPPERY = RecoveryConfig(SMALL, slip=1.0)


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


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_make_vec_over_single_environments(mode):
    env = gymnasium.make_vec("TextGen/Copy-v0", num_envs=2, vectorization_mode=mode, config=SMALL)
    alone = gymnasium.make("TextGen/Copy-v0", config=SMALL)
    try:
        shown, _ = env.reset(seed=5)
        for slot in range(2):
            assert (shown["source"][slot] == alone.reset(seed=5 + slot)[0]["source"]).all()
        shown, _, terminated, _, _ = env.step(np.array([3, 2]))
        assert shown["prefix"][:, 0].tolist() == [3, 2]
        assert terminated.tolist() == [False, True]
    finally:
        env.close()


def test_make_vec_passes_all_settings_on():
    env = gymnasium.make_vec(
        "TextGen/Copy-v0",
        num_envs=2,
        config=SMALL,
        autoreset_mode=AutoresetMode.NEXT_STEP,
        noise=lambda actions, generator: actions + 1,
        render_mode="ansi",
    )
    env.reset(seed=0)
    assert env.step(np.array([3, 4]))[0]["prefix"][:, 0].tolist() == [4, 5]
    assert len(env.render()) == 2


def test_gymnasium_can_measure_the_speed_of_one():
    env = gymnasium.make("TextGen/Copy-v0", config=SMALL, render_mode="ansi")
    assert benchmark_step(env, target_duration=0.02, seed=0) > 0
    assert benchmark_render(env, target_duration=0.02) > 0
    assert (
        benchmark_init(
            lambda: gymnasium.make("TextGen/Copy-v0", config=SMALL), target_duration=0.02, seed=0
        )
        > 0
    )


@pytest.mark.parametrize("mode", AutoresetMode)
def test_gymnasium_can_measure_the_speed_of_many(mode):
    env = gymnasium.make_vec("TextGen/Copy-v0", num_envs=3, config=SMALL, autoreset_mode=mode)
    arrays = ArrayConversion(env, env_xp=torch, target_xp=np)  # on flags it calls numpy's functions
    assert benchmark_vector_step(arrays, target_duration=0.02, seed=0) > 0
    if mode is AutoresetMode.SAME_STEP:
        assert benchmark_vector_step(env, target_duration=0.02, seed=0) > 0


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


def test_recovery_comes_with_its_slips_and_its_reward():
    env = gymnasium.make_vec("TextGen/Recovery-v0", num_envs=400, config=SLIPPERY)
    env.reset(seed=0)
    chosen = torch.full((400,), UNDO + 1)
    written = env.step(chosen)[4]["written"]
    assert written.unique().tolist() == [UNDO + 1 + word for word in range(4)]
    assert env.reward is recovered
    assert gymnasium.make_vec("TextGen/Recovery-v0").noise == RecoveryConfig().slips


def test_one_recovery_earns_its_reward_for_a_text_with_a_word_undone():
    env = gymnasium.make(
        "TextGen/Recovery-v0", config=RecoveryConfig(SMALL, slip=0.0), render_mode="ansi"
    )
    shown, _ = env.reset(seed=0)
    wrong = UNDO + 1 + (shown["source"][0] == UNDO + 1)
    actions = [wrong, UNDO, *shown["source"][: shown["source_length"]]]
    steps = [env.step(action)[1:3] for action in actions]
    assert steps == [(0, False)] * (len(actions) - 1) + [(1, True)]
    check_env(env.unwrapped)
    env.close()


@pytest.mark.parametrize("make", [gymnasium.make, gymnasium.make_vec])
def test_recovery_lets_the_user_choose(make):
    env = make("TextGen/Recovery-v0", task=recovery_task(SLIPPERY), noise=None, reward=no_reward)
    inner = getattr(env.unwrapped, "vector_env", env)
    assert inner.noise is None
    assert inner.reward is no_reward


@pytest.mark.parametrize("make", [gymnasium.make, gymnasium.make_vec])
def test_a_recovery_task_does_not_say_how_slippery_its_pen_is(make):
    with pytest.raises(ValueError, match="noise must be given where task is given, got none"):
        make("TextGen/Recovery-v0", task=recovery_task(SLIPPERY))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("Copy", "CopyConfig"),
        ("Verses", "VersesConfig"),
        ("Descriptions", "DescriptionsConfig"),
        ("Recovery", "RecoveryConfig"),
    ],
)
def test_the_configuration_of_another_task_is_refused(name, kind, text_config):
    with pytest.raises(ValueError, match=f"config must be a {kind} for the task"):
        gymnasium.make(f"TextGen/{name}-v0", config=text_config)


def test_an_argument_that_there_is_not_is_refused():
    with pytest.raises(TypeError, match="num_slots"):
        gymnasium.make_vec("TextGen/Copy-v0", num_envs=2, config=SMALL, num_slots=3)


def test_every_task_has_an_id():
    ids = {name for name in gymnasium.registry if name.startswith("TextGen/")}
    names = "Copy", "Division", "Verses", "Descriptions", "Text", "Hub", "Recovery"
    assert ids == {f"TextGen/{name}-v0" for name in names}
    assert len(ids) == len(TASKS)


def test_public_names_are_there():
    assert all(hasattr(textgen_env, name) for name in textgen_env.__all__)
