"""Every Expert Matters: passes of a mixture, routers, and two teachers that know a half each."""

import sys
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.support.pretrained import TEXTS, WITH_EXPERTS, save_family
from tests.support.updates import (
    ROWS,
    Log,
    assert_learn_the_same,
    collect_batch,
    loss_and_gradients,
    no_score,
)
from textgen_agents.agent import first_companions
from textgen_agents.distillspec import DistillSpec
from textgen_agents.evaluation.quality import translate
from textgen_agents.every_expert import (
    KnowledgeAugmentation,
    StudentAwareRouter,
    imbalance,
    used_experts,
)
from textgen_agents.losses.divergences import reverse_kl
from textgen_agents.mle import MLE
from textgen_agents.training.learner import Learner, LearnerConfig
from textgen_env.experts.expert import ExpertError, NeuralExpert
from textgen_env.generation.sampling import Sampling
from textgen_env.models.ensemble import Ensemble
from textgen_env.models.gates import with_gates
from textgen_env.models.recurrent import Recurrent, RecurrentConfig
from textgen_env.models.storage import load_model, load_tokenizer
from textgen_env.models.transformer import Transformer, TransformerConfig
from textgen_env.tasks.copy import CopyConfig, copy_task
from textgen_env.tasks.task import Pair, TextTask
from textgen_env.types import SpecialTokens


@pytest.fixture
def teachers(tiny_task, tiny_teacher):
    torch.manual_seed(5)
    size = TransformerConfig(tiny_task.tokenizer.vocab_size, 8, num_heads=2, feed_forward=16)
    return tiny_teacher, Transformer(size).eval()


@pytest.fixture
def mixed_env(tiny_task, make_env, teachers):
    return make_env(tiny_task, ROWS, NeuralExpert(Ensemble(teachers)))


def test_all_experts_in_use_are_on_policy_distillation_from_their_mean(mixed_env, tiny_student):
    agent = KnowledgeAugmentation(draws=3, left_out=0)
    assert_learn_the_same(agent, DistillSpec(divergence="rkl"), mixed_env, tiny_student)


def test_one_teacher_alone_is_on_policy_distillation(env, tiny_student):
    agent = KnowledgeAugmentation(left_out=0)
    assert_learn_the_same(agent, DistillSpec(divergence="rkl"), env, tiny_student)


def test_the_constants_of_the_paper_are_the_defaults():
    augmented = KnowledgeAugmentation(draws=2, left_out=1, drawn_fraction=0.05, sampling=Sampling())
    assert augmented == KnowledgeAugmentation()
    assert StudentAwareRouter(balance_weight=0.01, sampling=Sampling()) == StudentAwareRouter()


def test_without_a_draw_the_least_probable_experts_are_left_out():
    gate = torch.tensor([[1.0, 3.0, 2.0, 0.0], [0.0, -1.0, 1.0, 5.0]])
    options = {"drawn_fraction": 0.0, "generator": torch.Generator().manual_seed(0)}
    assert used_experts(gate, left_out=1, **options).tolist() == [
        [True, True, True, False],
        [True, False, True, True],
    ]
    assert used_experts(gate, left_out=3, **options).float().argmax(-1).tolist() == [1, 3]
    assert used_experts(gate, left_out=0, **options).all()


def test_drawn_experts_have_the_law_of_draws_without_replacement():
    """With one of three left out, it is the last of a sequence of draws."""
    probabilities, count = [0.5, 0.3, 0.2], 40_000
    gate = torch.tensor(probabilities).log().expand(count, 3)
    generator = torch.Generator().manual_seed(0)
    used = used_experts(gate, left_out=1, drawn_fraction=1.0, generator=generator)
    assert used.sum(-1).eq(2).all()
    a, b, c = probabilities
    left = [b * c / (1 - b) + c * b / (1 - c), a * c / (1 - a) + c * a / (1 - c)]
    expected = torch.tensor([*left, 1 - sum(left)])
    torch.testing.assert_close((~used).float().mean(0), expected, rtol=0, atol=0.01)
    some = used_experts(gate, left_out=1, drawn_fraction=0.4, generator=generator)
    share = 0.4 * expected + 0.6 * torch.tensor([0.0, 0.0, 1.0])
    torch.testing.assert_close((~some).float().mean(0), share, rtol=0, atol=0.01)


