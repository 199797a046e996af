"""The student as its own teacher: whose weights, which view, what is saved, and what is learned."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from tests.support.updates import CONFIG, Log, StoppedError, assert_same_bits, no_score, weights_of
from textgen_agents.dagger import DAgger
from textgen_agents.gkd import GKD
from textgen_agents.imitkd import ImitKDFull
from textgen_agents.losses.divergences import forward_kl
from textgen_agents.losses.labels import LabelledBatch
from textgen_agents.mle import MLE
from textgen_agents.seqkd import SeqKD
from textgen_agents.training.checkpoint import CheckpointError
from textgen_agents.training.learner import Learner, LearnerConfig
from textgen_agents.word_kd import WordKD
from textgen_env.experts.expert import NeuralExpert
from textgen_env.tasks.task import encode

TAUGHT = replace(CONFIG, self_teacher=0.8)
UNKNOWN = 3  # the first word of every source that the student reads


@pytest.fixture
def two_views(tiny_task):
    """Examples whose sources begin with one and the same word, which the expert reads rightly."""
    examples = encode(tiny_task.train, tiny_task)
    source = examples.source.clone()
    source[:, 0] = UNKNOWN
    return replace(examples, source=source, expert_source=examples.source)


@pytest.fixture
def make_own_teacher(tiny_task, make_env, make_student, two_views, tmp_path):
    """agent, config, folder -> a learner of a student that teaches itself."""

    def make(agent, config=TAUGHT, folder="run", *, seed=2, student=None, examples=two_views):
        env = make_env(tiny_task, agent.batches_per_rollout * config.batch_size, None, examples)
        return Learner(
            agent,
            student or make_student(seed, 0.3),
            env=env,
            folder=tmp_path / folder,
            config=config,
            precision=torch.float32,
        )

    return make


def test_the_teacher_is_the_average_of_the_students_weights(make_own_teacher):
    learner = make_own_teacher(GKD())
    mean, seen = weights_of(learner.student), []
    learner.optimizer.register_step_post_hook(lambda *_: seen.append(weights_of(learner.student)))
    learner.train(no_score, Log())
    for update, weights in enumerate(seen):
        decay = min(0.8, (1 + update) / (10 + update))
        mean = {name: decay * mean[name] + (1 - decay) * new for name, new in weights.items()}
    found = weights_of(learner.env.expert.model)
    torch.testing.assert_close(found, mean)
    assert any(not torch.equal(found[name], new) for name, new in seen[-1].items())
    assert learner.counters.teacher_tokens > 0
    assert learner.evaluated is learner.student


def test_at_decay_0_it_is_the_student_as_it_is_under_the_other_view(make_own_teacher):
    learner = make_own_teacher(WordKD(), replace(TAUGHT, self_teacher=0.0))
    learner.train(no_score, Log())
    assert_same_bits(weights_of(learner.env.expert.model), weights_of(learner.student))
    student, env = learner.student.eval(), learner.env
    env.reset(seed=0)
    batch = next(iter(make_own_teacher(WordKD(), folder="other").rollouts()))
    states = batch.trajectories
    with torch.no_grad():
        own, seeing = (
            student.sequence_logits(view, states.actions)
            for view in (states.source, states.expert_view)
        )
    loss = WordKD().loss(LabelledBatch(states), student, env.expert)
    expected = forward_kl(own, seeing)[states.mask].mean()
    assert expected > 1e-6, "the test wants views that matter"
    torch.testing.assert_close(loss, expected)


def test_a_resumed_teacher_is_that_of_a_run_never_stopped(make_own_teacher):
    agent, config = GKD(), replace(TAUGHT, ema=0.5)
    unbroken, stopped = (make_own_teacher(agent, config, name) for name in "ab")
    unbroken.train(no_score, Log())
    with pytest.raises(StoppedError):
        stopped.train(no_score, Log(6))
    resumed = make_own_teacher(agent, config, "b", seed=7)
    assert resumed.counters.update == 4
    resumed.train(no_score, Log())
    expected = load_file(unbroken.last)
    assert {name.split(".")[0] for name in expected} == {
        *("student", "optimizer", "average", "teacher")
    }
    assert_same_bits(load_file(resumed.last), expected)


def test_the_student_comes_to_write_without_the_view_what_it_wrote_with_it(
    tiny_task, make_own_teacher, make_table_model, two_views
):
    """A table by the first word: the row of the unknown word becomes that of the word it hides."""
    student, hidden = make_table_model(tiny_task, 3), 7
    view = two_views.expert_view.clone()
    view[:, 0] = hidden
    examples = replace(two_views, expert_source=view)
    started, states = student.tables.detach().clone(), examples.reference

    def divergence():
        own, seeing = (
            student.sequence_logits(source, states) for source in (examples.source, view)
        )
        return forward_kl(own, seeing)[states != 0].mean().item()

    assert divergence() > 0.5
    config = replace(
        TAUGHT, self_teacher=0.9, updates=150, learning_rate=0.1, weight_decay=0.0, clip=1e9
    )
    learner = make_own_teacher(WordKD(), config, student=student, examples=examples)
    learner.train(no_score, Log())
    assert divergence() < 0.01
    assert torch.equal(student.tables[0, hidden], started[0, hidden]), (
        "nobody reads it but to teach"
    )


def test_a_checkpoint_without_a_teacher_is_not_continued_with_one(make_own_teacher, make_learner):
    make_learner(MLE()).train(no_score, Log())
    with pytest.raises(CheckpointError, match="must hold the state of this run"):
        make_own_teacher(GKD())


@pytest.mark.parametrize(
    ("agent", "message"),
    [
        (MLE(), "left out for MLE, which asks no teacher, got 0.8"),
        (SeqKD(), "left out for SeqKD, which keeps what its teacher says, got 0.8: choose"),
        (DAgger(), "left out for DAgger, which keeps what its teacher says, got 0.8: choose"),
    ],
)
def test_agents_that_cannot_have_a_teacher_that_moves_refuse_it(make_own_teacher, agent, message):
    with pytest.raises(ValueError, match=f"^self_teacher must be {message}"):
        make_own_teacher(agent)


def test_it_is_refused_without_a_richer_view_and_beside_another_teacher(
    make_own_teacher, make_learner, two_views
):
    with pytest.raises(ValueError, match=r"^self_teacher must read more than the student"):
        make_own_teacher(GKD(), examples=replace(two_views, expert_source=None))
    with pytest.raises(
        ValueError, match=r"^self_teacher must be left out where there is a teacher"
    ):
        make_learner(ImitKDFull(), TAUGHT)


@pytest.mark.parametrize("decay", [-0.1, 1.0, 1.5, float("nan")])
def test_decays_outside_their_range_are_refused(decay):
    with pytest.raises(ValueError, match=r"^self_teacher must be .*, got"):
        LearnerConfig(self_teacher=decay)


def test_another_teacher_stays_as_it_was(make_learner):
    learner = make_learner(GKD())
    assert isinstance(learner.env.expert, NeuralExpert)
    assert not learner.averages
