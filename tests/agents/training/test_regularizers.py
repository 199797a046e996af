"""Regularizers: the loss on references after their own prefixes, the EWC penalty and smoothing."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from tests.support.updates import (
    CONFIG,
    Log,
    Sorted,
    collect_batch,
    gradients_of_an_update,
    make,
    no_score,
    weights_of,
)
from textgen_agents import AGENTS
from textgen_agents.iq_learn import IQLearn
from textgen_agents.kid import KID
from textgen_agents.losses.labels import LabelledBatch
from textgen_agents.mle import MLE
from textgen_agents.training import regularizers
from textgen_agents.training.learner import Learner, LearnerConfig
from textgen_agents.training.regularizers import EWC, References, diagonal_fisher, reference_batch
from textgen_env.tasks.task import encode
from textgen_env.types import Trajectories

BOTH = replace(CONFIG, reference_weight=0.7, ewc_weight=3.0)
SMOOTHED = {name: kind for name, kind in AGENTS.items() if "label_smoothing" in vars(kind())}
ON_TOKENS = {name: kind for name, kind in SMOOTHED.items() if name not in ("kid", "iq_learn")}


def likelihood(student, source, tokens):
    """Return the mean log-probabilities of `tokens` and of the whole vocabulary, in float64."""
    log_probs = student.sequence_logits(source, tokens).double().log_softmax(-1)
    counted = tokens != student.special.pad
    picked = log_probs.gather(-1, tokens[..., None]).squeeze(-1)
    return picked[counted].mean(), log_probs[counted].mean()


def gradients(loss, student):
    student.zero_grad()
    loss.backward()
    return [parameter.grad.clone() for parameter in student.parameters()]


@pytest.mark.parametrize("name", AGENTS)
def test_every_agent_minimizes_its_own_loss_and_that_on_references(make_learner, monkeypatch, name):
    monkeypatch.setattr(regularizers, "FISHER_BATCHES", 2)
    learner = make_learner(make(name), BOTH)
    batch, student = next(learner._batches(next(learner.rollouts()))), learner.student
    states = batch.trajectories
    agent_loss = learner.agent.loss(batch, student, batch.expert(learner.env.expert)).double()
    pairs = reference_batch(learner.references, BOTH.batch_size, BOTH.seed, update=0)
    on_references, _ = likelihood(student, pairs.source, pairs.reference)
    expected = gradients(agent_loss - 0.7 * on_references, student)
    student.zero_grad()
    loss, tokens, terms = learner.gradients.add(learner.agent, batch, 0)
    added = -0.7 * on_references.item()
    assert loss.item() == pytest.approx(agent_loss.item() + added, rel=1e-5)
    assert terms == {"reference_term": pytest.approx(added, rel=1e-5), "ewc_term": 0.0}
    assert tokens == states.mask.sum()
    actual = [parameter.grad for parameter in student.parameters()]
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)


def test_coefficients_of_zero_compute_nothing_and_log_nothing(make_learner, monkeypatch):
    for name in ("gradients.reference_batch", "learner.ewc_tensors"):
        monkeypatch.setattr(f"textgen_agents.training.{name}", None)
    log, learner = Log(), make_learner(MLE(), replace(BOTH, reference_weight=0.0, ewc_weight=0.0))
    learner.train(no_score, log)
    assert not {"reference_term", "ewc_term"} & log[1].keys()
    assert not (learner.folder / "ewc.safetensors").exists()


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_accumulation_does_not_change_the_regularizers(make_learner, precision):
    config = replace(BOTH, batch_size=8, clip=1e9, updates=1)
    found = []
    for accumulate in (1, 4):
        learner = make_learner(
            Sorted(MLE()),
            replace(config, accumulate=accumulate),
            str(accumulate),
            precision=precision,
        )
        with torch.no_grad():
            learner.student.embedding.weight.mul_(1.1)  # so that the penalty is not 0
        start = learner.gradients.ewc.start
        half = EWC(start, dict.fromkeys(start, torch.tensor(0.5)))
        learner.gradients = replace(learner.gradients, ewc=half)
        found.append(gradients_of_an_update(learner))
    (expected, figures), (actual, others) = found
    close = (
        {"rtol": 1e-4, "atol": 1e-7} if precision == torch.float32 else {"rtol": 0.1, "atol": 1e-2}
    )
    torch.testing.assert_close(actual, expected, **close)
    for name in ("loss", "reference_term", "ewc_term"):
        assert figures[name] > 0
        assert others[name] == pytest.approx(figures[name], rel=close["rtol"] / 10), name


def test_each_update_draws_its_own_pairs_independently_of_earlier_updates(tiny_task):
    pairs = encode(tiny_task.train, tiny_task)
    first, second = (reference_batch(pairs, 6, 0, update).reference for update in (0, 1))
    assert not torch.equal(first, second)
    assert torch.equal(reference_batch(pairs, 6, 0, update=1).reference, second)
    assert not torch.equal(reference_batch(pairs, 6, 1, update=1).reference, second)


def test_the_tasks_pairs_are_learned_where_the_teacher_has_written_the_data(
    env, make_student, tiny_task, tmp_path, monkeypatch
):
    monkeypatch.setattr(regularizers, "FISHER_BATCHES", 2)
    pairs = encode(tiny_task.train, tiny_task)
    env.examples = replace(pairs, reference=pairs.reference.flip(0))
    sums = {}
    for name, task_pairs in (("task", pairs), ("data", None)):
        learner = Learner(
            MLE(),
            make_student(),
            env=env,
            folder=tmp_path / name,
            config=BOTH,
            precision=torch.float32,
            references=References(task_pairs),
        )
        sums[name] = learner.gradients.reference_batch(0).trajectories.actions.sum()
        drawn = reference_batch(task_pairs or env.examples, BOTH.batch_size, BOTH.seed, update=0)
        assert sums[name] == drawn.reference.sum()
    assert sums["task"] != sums["data"]


def test_the_penalty_by_hand():
    model = torch.nn.Linear(2, 1)
    model.load_state_dict({"weight": torch.tensor([[3.0, -1.0]]), "bias": torch.tensor([0.5])})
    ewc = EWC(
        {"weight": torch.tensor([[1.0, 1.0]]), "bias": torch.tensor([0.0])},
        {"weight": torch.tensor([[0.5, 0.25]]), "bias": torch.tensor([2.0])},
    )
    penalty = ewc.penalty(model)
    penalty.backward()
    assert penalty.item() == 0.5 * (0.5 * 4 + 0.25 * 4 + 2 * 0.25)
    assert model.weight.grad.tolist() == [[0.5 * 2, 0.25 * -2]]
    assert model.bias.grad.tolist() == [2 * 0.5]


NUMBERS = st.floats(-10, 10, width=32)


@given(st.lists(st.tuples(st.floats(0, 10, width=32), NUMBERS, NUMBERS), min_size=1))
def test_the_penalty_is_never_negative_and_its_gradient_never_points_away(weights):
    fisher, start, now = torch.tensor(weights).T
    model = torch.nn.Linear(len(weights), 1, bias=False)
    model.weight.data = now[None].clone()
    penalty = EWC({"weight": start[None]}, {"weight": fisher[None]}).penalty(model)
    penalty.backward()
    exact = sum(0.5 * f * (w - s) ** 2 for f, s, w in weights)
    assert penalty.item() == pytest.approx(exact, rel=1e-5, abs=1e-30)
    assert (model.weight.grad[0] * (now - start)).ge(0).all()


@pytest.fixture
def table(tiny_task, make_table_model):
    return make_table_model(tiny_task, 1)


@pytest.fixture
def states(tiny_task):
    states = Trajectories.from_examples(
        encode(tiny_task.validation, tiny_task), tiny_task.tokenizer.special
    )
    assert not states.mask.all(), "the tests need padding"
    return states


def exact_fisher(table, states):
    """Return the Fisher information in float64: q (1 - q) for a logit, to which each table adds."""
    q = table.sequence_logits(states.source, states.actions).detach().double().softmax(-1)
    fisher = torch.zeros_like(table.tables, dtype=torch.float64)
    for row, step in states.mask.nonzero().tolist():
        previous = states.actions[row, step - 1] if step else table.special.start
        for which, place in enumerate((states.source[row, 0], previous, step)):
            fisher[which, place] += q[row, step] * (1 - q[row, step])
    return fisher / states.mask.sum()


def test_fisher_information_is_estimated_without_bias(table, states):
    """The relative standard error of an estimate from 3,000 draws at every state is 2.6 %."""
    draws = torch.Generator().manual_seed(0)
    estimate = diagonal_fisher(table, [states] * 3000, draws)["tables"].double()
    exact = exact_fisher(table, states)
    assert torch.equal(estimate == 0, exact == 0), "weights that no state uses have none"
    ratio = (estimate / exact)[exact > 1e-3]
    assert len(ratio) > 100
    assert ratio.mean().item() == pytest.approx(1, abs=0.005)
    assert ratio.std() < 0.05
    assert (ratio - 1).abs().max() < 0.2


def test_the_penalty_of_one_weight_is_the_kl_from_the_start_on_references(table, states):
    start = weights_of(table)
    ewc = EWC(start, {"tables": exact_fisher(table, states)})
    inputs = states.source, states.actions
    before = table.sequence_logits(*inputs).detach().double().log_softmax(-1)
    for which, place, token in (
        (0, states.source[0, 0], 4),
        (1, states.actions[0, 0], 5),
        (2, 0, 3),
    ):
        table.load_state_dict(start)
        table.tables.data[which, place, token] += 0.05
        after = table.sequence_logits(*inputs).detach().double().log_softmax(-1)
        kl = (before.exp() * (before - after)).sum(-1)[states.mask].mean().item()
        assert kl > 0
        assert ewc.penalty(table).item() == pytest.approx(kl, rel=0.05)


def test_the_penalty_keeps_the_student_near_the_start(make_learner):
    distances = {}
    for weight in (0.0, 100.0):
        learner = make_learner(MLE(), replace(CONFIG, ewc_weight=weight), str(weight))
        before = weights_of(learner.student)
        log = Log()
        learner.train(no_score, log)
        if weight:
            ewc = learner.gradients.ewc
            terms = [record["ewc_term"] for record in log.values()]
            assert terms[0] == 0 < min(terms[1:])
            assert all(torch.equal(ewc.start[name], before[name]) for name in ewc.fisher)
        distances[weight] = learner.student
    assert ewc.penalty(distances[100.0]) < 0.3 * ewc.penalty(distances[0.0])


def test_a_resumed_run_reads_the_start_and_the_fisher_information_of_the_first(make_learner):
    first = make_learner(MLE(), BOTH, dropout=0.3)
    stored = load_file(first.folder / "ewc.safetensors")
    again = make_learner(MLE(), BOTH, dropout=0.3, seed=9)
    assert stored.keys() == {
        f"{part}.{n}" for part in ("start", "fisher") for n in first.gradients.ewc.fisher
    }
    for name, start in first.gradients.ewc.start.items():
        assert torch.equal(again.gradients.ewc.start[name], start)
        assert torch.equal(again.gradients.ewc.fisher[name], first.gradients.ewc.fisher[name])
        assert first.gradients.ewc.fisher[name].ge(0).all()
        assert first.gradients.ewc.fisher[name].any(), name


def test_frozen_and_unused_weights_are_not_penalized(env, make_student):
    student = make_student()
    student.embedding.requires_grad_(False)
    student.unused = torch.nn.Parameter(torch.ones(2))
    stored = regularizers.ewc_tensors(student, env.examples, 4, seed=0)
    assert "fisher.embedding.weight" not in stored
    assert not stored["fisher.unused"].any()
    assert EWC.of(stored).penalty(student) == 0


@pytest.mark.parametrize("name", ["reference_weight", "ewc_weight"])
@pytest.mark.parametrize("value", [-0.1, float("nan")])
def test_weights_below_zero_are_refused(name, value):
    with pytest.raises(ValueError, match=f"^{name} must be at least 0, got {value}"):
        LearnerConfig(**{name: value})


def test_labels_are_smoothed_where_they_are_tokens():
    tokens = {"mle", "scheduled_sampling", "seqkd", "seqinter", "imitkd", "imitkd_star"}
    tokens |= {"genpi", "target_side_augmentation"}
    assert ON_TOKENS.keys() == tokens
    assert SMOOTHED.keys() == tokens | {"kid", "iq_learn"}


@pytest.mark.parametrize("kind", ON_TOKENS.values())
def test_a_share_of_each_label_is_spread_evenly(env, tiny_student, kind):
    seen = collect_batch(kind(), env, tiny_student).trajectories
    plain, smoothed = (
        kind(label_smoothing=share).loss(LabelledBatch(seen), tiny_student, env.expert)
        for share in (0.0, 0.2)
    )
    logits = tiny_student.sequence_logits(seen.source, seen.actions).double()
    uniform = -logits.log_softmax(-1).mean(-1)[seen.mask].mean()
    assert smoothed.item() == pytest.approx(0.8 * plain.item() + 0.2 * uniform.item(), rel=1e-5)


@pytest.mark.parametrize("kind", [KID, IQLearn])
def test_only_the_cross_entropy_of_a_sum_is_smoothed(env, tiny_student, kind):
    batch = collect_batch(kind(), env, tiny_student)
    seen = batch.trajectories
    plain, smoothed = (
        kind(label_smoothing=share).loss(batch, tiny_student, env.expert) for share in (0.0, 0.2)
    )
    picked, uniform = likelihood(tiny_student, seen.source, seen.reference)
    expected = plain.item() + 0.2 * (picked - uniform).item()
    assert smoothed.item() == pytest.approx(expected, rel=1e-5)
    assert smoothed.item() != pytest.approx(plain.item(), rel=1e-3)


@pytest.mark.parametrize("kind", SMOOTHED.values())
@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_shares_out_of_range_are_refused(kind, share):
    with pytest.raises(ValueError, match=rf"^label_smoothing must be in \[0, 1\), got {share}"):
        kind(label_smoothing=share)
