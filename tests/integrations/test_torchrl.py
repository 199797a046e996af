"""TorchRL wraps both environments as they are. Collected by `make integrations` only.

Use it with autoreset mode DISABLED. In SAME_STEP, TorchRL 0.14.1 keeps to its specs but shows zeros
as the last observation of an episode (its reader of "final_obs" looks for "observation" and not for
the names of a dict), and after a second `reset` what slots showed before it.
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


def test_the_single_environment_keeps_to_its_specs(tiny_task):
    env = GymWrapper(TextGenEnv(tiny_task), categorical_action_encoding=True)
    check_env_specs(env)
    assert env.rollout(STEPS, break_when_any_done=False)["action"].shape == (STEPS,)


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.DISABLED])
def test_the_vector_environment_keeps_to_its_specs(wrapped, mode):
    check_env_specs(wrapped(mode))


def test_a_rollout_shows_what_was_written_to_the_last_token(wrapped):
    torch.manual_seed(0)
    steps = wrapped(AutoresetMode.DISABLED).rollout(STEPS, break_when_any_done=False)
    place = steps["length"].long()[..., None]
    written = steps["next", "prefix"].gather(2, place).squeeze(2)
    assert torch.equal(written, steps["action"])
    assert steps["next", "done"].sum() > SLOTS, "slots must have begun anew"
