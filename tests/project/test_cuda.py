"""Tests on a CUDA device: steps do not synchronize with the host, and every agent learns.

They are skipped where there is no such device.
"""

import math

import pytest
import torch
from gymnasium.vector import AutoresetMode

from tests.support.toy import permitted
from tests.support.updates import (
    CONFIG,
    OF_MIXTURES,
    ROWS,
    Log,
    assert_same_bits,
    make,
    no_score,
    weights_of,
)
from textgen_agents import AGENTS
from textgen_agents.rollouts.behaviors import token_sampler
from textgen_agents.rollouts.context import Context
from textgen_agents.rollouts.rollout import rollout
from textgen_agents.training.learner import Learner
from textgen_agents.training.regularizers import References
from textgen_env.envs.rewards import no_reward
from textgen_env.envs.vector_env import TextGenVectorEnv
from textgen_env.experts.expert import NeuralExpert
from textgen_env.generation.decoding import decode_all, sample
from textgen_env.generation.sampling import Sampling
from textgen_env.models.acceleration.cuda_graph import GraphedModel, with_cuda_graphs
from textgen_env.testing.checker import check_vector_env
from textgen_env.types import Writer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture
def expert(tiny_teacher):
    return NeuralExpert(with_cuda_graphs(tiny_teacher.requires_grad_(False).cuda()))


def make_env(task, expert, num_envs=ROWS, mode=AutoresetMode.DISABLED, **settings):
    return TextGenVectorEnv(
        task,
        num_envs,
        expert=expert,
        reward=no_reward,
        autoreset_mode=mode,
        device="cuda",
        **settings,
    )


@pytest.fixture
def forbid_sync():
    """Return a function that makes synchronization an error for the rest of a test."""

    def forbid():
        torch.cuda.set_sync_debug_mode("error")

    yield forbid
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("mode", AutoresetMode)
@pytest.mark.parametrize("ask_expert", [False, True])
def test_a_step_does_not_wait_for_the_device(tiny_task, expert, mode, ask_expert, forbid_sync):
    env = make_env(tiny_task, expert, mode=mode, ask_expert=ask_expert)
    env.reset(seed=0)
    for step in range(25):
        if step == 15:  # by then all steps are recorded and all memory is allocated
            forbid_sync()
        env.step(permitted(env, torch.full((ROWS,), 3 + step % 4, device="cuda")))


@pytest.mark.parametrize("mode", AutoresetMode)
def test_the_environment_fulfills_its_contract(tiny_task, expert, mode):
    check_vector_env(make_env(tiny_task, expert, mode=mode))


def test_texts_are_those_generated_on_the_host(tiny_task, tiny_student, expert):
    env, indices = make_env(tiny_task, expert), torch.arange(ROWS)
    expected = decode_all(tiny_student, env.examples.source[:ROWS].cpu(), env.max_steps)
    student = with_cuda_graphs(tiny_student.requires_grad_(False).cuda())
    assert isinstance(student, GraphedModel)
    context = Context(indices.cuda(), env, student)
    behavior = token_sampler(None, context)

    def by_student(view):
        action, _ = behavior(view.student_logits)
        return action, torch.full_like(action, Writer.STUDENT)

    written = rollout(context, by_student).trajectories
    width = written.actions.shape[1]
    assert torch.equal(written.actions.cpu(), expected[:, :width])
    assert not expected[:, width:].any()


def test_draws_are_the_same_for_the_same_seed(tiny_student, tiny_task, expert):
    env = make_env(tiny_task, expert)
    student = with_cuda_graphs(tiny_student.requires_grad_(False).cuda())

    def draw(seed):
        generator = torch.Generator("cuda").manual_seed(seed)
        source = env.examples.source[:ROWS]
        return sample(student, source, 8, sampling=Sampling(), generator=generator)

    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))


@pytest.mark.parametrize("name", sorted(set(AGENTS) - OF_MIXTURES))
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_every_agent_learns(tiny_task, make_student, expert, tmp_path, name, precision):
    agent = make(name)
    env, student = (
        make_env(tiny_task, expert, agent.batches_per_rollout * CONFIG.batch_size),
        make_student(),
    )
    examples = agent.prepare(env.examples, expert, env.max_steps)
    env = make_env(tiny_task, expert, env.num_envs, examples=examples)
    before, teacher, log = weights_of(student), weights_of(expert.model.model), Log()
    learner = Learner(
        agent,
        student,
        env=env,
        folder=tmp_path,
        config=CONFIG,
        precision=precision,
        references=References(validation=env.examples),
    )
    learner.train(no_score, log)
    assert len(log) == CONFIG.updates
    assert all(math.isfinite(record["loss"]) for record in log.values())
    after = weights_of(student)
    assert any(not torch.equal(after[key].cpu(), value) for key, value in before.items())
    assert_same_bits(weights_of(expert.model.model), teacher)
