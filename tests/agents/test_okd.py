"""OKD: both losses, their limits, and a teacher that finds its temperature."""

import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.support.updates import CONFIG, Log, collect_batch, learn, no_score, weights_of
from textgen_agents.agent import first_companions
from textgen_agents.losses.divergences import cross_entropy, forward_kl
from textgen_agents.mle import MLE
from textgen_agents.okd import OKD
from textgen_agents.training.learner import Learner
from textgen_agents.word_kd import WordKD
from textgen_env.experts.expert import ExpertError, NeuralExpert
from textgen_env.generation.sampling import Sampling
from textgen_env.models.ensemble import Ensemble
from textgen_env.tasks.task import encode
from textgen_env.types import Trajectories

BOTH = OKD(rank=2, learns_temperature=True)


def test_with_new_modules_the_student_learns_as_from_mle_and_word_kd(env, expert, tiny_student):
    _, mle, mle_gradients = learn(MLE(), env, tiny_student)
    states, divergence, gradients = learn(WordKD(), env, tiny_student)
    _, loss, found = learn(OKD(weight=0.7), env, tiny_student)
    expected = {name: mle_gradients[name] + 0.7 * gradients[name] for name in gradients}
    torch.testing.assert_close(found, expected)
    teacher = expert.model.sequence_logits(states.source, states.actions).detach()
    student = tiny_student.sequence_logits(states.source, states.actions).detach()
    own = cross_entropy(teacher, states.actions) + 0.7 * forward_kl(teacher, student)
    torch.testing.assert_close(loss, mle + 0.7 * divergence + own[states.mask].mean())


def test_at_weight_0_student_and_teacher_learn_alone(env, tiny_student):
    _, _, expected = learn(MLE(), env, tiny_student)
    _, _, found = learn(replace(BOTH, weight=0.0), env, tiny_student)
    torch.testing.assert_close(found, expected)


def test_the_modules_learn_the_data_and_the_student_as_a_constant(env, expert, tiny_student):
    batch = collect_batch(BOTH, env, tiny_student)
    states, modules = batch.trajectories, first_companions(BOTH, tiny_student, expert)
    with torch.no_grad():
        for up in modules["teacher"].up:
            up.normal_(std=0.1)
    BOTH.joint_loss(batch, tiny_student, expert, modules).backward()
    found = [parameter.grad.clone() for parameter in modules.parameters()]
    modules.zero_grad()
    adapted = modules["teacher"].sequence_logits(expert.model, states.source, states.actions)
    student = tiny_student.sequence_logits(states.source, states.actions).detach()
    losses = cross_entropy(adapted, states.actions) + forward_kl(adapted, student)
    losses[states.mask].mean().backward()
    expected = [parameter.grad for parameter in modules.parameters()]
    assert all(gradient.any() for gradient in expected)
    torch.testing.assert_close(found, expected)


def test_training_moves_the_modules_and_neither_teacher_nor_its_answers(make_learner, tiny_teacher):
    before = weights_of(tiny_teacher)
    learner = make_learner(BOTH)
    learner.train(no_score, Log())
    assert all(torch.equal(value, before[name]) for name, value in weights_of(tiny_teacher).items())
    modules = learner.companions["teacher"]
    assert modules.log_temperature != 0
    assert all(up.any() for up in modules.up)


def test_settings_that_train_nothing_are_refused():
    with pytest.raises(
        ValueError, match=r"^rank must be at least 1 where no .*, got 0: .* word_kd"
    ):
        OKD(rank=0)


def test_teachers_without_a_gradient_are_refused_before_training(
    make_learner, tiny_task, tiny_teacher, make_table_model
):
    ensemble = NeuralExpert(Ensemble((tiny_teacher, tiny_teacher)))
    with pytest.raises(ExpertError, match=r"^the expert must answer with gradient, got Ensemble: "):
        OKD().check_expert(ensemble)
    tables = NeuralExpert(make_table_model(tiny_task, 0))
    with pytest.raises(ExpertError, match=r"^the expert must have matrices .* got TableModel with"):
        OKD().check_expert(tables)
    BOTH.check_expert(tables)


class Sharpened(nn.Module):
    """A model whose logits are three times those of the model inside."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.special, self.vocab_size = inner, inner.special, inner.vocab_size

    def start(self, source, max_steps):
        return self.inner.start(source, max_steps)

    def step(self, previous, cache):
        logits, cache = self.inner.step(previous, cache)
        return 3 * logits, cache

    def sequence_logits(self, source, actions):
        return 3 * self.inner.sequence_logits(source, actions)


def best_temperature(teacher, student, states):
    """Return the temperature of least cross-entropy and divergence from the student, in float64."""
    with torch.no_grad():
        logits = teacher.sequence_logits(states.source, states.actions)[states.mask].double()
        q = student.sequence_logits(states.source, states.actions)[states.mask].double().softmax(-1)
    targets = q + nn.functional.one_hot(states.actions[states.mask], logits.shape[-1])
    temperatures = torch.arange(1.0, 6.0, 0.001, dtype=torch.float64)
    losses = [-(targets * (logits / t).log_softmax(-1)).sum(-1).mean() for t in temperatures]
    return float(temperatures[torch.stack(losses).argmin()])


@pytest.mark.slow
def test_a_teacher_too_sharp_by_three_finds_the_temperature_that_is_best_for_both(
    tiny_task, make_env, make_table_model, tmp_path
):
    """The data is drawn from the teacher at temperature 3, so that this is the answer."""
    truth, student = make_table_model(tiny_task, 3), make_table_model(tiny_task, 4)
    nn.init.zeros_(student.tables)
    with torch.no_grad():
        truth.tables[..., : truth.special.end] = -10.0  # padding and start are never drawn
    pairs = encode([*tiny_task.train] * 16, tiny_task)
    draws = NeuralExpert(truth).sample(
        pairs,
        max_steps=tiny_task.max_target_length,
        sampling=Sampling(),
        generator=torch.Generator().manual_seed(0),
    )
    teacher = Sharpened(truth)
    env = make_env(tiny_task, 64, NeuralExpert(teacher), draws)
    config = replace(CONFIG, updates=400, batch_size=64, learning_rate=0.1, weight_decay=0.0)
    agent = OKD(rank=0, learns_temperature=True)
    learner = Learner(
        agent, student, env=env, folder=tmp_path, config=config, precision=torch.float32
    )
    learner.train(no_score, Log())
    found = float(learner.companions["teacher"].log_temperature.detach().exp())
    every = Trajectories.from_examples(draws, env.special)
    best = best_temperature(teacher, student, every)
    sys.stdout.write(f"temperature: learned {found:.3f}, best {best:.3f}\n")
    assert found == pytest.approx(best, abs=0.1)
    assert best == pytest.approx(3.0, abs=0.2)
