"""Speculative decoding: the target's texts and their law, whatever the draft, and its counts."""

import math
from collections import Counter
from dataclasses import replace
from itertools import product

import pytest
import torch

from tests.support.toy import (
    SPECIAL,
    LivelyModel,
    TabularCache,
    TabularModel,
    attending,
    step_by_step,
)
from textgen_env.generation import decoding
from textgen_env.generation.decoding import action_probs, decode_all, greedy, next_action
from textgen_env.generation.sampling import Sampling
from textgen_env.generation.speculative import DraftCounts, SpeculativeDecoder
from textgen_env.models.acceleration.int8 import with_int8_weights
from textgen_env.models.hybrid import HybridConfig
from textgen_env.models.recurrent import RecurrentConfig
from textgen_env.models.transformer import TransformerConfig

PAD, START, END = SPECIAL
WORDS, STEPS, DRAWS = 5, 3, 50_000
SIZES = {"width": 32, "num_heads": 2, "feed_forward": 64}
CONFIGS = {
    "transformer": TransformerConfig(30, **SIZES),
    "hybrid": HybridConfig(30, **SIZES),
    "sru_pp": HybridConfig(30, **SIZES, unit="sru_pp"),
    "recurrent": RecurrentConfig(30, width=32),
}


SEEDS = {"transformer": 0, "hybrid": 3, "sru_pp": 4, "recurrent": 0}  # of models whose texts vary


def lively(name, other=0, scale=1.5):
    torch.manual_seed(SEEDS[name] + other)
    return LivelyModel(attending(CONFIGS[name].build()).eval().requires_grad_(False), scale=scale)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def law(model, sampling):
    """Return text -> probability of every text of a source with token 3."""
    laws = {}
    words = range(3, 3 + WORDS)
    texts = [(*text, END) for length in range(STEPS) for text in product(words, repeat=length)]
    texts += list(product(words, repeat=STEPS))
    for text in texts:
        probability, state = 1.0, 0
        for previous, token in zip((START, *text), text, strict=False):
            state = state * model.vocab_size + previous
            probs = action_probs(model.table[state][None], sampling, SPECIAL)[0].double()
            probability *= float(probs[token] / probs.sum())
        laws[text] = probability
    assert sum(laws.values()) == pytest.approx(1, abs=1e-6)
    return laws


def excess(texts, laws):
    """Return by how many deviations chi-square is above its mean; rare texts count as one."""
    found = Counter(tuple(token for token in row if token) for row in texts.tolist())
    assert set(found) <= {text for text, probability in laws.items() if probability}
    cells, rest = [], [0.0, 0.0]
    for text, probability in laws.items():
        if probability * len(texts) < 5:
            rest[0] += found[text]
            rest[1] += probability * len(texts)
        else:
            cells.append((found[text], probability * len(texts)))
    cells += [tuple(rest)] if rest[1] else []
    chi_square = sum((seen - mean) ** 2 / mean for seen, mean in cells)
    return (chi_square - len(cells) + 1) / math.sqrt(2 * (len(cells) - 1))


@pytest.mark.parametrize("draft_tokens", [1, 2, 4])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.7, top_k=4), Sampling(top_p=0.8)])
def test_sampled_texts_have_the_law_of_the_target(draft_tokens, sampling):
    target, draft = (TabularModel(3 + WORDS, 1, STEPS, seed=seed) for seed in (0, 1))
    source = target.sources(1).repeat(DRAWS, 1)
    decoder = SpeculativeDecoder(draft, draft_tokens, sampling, seeded())
    texts = decoder(target, source, STEPS)
    assert excess(texts, law(target, sampling)) < 4
    assert 0.3 < decoder.counts.acceptance < 0.8, "the draft is another model"
    if sampling == Sampling():
        assert excess(texts, law(draft, sampling)) > 100


