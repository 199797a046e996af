import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback

from tests.support.pretrained import FAMILIES, save_family
from textgen_agents.evaluation.quality import translate
from textgen_agents.imitkd import ImitKD
from textgen_agents.integrations.sb3_ppo import PPOConfig, SequenceModelPolicy, train_ppo
from textgen_agents.training.learner import Learner, LearnerConfig
from textgen_env.envs.vector_env import TextGenVectorEnv
from textgen_env.experts.expert import NeuralExpert
from textgen_env.integrations.sb3 import FlatObservation, SB3VecEnv
from textgen_env.models.huggingface.load import load_pretrained
from textgen_env.models.recurrent import Recurrent, RecurrentConfig
from textgen_env.models.storage import load_model
from textgen_env.tasks.copy import CopyConfig, copy_task
from textgen_env.tasks.verses import VersesConfig, verses

SLOTS = 4
SHORT = PPOConfig(steps=64, rollout_steps=8, batch_size=16, num_epochs=2)


def right_so_far(step):
    """Return 1 for a token of the reference whose predecessors are the reference's too, else 0."""
    width = step.state.prefix.shape[1]
    reference = F.pad(step.references, (0, width - step.references.shape[1]))
    to_come = torch.arange(width) >= step.state.length[:, None]
    right = ((step.state.prefix == reference) | to_come).all(1)
    return (right & step.alive).float()


def policy_for(venv, student, task):
    return SequenceModelPolicy(
        venv.observation_space,
        venv.action_space,
        lambda remaining: 1e-3,
        student=student,
        max_source_length=task.max_source_length,
    )


def tensors(observation):
    if isinstance(observation, dict):
        return {name: torch.from_numpy(array) for name, array in observation.items()}
    return torch.from_numpy(observation).float()


def random_rollout(venv, count, seed=0):
    """Yield observations of random texts without PAD."""
    rng = np.random.default_rng(seed)
    venv.seed(seed)
    yield venv.reset()
    for _ in range(count):
        yield venv.step(rng.integers(2, venv.action_space.n, venv.num_envs))[0]


@pytest.fixture(params=["dict", "flat"])
def venv(request, tiny_task):
    venv = SB3VecEnv(TextGenVectorEnv(tiny_task, SLOTS))
    return FlatObservation(venv) if request.param == "flat" else venv


def test_the_policy_is_the_student_without_pad_and_start(venv, tiny_task, tiny_student):
    policy = policy_for(venv, tiny_student, tiny_task)
    dicts = SB3VecEnv(TextGenVectorEnv(tiny_task, SLOTS))
    for seen, named in zip(random_rollout(venv, 12), random_rollout(dicts, 12), strict=True):
        distribution = policy.get_distribution(tensors(seen)).distribution
        for row in range(SLOTS):
            source = torch.from_numpy(named["source"][row : row + 1])
            prefix = torch.from_numpy(named["prefix"][row : row + 1])
            length = int(named["length"][row])
            logits = tiny_student.sequence_logits(source, prefix)[0, length].double()
            logits[[0, 1]] = float("-inf")
            expected = logits.softmax(0).float()
            torch.testing.assert_close(distribution.probs[row], expected, atol=1e-6, rtol=1e-4)


def test_values_and_probabilities_are_the_same_in_rollout_and_update(venv, tiny_task, make_student):
    """PPO's ratio is 1 before the first update, with dropout or without."""
    policy = policy_for(venv, make_student(dropout=0.5), tiny_task)
    observation = tensors(list(random_rollout(venv, 3))[-1])
    policy.set_training_mode(False)
    actions, values, log_probs = policy(observation)
    policy.set_training_mode(True)
    again = policy.evaluate_actions(observation, actions)
    torch.testing.assert_close(again[0], values)
    torch.testing.assert_close(again[1], log_probs)
    cells = [each for each in policy.modules() if isinstance(each, torch.nn.GRUCell)]
    assert cells
    assert all(cell.training for cell in cells), (
        "cuDNN's recurrent kernels have no backward pass in evaluation mode"
    )


