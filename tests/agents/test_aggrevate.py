from collections import Counter
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from sacrebleu import sentence_bleu

from tests.support.toy import Given, record
from tests.support.updates import (
    collect,
    collect_batch,
    context_of,
    learn,
    loss_and_gradients,
)
from textgen_agents.aggrevate import AggreVaTe, labelled, worth
from textgen_agents.rollouts.context import Context
from textgen_env.experts.expert import NeuralExpert
from textgen_env.experts.scripted import ScriptedExpert
from textgen_env.types import Examples, Writer

END = 2
NEVER = torch.tensor([0, 1])  # the ids of padding and start


def bleu(text, reference):
    words, target = (
        " ".join(str(token) for token in each if token > END) for each in (text, reference)
    )
    return sentence_bleu(words, [target], tokenize="none").score / 100


def completed(model, source, text, limit):
    """Complete the beginning of a text greedily, token by token."""
    text = list(text)
    while len(text) < limit and END not in text:
        actions = torch.tensor([[*text, 0]])
        logits = model.sequence_logits(source[None], actions)[0, len(text)]
        text.append(int(logits[END:].argmax()) + END)
    return text[:limit]


def permitted(logits):
    """Log-probabilities of what a student may write."""
    return logits.detach().double().index_fill(-1, NEVER, float("-inf")).log_softmax(-1)


def never_ending(student):
    """Return `student` made to write to the limit."""
    with torch.no_grad():
        student.tables[..., END] -= 100
    return student


@pytest.fixture
def lively_env(tiny_task, make_env, make_table_model):
    """With a teacher whose texts vary and end."""
    return make_env(tiny_task, 40, NeuralExpert(make_table_model(tiny_task, 1)))


def test_the_loss_is_the_advantage_times_the_surprise_at_the_deviation(
    lively_env, tiny_task, make_table_model
):
    student, teacher = make_table_model(tiny_task, 0), lively_env.expert.model
    texts, loss, _ = learn(AggreVaTe(), lively_env, student)
    log_probs = permitted(student.sequence_logits(texts.source, texts.actions))
    total, signs = 0.0, Counter()
    for row, count in enumerate(texts.mask.sum(1).tolist()):
        text, reference = texts.actions[row, :count].tolist(), texts.reference[row].tolist()
        limit = int(1.5 * sum(token > 0 for token in reference))
        most, best = log_probs[row, count - 1].exp().max(0)
        after, instead = (
            bleu(completed(teacher, texts.source[row], [*text[:-1], last], limit), reference)
            for last in (text[-1], int(best))
        )
        surprise = -log_probs[row, count - 1, text[-1]].item()
        total += (1 - most.item()) * (after - instead) * surprise
        signs[(after > instead) - (after < instead)] += 1
    assert min(signs[-1], signs[0], signs[1]) > 2, "better, as good and worse"
    assert loss.item() == pytest.approx(total / int(texts.mask.sum()), rel=1e-4)


def test_more_deviations_a_text_make_gradients_of_independent_batches_alike(
    lively_env, tiny_task, make_table_model
):
    student = never_ending(make_table_model(tiny_task, 0))

    def mean_cosine(deviations):
        agent, gradients = AggreVaTe(deviations), []
        for seed in range(8):
            batch = agent.collect(context_of(lively_env, student, seed=seed))
            _, found = loss_and_gradients(agent, batch, student, lively_env.expert)
            gradients.append(torch.cat([gradient.flatten() for gradient in found.values()]))
        units = F.normalize(torch.stack(gradients), dim=1)
        return ((units @ units.T).sum() - 8) / (8 * 7)

    cosines = [float(mean_cosine(deviations)) for deviations in (1, 4, 16)]
    assert cosines == sorted(cosines)
    assert cosines[-1] > 2 * cosines[0]