def test_its_gradient_is_that_of_the_mean_loss_over_the_passes(
    mixed_env, teachers, tiny_student, monkeypatch
):
    chosen = []

    def recorded(gate, **options):
        chosen.append(used_experts(gate, **options))
        return chosen[-1]

    monkeypatch.setattr("textgen_agents.every_expert.used_experts", recorded)
    agent = KnowledgeAugmentation(draws=3)
    batch = collect_batch(agent, mixed_env, tiny_student, seed=4)
    states = batch.trajectories
    _, found = loss_and_gradients(agent, batch, tiny_student, batch.expert(mixed_env.expert))
    logits = [model.sequence_logits(states.source, states.actions).detach() for model in teachers]
    tiny_student.zero_grad()
    own = tiny_student.sequence_logits(states.source, states.actions)
    losses = [reverse_kl(own, torch.where(used[..., :1], *logits)) for used in chosen]
    (sum(losses) / 3)[states.mask].mean().backward()
    expected = {name: weight.grad for name, weight in tiny_student.named_parameters()}
    shares = torch.stack(chosen).float()[:, states.mask].mean((0, 1))
    torch.testing.assert_close(shares, torch.tensor([0.5, 0.5]), rtol=0, atol=0.15)
    torch.testing.assert_close(found, expected)


def test_new_routers_give_the_student_on_policy_distillation_from_the_mean(mixed_env, tiny_student):
    agents = StudentAwareRouter(), DistillSpec(divergence="rkl")
    batch = collect_batch(agents[1], mixed_env, tiny_student)
    of = [loss_and_gradients(each, batch, tiny_student, mixed_env.expert)[1] for each in agents]
    torch.testing.assert_close(of[1], of[0])


def test_the_routers_learn_the_student_as_a_constant(mixed_env, teachers, tiny_student):
    agent = StudentAwareRouter(balance_weight=0.3)
    batch = collect_batch(agent, mixed_env, tiny_student)
    states, expert = batch.trajectories, mixed_env.expert
    modules = first_companions(agent, tiny_student, expert)
    (router,) = modules["routers"]
    nn.init.normal_(router, std=0.1)
    agent.joint_loss(batch, tiny_student, expert, modules).backward()
    found = router.grad.clone()
    with torch.no_grad():
        hidden = [model.hidden(states.source, states.actions) for model in teachers]
        each = [model.project(h).softmax(-1) for model, h in zip(teachers, hidden, strict=True)]
        q = tiny_student.sequence_logits(states.source, states.actions).softmax(-1)
    weights = (torch.cat(hidden, -1) @ router.T).softmax(-1)
    p = sum(weights[..., k, None] * each[k] for k in range(2))
    losses = (p * (p.log() - q.log())).sum(-1)
    uneven = []
    for row, mask in zip(weights, states.mask, strict=True):
        summed = row[mask].sum(0)
        uneven.append((summed.std(correction=0) / summed.mean()) ** 2)
    losses = losses + 0.3 * torch.stack(uneven)[:, None]
    (expected,) = torch.autograd.grad(losses[states.mask].mean(), router)
    torch.testing.assert_close(found, expected)
    assert all(weight.grad is None for model in teachers for weight in model.parameters())


def test_even_experts_have_no_imbalance_and_a_single_one_has_the_most():
    mask = torch.ones(2, 3, dtype=torch.bool)
    even = torch.zeros(2, 3, 4)
    single = torch.tensor([0.0, 0.0, 40.0, 0.0]).expand(2, 3, 4)
    torch.testing.assert_close(imbalance(even, mask), torch.zeros(2))
    torch.testing.assert_close(imbalance(single, mask), torch.full((2,), 3.0))
    turns = 40.0 * torch.eye(4)[torch.tensor([[0, 1, 2, 3], [0, 1, 1, 1]])]
    mask = torch.tensor([[True] * 4, [True] * 2 + [False] * 2])
    torch.testing.assert_close(imbalance(turns, mask), torch.tensor([0.0, 1.0]))


