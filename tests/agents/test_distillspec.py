"""DistillSpec: its divergences and their limits, and that it raises what the teacher accepts."""

import pytest
import torch

from tests.support.updates import assert_learn_the_same, collect, learn
from textgen_agents.distillspec import DRAFT_LOSSES, DistillSpec
from textgen_agents.gkd import GKD
from textgen_agents.rollouts.context import Context
from textgen_env.experts.expert import NeuralExpert
from textgen_env.generation.sampling import Sampling
from textgen_env.generation.speculative import SpeculativeDecoder
from textgen_env.types import Writer


@pytest.mark.parametrize(("divergence", "weight"), [("fkl", 0.0), ("rkl", 1.0), ("jsd", 0.5)])
def test_it_is_gkd_on_the_students_texts_alone(env, expert, tiny_student, divergence, weight):
    trajectories = collect(DistillSpec(divergence), env, tiny_student)
    gkd = GKD(student_fraction=1.0, teacher_weight=weight)
    batches = [
        agent.collect(context(env, tiny_student)) for agent in (DistillSpec(divergence), gkd)
    ]
    assert trajectories.writer[trajectories.mask].eq(Writer.STUDENT).all()
    losses = [
        agent.loss(batches[0], tiny_student, expert) for agent in (DistillSpec(divergence), gkd)
    ]
    torch.testing.assert_close(*losses)


def context(env, student):
    rows = torch.arange(env.num_envs)
    return Context(rows, env, student, generator=torch.Generator().manual_seed(0))


def test_total_variation_is_the_mean_refusal(env, expert, tiny_student):
    trajectories, loss, _ = learn(DistillSpec("tvd"), env, tiny_student)
    with torch.no_grad():
        q = tiny_student.sequence_logits(trajectories.source, trajectories.actions)
    p = expert.logits(trajectories).double().softmax(-1)
    refused = 1 - torch.minimum(p, q.double().softmax(-1)).sum(-1)
    assert loss.item() == pytest.approx(refused[trajectories.mask].mean().item(), abs=1e-6)


def test_a_teacher_with_the_drafts_distribution_teaches_nothing(env, tiny_student):
    same = NeuralExpert(tiny_student)
    for name in DRAFT_LOSSES:
        batch = DistillSpec(name).collect(context(env, tiny_student))
        loss = DistillSpec(name).loss(batch, tiny_student, same)
        assert loss.item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("divergence", DRAFT_LOSSES)
def test_training_raises_what_the_teacher_accepts(
    tiny_task, make_env, make_table_model, divergence
):
    """Measured by decoding itself, which is lossless before and after."""
    student, teacher = (make_table_model(tiny_task, seed) for seed in (0, 1))
    env = make_env(tiny_task, 48, NeuralExpert(teacher))
    before = acceptance(student, teacher, env)
    agent, optimizer = DistillSpec(divergence), torch.optim.Adam(student.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        rows = torch.arange(env.num_envs)
        batch = agent.collect(Context(rows, env, student, generator=generator))
        optimizer.zero_grad()
        agent.loss(batch, student, env.expert).backward()
        optimizer.step()
    assert before < 0.5
    assert acceptance(student, teacher, env) > before + 0.2


def acceptance(student, teacher, env):
    generator = torch.Generator().manual_seed(1)
    decoder = SpeculativeDecoder(student, 3, Sampling(), generator)
    decoder(teacher, env.examples.source.repeat(4, 1), env.max_steps)
    return decoder.counts.acceptance


def test_the_choice_of_divergence_matters(env, tiny_student):
    losses = {name: float(learn(DistillSpec(name), env, tiny_student)[1]) for name in DRAFT_LOSSES}
    assert len({round(loss, 6) for loss in losses.values()}) == len(DRAFT_LOSSES)
    with pytest.raises(AssertionError):
        assert_learn_the_same(DistillSpec("fkl"), DistillSpec("tvd"), env, tiny_student)


def test_a_divergence_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="divergence must be one of fkl, rkl, jsd, tvd, got 'js'"):
        DistillSpec("js")
