"""Tests of both environments in TorchRL's wrapper, collected by `make integrations` only.

Use TorchRL with autoreset mode DISABLED. In SAME_STEP, TorchRL 0.14.1 returns zeros as the last
observation of an episode: its reader of "final_obs" looks for "observation" and not for the names
of a dict. After a second `reset` it returns the observations from before it.
"""

import pytest
import torch
from gymnasium.vector import AutoresetMode
from torchrl.envs import GymWrapper, check_env_specs

from textgen_env.envs.single_env import TextGenEnv
from textgen_env.envs.vector_env import TextGenVectorEnv

SLOTS, STEPS = 3, 12


@pytest.fixture
def wrapped(tiny_task):
    def make(mode):
        return GymWrapper(
            TextGenVectorEnv(tiny_task, SLOTS, autoreset_mode=mode),
            convert_actions_to_numpy=False,
            categorical_action_encoding=True,
        )

    return make


def test_the_single_environment_matches_its_specs(tiny_task):
    env = GymWrapper(TextGenEnv(tiny_task), categorical_action_encoding=True)
    check_env_specs(env)
    assert env.rollout(STEPS, break_when_any_done=False)["action"].shape == (STEPS,)


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.DISABLED])
def test_the_vector_environment_matches_its_specs(wrapped, mode):
    check_env_specs(wrapped(mode))


def test_a_rollout_holds_every_written_token(wrapped):
    torch.manual_seed(0)
    steps = wrapped(AutoresetMode.DISABLED).rollout(STEPS, break_when_any_done=False)
    place = steps["length"].long()[..., None]
    written = steps["next", "prefix"].gather(2, place).squeeze(2)
    assert torch.equal(written, steps["action"])
    assert steps["next", "done"].sum() > SLOTS, "slots must have begun anew"