class OtherDropout(Recurrent):
    """Student with dropout by modules of PyTorch and by a function, as pretrained models have."""

    def __init__(self, config):
        super().__init__(config)
        self.other = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.AlphaDropout(0.5))

    def sequence_logits(self, source, actions):
        logits = self.other(super().sequence_logits(source, actions))
        return F.dropout(logits, 0.5, training=self.training)


def test_dropout_is_off_whatever_makes_it(venv, tiny_task, tiny_student):
    policy = policy_for(venv, OtherDropout(tiny_student.config), tiny_task)
    observation = tensors(list(random_rollout(venv, 3))[-1])
    policy.set_training_mode(False)
    actions, values, log_probs = policy(observation)
    policy.set_training_mode(True)
    again = policy.evaluate_actions(observation, actions)
    assert torch.equal(again[0], values)
    assert torch.equal(again[1], log_probs)


@pytest.mark.parametrize("family", ["gpt2", "t5", "bart", "marian"])
def test_a_pretrained_student_has_the_same_logits_in_every_pass(family, tmp_path):
    """Its configuration asks for dropout, which is made by modules and by functions."""
    path = save_family(FAMILIES[family], tmp_path) / "config.json"
    rates = {"dropout", "dropout_rate", "attention_dropout", "activation_dropout"}
    rates |= {"resid_pdrop", "embd_pdrop", "attn_pdrop"}
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, **dict.fromkeys(rates & {*content}, 0.5)}))
    student = load_pretrained(tmp_path)
    space = spaces.Discrete(student.vocab_size)
    policy = SequenceModelPolicy(space, space, lambda remaining: 1e-3, student=student)
    source = torch.full((2, 3), 5)

    def logits():
        with torch.no_grad():
            return policy.student.sequence_logits(source, source)

    expected = logits()
    policy.student.train()
    assert not torch.equal(logits(), expected), "there is dropout to be switched off"
    for mode in (True, False):
        policy.set_training_mode(mode)
        assert torch.equal(logits(), expected)


