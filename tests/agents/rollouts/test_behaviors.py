import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from textgen_agents.rollouts.behaviors import (
    BelowThreshold,
    Gated,
    InTopK,
    OneWaySwitch,
    StepView,
    TokenMask,
    bernoulli_mask,
    by_example,
    token_mask,
    token_sampler,
)
from textgen_agents.rollouts.context import Context
from textgen_env.generation.decoding import choose_action
from textgen_env.generation.sampling import Sampling
from textgen_env.types import SpecialTokens, Writer

SPECIAL = SpecialTokens(pad=0, start=1, end=2)
LOGITS = torch.tensor([[0.0, 0, 0, 3, 1], [9, 0, 5, 0, 1], [0, 9, 1, 0, 2]])  # best: 3, 2, 4
DATA = torch.tensor([3, 3, 0])
STEPS = 3


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def chooses(sampling=None, seed=0):
    return partial(choose_action, sampling=sampling, generator=seeded(seed), special=SPECIAL)


def student_alone(count, sampling, seed=0):
    return by_example(torch.ones(count, dtype=torch.bool), chooses(sampling, seed), STEPS)


def view_of(logits, data, expert_logits=None, position=0):
    rows = torch.arange(len(data))
    return StepView(rows, torch.full_like(data, position), logits, data, expert_logits)


def test_each_row_is_written_by_the_one_whose_row_it_is():
    by_student = torch.tensor([True, False, True])
    behavior = by_example(by_student, chooses(), STEPS)
    action, writer, _ = behavior(view_of(LOGITS, DATA))
    assert action.tolist() == [3, 3, 4]
    assert writer.tolist() == [Writer.STUDENT, Writer.DATA, Writer.STUDENT]


def test_rows_that_are_left_keep_their_writers():
    behavior = by_example(torch.tensor([True, False, True]), chooses(), STEPS)
    action, writer, _ = behavior(
        StepView(torch.tensor([1, 2]), torch.zeros_like(DATA[1:]), LOGITS[1:], DATA[1:])
    )
    assert action.tolist() == [3, 4]
    assert writer.tolist() == [Writer.DATA, Writer.STUDENT]


def test_the_student_writes_neither_padding_nor_start():
    view = view_of(LOGITS, DATA)
    for sampling in (None, Sampling(), Sampling(temperature=9.0)):
        action, *_ = student_alone(3, sampling)(view)
        assert action.min() >= SPECIAL.end


def test_sampling_from_the_best_one_is_greedy():
    action, *_ = student_alone(3, Sampling(top_k=1))(view_of(LOGITS, DATA))
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
    action, *_ = student_alone(count, Sampling())(view)
    shares = torch.bincount(action, minlength=5) / count
    torch.testing.assert_close(shares, probabilities, rtol=0, atol=0.02)  # 6 standard deviations


@given(seed=st.integers(0, 2**32 - 1))
def test_at_the_ends_the_coin_is_certain(seed):
    assert bernoulli_mask(1.0, 1000, seeded(seed)).all()
    assert not bernoulli_mask(0.0, 1000, seeded(seed)).any()


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
def test_the_mask_is_true_with_its_probability(beta):
    share = bernoulli_mask(beta, 20000, seeded()).float().mean().item()
    assert share == pytest.approx(beta, abs=0.02)


EXPERT = torch.tensor([[0.0, 0, 5, 4, 3], [0, 0, 3, 5, 4], [0, 0, 3, 4, 5]])  # best: 2, 3, 4


def keep(*rows):
    """Return a gate that lets the proposals of these rows stay."""

    def gate(view, proposal):
        del proposal
        return torch.isin(view.rows, torch.tensor(rows))

    return gate


def test_what_a_gate_refuses_the_data_writes():
    action, writer, _ = Gated(keep(1), choose_action)(view_of(LOGITS, DATA))
    assert action.tolist() == [3, 2, 0]
    assert writer.tolist() == [Writer.DATA, Writer.STUDENT, Writer.DATA]


def test_or_the_expert_if_it_goes_along():
    behavior = Gated(keep(1), choose_action, expert=choose_action)
    action, writer, _ = behavior(view_of(LOGITS, DATA, EXPERT))
    assert action.tolist() == [2, 2, 4]
    assert writer.tolist() == [Writer.EXPERT, Writer.STUDENT, Writer.EXPERT]


def test_a_gate_is_shown_what_the_student_would_write():
    seen = []

    def gate(view, proposal):
        seen.append(proposal.tolist())
        return torch.ones_like(view.rows, dtype=torch.bool)

    Gated(gate, choose_action)(view_of(LOGITS, DATA))
    assert seen == [[3, 2, 4]]


