"""Losses and labels of states: the same in chunks of any size as from all logits at once."""

from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from tests.support.largest_tensor import LargestTensor
from tests.support.toy import random_sources
from tests.support.updates import collect_batch, loss_and_gradients
from textgen_agents.aggrevate import AggreVaTe
from textgen_agents.atkd import ATKD
from textgen_agents.contrastive_markings import ContrastiveMarkings
from textgen_agents.diverse_cfg import DiverseCFG
from textgen_agents.kid import KID
from textgen_agents.losses.labels import LabelledBatch
from textgen_agents.losses.objectives import mean_over_actions
from textgen_agents.losses.state_chunks import label_states
from textgen_agents.mgsr import MGSR
from textgen_agents.minillm import MiniLLM
from textgen_agents.prompt_internalization import GenPI, asking
from textgen_agents.sampled_reverse_kl import SampledReverseKL
from textgen_agents.tvd_plus_plus import TVDPlusPlus
from textgen_env.experts.expert import NeuralExpert
from textgen_env.models import hidden_states
from textgen_env.models.transformer import TransformerConfig
from textgen_env.types import Examples, Trajectories, Writer

VOCAB = 40


@dataclass
class Whole:
    """Log-probabilities of student and teacher at all states, (B, T, V) each, and the batch."""

    q: Tensor
    p: Tensor
    states: Trajectories
    labels: SimpleNamespace

    def of_actions(self, log_probs, actions=None):
        actions = self.states.actions if actions is None else actions
        return log_probs.gather(-1, actions[..., None]).squeeze(-1)

    def others(self, log_probs):
        """Return the log-probabilities of all tokens but the action, (B, T, V - 1)."""
        is_other = torch.ones_like(log_probs, dtype=torch.bool)
        is_other.scatter_(-1, self.states.actions[..., None], False)
        return log_probs[is_other].view(*log_probs.shape[:2], -1)


def kl(one, other):
    return (one.exp() * (one - other)).sum(-1)


def atkd(whole):
    split = []
    for log_probs in (whole.p, whole.q):
        rest = whole.others(log_probs)
        action = torch.stack([whole.of_actions(log_probs), rest.logsumexp(-1)], -1)
        split.append((action, rest.log_softmax(-1)))
    (p_action, p_others), (q_action, q_others) = split
    about, others = kl(p_action, q_action), kl(p_others, q_others)
    return torch.where(whole.labels.easy, 2 * 0.3 * others, 2 * 0.7 * (about + others))


def contrastive_markings(whole):
    likelihood = -whole.of_actions(whole.q)
    unlikelihood = -torch.log1p(-whole.of_actions(whole.q).exp())
    marked = torch.where(whole.labels.right, 0.5 * likelihood, 0.25 * unlikelihood)
    return marked.where(whole.states.writer == Writer.STUDENT, likelihood)


def diverse_cfg(whole):
    return kl(whole.q, whole.p) - 0.7 * whole.labels.advantage * whole.of_actions(whole.q)


def genpi(whole):
    of_prompts = (whole.states.source != 2).all(1, keepdim=True)
    likelihood = -whole.of_actions(whole.q)
    return torch.where(of_prompts, 3 * likelihood, likelihood)


def minillm(whole):
    labels = whole.labels
    ratio = labels.weight * (whole.of_actions(whole.q) - labels.log_prob).exp()
    gains = [each * labels.advantage for each in (ratio, ratio.clamp(0.8, 1.2))]
    return labels.weight * kl(whole.q, whole.p) - torch.minimum(*gains)


def sampled_reverse_kl(whole):
    own, teachers = whole.of_actions(whole.q), whole.of_actions(whole.p)
    weight = (own.detach() - whole.states.behavior_log_prob).exp().clamp(max=2)
    return weight * (own - teachers).detach() * (own - own.detach()).exp()


def tvd_plus_plus(whole):
    return -whole.labels.advantage * whole.of_actions(whole.q, whole.labels.drawn)


def aggrevate(whole):
    permitted = whole.q[..., 2:].logsumexp(-1)
    losses = -whole.labels.advantage * (whole.of_actions(whole.q) - permitted)
    last = whole.states.mask.sum(1, keepdim=True) - 1
    is_last = torch.arange(losses.shape[1]) == last
    return losses.where(is_last, 0.0)


PLAIN = {
    atkd: ATKD(easy_weight=0.3),
    contrastive_markings: ContrastiveMarkings(right_weight=0.5, wrong_weight=0.25),
    diverse_cfg: DiverseCFG(diversity_weight=0.7),
    genpi: GenPI(prompt_weight=3.0),
    minillm: MiniLLM(),
    sampled_reverse_kl: SampledReverseKL(),
    tvd_plus_plus: TVDPlusPlus(),
    aggrevate: AggreVaTe(),
}
AT_ONE_STATE = aggrevate  # of each text, whose weights do not count


@pytest.fixture
def rows_of_chunks(monkeypatch):
    """Return a function that sets the number of states of a chunk."""
    monkeypatch.setattr(hidden_states, "CHUNK_NUMEL_CPU", 1)
    return lambda rows: monkeypatch.setattr(hidden_states, "MIN_CHUNK_ROWS", rows)