@pytest.mark.parametrize("kind", [KnowledgeAugmentation, StudentAwareRouter])
def test_a_teacher_without_parts_is_refused_before_training(
    tiny_task, tiny_teacher, make_table_model, teachers, kind
):
    kind().check_expert(NeuralExpert(Ensemble(teachers)))
    for model in (tiny_teacher, Ensemble((tiny_teacher,))):
        with pytest.raises(
            ExpertError, match=r"^the expert must be a mixture .*, got 1: give more"
        ):
            kind().check_expert(NeuralExpert(model))
    tables = Ensemble((teachers[0], make_table_model(tiny_task, 0)))
    with pytest.raises(ExpertError, match=r"^the expert must be a mixture .*, got Ensemble: "):
        kind().check_expert(NeuralExpert(tables))


def test_more_experts_left_out_than_there_are_is_refused(teachers):
    expert = NeuralExpert(Ensemble(teachers))
    with pytest.raises(ExpertError, match=r"^left_out must be below 2, .* got 2: lower it"):
        KnowledgeAugmentation(left_out=2).check_expert(expert)


@pytest.fixture(params=WITH_EXPERTS)
def pretrained(request, tmp_path):
    """Return a teacher with experts in its layers, a task of its words and a student."""
    family = WITH_EXPERTS[request.param]
    teacher = load_model(save_family(family, tmp_path / request.param))
    pairs = [Pair(text, text) for text in TEXTS]
    task = TextTask("t", load_tokenizer(tmp_path / request.param), pairs, pairs, pairs, 10, 10, {})
    torch.manual_seed(3)
    size = RecurrentConfig(task.tokenizer.vocab_size, 16, 1, 1, dropout=0.0)
    return teacher, task, Recurrent(size, task.tokenizer.special)


def test_experts_in_layers_teach_by_their_passes(pretrained, make_env):
    teacher, task, student = pretrained
    agent, expert = KnowledgeAugmentation(drawn_fraction=0.0), NeuralExpert(teacher)
    agent.check_expert(expert)
    env = make_env(task, 5, expert)
    batch = collect_batch(agent, env, student)
    states = batch.trajectories
    assert expert.queries.forwards == 2, "passes"
    gates = with_gates(teacher)
    without_the_least = partial(used_experts, left_out=1, drawn_fraction=0.0)
    logits = gates.gated_logits(
        states.source,
        states.actions,
        gates.routers,
        lambda gate: without_the_least(gate, generator=torch.Generator()),
    )
    torch.testing.assert_close(batch.labels["logits"], logits.log_softmax(-1))
    drawn = KnowledgeAugmentation(drawn_fraction=1.0)
    assert not torch.allclose(
        collect_batch(drawn, env, student).labels["logits"], batch.labels["logits"], atol=0.01
    )
    with pytest.raises(ExpertError, match=r"^left_out must be below \d, "):
        KnowledgeAugmentation(left_out=9).check_expert(expert)


def test_routers_of_layers_begin_as_the_teachers_own_and_all_learn(pretrained, make_env):
    teacher, task, student = pretrained
    agent, expert = StudentAwareRouter(), NeuralExpert(teacher)
    agent.check_expert(expert)
    modules = first_companions(agent, student, expert)
    own = with_gates(teacher).routers
    assert all(torch.equal(*pair) for pair in zip(modules["routers"], own, strict=True))
    before = {name: weight.clone() for name, weight in teacher.named_parameters()}
    batch = collect_batch(agent, make_env(task, 5, expert), student)
    loss = agent.joint_loss(batch, student, expert, modules)
    loss.backward()
    assert all(router.grad.any() for router in modules["routers"])
    assert all(weight.grad is None for weight in teacher.parameters())
    with torch.no_grad():
        for router in modules["routers"]:
            router -= 0.05 * router.grad / router.grad.norm()
    nearer = agent.joint_loss(batch, student, expert, modules)
    assert nearer < loss
    assert all(torch.equal(weight, before[name]) for name, weight in teacher.named_parameters())