@pytest.mark.parametrize(
    "behavior",
    [
        Gated(keep(0), choose_action, expert=choose_action),
        Gated(InTopK(1), choose_action),
        Gated(BelowThreshold(torch.ones(1)), choose_action),
        Gated(OneWaySwitch((3, 1), 2.0, torch.device("cpu")), choose_action),
    ],
)
def test_a_gate_without_the_experts_logits_says_what_to_do(behavior):
    with pytest.raises(
        ValueError,
        match=r"^the expert must be queried .*None: call rollout",
    ):
        behavior(view_of(LOGITS, DATA))


def test_a_coin_is_of_a_row_and_a_position():
    coins = TokenMask(torch.tensor([[True, False], [False, True], [True, True]]))
    view = StepView(torch.tensor([1, 2, 0]), torch.tensor([1, 0, 1]), LOGITS, DATA)
    assert coins(view, DATA).tolist() == [True, True, False]


def test_a_proposal_stays_if_it_is_among_the_experts_k_best():
    proposals = torch.tensor([2, 2, 2])  # first, third and third of the expert's
    view = view_of(LOGITS, DATA, EXPERT)
    assert InTopK(1)(view, proposals).tolist() == [True, False, False]
    assert InTopK(2)(view, proposals).tolist() == [True, False, False]
    assert InTopK(3)(view, proposals).tolist() == [True, True, True]


@given(seed=st.integers(0, 2**32 - 1), k=st.integers(1, 8))
def test_k_tokens_are_among_the_k_best(seed, k):
    logits = torch.randn(1, 8, generator=seeded(seed)).expand(8, 8)
    every = torch.arange(8)
    stays = InTopK(k)(view_of(logits, every, logits), every)
    assert set(every[stays].tolist()) == set(logits[0].topk(k).indices.tolist())


def test_with_k_the_vocabulary_all_proposals_stay_even_impossible_ones():
    logits = torch.full((4, 4), float("-inf"))
    logits[:, 0] = 0.0
    every = torch.arange(4)
    assert InTopK(4)(view_of(logits, every, logits), every).all()


def jensen_shannon(p, q):
    """In double precision, nats."""
    middle = [(a + b) / 2 for a, b in zip(p, q, strict=True)]

    def kl(one):
        return sum(a * math.log(a / m) for a, m in zip(one, middle, strict=True))

    return (kl(p) + kl(q)) / 2


@pytest.mark.parametrize("position", [0, 1])
def test_a_proposal_stays_up_to_the_threshold_of_its_position(position):
    student, teacher = [0.7, 0.2, 0.1], [0.2, 0.5, 0.3]
    divergence = jensen_shannon(student, teacher)
    logits = [torch.tensor([probs]).log() + shift for probs, shift in ((student, 3), (teacher, -5))]
    view = view_of(logits[0], torch.tensor([0]), logits[1], position)
    for threshold, stays in ((divergence * 1.001, True), (divergence * 0.999, False)):
        thresholds = torch.full((2,), math.inf if not stays else -1.0)
        thresholds[position] = threshold
        assert BelowThreshold(thresholds)(view, DATA[:1]).item() is stays


def surprising(*surprises):
    """Student's and expert's logits with KL(expert || student) of so many nats in each row."""
    # An expert that is sure of the first token, of which the student has probability e^-nats.
    student = torch.tensor([[-nats, math.log(-math.expm1(-nats))] for nats in surprises])
    return student, torch.tensor([[0.0, -math.inf]]).expand_as(student)


def written_under(gate, *steps):
    """Return what stays, by step and row, where the divergences are these."""
    stays = []
    for position, surprises in enumerate(steps):
        student, expert = surprising(*surprises)
        none = torch.zeros(len(surprises), dtype=torch.int64)
        stays.append(gate(view_of(student, none, expert, position), none).tolist())
    return stays


def one_way(rows=2, window=2, factor=2.0):
    return OneWaySwitch((rows, window), factor, torch.device("cpu"))


def test_after_one_leap_nothing_stays():
    steps = [(0.1, 0.1), (0.3, 0.1), (0.39, 0.21), (0.7, 0.1), (0.1, 0.1)]
    # Means of the last two before each step: 0.2 and 0.1, 0.345 and 0.155, ...
    assert written_under(one_way(), *steps) == [
        [True, True],
        [True, True],
        [True, False],
        [False, False],
        [False, False],
    ]


def test_the_first_tokens_stay_whatever_the_divergence():
    steps = [(0.1,), (9.0,), (99.0,)]
    assert written_under(one_way(1, window=3), *steps) == [[True], [True], [True]]
    assert written_under(one_way(1, window=1), *steps) == [[True], [False], [False]]


