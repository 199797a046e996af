"""Comparisons of student and teacher, against sums computed state by state."""

import math
from functools import partial

import pytest
import torch

from tests.support.toy import SPECIAL, Given, record
from textgen_agents.evaluation.exposure_bias import (
    TeacherComparison,
    compare_with_teacher,
    complete_with_teacher,
    coverage_risk,
    excess_accumulated_error,
    length_ratio,
    likelihood_risk,
    repetition_rate,
    shared_best,
    trajectories_of,
    written_by,
)
from textgen_env.experts.expert import NeuralExpert
from textgen_env.generation.decoding import decode_all, sample
from textgen_env.generation.sampling import Sampling
from textgen_env.tasks.task import encode
from textgen_env.types import Examples, Trajectories, Writer


@pytest.fixture
def reference_states(tiny_task):
    return Trajectories.from_examples(
        encode(tiny_task.train, tiny_task), tiny_task.tokenizer.special
    )


def overlap_of(p, q):
    """Return overlap of the 10 best, their mass, and entropy gap, token by token."""
    best, others = (
        sorted(range(len(each)), key=lambda token: -each[token])[:10] for each in (q, p)
    )
    shared = [token for token in best if token in others]
    mass = sum(float(p[token].exp() + q[token].exp()) / 2 for token in shared)
    entropies = [-sum(math.exp(x) * x for x in each.tolist()) for each in (p, q)]
    return len(shared) / 10, mass, abs(entropies[0] - entropies[1])


def test_figures_are_means_over_the_states_of_each_position(
    reference_states, tiny_student, tiny_teacher
):
    found = compare_with_teacher(reference_states, tiny_student, NeuralExpert(tiny_teacher))
    with torch.no_grad():
        student, teacher = (
            model.sequence_logits(reference_states.source, reference_states.actions)
            .double()
            .log_softmax(-1)
            for model in (tiny_student, tiny_teacher)
        )
    by_position = [[] for _ in range(reference_states.actions.shape[1])]
    for row, column in reference_states.mask.nonzero().tolist():
        p, q = teacher[row, column], student[row, column]
        same = float(p[2:].argmax() == q[2:].argmax())  # padding and start are never written
        by_position[column].append((same, float((p.exp() * (p - q)).sum()), *overlap_of(p, q)))
    for column, figures in enumerate(by_position):
        assert found.count[column] == len(figures)
        agreement, divergence, *others = torch.tensor(figures or [[0.0] * 5]).mean(0).tolist()
        named = (found.top_k_overlap, found.shared_mass, found.entropy_gap)
        assert [each[column].item() for each in named] == pytest.approx(others, rel=1e-4)
        assert found.agreement[column].item() == pytest.approx(agreement)
        assert found.divergence[column].item() == pytest.approx(divergence, rel=1e-4)
    every = [figure for figures in by_position for figure in figures]
    assert found.mean_agreement == pytest.approx(sum(same for same, *_ in every) / len(every))
    assert found.mean(found.divergence) == pytest.approx(
        sum(kl for _, kl, *_ in every) / len(every), rel=1e-4
    )


def test_a_model_agrees_with_itself(reference_states, tiny_teacher):
    found = compare_with_teacher(reference_states, tiny_teacher, NeuralExpert(tiny_teacher))
    assert found.mean_agreement == 1
    assert found.mean(found.divergence) == pytest.approx(0, abs=1e-6)
    assert found.mean(found.top_k_overlap) == 1
    assert found.mean(found.entropy_gap) == 0


@pytest.mark.parametrize(
    ("k", "overlap", "mass"),
    [(1, 0.0, 0.0), (2, 0.5, 0.35), (3, 2 / 3, 0.575), (4, 1.0, 1.0), (9, 1.0, 1.0)],
)
def test_what_student_and_teacher_share_by_hand(k, overlap, mass):
    """The student's order is 0, 1, 2, 3, the teacher's 1, 2, 3, 0; of two, token 1 is shared."""
    student = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    teacher = torch.tensor([[0.05, 0.4, 0.3, 0.25]]).log()
    found = shared_best(student, teacher, k)
    assert [each.item() for each in found] == pytest.approx([overlap, mass])