def test_entropy_and_gradients_are_finite_beside_impossible_tokens(venv, tiny_task, tiny_student):
    policy = policy_for(venv, tiny_student, tiny_task)
    observation = tensors(list(random_rollout(venv, 3))[-1])
    values, log_probs, entropies = policy.evaluate_actions(observation, torch.full((SLOTS,), 3))
    probs = policy.get_distribution(observation).distribution.probs
    expected = -(probs[:, 2:] * probs[:, 2:].log()).sum(1)
    torch.testing.assert_close(entropies, expected)
    (values.sum() + log_probs.sum() + entropies.sum()).backward()
    gradients = [parameter.grad for parameter in policy.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


def test_pad_and_start_are_never_written(venv, tiny_task, tiny_student):
    class PrefersPadAndStart(Recurrent):
        def sequence_logits(self, source, actions):
            logits = super().sequence_logits(source, actions)
            return logits + 100 * (torch.arange(logits.shape[-1]) < 2)

    student = PrefersPadAndStart(tiny_student.config)
    policy = policy_for(venv, student, tiny_task)
    for observation in random_rollout(venv, 10):
        for deterministic in (False, True):
            actions, _ = policy.predict(observation, deterministic=deterministic)
            assert (actions >= 2).all()


def test_the_value_is_0_at_the_length_limit(venv, tiny_task, tiny_student):
    policy = policy_for(venv, tiny_student, tiny_task)
    torch.nn.init.constant_(policy.value_head.bias, 5.0)
    assert (policy.predict_values(tensors(venv.reset())) == 5).all()
    for _ in range(tiny_task.max_target_length):
        _, _, _, infos = venv.step(np.full(SLOTS, 3))
    assert all(info["TimeLimit.truncated"] for info in infos)
    for info in infos:
        observation, _ = policy.obs_to_tensor(info["terminal_observation"])
        assert policy.predict_values(observation).tolist() == [[0.0]]


def weights(model):
    return [parameter.detach().clone() for parameter in model.parameters()]


def test_training_changes_the_student_and_is_the_same_for_a_seed(tiny_task, make_student):
    trained = []
    for _ in range(2):
        student = make_student(dropout=0.3)
        before = weights(student)
        ppo = train_ppo(student, TextGenVectorEnv(tiny_task, SLOTS, reward=right_so_far), SHORT)
        assert ppo.num_timesteps == SHORT.steps
        assert not student.training
        changes = zip(before, weights(student), strict=True)
        assert all(not torch.equal(old, new) for old, new in changes)
        trained.append(weights(student))
    assert all(torch.equal(one, other) for one, other in zip(*trained, strict=True))


def test_training_continues_from_an_imitkd_student(
    tiny_task, tiny_teacher, make_student, make_env, tmp_path
):
    agent = ImitKD(batches_per_rollout=1)
    config = LearnerConfig(updates=4, batch_size=8, evaluate_every=4, seed=0)
    env = make_env(tiny_task, 8, NeuralExpert(tiny_teacher))
    student = make_student()
    learner = Learner(
        agent, student, env=env, folder=tmp_path, config=config, precision=torch.float32
    )
    learner.train(lambda model: 0.0, lambda update, record: None)
    start = weights(student)
    policies = []

    class RecordStart(BaseCallback):
        def _on_training_start(self):
            policies.append(weights(self.model.policy.student))

        def _on_step(self):
            return True

    train_ppo(student, TextGenVectorEnv(tiny_task, SLOTS), SHORT, callback=RecordStart())
    assert all(torch.equal(one, other) for one, other in zip(start, policies[0], strict=True))
    assert translate(student, tiny_task, ["w1 w2"])


def exact_match(student, task, pairs):
    written = translate(student, task, [pair.source for pair in pairs])
    return np.mean([text == pair.reference for text, pair in zip(written, pairs, strict=True)])


@pytest.mark.slow
def test_it_learns_to_copy_unseen_texts_from_reward_alone():
    task = copy_task(
        CopyConfig(6, min_length=1, max_length=3, num_train=180, num_validation=8, num_test=70)
    )
    torch.manual_seed(0)
    student = Recurrent(RecurrentConfig(task.tokenizer.vocab_size, 32, 1, 1, dropout=0.0))
    assert exact_match(student, task, task.test) < 0.1
    train_ppo(student, TextGenVectorEnv(task, 64, reward=right_so_far), PPOConfig(steps=120_000))
    assert exact_match(student, task, task.test) > 0.9


@pytest.mark.slow
def test_training_continues_from_an_imitkd_student_of_verses(make_env, tmp_path):
    """A few steps of PPO after 100 updates of ImitKD leave most texts as they were."""
    from textgen_env.models.storage import load_tokenizer
    from textgen_experiments.runs.experiment import VERSES_TEACHER

    task = verses(VersesConfig(max_tokens=32, max_words=12), load_tokenizer(VERSES_TEACHER))
    agent, learning = ImitKD(), LearnerConfig(updates=100, batch_size=16, evaluate_every=100)
    env = make_env(
        task,
        agent.batches_per_rollout * learning.batch_size,
        NeuralExpert(load_model(VERSES_TEACHER)),
    )
    student = Recurrent(RecurrentConfig(task.tokenizer.vocab_size, 64))
    learner = Learner(
        agent, student, env=env, folder=tmp_path, config=learning, precision=torch.float32
    )
    learner.train(lambda model: 0.0, lambda update, record: None)
    sources = [pair.source for pair in task.validation[:8]]
    before = translate(student.eval(), task, sources)
    config = PPOConfig(steps=128, rollout_steps=16, batch_size=32, num_epochs=1, learning_rate=1e-6)
    train_ppo(student, TextGenVectorEnv(task, 8), config)
    after = translate(student, task, sources)
    assert sum(one == other for one, other in zip(before, after, strict=True)) >= 4
