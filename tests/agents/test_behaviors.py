import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agents.behaviors import ExpertMixture, PerExampleMixture, StepView, toss
from textgen_env.decoding import Sampling
from textgen_env.types import SpecialTokens, Writer

SPECIAL = SpecialTokens(pad=0, start=1, end=2)
LOGITS = torch.tensor([[0.0, 0, 0, 3, 1], [9, 0, 5, 0, 1], [0, 9, 1, 0, 2]])  # best: 3, 2, 4
DATA = torch.tensor([3, 3, 0])


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def student_alone(count, sampling, seed=0):
    return PerExampleMixture(torch.ones(count, dtype=torch.bool), SPECIAL, sampling, seeded(seed))


def view_of(logits, data):
    return StepView(torch.arange(len(data)), torch.zeros_like(data), logits, data)


def test_each_row_is_written_by_the_one_whose_row_it_is():
    by_student = torch.tensor([True, False, True])
    behavior = PerExampleMixture(by_student, SPECIAL, None, seeded())
    action, writer = behavior(view_of(LOGITS, DATA))
    assert action.tolist() == [3, 3, 4]
    assert writer.tolist() == [Writer.STUDENT, Writer.DATA, Writer.STUDENT]


def test_rows_that_are_left_keep_their_writers():
    behavior = PerExampleMixture(torch.tensor([True, False, True]), SPECIAL, None, seeded())
    action, writer = behavior(
        StepView(torch.tensor([1, 2]), torch.zeros_like(DATA[1:]), LOGITS[1:], DATA[1:])
    )
    assert action.tolist() == [3, 4]
    assert writer.tolist() == [Writer.DATA, Writer.STUDENT]


def test_the_student_writes_neither_padding_nor_start():
    view = view_of(LOGITS, DATA)
    for sampling in (None, Sampling(), Sampling(temperature=9.0)):
        action, _ = student_alone(3, sampling)(view)
        assert action.min() >= SPECIAL.end


def test_sampling_from_the_best_one_is_greedy():
    action, _ = student_alone(3, Sampling(top_k=1))(view_of(LOGITS, DATA))
    assert action.tolist() == [3, 2, 4]


def test_samples_depend_on_the_generator_alone():
    def draw(seed):
        view = view_of(torch.zeros(200, 9), torch.zeros(200, dtype=torch.int64))
        return student_alone(200, Sampling(), seed)(view)[0]

    before = torch.get_rng_state()
    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))
    assert torch.equal(before, torch.get_rng_state())


def test_samples_have_the_students_probabilities():
    probabilities = torch.tensor([0.0, 0.0, 0.6, 0.3, 0.1])
    count = 20000
    data = torch.zeros(count, dtype=torch.int64)
    view = view_of(probabilities.log().expand(count, 5), data)
    action, _ = student_alone(count, Sampling())(view)
    shares = torch.bincount(action, minlength=5) / count
    torch.testing.assert_close(shares, probabilities, rtol=0, atol=0.02)  # 6 standard deviations


@given(seed=st.integers(0, 2**32 - 1))
def test_at_the_ends_the_coin_is_certain(seed):
    assert not toss(1.0, 1000, seeded(seed)).any()
    assert toss(0.0, 1000, seeded(seed)).all()


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
def test_the_student_writes_a_share_of_one_minus_beta(beta):
    share = toss(beta, 20000, seeded()).float().mean().item()
    assert share == pytest.approx(1 - beta, abs=0.02)


def test_each_token_is_written_by_the_one_whose_token_it_is():
    by_student = torch.tensor([[True, False], [False, True], [False, False]])
    behavior = ExpertMixture(by_student, SPECIAL, None, seeded())
    rows, expert_logits = torch.tensor([0, 2]), torch.tensor([[9.0, 0, 1, 0, 0], [0, 0, 0, 1, 0]])
    actions = []
    for step in range(2):
        position = torch.full_like(rows, step)
        view = StepView(rows, position, LOGITS[rows], DATA[rows], expert_logits)
        action, writer = behavior(view)
        actions.append((action.tolist(), writer.tolist()))
    assert actions == [
        ([3, 3], [Writer.STUDENT, Writer.EXPERT]),
        ([2, 3], [Writer.EXPERT, Writer.EXPERT]),
    ]