def models(vocab_size=VOCAB):
    torch.manual_seed(0)
    config = TransformerConfig(vocab_size, 16, 2, 24, 1, 1, dropout=0.0)
    return config.build(), config.build().eval()


def batch_of(student, *, texts=12, dtype=torch.float32):
    """Return texts of student and data, with numbers at random for what agents decide."""
    generator = torch.Generator().manual_seed(1)
    examples = Examples(random_sources(texts, 7), random_sources(texts, 9, VOCAB))
    states = Trajectories.from_examples(examples, student.special)
    assert not states.mask.all(), "the test wants padding"

    def numbers():
        return torch.randn(states.mask.shape, generator=generator, dtype=dtype)

    source = states.source.clone()
    source[::3] = asking(source[::3], student.special)
    states = replace(
        states,
        source=source,
        writer=torch.where(numbers() > 0, Writer.STUDENT, Writer.DATA),
        weight=1 + numbers().abs(),
        behavior_log_prob=-3 - numbers().abs(),
    )
    labels = {
        "easy": numbers() > 0,
        "right": numbers() > 0,
        "drawn": torch.randint(3, VOCAB, states.mask.shape, generator=generator),
        "weight": numbers().abs(),
        "advantage": numbers(),
        "log_prob": -4 - numbers().abs(),
    }
    return LabelledBatch(states, labels)


@pytest.mark.parametrize("plain", PLAIN, ids=lambda plain: plain.__name__)
def test_losses_in_chunks_are_those_of_all_logits_at_once(plain, rows_of_chunks, monkeypatch):
    """In float64, which losses compute in where tests let them, and with weights of actions."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    student, teacher = (model.double() for model in models())
    batch, expert = batch_of(student, dtype=torch.float64), NeuralExpert(teacher)
    if plain is AT_ONE_STATE:
        batch = replace(batch, trajectories=replace(batch.trajectories, weight=None))
    states, found = batch.trajectories, []
    for rows in (5, 1000):
        rows_of_chunks(rows)
        found.append(loss_and_gradients(PLAIN[plain], batch, student, expert))
    q = student.sequence_logits(states.source, states.actions).log_softmax(-1)
    p = expert.logits(states).log_softmax(-1)
    loss = mean_over_actions(plain(Whole(q, p, states, SimpleNamespace(**batch.labels))), states)
    student.zero_grad()
    loss.backward()
    gradients = {name: weight.grad for name, weight in student.named_parameters()}
    for each in found:
        torch.testing.assert_close(each, (loss.detach(), gradients), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("plain", PLAIN, ids=lambda plain: plain.__name__)
def test_no_loss_holds_logits_of_all_states(plain, recorded, rows_of_chunks):
    vocab_size = 400
    rows_of_chunks(8)
    student, teacher = models(vocab_size)
    batch, expert = batch_of(student, texts=64), NeuralExpert(teacher)
    if recorded:
        logits = expert.logits(batch.trajectories).bfloat16()
        batch = replace(batch, labels={**batch.labels, "logits": logits})
        expert = batch.expert(expert)
    with LargestTensor() as largest:
        PLAIN[plain].loss(batch, student, expert).backward()
    assert largest.numel < batch.trajectories.mask.sum() * vocab_size / 4


COLLECTING = [KID(), MGSR(), MiniLLM(), TVDPlusPlus()]


@pytest.mark.parametrize("agent", COLLECTING, ids=lambda agent: type(agent).__name__)
def test_collections_do_not_depend_on_chunks(agent, env, make_student, rows_of_chunks):
    """Draws among them: those of the next chunk go on where the last one's have ended."""
    student, batches = make_student(0), []
    for rows in (5, 1000):
        rows_of_chunks(rows)
        batches.append(collect_batch(agent, env, student))
    one, other = batches
    assert torch.equal(one.trajectories.actions, other.trajectories.actions)
    assert one.labels.keys() == other.labels.keys()
    torch.testing.assert_close({**one.labels}, {**other.labels})


def test_labels_are_made_of_all_states_and_their_logits_of_a_few(rows_of_chunks):
    vocab_size = 400
    rows_of_chunks(8)
    student, teacher = models(vocab_size)
    batch, expert = batch_of(student, texts=64), NeuralExpert(teacher)

    def find(at):
        assert at.student_logits.shape == at.teacher_logits.shape
        gap = (at.student_logits - at.teacher_logits).square().sum(-1)
        return {"gap": gap, "known": torch.stack([at.labels["advantage"], at.mask], -1)}

    with LargestTensor() as largest:
        found = label_states(find, batch, student, expert)
    states = batch.trajectories
    assert largest.numel < states.mask.sum() * vocab_size / 4
    own = student.sequence_logits(states.source, states.actions)
    gap = (own - expert.logits(states)).square().sum(-1)
    torch.testing.assert_close(found["gap"], gap.detach())
    assert torch.equal(found["known"][..., 0], batch.labels["advantage"])
    assert torch.equal(found["known"][..., 1].bool(), states.mask)