def test_an_update_has_eight_deviations_of_each_text(lively_env, tiny_task, make_table_model):
    student = never_ending(make_table_model(tiny_task, 0))
    texts = collect(AggreVaTe(), lively_env, student)
    one = collect(AggreVaTe(deviations=1), lively_env, student)
    assert (len(one), len(texts)) == (40, 8 * 40)
    assert torch.equal(texts.source, one.source.repeat_interleave(8, 0))
    places = texts.mask.sum(1).view(40, 8)
    assert (places != places[:, :1]).any(1).float().mean() > 0.8, "each has places of its own"


def test_a_text_without_a_deviation_is_refused():
    with pytest.raises(ValueError, match=r"^deviations must be at least 1, got 0$"):
        AggreVaTe(deviations=0)


def test_the_expected_gradient_is_that_of_the_expected_cost():
    """All words as the first token, each as often as it is the deviation; the expert knows 4.

    The student never writes padding nor start, however likely they seem to be.
    """
    expert = ScriptedExpert(
        lambda source, prefix, length: torch.tensor([4, 5, 7, 2])[length.clamp(max=3)], 9
    )
    student = Given(torch.randn(1, 1, 9, generator=torch.Generator().manual_seed(0)))
    probs = student.table[0, 0].index_fill(0, NEVER, float("-inf")).softmax(-1)
    first_choice = int(probs.argmax())
    drawn = probs.detach().index_fill(0, torch.tensor(first_choice), 0.0)
    drawn = drawn / drawn.sum()
    weighted, cost = 0.0, 0.0
    for word in range(2, 9):
        text = replace(record([word]), reference=torch.tensor([[4, 5, 6, 8, 2]]))
        batch = labelled(text, student.table[0].detach(), expert)
        weighted = weighted + drawn[word] * AggreVaTe().loss(batch, student, expert)
        ended = [word] if word == END else [word, 5, 7]
        cost = cost + probs[word] * (1 - bleu(ended, [4, 5, 6, 8]))
    (estimated,) = torch.autograd.grad(weighted, student.table)
    (exact,) = torch.autograd.grad(cost, student.table)
    assert student.table[0, 0, :2].softmax(-1).min() > 0.05
    assert exact.abs().max() > 0.005
    torch.testing.assert_close(estimated, exact)


def test_only_the_deviation_is_learned(lively_env, tiny_task, make_table_model):
    batch = collect_batch(AggreVaTe(), lively_env, make_table_model(tiny_task, 0))
    texts = batch.trajectories
    student = Given(torch.zeros(*texts.actions.shape, tiny_task.tokenizer.vocab_size))
    AggreVaTe().loss(batch, student, lively_env.expert).backward()
    learned = student.table.grad.any(-1)
    last = texts.mask.sum(1) - 1
    assert learned.any(1).sum() > 5
    assert torch.equal(learned.nonzero()[:, 1], last[learned.any(1)])


def test_what_the_expert_would_write_is_worth_what_it_makes_without_it(
    lively_env, tiny_task, make_table_model
):
    expert = lively_env.expert
    texts = collect(AggreVaTe(), lively_env, make_table_model(tiny_task, 0))
    last = texts.mask.sum(1, keepdim=True) - 1
    best = expert.best_actions(texts).gather(1, last)
    as_the_expert = replace(texts, actions=texts.actions.scatter(1, last, best))
    without = replace(texts, mask=texts.mask.scatter(1, last, False))
    assert torch.equal(worth(as_the_expert, expert), worth(without, expert))


def test_the_students_first_choice_has_no_advantage_and_is_no_deviation(
    lively_env, tiny_task, make_table_model
):
    student, expert = make_table_model(tiny_task, 0), lively_env.expert
    batch = collect_batch(AggreVaTe(), lively_env, student)
    texts = batch.trajectories
    last = texts.mask.sum(1, keepdim=True) - 1
    logits = student.sequence_logits(texts.source, texts.actions).detach()
    best = permitted(logits).argmax(-1).gather(1, last)
    assert (texts.actions.gather(1, last) != best).all()
    assert AggreVaTe().loss(batch, student, expert) != 0
    chosen = replace(texts, actions=texts.actions.scatter(1, last, best))
    at_last = logits[torch.arange(len(texts)), last.squeeze(1)]
    assert not labelled(chosen, at_last, expert).labels["advantage"].any()