def test_the_acceptance_is_the_mean_of_one_minus_tvd():
    """Of first tokens alone: they are all verified, and all have one distribution."""
    target, draft = (TabularModel(3 + WORDS, 1, 5, seed=seed) for seed in (0, 1))
    decoder = SpeculativeDecoder(draft, 1, Sampling(), seeded())
    decoder(target, target.sources(1).repeat(DRAWS, 1), 1)
    p, q = (
        action_probs(model.table[START][None], Sampling(), SPECIAL) for model in (target, draft)
    )
    shared = float(torch.minimum(p, q).sum())
    assert decoder.counts.verified == DRAWS
    assert decoder.counts.acceptance == pytest.approx(shared, abs=4 * math.sqrt(0.25 / DRAWS))


class Memoryless:
    """A model with one distribution, whatever it has read."""

    special = SPECIAL

    def __init__(self, probs):
        self.logits, self.vocab_size = torch.tensor([0.0, 0.0, 0.0, *probs]).log(), 3 + len(probs)

    def start(self, source, max_steps):
        return TabularCache(source[:, 0])

    def step(self, previous, cache):
        return self.logits.expand(len(previous), -1), replace(cache)

    def sequence_logits(self, source, actions):
        return self.logits.expand(*actions.shape, -1)

    def step_block(self, tokens, cache):
        return step_by_step(self, tokens, cache)


@pytest.mark.parametrize("draft_tokens", [1, 3, 5])
@pytest.mark.parametrize("acceptance", [0.5, 0.8])
def test_constant_acceptance_gives_the_known_number_of_tokens_a_pass(draft_tokens, acceptance):
    target, draft = Memoryless([acceptance, 1 - acceptance]), Memoryless([1.0, 0.0])
    decoder = SpeculativeDecoder(draft, draft_tokens, Sampling(), seeded())
    texts = decoder(target, torch.full((300, 1), 3), 400)
    assert texts.ne(PAD).all()
    counts = decoder.counts
    expected = (1 - acceptance ** (draft_tokens + 1)) / (1 - acceptance)
    assert counts.tokens == texts.numel()
    assert counts.acceptance == pytest.approx(acceptance, abs=0.01)
    assert counts.tokens_per_pass == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("sampling", [None, Sampling(), Sampling(0.5, top_k=3)])
def test_of_a_draft_that_is_the_target_everything_is_accepted(sampling):
    model = TabularModel(3 + WORDS, 6, STEPS)
    source = model.sources(6).repeat(50, 1)
    decoder = SpeculativeDecoder(model, 2, sampling, seeded())
    texts = decoder(model, source, STEPS)
    counts, lengths = decoder.counts, (texts != PAD).sum(1)
    assert counts.accepted == counts.verified > 0
    assert counts.passes == len(source), "three steps are one block"
    assert counts.tokens == int(lengths.sum())


@pytest.mark.parametrize("draft_tokens", [1, 3, 6])
@pytest.mark.parametrize("names", [*product(CONFIGS, CONFIGS)], ids="-".join)
def test_greedy_texts_are_those_of_the_target(sources, names, draft_tokens):
    target, draft = lively(names[0]), lively(names[1], other=1, scale=1.4)
    expected = greedy(target, sources, 20)
    assert (expected != PAD).sum(1).unique().numel() > 4, "the test needs texts of many lengths"
    decoder = SpeculativeDecoder(draft, draft_tokens)
    assert torch.equal(decoder(target, sources, 20), expected)
    assert decoder.counts.tokens == int((expected != PAD).sum())
    assert 0 < decoder.counts.accepted < decoder.counts.verified
    assert decoder.counts.passes < decoder.counts.tokens