class CopyHalf(nn.Module):
    """A copier of texts with an even number of words, or an odd one; others it would rather end.

    It is sure where it is right, and where it is not it gives the end token about four times what
    it gives any other. Its hidden states are its logits.
    """

    special = SpecialTokens()

    def __init__(self, vocab_size, parity):
        super().__init__()
        self.vocab_size = self.width = vocab_size
        self.parity = parity

    def hidden(self, source, actions):
        words = (source != self.special.pad).sum(1) - 1
        right = F.pad(source, (0, actions.shape[1]))[:, : actions.shape[1]]
        known = (words % 2 == self.parity)[:, None, None]
        end = torch.full_like(right, self.special.end)
        copied, ended = (F.one_hot(tokens, self.vocab_size) for tokens in (right, end))
        return torch.where(known, 8.0 * copied, 1.5 * ended)

    def project(self, hidden):
        return hidden

    def embed(self, tokens):
        return F.one_hot(tokens, self.vocab_size).float()

    def sequence_logits(self, source, actions):
        return self.hidden(source, actions)


@pytest.fixture(scope="module")
def task():
    return copy_task(
        CopyConfig(8, min_length=2, max_length=5, num_train=1500, num_validation=10, num_test=200)
    )


def student_of(task):
    torch.manual_seed(0)
    return Recurrent(RecurrentConfig(task.tokenizer.vocab_size, 32, 1, 1, dropout=0.0))


def train(agent, student, env, folder, updates):
    """Train a student, and return the learner."""
    config = LearnerConfig(
        updates=updates, batch_size=32, learning_rate=5e-3, warmup=50, evaluate_every=updates
    )
    precision = torch.float32
    learner = Learner(agent, student, env=env, folder=folder, config=config, precision=precision)
    learner.train(no_score, Log())
    return learner


@pytest.fixture(scope="module")
def start(task, make_env, tmp_path_factory):
    """Return the weights of a student that was trained on the data, as in the paper."""
    folder = tmp_path_factory.mktemp("start")
    learner = train(MLE(), student_of(task), make_env(task, 32), folder, 400)
    sys.stdout.write("copied at the start: {:.3f} and {:.3f}\n".format(*copied(learner, task)))
    return learner.student.state_dict()


def copied(learner, task):
    """Return the shares of test texts with even and odd lengths that the student copies."""
    written = translate(learner.student.eval(), task, [pair.source for pair in task.test])
    right = [[], []]
    for text, pair in zip(written, task.test, strict=True):
        right[len(pair.source.split()) % 2].append(text == pair.reference)
    return [sum(each) / len(each) for each in right]


def taught_by(model, agent, task, start, make_env, folder):
    """Return the learner of a student that goes on from `start`, and what it copies."""
    student = student_of(task)
    student.load_state_dict(start)
    learner = train(agent, student, make_env(task, 32, NeuralExpert(model)), folder, 1000)
    even, odd = copied(learner, task)
    sys.stdout.write(f"copied: {even:.3f} of the even lengths, {odd:.3f} of the odd ones\n")
    return learner, even, odd


@pytest.mark.slow
@pytest.mark.parametrize("agent", [KnowledgeAugmentation(), StudentAwareRouter()])
def test_two_teachers_of_one_half_each_make_a_student_of_the_whole(
    task, start, make_env, tmp_path, agent
):
    halves = Ensemble([CopyHalf(task.tokenizer.vocab_size, parity) for parity in (0, 1)])
    learner, even, odd = taught_by(halves, agent, task, start, make_env, tmp_path)
    assert min(even, odd) >= 0.95
    for router in learner.companions.parameters():
        states = collect_batch(agent, learner.env, learner.student).trajectories
        read = [half.hidden(states.source, states.actions) for half in halves.models]
        weights = (torch.cat(read, -1) @ router.T).detach().softmax(-1)
        words = (states.source != learner.env.special.pad).sum(1) - 1
        knowing = weights.gather(-1, (words % 2)[:, None, None].expand(-1, weights.shape[1], 1))
        share = float(knowing.squeeze(-1)[states.mask].mean())
        sys.stdout.write(f"weight of the teacher that knows: {share:.3f}\n")
        assert share > 0.9


@pytest.mark.slow
def test_one_of_them_alone_makes_a_student_of_a_half_at_most(task, start, make_env, tmp_path):
    half, agent = CopyHalf(task.tokenizer.vocab_size, 0), DistillSpec(divergence="rkl")
    _, even, odd = taught_by(half, agent, task, start, make_env, tmp_path)
    assert even > odd
    assert (even + odd) / 2 <= 0.5
