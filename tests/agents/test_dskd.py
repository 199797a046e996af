"""DSKD: its terms, its limits, and projectors that undo a rotation and a permutation."""

import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.support.largest_tensor import LargestTensor
from tests.support.toy import random_sources
from tests.support.updates import CONFIG, Log, collect_batch, learn, no_score
from textgen_agents import dskd
from textgen_agents.agent import first_companions
from textgen_agents.dskd import DSKD, DSKDWithCMA
from textgen_agents.losses.divergences import cross_entropy, forward_kl
from textgen_agents.losses.labels import LabelledBatch
from textgen_agents.mle import MLE
from textgen_agents.training.learner import Learner
from textgen_env.experts.cross_tokenizer import CrossTokenizerExpert
from textgen_env.experts.expert import ExpertError, NeuralExpert
from textgen_env.generation.sampling import Sampling
from textgen_env.models import hidden_states
from textgen_env.models.ensemble import Ensemble
from textgen_env.models.transformer import TransformerConfig
from textgen_env.tasks.task import encode
from textgen_env.tokenizers.subword import Tokenizer
from textgen_env.types import Examples, Trajectories

BOTH = pytest.mark.parametrize("kind", [DSKD, DSKDWithCMA])


class Disguised(nn.Module):
    """A model behind a random rotation of its hidden states and a permutation of its tokens.

    `own[i]` is the inner model's token that token i stands for.
    """

    def __init__(self, inner, own):
        super().__init__()
        self.inner, self.own, self.width = inner, own, inner.width
        self.special, self.vocab_size = inner.special, inner.vocab_size
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randn(inner.width, inner.width, generator=generator)
        self.rotation = torch.linalg.qr(drawn)[0]

    def hidden(self, source, actions):
        return self.inner.hidden(self.own[source], self.own[actions]) @ self.rotation

    def project(self, hidden):
        return self.inner.project(hidden @ self.rotation.T)[..., self.own]

    def embed(self, tokens):
        return self.inner.embed(self.own[tokens]) @ self.rotation

    def sequence_logits(self, source, actions):
        return self.project(self.hidden(source, actions))


def reversed_words(task):
    """Return a tokenizer with the task's words in another order, and each token's own id."""
    words = sorted(piece for piece in task.tokenizer.pieces if not piece.startswith("<"))
    other = Tokenizer.from_words(words[::-1])
    own = torch.arange(task.tokenizer.vocab_size)
    for piece, token in other.pieces.items():
        own[token] = task.tokenizer.pieces[piece]
    return other, own


@pytest.fixture
def bridged(tiny_task, tiny_student):
    """Return the student in disguise as a teacher with another tokenizer, and its examples."""
    other, own = reversed_words(tiny_task)
    assert own.tolist() != sorted(own.tolist())
    inner = NeuralExpert(Disguised(tiny_student, own).eval())
    expert = CrossTokenizerExpert(inner, other, tiny_task.tokenizer, tiny_task.max_target_length)
    pairs = encode(tiny_task.train, tiny_task)
    return expert, replace(pairs, expert_source=expert.view([p.source for p in tiny_task.train]))


@BOTH
def test_at_rate_0_it_is_mle(env, tiny_student, kind):
    _, expected_loss, expected = learn(MLE(), env, tiny_student)
    _, loss, found = learn(kind(rate=0.0), env, tiny_student)
    torch.testing.assert_close(loss, expected_loss)
    torch.testing.assert_close(found, expected)


def test_its_loss_has_four_terms(env, expert, tiny_student):
    agent = DSKD(rate=0.3, temperature=1.5)
    batch = collect_batch(agent, env, tiny_student)
    states, teacher = batch.trajectories, expert.model
    modules = first_companions(agent, tiny_student, expert)
    answers = teacher.hidden(states.source, states.actions)
    hidden = tiny_student.hidden(states.source, states.actions)
    logits = tiny_student.project(hidden)
    in_student = tiny_student.project(modules["to_student"](answers))
    in_teacher = teacher.project(modules["to_teacher"](hidden))
    terms = [
        cross_entropy(in_student, states.actions),
        forward_kl(logits / 1.5, in_student / 1.5),
        forward_kl(in_teacher / 1.5, teacher.project(answers) / 1.5),
    ]
    losses = 0.7 * cross_entropy(logits, states.actions) + 0.3 * sum(terms)
    expected = losses[states.mask].mean()
    torch.testing.assert_close(agent.loss(batch, tiny_student, expert), expected)


@BOTH
def test_projectors_learn_and_no_head_learns_from_what_is_projected(
    env, expert, tiny_student, kind
):
    """The student's embedding, which is its head, is trained as `project` alone would train it."""
    agent = kind(rate=1.0)
    batch = collect_batch(agent, env, tiny_student)
    modules = first_companions(agent, tiny_student, expert)
    agent.joint_loss(batch, tiny_student, expert, modules).backward()
    assert all(parameter.grad.any() for parameter in modules.parameters())
    assert all(weight.grad is None for weight in expert.model.parameters())


@BOTH
def test_logits_exist_for_a_few_states_at_a_time(kind, monkeypatch):
    vocab_size = 400
    config = TransformerConfig(vocab_size, 16, 2, 24, 1, 1, dropout=0.0)
    student, expert = config.build(), NeuralExpert(config.build().eval())
    actions = random_sources(64, 9)
    states = Trajectories.from_examples(Examples(actions, actions), student.special)
    modules = first_companions(kind(), student, expert)
    learned = [*student.parameters(), *modules.parameters()]

    def loss_and_gradients():
        loss = kind().joint_loss(LabelledBatch(states), student, expert, modules)
        return loss.detach(), torch.autograd.grad(loss, learned)

    whole = loss_and_gradients()
    monkeypatch.setattr(hidden_states, "CHUNK_NUMEL_CPU", 1)
    monkeypatch.setattr(hidden_states, "MIN_CHUNK_ROWS", 8)
    with LargestTensor() as largest:
        chunks = loss_and_gradients()
    torch.testing.assert_close(chunks, whole)
    assert largest.numel < states.mask.sum() * vocab_size / 4