@pytest.mark.parametrize("max_steps", [1, 2, 7])
@pytest.mark.parametrize("batch_size", [1, 8])
def test_limits_and_batches_change_no_greedy_text(writer, sources, max_steps, batch_size):
    decoder = SpeculativeDecoder(lively("recurrent", other=1), 3)
    texts = decode_all(writer, sources, max_steps, decoder=decoder, batch_size=batch_size)
    assert torch.equal(texts, greedy(writer, sources, max_steps))


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_dropping_finished_rows_changes_no_text(writer, sources, monkeypatch, fraction):
    expected = greedy(writer, sources, 20)
    monkeypatch.setattr(decoding, "DROP_ROWS_BELOW", fraction)
    decoder = SpeculativeDecoder(lively("hybrid", other=1), 4)
    assert torch.equal(decoder(writer, sources, 20), expected)


def test_models_in_int8_write_their_own_greedy_texts(transformer, sources):
    target = with_int8_weights(transformer)
    draft = with_int8_weights(TransformerConfig(50, **SIZES).build().eval())
    decoder = SpeculativeDecoder(draft, 3)
    assert torch.equal(decoder(target, sources, 12), greedy(target, sources, 12))


def test_texts_can_be_used_in_training_and_no_sources_have_none(transformer, sources):
    decoder = SpeculativeDecoder(transformer, 2)
    transformer.sequence_logits(sources, decoder(transformer, sources, 4)).sum().backward()
    assert decoder(transformer, sources[:0], 4).shape == (0, 4)


def test_the_same_draws_give_the_same_texts(writer, sources):
    def texts(seed):
        return SpeculativeDecoder(lively("hybrid"), 3, Sampling(), seeded(seed))(
            writer, sources, 20
        )

    assert torch.equal(texts(0), texts(0))
    assert not torch.equal(texts(0), texts(1))


def test_action_probs_are_those_that_tokens_are_drawn_with():
    logits = torch.randn(1, 12, generator=seeded(3))
    for sampling in (Sampling(), Sampling(2.0, top_k=5), Sampling(top_p=0.7)):
        probs = action_probs(logits, sampling, SPECIAL)[0]
        drawn = next_action(logits.expand(DRAWS, -1), sampling, seeded())
        shares = drawn.bincount(minlength=12) / DRAWS
        assert probs.sum().item() == pytest.approx(1)
        assert torch.equal(shares > 0, probs > 1e-4)
        assert (shares - probs).abs().max() < 0.01


def test_counts_add_up():
    total = DraftCounts(2, 5, 4, 3) + DraftCounts(1, 1, 1, 0)
    assert total == DraftCounts(3, 6, 5, 3)
    assert (total.tokens_per_pass, total.acceptance) == (2, 0.6)


@pytest.mark.parametrize(
    ("draft", "message"),
    [
        (TabularModel(6), r"draft must have .* 5 and \(0, 1, 2\), got 6 and .*its tokenizer"),
        (Memoryless([0.5, 0.5]), "caches that go back .* got a OneWayCache: decode without"),
    ],
)
def test_a_draft_that_cannot_write_for_the_target_is_refused(monkeypatch, draft, message):
    class OneWayCache(TabularCache):
        rewind = None

    target = TabularModel(5)
    if isinstance(draft, Memoryless):
        monkeypatch.setattr(draft, "start", lambda source, steps: OneWayCache(source[:, 0]))
    with pytest.raises(ValueError, match=message):
        SpeculativeDecoder(draft)(target, target.sources(2), 3)


def test_a_target_that_reads_no_blocks_is_refused(monkeypatch):
    target = TabularModel(5)
    monkeypatch.delattr(TabularModel, "step_block")
    with pytest.raises(ValueError, match=r"target must read several tokens .* got a TabularModel"):
        SpeculativeDecoder(target)(target, target.sources(2), 3)


def test_settings_without_meaning_are_refused():
    model = TabularModel(5)
    with pytest.raises(ValueError, match="draft_tokens must be at least 1, got 0"):
        SpeculativeDecoder(model, 0)
    with pytest.raises(ValueError, match=r"generator must be a torch.Generator .* got None"):
        SpeculativeDecoder(model, sampling=Sampling())
