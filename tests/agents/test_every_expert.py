"""Every Expert Matters: subsets of a mixture, a router, and two teachers that know a half each."""

import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.support.updates import (
    ROWS,
    Log,
    assert_learn_the_same,
    collect_batch,
    loss_and_gradients,
    no_score,
)
from textgen_agents.agent import first_companions
from textgen_agents.evaluation.quality import translate
from textgen_agents.every_expert import KnowledgeAugmentation, StudentAwareRouter, subset_shares
from textgen_agents.losses.divergences import cross_entropy, forward_kl
from textgen_agents.training.learner import Learner, LearnerConfig
from textgen_agents.word_kd import WordKD
from textgen_env.experts.expert import ExpertError, NeuralExpert
from textgen_env.models.ensemble import Ensemble
from textgen_env.models.recurrent import Recurrent, RecurrentConfig
from textgen_env.models.transformer import Transformer, TransformerConfig
from textgen_env.tasks.copy import CopyConfig, copy_task
from textgen_env.types import SpecialTokens


@pytest.fixture
def teachers(tiny_task, tiny_teacher):
    torch.manual_seed(5)
    size = TransformerConfig(tiny_task.tokenizer.vocab_size, 8, num_heads=2, feed_forward=16)
    return tiny_teacher, Transformer(size).eval()


@pytest.fixture
def mixed_env(tiny_task, make_env, teachers):
    return make_env(tiny_task, ROWS, NeuralExpert(Ensemble(teachers)))


def test_subsets_of_all_experts_are_word_kd_on_their_mean(mixed_env, tiny_student):
    agent = KnowledgeAugmentation(draws=3, experts=2)
    assert_learn_the_same(agent, WordKD(), mixed_env, tiny_student)


def test_one_teacher_alone_is_word_kd(env, tiny_student):
    assert_learn_the_same(KnowledgeAugmentation(), WordKD(), env, tiny_student)


def test_shares_are_those_of_subsets_and_equal_on_average():
    shares = subset_shares((200, 10, 4, 5), 2, torch.Generator().manual_seed(0))
    torch.testing.assert_close(shares.sum(-1), torch.ones(200, 10))
    assert torch.equal(shares * 8, (shares * 8).round()), "eighths: two of five, four times"
    assert shares.max() <= 4 / 8
    torch.testing.assert_close(shares.mean((0, 1)), torch.full((5,), 0.2), rtol=0.06, atol=0)
    single = subset_shares((50, 1, 1, 5), 2, torch.Generator().manual_seed(0))
    assert (single == 0.5).sum(-1).eq(2).all()


def test_its_gradient_is_that_of_the_mean_loss_over_the_drawn_subsets(
    mixed_env, teachers, tiny_student
):
    agent = KnowledgeAugmentation(draws=3)
    batch = collect_batch(agent, mixed_env, tiny_student, seed=4)
    states = batch.trajectories
    _, found = loss_and_gradients(agent, batch, tiny_student, batch.expert(mixed_env.expert))
    generator = torch.Generator().manual_seed(4)
    torch.randint(len(mixed_env.examples), (ROWS,), generator=generator)  # of the examples
    drawn = torch.rand((*states.actions.shape, 3, 2), generator=generator).argmax(-1)
    logits = [model.sequence_logits(states.source, states.actions).detach() for model in teachers]
    tiny_student.zero_grad()
    own = tiny_student.sequence_logits(states.source, states.actions)
    losses = [
        forward_kl(own, torch.where(drawn[..., draw, None] == 0, *logits)) for draw in range(3)
    ]
    (sum(losses) / 3)[states.mask].mean().backward()
    expected = {name: weight.grad for name, weight in tiny_student.named_parameters()}
    assert 0 < drawn[states.mask].float().mean() < 1
    torch.testing.assert_close(found, expected)


def test_a_new_router_gives_the_student_word_kd_on_the_mean(mixed_env, tiny_student):
    batch = collect_batch(WordKD(), mixed_env, tiny_student)
    of = [
        loss_and_gradients(agent, batch, tiny_student, mixed_env.expert)[1]
        for agent in (WordKD(), StudentAwareRouter())
    ]
    torch.testing.assert_close(of[1], of[0])