@BOTH
def test_settings_outside_their_ranges_are_refused(kind):
    with pytest.raises(ValueError, match=r"^rate must be in \[0, 1\].*, got 1.5"):
        kind(rate=1.5)
    with pytest.raises(ValueError, match=r"^temperature must be above 0 and finite, got 0"):
        kind(temperature=0.0)


@BOTH
def test_models_without_hidden_states_are_refused_before_training(
    tiny_task, tiny_teacher, make_table_model, expert, kind
):
    with pytest.raises(ExpertError, match=r"^the expert must have hidden .* got Ensemble: use one"):
        kind().check_expert(NeuralExpert(Ensemble((tiny_teacher, tiny_teacher))))
    with pytest.raises(ValueError, match=r"^student must have hidden states .*, got TableModel: "):
        kind().companions(make_table_model(tiny_task, 0), expert)


def test_a_teacher_with_another_tokenizer_is_for_cross_model_attention_alone(bridged):
    expert, _ = bridged
    DSKDWithCMA().check_expert(expert)
    with pytest.raises(ExpertError, match="must give the whole distribution"):
        DSKD().check_expert(expert)


def test_the_teacher_reads_the_same_texts_in_its_own_tokens(tiny_task, bridged):
    expert, examples = bridged
    states = Trajectories.from_examples(examples, tiny_task.tokenizer.special)
    own, (_, ids) = expert.in_own_tokens(states), reversed_words(tiny_task)
    assert torch.equal(ids[own.actions], states.actions)
    assert torch.equal(ids[own.source], states.source)
    assert torch.equal(own.mask, states.mask)
    assert not torch.equal(own.actions, states.actions)


def trained_projectors(agent, student, env, folder):
    """Train the projectors alone, beside a student that stays as it is."""
    student.requires_grad_(False)
    config = replace(
        CONFIG, updates=300, batch_size=32, learning_rate=0.02, evaluate_every=300, clip=10.0
    )
    learner = Learner(
        agent, student, env=env, folder=folder, config=config, precision=torch.float32
    )
    learner.train(no_score, Log())
    return learner.companions.eval()


@pytest.mark.slow
def test_projectors_alone_undo_a_rotation(make_learner, tiny_task, make_env, tmp_path):
    """The data is the student's own, so that the student is what both projectors come to."""
    start = make_learner(MLE(), replace(CONFIG, updates=60, batch_size=16))
    start.train(no_score, Log())
    student = start.student.eval()
    pairs = encode([*tiny_task.train] * 16, tiny_task)
    sampling, generator = Sampling(), torch.Generator().manual_seed(0)
    steps = tiny_task.max_target_length
    texts = NeuralExpert(student).sample(
        pairs, max_steps=steps, sampling=sampling, generator=generator
    )
    teacher = Disguised(student, torch.arange(student.vocab_size))
    env = make_env(tiny_task, 32, NeuralExpert(teacher), texts)
    projectors = trained_projectors(DSKD(rate=1.0, temperature=1.0), student, env, tmp_path)
    states = Trajectories.from_examples(texts, env.special)
    with torch.no_grad():
        hidden = student.hidden(states.source, states.actions)
        answers = teacher.hidden(states.source, states.actions)
        in_teacher = teacher.project(projectors["to_teacher"](hidden))
        in_student = student.project(projectors["to_student"](answers))
        label, end = student.project(hidden), env.special.end  # no other special token is drawn
        in_teachers = float(forward_kl(in_teacher, label)[states.mask].mean())
        drawn = forward_kl(in_student[..., end:], label[..., end:])
        in_students = float(drawn[states.mask].mean())
    sys.stdout.write(
        f"KL in the teacher's space {in_teachers:.4f}, the student's {in_students:.4f}\n"
    )
    assert in_teachers < 0.01
    assert in_students < 0.03


@pytest.mark.slow
def test_projectors_alone_align_a_permuted_vocabulary(
    make_learner, tiny_task, make_env, bridged, tiny_student, tmp_path
):
    """The two sides have the same positions, and attention has to find that out."""
    expert, examples = bridged
    start = make_learner(MLE(), replace(CONFIG, updates=60, batch_size=16))
    start.train(no_score, Log())
    tiny_student.load_state_dict(start.student.state_dict())  # the one in disguise, too
    env = make_env(tiny_task, 32, expert, examples)
    agent = DSKDWithCMA(rate=1.0, temperature=1.0)
    projectors = trained_projectors(agent, tiny_student, env, tmp_path)
    states = Trajectories.from_examples(examples, env.special)
    own, teacher = expert.in_own_tokens(states), expert.expert.model
    texts = dskd._Texts(states, own, tiny_student.special, teacher.special)
    with torch.no_grad():
        scores = dskd._aligned(texts, tiny_student, teacher, projectors["query"])
        hidden = tiny_student.hidden(states.source, states.actions)
        carried = scores.transpose(1, 2).softmax(-1) @ projectors["to_teacher"](hidden)
        label = teacher.sequence_logits(own.source, own.actions)
        distance = float(forward_kl(teacher.project(carried), label)[own.mask].mean())
    own_place = scores.argmax(-1) == torch.arange(scores.shape[-1])
    right = float(own_place[states.mask].float().mean())
    sys.stdout.write(f"KL in the teacher's space {distance:.4f}, aligned {right:.3f}\n")
    assert distance < 0.01
    assert right > 0.9
