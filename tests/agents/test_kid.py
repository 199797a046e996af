import pytest
import torch

from tests.support.updates import collect, learn
from textgen_agents.kid import KID
from textgen_agents.mle import MLE
from textgen_agents.rollouts.context import Context
from textgen_env.types import Writer


def log_probs(model, source, actions):
    return model.sequence_logits(source, actions).log_softmax(-1)


def reverse_kl(student, expert, source, actions, mask):
    """Mean KL(student || teacher) on `actions`, with gradient."""
    q, p = log_probs(student, source, actions), log_probs(expert.model, source, actions).detach()
    return (q.exp() * (q - p)).sum(-1)[mask].mean()


@pytest.mark.parametrize("weight", [0.0, 1.0, 2.5])
def test_with_nothing_replaced_it_is_mle_and_reverse_kl_on_gold_text(
    env, expert, tiny_student, weight
):
    gold, mle, gradients = learn(MLE(), env, tiny_student)
    tiny_student.zero_grad()
    divergence = reverse_kl(tiny_student, expert, gold.source, gold.actions, gold.mask)
    (weight * divergence).backward()
    expected = {
        name: gradients[name] + parameter.grad
        for name, parameter in tiny_student.named_parameters()
    }
    agent = KID(student_fraction=0.0, weight=weight)
    trajectories, loss, found = learn(agent, env, tiny_student)
    assert torch.equal(trajectories.actions, gold.actions)
    assert trajectories.writer.eq(Writer.DATA).all()
    torch.testing.assert_close(loss, mle + weight * divergence.detach())
    torch.testing.assert_close(found, expected)


def test_it_learns_gold_text_and_the_teacher_on_spoiled_text(env, expert, tiny_student):
    gold, mle, _ = learn(MLE(), env, tiny_student)
    spoiled, loss, _ = learn(KID(student_fraction=0.5, weight=2.0), env, tiny_student)
    assert not torch.equal(spoiled.actions, gold.actions)
    divergence = reverse_kl(tiny_student, expert, gold.source, spoiled.actions, gold.mask)
    torch.testing.assert_close(loss, mle + 2.0 * divergence.detach())


@pytest.fixture
def lively(tiny_task, make_table_model):
    """Return a student that would end many of the texts."""
    return make_table_model(tiny_task, 3)


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_what_is_replaced_is_the_students_best_after_the_gold_prefix(env, lively, share):
    trajectories = collect(KID(student_fraction=share), env, lively)
    end, mask = env.special.end, trajectories.mask
    gold = trajectories.reference
    best = lively.sequence_logits(trajectories.source, gold)[..., 2:].argmax(-1) + 2
    replaced = trajectories.writer == Writer.STUDENT
    assert torch.equal(trajectories.actions, best.where(replaced, gold))
    assert torch.equal(mask, gold != env.special.pad)
    assert torch.equal(trajectories.actions == end, gold == end), "texts end where the gold does"
    possible = mask & (gold != end) & (best != end)
    assert not (replaced & ~possible).any()
    assert ((best == end) & (gold != end) & mask).any()
    found = replaced.sum() / possible.sum()
    assert found == 1 if share == 1 else 0.1 < found < 0.5


def test_a_text_is_spoiled_by_one_pass_of_the_student_and_none_of_the_expert(
    env, expert, lively, monkeypatch
):
    passes, forward = [], lively.sequence_logits

    def counted(source, actions):
        passes.append(actions.shape)
        return forward(source, actions)

    monkeypatch.setattr(lively, "sequence_logits", counted)
    monkeypatch.setattr(lively, "step", None)
    collect(KID(), env, lively)
    assert len(passes) == 1
    assert expert.queries.tokens == 0


def test_replacements_do_not_depend_on_padding(tiny_task, make_env, lively):
    env = make_env(tiny_task, 2)
    shortest = (env.examples.reference != env.special.pad).sum(1).argsort()[:2]
    few = env.examples.select(shortest).trimmed(env.special)
    assert few.reference.shape[1] < env.examples.reference.shape[1]
    written = []
    for place, indices in (
        (env, shortest),
        (make_env(tiny_task, 2, examples=few), torch.arange(2)),
    ):
        generator = torch.Generator().manual_seed(1)
        agent = KID(student_fraction=0.5)
        spoiled = agent.collect(Context(indices, place, lively, generator=generator)).trajectories
        written.append(spoiled.actions[:, : few.reference.shape[1]])
    assert torch.equal(*written)
    assert not torch.equal(written[0], few.reference)


@pytest.mark.parametrize(
    ("settings", "argument"),
    [({"student_fraction": 1.1}, "student_fraction"), ({"weight": -1.0}, "weight")],
)
def test_settings_outside_their_range_are_refused(settings, argument):
    with pytest.raises(ValueError, match=f"^{argument} must be"):
        KID(**settings)