def test_the_batch_size_does_not_matter(reference_states, tiny_student, tiny_teacher):
    expert = NeuralExpert(tiny_teacher)
    one, many = (
        compare_with_teacher(reference_states, tiny_student, expert, batch_size=size)
        for size in (1, 64)
    )
    assert torch.equal(one.count, many.count)
    assert torch.equal(one.agreement, many.agreement)
    torch.testing.assert_close(one.divergence, many.divergence, rtol=1e-5, atol=1e-7)


def test_prefixes_of_a_model_are_its_greedy_texts(tiny_task, tiny_student):
    examples = encode(tiny_task.train, tiny_task)
    written = written_by(tiny_student, examples, 5, writer=Writer.STUDENT)
    assert torch.equal(written.actions, decode_all(tiny_student, examples.source, 5))
    assert written.writer[written.mask].eq(Writer.STUDENT).all()
    assert written.mask.any(1).all()


def comparison(divergence, count=None):
    divergence = torch.tensor(divergence, dtype=torch.float64)
    count = torch.ones_like(divergence) if count is None else divergence.new_tensor(count)
    nothing = torch.zeros_like(divergence)
    return TeacherComparison(count, nothing, divergence, *[nothing] * 5)


def test_errors_that_accumulate_on_the_students_prefixes_by_hand():
    on_student, on_teacher = comparison([1.0, 3.0, 5.0]), comparison([1.0, 1.0, 1.0])
    error = excess_accumulated_error(on_student, on_teacher)
    assert error.tolist() == [0, 100, 200]  # 1/1, 4/2 and 9/3
    assert excess_accumulated_error(on_teacher, on_teacher).eq(0).all()


def test_a_text_that_has_ended_accumulates_no_more():
    """Of two texts each, one of the teacher's ends after the first token: 1, 1 1/2 and 2."""
    on_student = comparison([1.0, 1.0, 1.0], [2, 2, 2])
    on_teacher = comparison([1.0, 1.0, 1.0], [2, 1, 1])
    error = excess_accumulated_error(on_student, on_teacher)
    assert error.tolist() == pytest.approx([0, 100 / 3, 50])


def test_texts_of_the_student_that_are_too_long_are_seen():
    """The divergence of each token is the same; the student writes twice as many."""
    on_student, on_teacher = comparison([1.0] * 4), comparison([1.0, 1.0, 0.0, 0.0], [1, 1, 0, 0])
    assert excess_accumulated_error(on_student, on_teacher).tolist() == [0, 0, 50, 100]
    narrow = comparison([1.0, 1.0])
    assert excess_accumulated_error(on_student, narrow).tolist() == [0, 0, 50, 100]
    assert excess_accumulated_error(narrow, on_student)[-1] == -50


def test_a_student_that_is_its_teacher_has_no_error_to_compare_with():
    same = comparison([0.0, 0.0])
    assert excess_accumulated_error(same, same).isnan().all()


def test_risks_by_hand():
    """Tokens of probability 1/2, 1/4 and 1/8 cost 1, 2 and 3 times ln 2: 2 ln 2 in the mean."""
    probs = torch.tensor([[[0.5, 0.25, 0.25], [0.5, 0.25, 0.25]], [[0.5, 0.375, 0.125]] * 2])
    texts = record([0, 1], [2])
    texts.mask[:] = torch.tensor([[True, True], [True, False]])
    expected = 2 * torch.tensor(2.0).log().item()
    probs = probs.flip(0)  # a batch has the shorter text first
    given, unsure = Given(probs.log()), Given(torch.zeros_like(probs))
    assert likelihood_risk(compare_with_teacher(texts, unsure, given)) == pytest.approx(expected)
    assert coverage_risk(compare_with_teacher(texts, given, unsure)) == pytest.approx(expected)


