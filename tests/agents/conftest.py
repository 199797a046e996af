"""An environment with a teacher, as agents find it."""

import pytest
import torch
from gymnasium.vector import AutoresetMode

from tests.support.updates import CONFIG, ROWS, expert_for
from textgen_agents.training.learner import Learner
from textgen_env.envs.rewards import no_reward
from textgen_env.envs.vector_env import TextGenVectorEnv
from textgen_env.experts.expert import NeuralExpert


@pytest.fixture
def expert(tiny_teacher):
    return NeuralExpert(tiny_teacher)


@pytest.fixture
def env(tiny_task, make_env, expert):
    return make_env(tiny_task, ROWS, expert)


def slip(actions, generator):
    """Noise that now and then writes the smallest word instead, and never ends a text."""
    slipping = torch.rand(actions.shape, generator=generator) < 0.4
    return torch.where(slipping, 3, actions)


@pytest.fixture
def noisy_env(tiny_task, expert):
    env = TextGenVectorEnv(
        tiny_task,
        ROWS,
        expert=expert,
        reward=no_reward,
        noise=slip,
        autoreset_mode=AutoresetMode.DISABLED,
    )
    env.reset(seed=0)
    return env


@pytest.fixture
def make_learner(tiny_task, make_env, make_student, tiny_teacher, tmp_path):
    """agent, config, folder -> a learner of a fresh student."""

    def make(agent, config=CONFIG, folder="run", *, precision=torch.float32, dropout=0.0, seed=2):
        env = make_env(
            tiny_task,
            agent.batches_per_rollout * config.batch_size,
            expert_for(agent, tiny_teacher),
        )
        student = make_student(seed, dropout)
        return Learner(
            agent, student, env=env, folder=tmp_path / folder, config=config, precision=precision
        )

    return make