def test_the_router_learns_the_data_and_the_student_as_a_constant(
    mixed_env, teachers, tiny_student
):
    agent = StudentAwareRouter(data_weight=0.6, student_weight=0.3)
    batch = collect_batch(agent, mixed_env, tiny_student)
    states, expert = batch.trajectories, mixed_env.expert
    modules = first_companions(agent, tiny_student, expert)
    nn.init.normal_(modules["router"].weight, std=0.1)
    agent.joint_loss(batch, tiny_student, expert, modules).backward()
    found = [parameter.grad.clone() for parameter in modules.parameters()]
    modules.zero_grad()
    with torch.no_grad():
        hidden = [model.hidden(states.source, states.actions) for model in teachers]
        each = [model.project(h).softmax(-1) for model, h in zip(teachers, hidden, strict=True)]
        q = tiny_student.sequence_logits(states.source, states.actions)
    weights = modules["router"](torch.cat(hidden, -1)).softmax(-1)
    mixture = sum(weights[..., k, None] * each[k] for k in range(2)).log()
    losses = 0.6 * cross_entropy(mixture, states.actions) + 0.3 * forward_kl(mixture, q)
    losses[states.mask].mean().backward()
    torch.testing.assert_close(found, [parameter.grad for parameter in modules.parameters()])
    assert all(gradient.any() for gradient in found)
    assert all(weight.grad is None for model in teachers for weight in model.parameters())


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


def test_more_experts_than_there_are_and_teachers_without_states_are_refused(
    tiny_task, teachers, make_table_model
):
    expert = NeuralExpert(Ensemble(teachers))
    with pytest.raises(ExpertError, match=r"^experts must be at most 2, .* got 3: lower it"):
        KnowledgeAugmentation(experts=3).check_expert(expert)
    tables = NeuralExpert(Ensemble((teachers[0], make_table_model(tiny_task, 0))))
    with pytest.raises(ExpertError, match=r"^the expert must have hidden .*, got TableModel: "):
        StudentAwareRouter().check_expert(tables)


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


def matches_of(agent, model, task, make_env, folder):
    """Return the shares of test texts with even and odd lengths that a student copies."""
    torch.manual_seed(0)
    student = Recurrent(RecurrentConfig(task.tokenizer.vocab_size, 32, 1, 1, dropout=0.0))
    config = LearnerConfig(
        updates=1200, batch_size=32, learning_rate=5e-3, warmup=50, evaluate_every=1200, seed=0
    )
    env = make_env(task, 32, NeuralExpert(model))
    learner = Learner(
        agent, student, env=env, folder=folder, config=config, precision=torch.float32
    )
    learner.train(no_score, Log())
    written = translate(student.eval(), task, [pair.source for pair in task.test])
    right = [[], []]
    for text, pair in zip(written, task.test, strict=True):
        right[len(pair.source.split()) % 2].append(text == pair.reference)
    return learner, [sum(each) / len(each) for each in right]


@pytest.mark.slow
@pytest.mark.parametrize("agent", [KnowledgeAugmentation(), StudentAwareRouter()])
def test_two_teachers_of_one_half_each_make_a_student_of_the_whole(task, make_env, tmp_path, agent):
    halves = [CopyHalf(task.tokenizer.vocab_size, parity) for parity in (0, 1)]
    learner, (even, odd) = matches_of(agent, Ensemble(halves), task, make_env, tmp_path)
    sys.stdout.write(f"copied: {even:.3f} of the even lengths, {odd:.3f} of the odd ones\n")
    assert min(even, odd) >= 0.95
    if "router" in learner.companions:
        states = collect_batch(agent, learner.env, learner.student).trajectories
        hidden = torch.cat([half.hidden(states.source, states.actions) for half in halves], -1)
        weights = learner.companions["router"](hidden).detach().softmax(-1)
        words = (states.source != learner.env.special.pad).sum(1) - 1
        chosen = weights.gather(-1, (words % 2)[:, None, None].expand(-1, weights.shape[1], 1))
        share = float(chosen.squeeze(-1)[states.mask].mean())
        sys.stdout.write(f"weight of the teacher that knows: {share:.3f}\n")
        assert share > 0.9


@pytest.mark.slow
def test_one_of_them_alone_makes_a_student_of_about_a_half(task, make_env, tmp_path):
    half = CopyHalf(task.tokenizer.vocab_size, 0)
    _, (even, odd) = matches_of(WordKD(), half, task, make_env, tmp_path)
    sys.stdout.write(f"copied: {even:.3f} of the even lengths, {odd:.3f} of the odd ones\n")
    assert even > odd
    assert (even + odd) / 2 <= 0.6
