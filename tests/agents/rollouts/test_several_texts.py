"""Several texts of each source of a batch: which, whose they are, and who refuses them."""

from dataclasses import replace

import pytest
import torch

from tests.support.updates import CONFIG, Log, make, no_score, weights_of
from textgen_agents import AGENTS
from textgen_agents.gkd import GKD
from textgen_agents.imitkd import ImitKDFull
from textgen_agents.losses.divergences import reverse_kl
from textgen_agents.rollouts.context import Context
from textgen_agents.rollouts.rollout import student_rollout
from textgen_agents.rollouts.schedules import Constant
from textgen_agents.training.learner import LearnerConfig
from textgen_env.generation.sampling import Sampling

THREE = replace(CONFIG, texts_per_source=3)
ALONE = GKD(student_fraction=1.0)
WITHOUT_DRAWS = [name for name in AGENTS if not make(name).student_draws]


def test_a_batch_has_as_many_texts_of_each_of_fewer_sources(make_learner):
    learner = make_learner(ALONE, THREE)
    batch = next(iter(learner.rollouts())).trajectories
    assert len(batch) == CONFIG.batch_size
    sources = batch.source.view(-1, 3, batch.source.shape[1])
    assert torch.equal(sources[:, 0], sources[:, 2])
    assert len(sources[:, 0].unique(dim=0)) == CONFIG.batch_size // 3
    texts = batch.actions.view(-1, 3, batch.actions.shape[1])
    assert any(not torch.equal(text[0], text[1]) for text in texts)


def test_the_mean_over_texts_of_one_source_is_that_over_its_law(
    tiny_task, make_env, make_table_model, expert
):
    """The divergence at the second token, which depends on the first: 6000 texts of one source."""
    student = make_table_model(tiny_task, 3)
    env = make_env(tiny_task, 6000, expert)
    context = Context(torch.full((6000,), 5), env, student)
    states = student_rollout(context, Sampling()).trajectories
    second = states.mask[:, 1]
    with torch.no_grad():
        logits = student.sequence_logits(states.source, states.actions)
        divergence = reverse_kl(logits, expert.logits(states))[:, 1]
    allowed = logits[0, 0].double().index_fill(0, torch.tensor([0, 1]), -torch.inf).softmax(0)
    by_first = {
        int(a): d for a, d in zip(states.actions[second, 0], divergence[second], strict=True)
    }
    exact = sum(float(allowed[a]) * float(d) for a, d in by_first.items())
    found = divergence.where(second, 0.0)
    assert found.mean().item() == pytest.approx(exact, abs=5 * found.std().item() / 6000**0.5)


def test_one_text_of_each_source_is_a_run_as_before(make_learner):
    runs = {}
    for name, config in (("a", CONFIG), ("b", replace(CONFIG, texts_per_source=1)), ("c", THREE)):
        learner = make_learner(ALONE, config, name)
        learner.train(no_score, Log())
        runs[name] = weights_of(learner.student)
    assert all(torch.equal(runs["a"][name], weight) for name, weight in runs["b"].items())
    assert any(not torch.equal(runs["a"][name], weight) for name, weight in runs["c"].items())


@pytest.mark.parametrize("name", WITHOUT_DRAWS)
def test_agents_whose_student_draws_nothing_refuse_it(make_learner, name):
    with pytest.raises(ValueError, match=r"^texts_per_source must be 1 for \w+, whose student"):
        make_learner(make(name), THREE)


def test_an_agent_that_is_told_to_draw_takes_it(make_learner):
    assert "imitkd_full" in WITHOUT_DRAWS
    agent = ImitKDFull(beta=Constant(0.0), sampling=Sampling(), batches_per_rollout=1)
    batch = next(iter(make_learner(agent, THREE).rollouts())).trajectories
    assert torch.equal(batch.source[0], batch.source[1])


@pytest.mark.parametrize(("number", "rule"), [(0, "at least 1"), (5, r"divide batch_size \(64\)")])
def test_numbers_of_texts_that_make_no_batch_are_refused(number, rule):
    with pytest.raises(ValueError, match=f"^texts_per_source must .*{rule}"):
        LearnerConfig(texts_per_source=number)