def test_the_mean_is_of_the_last_divergences_alone():
    steps = [(9.0,), (0.1,), (0.1,), (0.1,), (0.3,)]
    assert written_under(one_way(1, window=2), *steps)[-1] == [False]
    assert written_under(one_way(1, window=4), *steps)[-1] == [True]


def test_a_switch_begins_anew_with_each_text():
    gate, steps = one_way(), [(0.1, 0.1), (0.1, 0.1), (0.1, 0.9)]
    assert written_under(gate, *steps) == written_under(gate, *steps)
    assert written_under(gate, (0.1, 0.9)) == [[True, True]]


def test_rows_that_are_left_keep_their_switch():
    gate = one_way()
    written_under(gate, (0.1, 0.1), (0.1, 0.1), (0.1, 0.9))
    student, expert = surprising(0.1)
    none = torch.zeros(1, dtype=torch.int64)
    for row, stays in ((0, True), (1, False)):
        view = StepView(torch.tensor([row]), torch.tensor([3]), student, none, expert)
        assert gate(view, none).tolist() == [stays]


def context(rows, steps, seed=0):
    """Return a context of an environment of `rows` slots and `steps` steps."""
    env = SimpleNamespace(num_envs=rows, max_steps=steps, device=torch.device("cpu"))
    return Context(torch.arange(rows), env, None, generator=seeded(seed))


@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 4),
    steps=st.integers(1, 9),
    block=st.integers(1, 12),
)
def test_neighbors_share_a_draw_and_each_block_has_its_own(seed, rows, steps, block):
    by_student = token_mask(context(rows, steps, seed), 0.5, block).by_student
    assert by_student.shape == (rows, steps)
    firsts = by_student[:, ::block]
    assert torch.equal(by_student, firsts.repeat_interleave(block, 1)[:, :steps])
    drawn = bernoulli_mask(0.5, firsts.numel(), seeded(seed)).view(rows, -1)
    assert torch.equal(firsts, ~drawn)


@pytest.mark.parametrize("beta", [0.0, 0.2, 0.9, 1.0])
@pytest.mark.parametrize("block", [1, 3])
def test_the_student_writes_a_share_of_one_minus_beta_of_the_blocks(beta, block):
    share = token_mask(context(100, 600), beta, block).by_student.float().mean().item()
    assert share == pytest.approx(1 - beta, abs=0.02)  # 5 standard deviations


@pytest.fixture
def of_two(tiny_task, make_env):
    """Return a function: generator -> a context of two slots."""
    env = make_env(tiny_task, 2)
    return lambda generator: Context(torch.arange(2), env, None, generator=generator)


def test_each_chooser_has_draws_of_its_own(of_two):
    generator, even = seeded(), torch.zeros(200, 9)
    one, other = (token_sampler(Sampling(), of_two(generator)) for _ in range(2))
    first, _ = one(even)
    assert not torch.equal(first, other(even)[0])
    assert torch.equal(first, token_sampler(Sampling(), of_two(seeded()))(even)[0])
    assert first.min() >= SPECIAL.end


def test_without_sampling_the_most_probable_token_is_chosen(of_two):
    assert token_sampler(None, of_two(seeded()))(LOGITS)[0].tolist() == [3, 2, 4]


def test_a_draw_comes_with_the_log_probability_that_its_writer_gave_it():
    behavior = Gated(keep(1), chooses(Sampling()), expert=chooses(Sampling(top_k=2)))
    action, _, log_prob = behavior(view_of(LOGITS, DATA, EXPERT))
    for row, (logits, sampling) in enumerate(
        [(EXPERT, Sampling(top_k=2)), (LOGITS, Sampling()), (EXPERT, Sampling(top_k=2))]
    ):
        allowed = logits[row].double().index_fill(0, torch.tensor([0, 1]), -math.inf)
        if sampling.top_k:
            allowed = allowed.where(allowed >= allowed.topk(2).values[-1], -math.inf)
        expected = allowed.log_softmax(0)[action[row]].item()
        assert log_prob[row].item() == pytest.approx(expected, abs=1e-5)


def test_what_is_not_drawn_is_certain_beside_what_is():
    by_student = torch.tensor([True, False, True])
    drawn = by_example(by_student, chooses(Sampling()), STEPS)(view_of(LOGITS, DATA))
    assert drawn.log_prob[1] == 0
    assert drawn.log_prob[[0, 2]].lt(0).all()
    greedy = by_example(by_student, chooses(), STEPS)(view_of(LOGITS, DATA))
    assert greedy.log_prob is None
