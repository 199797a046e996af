"""A proxy's distributions, corrected by texts of a black box."""

from dataclasses import replace

import pytest
import torch

from textgen_env import dynamics
from textgen_env.experts.expert import ExpertError, NeuralExpert, NoExpert
from textgen_env.experts.proxy import ProxyExpert, drawn_texts
from textgen_env.experts.queries import Queries
from textgen_env.experts.session import ExpertSession
from textgen_env.generation.sampling import Sampling
from textgen_env.tasks.task import encode
from textgen_env.types import Examples, SpecialTokens, Trajectories

SPECIAL = SpecialTokens()


@pytest.fixture
def examples(tiny_task):
    return encode(tiny_task.train, tiny_task).select(torch.arange(12))


@pytest.fixture
def black_box(tiny_task, make_table_model):
    return NeuralExpert(make_table_model(tiny_task, 4))


@pytest.fixture
def proxy(tiny_task, make_table_model):
    return NeuralExpert(make_table_model(tiny_task, 3))


def draws(black_box, examples, count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return drawn_texts(
        black_box,
        examples,
        count=count,
        max_steps=6,
        sampling=Sampling(),
        generator=generator,
    )


def test_without_texts_it_is_the_proxy(examples, black_box, proxy):
    none = draws(black_box, examples, 0)
    assert len(none) == 0
    states = Trajectories.from_examples(examples, SPECIAL)
    found = ProxyExpert(proxy, none).logits(states)
    torch.testing.assert_close(found.exp(), proxy.logits(states).softmax(-1))


def test_by_hand(proxy):
    texts = [[3, 4, 2], [3, 5, 2], [3, 4, 4], [6, 2, 0]]
    source = torch.tensor([[7, 2]])
    known = Examples(source.expand(4, 2), torch.tensor(texts))
    expert = ProxyExpert(proxy, known, prior_weight=2.0)
    states = Trajectories.from_examples(Examples(source, torch.tensor([[3, 4, 2]])), SPECIAL)
    found = expert.logits(states).double().exp()[0]
    p = proxy.logits(states).double().softmax(-1)[0]
    for step, counts in enumerate(({3: 3, 6: 1}, {4: 2, 5: 1}, {2: 1, 4: 1})):
        seen = sum(counts.values())
        for token in range(p.shape[-1]):
            expected = (2 * float(p[step, token]) + counts.get(token, 0)) / (2 + seen)
            assert float(found[step, token]) == pytest.approx(expected, rel=1e-5)
    other = replace(states, source=torch.tensor([[8, 2]]))
    torch.testing.assert_close(expert.logits(other).exp(), proxy.logits(other).softmax(-1))


def test_the_kl_from_the_truth_falls_like_1_over_n(examples, black_box, proxy):
    """The experiment with a known answer, at the first state of a source.

    Of n draws from a law over k tokens the most likely law has an expected divergence of about
    (k - 1) / 2n; the proxy's weight is nothing beside so many.
    """
    one = examples.select(torch.zeros(1, dtype=torch.int64))
    states = Trajectories.from_examples(one, SPECIAL)
    truth = (0.3 * black_box.logits(states)[0, 0, 1:]).double().softmax(-1)  # without padding
    generator = torch.Generator().manual_seed(0)
    for count in (2000, 32000):
        gaps = []
        for _ in range(40):
            tokens = truth.multinomial(count, replacement=True, generator=generator) + 1
            known = Examples(one.source.expand(count, -1), tokens[:, None])
            q = ProxyExpert(proxy, known).logits(states)[0, 0, 1:].double().softmax(-1)
            gaps.append(float((truth * (truth / q).log()).sum()))
        expected = (len(truth) - 1) / (2 * count)
        assert sum(gaps) / len(gaps) == pytest.approx(expected, rel=0.25)


def test_stepped_it_says_what_it_says_of_whole_texts(examples, black_box, proxy):
    expert = ProxyExpert(proxy, draws(black_box, examples, 8))
    texts = draws(black_box, examples, 1, seed=5)  # of which some prefixes are known
    states = Trajectories.from_examples(texts, SPECIAL)
    whole = expert.logits(states)
    assert not torch.allclose(whole, proxy.logits(states).log_softmax(-1))
    session = ExpertSession(expert, texts.expert_view, 6)
    state = dynamics.initial(texts.source, 6, SPECIAL)
    previous = torch.full_like(state.length, SPECIAL.start)
    for step in range(6):
        logits = session.step(state, previous)
        counted = states.mask[:, step]
        torch.testing.assert_close(logits[counted], whole[counted, step])
        previous = states.actions[:, step]
        state = dynamics.transition(state, previous, SPECIAL)


def test_rows_begin_anew_and_are_left_out(examples, black_box, proxy):
    few, many = draws(black_box, examples, 2), draws(black_box, examples, 5, seed=3)
    texts = Examples(
        torch.cat([few.source, many.source.roll(1, 0)]),
        torch.cat([few.reference, many.reference]),
    )
    expert = ProxyExpert(proxy, texts)
    cache = expert.start(examples.source[:4], 6)
    state = dynamics.initial(examples.source[:4], 6, SPECIAL)
    first, cache = expert.step(state, torch.ones(4, dtype=torch.int64), cache)
    fresh = expert.start(examples.source[4:8], 6)
    mask = torch.tensor([True, False, True, False])
    index = torch.tensor([2, 0, 1, 0])
    mixed = cache.reset_rows(mask, fresh, index)
    source = torch.stack([examples.source[row] for row in (6, 1, 5, 3)])
    again, _ = expert.step(
        dynamics.initial(source, 6, SPECIAL), torch.ones(4, dtype=torch.int64), mixed
    )
    plain = expert.start(source, 6)
    expected, _ = expert.step(
        dynamics.initial(source, 6, SPECIAL), torch.ones(4, dtype=torch.int64), plain
    )
    torch.testing.assert_close(again[mask], expected[mask])
    chosen = expert.start(examples.source[:4], 6).select_rows(torch.tensor([3, 1]))
    alone, _ = expert.step(
        dynamics.select_rows(state, torch.tensor([3, 1])), torch.ones(2, dtype=torch.int64), chosen
    )
    torch.testing.assert_close(alone, first[torch.tensor([3, 1])])


def test_it_writes_the_most_probable_tokens_of_what_it_knows(examples, black_box, proxy):
    one = examples.select(torch.arange(3))
    text = torch.tensor([[3, 4, 5, 2, 0, 0]]).repeat(300, 1)
    known = Examples(one.source.repeat(100, 1), text)
    written = ProxyExpert(proxy, known).write(one, max_steps=6, beam_size=5)
    assert written.reference.tolist() == [[3, 4, 5, 2, 0, 0]] * 3
    assert torch.equal(written.source, one.source)


def test_it_counts_the_states_that_it_answers(examples, black_box, proxy):
    expert = ProxyExpert(proxy, draws(black_box, examples, 2))
    assert expert.queries == Queries()
    states = Trajectories.from_examples(examples, SPECIAL)
    expert.logits(states)
    assert expert.queries.tokens == int(states.mask.sum())
    assert expert.vocab_size == proxy.vocab_size


def test_what_cannot_be_is_one_line(examples, black_box, proxy, monkeypatch):
    known = draws(black_box, examples, 1)
    with pytest.raises(ValueError, match=r"^prior_weight must be above 0, got 0: at 0 states"):
        ProxyExpert(proxy, known, prior_weight=0)
    with pytest.raises(RuntimeError, match="this run has none"):
        draws(NoExpert(), examples, 1)
    monkeypatch.setattr(NeuralExpert, "largest_k", 4)
    with pytest.raises(ExpertError, match=r"^proxy must give its whole distribution, got .* 4 tok"):
        ProxyExpert(proxy, known)
