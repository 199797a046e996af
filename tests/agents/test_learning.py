"""Do they learn: a teacher copies short texts, and a smaller student learns it from the teacher."""

from dataclasses import replace

import pytest
import torch

from tests.support.updates import expert_for
from textgen_agents import AGENTS
from textgen_agents.diverse_cfg import DiverseCFG
from textgen_agents.evaluation.quality import translate
from textgen_agents.imitkd import ImitKDFull
from textgen_agents.mle import MLE
from textgen_agents.prompt_internalization import GenPI
from textgen_agents.skd import SKD
from textgen_agents.switch import AdaSwitch
from textgen_agents.training.learner import Learner, LearnerConfig
from textgen_env.experts.expert import NeuralExpert
from textgen_env.models.recurrent import Recurrent, RecurrentConfig
from textgen_env.tasks.copy import CopyConfig, copy_task
from textgen_env.tasks.task import encode

pytestmark = pytest.mark.slow

ENOUGH = 0.95  # share of validation texts that must be copied without a mistake
FITTED = {  # to few words and short texts
    "skd": SKD(k=3),
    "adaswitch": AdaSwitch(window=2),
    "genpi": GenPI(prompt_weight=0.0),  # to a teacher that reads no prompt
    "diverse_cfg": DiverseCFG(guidance=1.0, diversity_weight=0.1),  # and knows no empty source
}
CONFIG = LearnerConfig(
    updates=800, batch_size=32, learning_rate=5e-3, warmup=50, evaluate_every=100, seed=0
)
FROM_A_WRITER = {  # how those are trained that make no writer of a student that cannot write
    "minillm": CONFIG,
    "sampled_reverse_kl": CONFIG,
    "diverse_cfg": CONFIG,
    "aggrevate": replace(CONFIG, updates=1200, batch_size=128, learning_rate=2e-3),
    "distillspec": CONFIG,
    "tvd_plus_plus": replace(CONFIG, batch_size=64, learning_rate=5e-4),
}


@pytest.fixture(scope="module")
def task():
    return copy_task(
        CopyConfig(8, min_length=2, max_length=5, num_train=1500, num_validation=100, num_test=100)
    )


@pytest.fixture(scope="module")
def train(task, make_env, tmp_path_factory):
    """agent, width, expert, start, config -> the trained student and its exact match by update."""

    def run(agent, width, expert=None, start=None, config=CONFIG):
        torch.manual_seed(0)
        student = Recurrent(RecurrentConfig(task.tokenizer.vocab_size, width, 1, 1, dropout=0.0))
        if start is not None:
            student.load_state_dict(start.state_dict())
        examples = encode(task.train, task)
        if expert is not None:
            examples = agent.prepare(examples, expert, task.max_target_length)
        env = make_env(task, agent.batches_per_rollout * config.batch_size, expert, examples)
        folder, matches = tmp_path_factory.mktemp("run"), {}
        learner = Learner(
            agent, student, env=env, folder=folder, config=config, precision=torch.float32
        )

        def evaluate(model):
            match = exact_match(model, task, task.validation)
            matches[learner.counters.update] = match
            return match

        learner.train(evaluate, lambda update, record: None)
        return student.eval(), matches

    return run


@pytest.fixture(scope="module")
def teacher(train):
    return train(MLE(), 48)


@pytest.fixture(scope="module")
def imitator(train, teacher):
    return train(ImitKDFull(), 32, NeuralExpert(teacher[0]))


def exact_match(model, task, pairs):
    written = translate(model, task, [pair.source for pair in pairs])
    right = [text == pair.reference for text, pair in zip(written, pairs, strict=True)]
    return sum(right) / len(right)


@pytest.mark.parametrize("trained", ["teacher", "imitator"])
def test_it_learns_to_copy_texts_it_has_not_seen(request, task, trained):
    student, matches = request.getfixturevalue(trained)
    assert matches[100] < ENOUGH, "the test wants a task that is not learned at once"
    assert matches[CONFIG.updates] >= ENOUGH, matches
    assert exact_match(student, task, task.test) >= ENOUGH - 0.02


def test_the_imitator_asked_its_teacher_and_left_it_as_it_was(task, teacher, imitator):
    model, matches = teacher
    assert imitator[0] is not model
    assert exact_match(model, task, task.validation) == matches[CONFIG.updates]


@pytest.fixture(scope="module")
def half_trained(train):
    """Return a student that copies most texts: 88 of 100 for validation, 91 for tests."""
    return train(MLE(), 32, config=replace(CONFIG, updates=200))[0]


@pytest.mark.parametrize("name", sorted(AGENTS))
def test_every_agent_learns_to_copy(train, task, teacher, half_trained, name):
    agent, config = FITTED.get(name) or AGENTS[name](), FROM_A_WRITER.get(name, CONFIG)
    start = half_trained if name in FROM_A_WRITER else None
    student, matches = train(agent, 32, expert_for(agent, teacher[0]), start, config)
    assert matches[config.updates] >= ENOUGH, matches
    assert exact_match(student, task, task.test) >= ENOUGH - 0.04
