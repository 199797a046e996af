"""Several targets a source, drawn from a teacher that reads a part of the reference."""

import math
from dataclasses import replace

import pytest
import torch

from tests.support.updates import CONFIG, assert_learn_the_same, no_score
from textgen_agents.mle import MLE
from textgen_agents.target_side_augmentation import TargetSideAugmentation
from textgen_agents.training.learner import Learner
from textgen_env.experts.expert import Expert, NeuralExpert, NoExpert
from textgen_env.models.recurrent import Recurrent, RecurrentConfig
from textgen_env.tasks.copy import CopyConfig, copy_task
from textgen_env.types import Examples

BRANCHES = (3, 4, 5)  # equally good last words


class Branching(NoExpert):
    """Copies the source but for its last word, in whose place it draws one of three."""

    def start(self, source, max_steps):
        return source

    def step(self, state, previous, cache):
        words = (cache >= 3).sum(1)
        right = cache.gather(1, state.length.clamp(max=cache.shape[1] - 1)[:, None])
        logits = torch.full((len(cache), 9), -30.0).scatter(1, right, 30.0)
        branch = torch.full((9,), -30.0)
        branch[list(BRANCHES)] = 30.0
        return logits.where((state.length != words - 1)[:, None], branch), cache

    def complete(self, *args, **kwargs):
        return Expert.complete(self, *args, **kwargs)


@pytest.fixture(scope="module")
def branching_task():
    return copy_task(
        CopyConfig(6, min_length=4, max_length=4, num_train=60, num_validation=2, num_test=2)
    )


@pytest.mark.slow
def test_the_students_entropy_at_the_branch_tends_to_ln_3(branching_task, make_env, tmp_path):
    """The experiment with a known answer, beside the student of one reference a source."""
    examples = make_env(branching_task, 2).examples
    examples.reference[:, 3] = torch.arange(len(examples)) % 3 + BRANCHES[0]
    agent, entropies = TargetSideAugmentation(), []
    for name, data in (("many", agent.prepare(examples, Branching(), 5)), ("one", examples)):
        torch.manual_seed(0)
        student = Recurrent(RecurrentConfig(9, 24, 1, 1, dropout=0.0))
        config = replace(CONFIG, updates=200, batch_size=32, warmup=20, evaluate_every=200)
        env = make_env(branching_task, 32, Branching(), data)
        Learner(
            agent,
            student,
            env=env,
            folder=tmp_path / name,
            config=config,
            precision=torch.float32,
        ).train(no_score, lambda update, record: None)
        logits = student.eval().sequence_logits(examples.source, examples.reference)[:, 3]
        p = logits.detach().softmax(-1)
        entropies.append(float(-(p * p.log()).sum(-1).mean()))
    assert entropies[0] == pytest.approx(math.log(3), abs=0.12)
    assert entropies[1] < 0.5


def test_texts_begin_as_their_reference_and_differ_after_it(tiny_task, env, make_table_model):
    expert = NeuralExpert(make_table_model(tiny_task, 3))
    agent = TargetSideAugmentation(draws=40, observed=1.0)
    prepared = agent.prepare(env.examples, expert, env.max_steps)
    count = len(env.examples)
    width = env.examples.reference.shape[1]
    assert len(prepared) == 41 * count
    assert torch.equal(prepared.reference[:count, :width], env.examples.reference)
    assert torch.equal(prepared.source, env.examples.source.repeat(41, 1))
    drawn = prepared.reference[count:, :width].view(40, count, width)
    same = (drawn == env.examples.reference) & (env.examples.reference != 0)
    observed = same.long().cumprod(-1).sum(-1)  # (draws, N), at least what was read
    words = (env.examples.reference >= 3).sum(1)
    share = (observed / words).clamp(max=1).mean()
    assert 0.4 < share < 0.75, "half on average, and what is right by chance"
    assert (observed[0] != observed[1]).any()


def test_nothing_observed_is_a_draw_of_the_teacher(tiny_task, env, make_table_model):
    expert = NeuralExpert(make_table_model(tiny_task, 3))
    agent = TargetSideAugmentation(draws=1, observed=0.0)
    prepared = agent.prepare(env.examples, expert, env.max_steps)
    count = len(env.examples)
    assert (prepared.reference[count:, 0] != env.examples.reference[:, 0]).any()
    again = agent.prepare(env.examples, expert, env.max_steps)
    assert torch.equal(again.reference, prepared.reference)
    other = replace(agent, seed=1).prepare(env.examples, expert, env.max_steps)
    assert not torch.equal(other.reference, prepared.reference)


def test_the_law_of_the_draws_is_the_teachers(tiny_task, env, make_table_model):
    expert = NeuralExpert(make_table_model(tiny_task, 3))
    one = env.examples.select(torch.zeros(4000, dtype=torch.int64))
    agent = TargetSideAugmentation(draws=1, observed=0.0)
    first = agent.prepare(one, expert, env.max_steps).reference[4000:, 0]
    logits = expert.model.sequence_logits(one.source, one.reference)[0, 0].detach()
    logits[:2] = float("-inf")
    expected = logits.softmax(-1)
    found = first.bincount(minlength=len(expected)) / len(first)
    assert (found - expected).abs().sum() / 2 < 0.05


def test_references_alone_are_kept_as_pairs(env, expert):
    bare = replace(env.examples, reference=env.examples.reference.clone())
    bare.reference[::4] = 0
    prepared = TargetSideAugmentation(draws=2).prepare(bare, expert, env.max_steps)
    assert len(prepared) == 48 + 2 * 64
    assert prepared.has_reference(env.special).all()
    known = bare.has_reference(env.special)
    assert torch.equal(prepared.source[:48], env.examples.source[known])


def test_on_the_references_alone_it_learns_as_mle(env, tiny_student):
    assert_learn_the_same(TargetSideAugmentation(), MLE(), env, tiny_student)


def test_settings_without_meaning_are_refused():
    with pytest.raises(ValueError, match=r"^draws must be at least 1, got 0"):
        TargetSideAugmentation(draws=0)
    with pytest.raises(ValueError, match=r"^observed must be in"):
        TargetSideAugmentation(observed=1.5)


def test_without_a_teacher_there_is_one_line():
    examples = Examples(torch.tensor([[3, 2]]), torch.tensor([[3, 2]]))
    with pytest.raises(RuntimeError, match="give a teacher, or choose an agent"):
        TargetSideAugmentation().prepare(examples, NoExpert(), 4)