def test_risks_are_sums_made_token_by_token(tiny_task, tiny_student, tiny_teacher):
    """Each model's negative log-likelihood of the student's draws, in float64."""
    examples = encode(tiny_task.train, tiny_task)
    drawing = partial(sample, sampling=Sampling(), generator=torch.Generator().manual_seed(0))
    drawn = written_by(tiny_student, examples, 6, writer=Writer.STUDENT, decoder=drawing)
    compared = compare_with_teacher(drawn, tiny_student, NeuralExpert(tiny_teacher))
    for found, model in (
        (likelihood_risk(compared), tiny_teacher),
        (coverage_risk(compared), tiny_student),
    ):
        with torch.no_grad():
            log_probs = model.sequence_logits(drawn.source, drawn.actions).double().log_softmax(-1)
        costs = [
            -float(log_probs[row, column, drawn.actions[row, column]])
            for row, column in drawn.mask.nonzero().tolist()
        ]
        assert found == pytest.approx(sum(costs) / len(costs), rel=1e-5)


class CountingExpert(NeuralExpert):
    """Expert that writes the successor of the last word, and ends after word 9."""

    def __init__(self):
        self.special = SPECIAL

    def start(self, source, max_steps):
        return None

    def step(self, state, previous, cache):
        wanted = torch.where(previous == 9, SPECIAL.end, previous + 1)
        return torch.nn.functional.one_hot(wanted, 10).float(), cache


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (0.0, [[2, 0, 0, 0, 0], [2, 0, 0, 0, 0]]),  # after the start token, 1, comes 2, the end
        (0.25, [[7, 8, 9, 2, 0], [2, 0, 0, 0, 0]]),
        (0.5, [[7, 7, 8, 9, 2], [5, 6, 7, 8, 9]]),
        (0.75, [[7, 7, 7, 7, 8], [5, 2, 0, 0, 0]]),
        (1.0, [[7, 7, 7, 7, 2], [5, 2, 0, 0, 0]]),
    ],
)
def test_the_teacher_continues_where_the_students_share_ends(share, expected):
    """Shares of 1.25, 2.5 and 3.75 tokens round to 1, 2 and 4, shares of 0.5 and 1.5 to 0 and 2."""
    student_texts = record([7, 7, 7, 7, 2], [5, 2])
    finished = complete_with_teacher(student_texts, CountingExpert(), share, batch_size=1)
    assert finished.tolist() == expected


def test_shares_0_and_1_give_the_texts_of_the_teacher_and_of_the_student(
    tiny_task, tiny_student, tiny_teacher
):
    examples = encode(tiny_task.train, tiny_task)
    student_texts = written_by(tiny_student, examples, 7, writer=Writer.STUDENT)
    expert = NeuralExpert(tiny_teacher)
    assert torch.equal(
        complete_with_teacher(student_texts, expert, 1.0, batch_size=10), student_texts.actions
    )
    teachers = decode_all(tiny_teacher, examples.source, 7)
    assert torch.equal(complete_with_teacher(student_texts, expert, 0.0, batch_size=10), teachers)


def test_lengths_are_compared_in_tokens():
    texts = record([3, 4, 5, 2], [3, 2])
    assert length_ratio(texts, SPECIAL) == 1
    shorter = trajectories_of(
        texts_of(texts), torch.tensor([[3, 2, 0, 0], [2, 0, 0, 0]]), Writer.STUDENT, SPECIAL
    )
    assert length_ratio(shorter, SPECIAL) == 3 / 6


def texts_of(texts):
    return Examples(texts.source, texts.reference)


def test_repetition_by_hand():
    """Among 5 bigrams 3 are distinct, among 1 there is 1, and a text of one token has none."""
    texts = record([3, 4, 3, 4, 3, 2], [5, 2], [2])
    assert repetition_rate(texts, order=2) == pytest.approx((2 / 5 + 0 + 0) / 3)
    assert repetition_rate(record([7] * 8), order=4) == pytest.approx(4 / 5)
    assert repetition_rate(record([3, 4, 5, 6, 2])) == 0