def test_first_choice_share_and_baseline_are_those_of_the_student_that_drew(
    lively_env, tiny_task, make_table_model
):
    """A learner under dropout is another student: it changes the log-probability alone."""
    student = make_table_model(tiny_task, 0)
    batch = collect_batch(AggreVaTe(), lively_env, student)
    texts = batch.trajectories
    last = texts.mask.sum(1) - 1
    rows = torch.arange(len(texts))
    at_last = student.sequence_logits(texts.source, texts.actions).detach()[rows, last]
    best = permitted(at_last)
    most, choice = best.exp().max(1)
    instead = replace(texts, actions=texts.actions.index_put((rows, last), choice))
    expert = lively_env.expert
    weighted = (1 - most) * (worth(texts, expert) - worth(instead, expert))
    torch.testing.assert_close(batch.labels["advantage"][rows, last].double(), weighted)
    under_dropout = make_table_model(tiny_task, 5)
    other = permitted(under_dropout.sequence_logits(texts.source, texts.actions))[rows, last]
    assert (other.argmax(1) != choice).any()
    log_prob = other[rows, texts.actions[rows, last]]
    expected = -(weighted * log_prob).sum() / texts.mask.sum()
    found = AggreVaTe().loss(batch, under_dropout, expert)
    torch.testing.assert_close(found.detach().double(), expected, rtol=1e-4, atol=1e-6)


def test_the_deviation_is_a_fresh_draw_wherever_it_is(tiny_task, make_env, make_table_model):
    """Given the place, each token but the first choice comes as often as the student says.

    Of texts cut off after their first token the short ones would else be too many.
    """
    student = make_table_model(tiny_task, 10)
    examples = Examples(torch.tensor([[5, END]]), torch.tensor([[4, END]]))
    env = make_env(tiny_task, 6000, NeuralExpert(student), examples)
    rows, generator = torch.zeros(6000, dtype=torch.int64), torch.Generator().manual_seed(0)
    context = Context(rows, env, student, generator=generator)
    texts = AggreVaTe(deviations=1).collect(context).trajectories
    first = texts.actions[texts.mask.sum(1) == 1, 0]
    probs = permitted(student.sequence_logits(examples.source, examples.reference))[0, 0].exp()
    probs[probs.argmax()] = 0.0
    probs = probs / probs.sum()
    shares = first.bincount(minlength=len(probs)) / len(first)
    assert len(first) > 1000
    assert 0.05 < probs[END] < 0.95
    assert (shares - probs).abs().max() < 0.04


def test_each_place_of_a_text_is_as_likely(tiny_task, make_env, make_table_model):
    student = never_ending(make_table_model(tiny_task, 0))
    examples = Examples(torch.tensor([[5, END]]), torch.tensor([[4, END]]))
    env = make_env(tiny_task, 6000, NeuralExpert(student), examples)
    rows, generator = torch.zeros(6000, dtype=torch.int64), torch.Generator().manual_seed(0)
    context = Context(rows, env, student, generator=generator)
    texts = AggreVaTe(deviations=1).collect(context).trajectories
    counts = Counter(texts.mask.sum(1).tolist())
    assert set(counts) == set(range(1, env.max_steps + 1))
    assert all(abs(count * env.max_steps / 6000 - 1) < 0.1 for count in counts.values())
    assert texts.writer[texts.mask].eq(Writer.STUDENT).all()


def test_the_expert_is_asked_when_the_batch_is_collected(lively_env, tiny_task, make_table_model):
    student, expert = make_table_model(tiny_task, 0), lively_env.expert
    batch = collect_batch(AggreVaTe(), lively_env, student)
    asked = expert.queries.tokens
    assert asked >= 2 * int(batch.trajectories.mask.sum())
    AggreVaTe().loss(batch, student, batch.expert(expert))
    assert expert.queries.tokens == asked
