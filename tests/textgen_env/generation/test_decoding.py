import math
from dataclasses import replace
from functools import partial

import pytest
import torch

from tests.support.toy import SPECIAL, TabularModel
from textgen_env.generation import beam_search, decoding, sampling
from textgen_env.generation.beam_search import BeamSearch
from textgen_env.generation.decoding import (
    LogitsError,
    choose_action,
    decode_all,
    greedy,
    next_action,
    sample,
)
from textgen_env.generation.sampling import Sampling
from textgen_env.types import ShapeError, SpecialTokens

PAD, START, END = SPECIAL


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def naive_greedy(model, source, max_steps):
    """Return greedy texts from sequence logits, one source and one token at a time."""
    written = torch.full((len(source), max_steps), PAD)
    for row, text in zip(source, written, strict=True):
        row = row[row != PAD][None]
        for step in range(max_steps):
            logits = model.sequence_logits(row, text[None, : step + 1])[0, -1]
            logits[[PAD, START]] = -math.inf
            text[step] = logits.argmax()
            if text[step] == END:
                break
    return written


def test_greedy_equals_a_naive_loop_over_sequence_logits(writer, sources):
    written = greedy(writer, sources, 20)
    assert torch.equal(written, naive_greedy(writer, sources, 20))
    lengths = (written != PAD).sum(1)
    assert lengths.unique().numel() > 4, "the test needs texts of different lengths"
    assert (written[lengths < 20].eq(END).sum(1) == 1).all()


@pytest.mark.parametrize("batch_size", [1, 5, 23, 64])
@pytest.mark.parametrize("max_steps", [1, 20])
def test_sorting_and_batching_change_nothing(writer, sources, batch_size, max_steps):
    alone = greedy(writer, sources, max_steps)
    assert torch.equal(decode_all(writer, sources, max_steps, batch_size=batch_size), alone)


@pytest.mark.parametrize("fraction", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("interval", [1, 3, 8])
def test_dropping_finished_rows_changes_nothing(writer, sources, monkeypatch, fraction, interval):
    expected = naive_greedy(writer, sources, 20)
    monkeypatch.setattr(decoding, "DROP_ROWS_BELOW", fraction)
    monkeypatch.setattr(decoding, "sync_interval", lambda device: interval)
    assert torch.equal(greedy(writer, sources, 20), expected)


def test_finished_rows_are_dropped_and_decoding_stops_with_the_last():
    model = TabularModel(vocab_size=4, sources=6, max_steps=8, scale=0.2)
    model.table[:, END] = -9.0
    for source, length in enumerate((1, 1, 2, 2, 3, 5)):  # of each text, the end token included
        state = source
        for step in range(length):
            state = state * 4 + (START if step == 0 else 3)
        model.table[state, END] = 9.0
    written = greedy(model, model.sources(6), 8)
    assert (written != PAD).sum(1).tolist() == [1, 1, 2, 2, 3, 5]
    assert model.calls == [6, 4, 2, 1, 1]


def test_texts_can_be_used_in_training(transformer, sources):
    written = decode_all(transformer, sources, 4)
    transformer.sequence_logits(sources, written).sum().backward()
    assert not greedy(transformer, sources, 4).is_inference()


def test_a_decoder_may_return_several_texts_a_source(writer, sources):
    def twice(model, source, max_steps):
        return greedy(model, source, max_steps)[:, None].repeat(1, 2, 1)

    written = decode_all(writer, sources, 6, decoder=twice, batch_size=4)
    assert torch.equal(written, greedy(writer, sources, 6)[:, None].repeat(1, 2, 1))


def test_decoding_no_sources_gives_no_rows(writer):
    assert decode_all(writer, torch.empty(0, 5, dtype=torch.int64), 7).shape == (0, 7)


def test_the_callers_source_and_logits_are_not_modified(writer, sources):
    before = sources.clone()
    decode_all(writer, sources, 5)
    assert torch.equal(sources, before)
    logits = torch.randn(4, 9, generator=seeded())
    before = logits.clone()
    next_action(logits, Sampling(0.7, top_k=3, top_p=0.5), seeded())
    assert torch.equal(logits, before)


@pytest.mark.parametrize(
    "sampling", [None, Sampling(), Sampling(top_k=8), Sampling(top_p=1.0), Sampling(5.0, 7, 0.9)]
)
@pytest.mark.parametrize("special", [SpecialTokens(), SpecialTokens(pad=7, start=3, end=0)])
def test_padding_and_start_are_never_chosen(sampling, special):
    logits = torch.randn(2000, 8, generator=seeded())
    logits[:, [special.pad, special.start]] += 5
    chosen = next_action(logits, sampling, seeded(), special=special)
    counts = chosen.bincount(minlength=8)
    assert counts[special.pad] == counts[special.start] == 0
    assert (counts > 0).sum() == 6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_next_action_accepts_any_precision(dtype):
    logits = torch.randn(50, 9, generator=seeded()).to(dtype)
    assert torch.equal(next_action(logits), logits[:, 2:].argmax(-1) + 2)


def allowed_probs(logits, sampling):
    """Return the sampling distribution, computed token by token."""
    probs = []
    for row in logits:
        weight = (row.double() / sampling.temperature).exp()
        weight[[PAD, START]] = 0
        order = weight.argsort(descending=True).tolist()
        if sampling.top_k is not None:
            weight[order[sampling.top_k :]] = 0
        weight /= weight.sum()
        if sampling.top_p is not None:
            total, kept = 0.0, []
            for token in order:
                if total >= sampling.top_p:
                    break
                total += float(weight[token])
                kept.append(token)
            weight[[token for token in order if token not in kept]] = 0
        probs.append(weight / weight.sum())
    return torch.stack(probs)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(0.5),
        Sampling(3.0),
        Sampling(top_k=4),
        Sampling(top_p=0.6),
        Sampling(1.5, top_k=5, top_p=0.7),
    ],
    ids=str,
)
def test_frequencies_follow_the_probabilities(sampling):
    draws, vocab = 20_000, 12
    logits = 1.5 * torch.randn(3, vocab, generator=seeded(2))
    probs = allowed_probs(logits, sampling)
    rows = logits.repeat_interleave(draws, 0)
    chosen = next_action(rows, sampling, seeded(3)).view(3, draws)
    for row, expected in zip(chosen, probs, strict=True):
        counts = row.bincount(minlength=vocab).double()
        possible = expected > 0
        assert counts[~possible].sum() == 0
        chi_square = ((counts - draws * expected) ** 2 / (draws * expected))[possible].sum()
        freedom = int(possible.sum()) - 1
        assert chi_square <= freedom + 4 * math.sqrt(2 * max(freedom, 1))  # 4 standard deviations


@pytest.mark.parametrize("top_p", [0.5, 0.9, 0.999])
def test_the_nucleus_is_the_same_whether_or_not_all_tokens_are_sorted(top_p, monkeypatch):
    logits = 2 * torch.randn(40, 500, generator=seeded())
    results = []
    for candidates in (3, 128, 500):
        monkeypatch.setattr(sampling, "NUCLEUS_CANDIDATES", candidates)
        results.append(next_action(logits, Sampling(top_p=top_p), seeded(4)))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    probs = allowed_probs(logits, Sampling(top_p=top_p))
    assert (probs.gather(1, results[0][:, None]) > 0).all()


@pytest.mark.parametrize(
    "sampling", [Sampling(top_k=1), Sampling(1e-4), Sampling(top_p=1e-6), Sampling(9.0, 1, 1.0)]
)
def test_deterministic_sampling_equals_greedy(sampling, writer, sources):
    written = sample(writer, sources, 12, sampling=sampling, generator=seeded())
    assert torch.equal(written, greedy(writer, sources, 12))


def test_a_high_temperature_samples_uniformly():
    logits = 5 * torch.randn(1, 6, generator=seeded()).expand(40_000, -1)
    chosen = next_action(logits, Sampling(1e6), seeded(1))
    frequencies = chosen.bincount(minlength=6) / len(chosen)
    torch.testing.assert_close(frequencies[2:], torch.full((4,), 0.25), atol=0.01, rtol=0)


def test_extreme_random_numbers_give_possible_tokens():
    logits = torch.tensor([[-math.inf, 0.0, 1.0, -math.inf, 2.0, -math.inf]]).expand(2, -1)
    for uniform in (0.0, 1 - 2**-24):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "rand", lambda *size, value=uniform, **_: torch.full(size, value))
            chosen = next_action(logits, Sampling(), seeded())
        assert chosen.tolist() == [2 if uniform == 0 else 4] * 2


def test_samples_depend_on_the_generator_alone(writer, sources):
    state = torch.get_rng_state()
    draw = partial(sample, writer, sources, 10, sampling=Sampling())
    first, again, other = (draw(generator=seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_decode_all_accepts_a_sampling_decoder(writer, sources):
    decoder = partial(sample, sampling=Sampling(top_k=5), generator=seeded())
    written = decode_all(writer, sources, 10, decoder=decoder, batch_size=7)
    assert written.shape == (23, 10)
    assert not torch.equal(written, greedy(writer, sources, 10))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "temperature must be above 0, got 0.0"),
        ({"temperature": -1.0}, "temperature must be above 0, got -1.0"),
        ({"temperature": math.nan}, "temperature must be above 0, got nan"),
        ({"top_k": 0}, "top_k must be at least 1 or None, got 0"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\] or None, got 0.0"),
        ({"top_p": 1.01}, r"top_p must be in \(0, 1\] or None, got 1.01"),
    ],
)
def test_wrong_sampling_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(Sampling(), **change)


def test_wrong_arguments_are_refused(writer, sources):
    logits = torch.zeros(2, 9)
    with pytest.raises(
        ValueError, match=r"top_k must be at most the vocabulary's size \(9\), got 10"
    ):
        next_action(logits, Sampling(top_k=10), seeded())
    with pytest.raises(ValueError, match="generator must be"):
        next_action(logits, Sampling())
    with pytest.raises(ValueError, match="max_steps must be at least 1, got 0"):
        greedy(writer, sources, 0)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        decode_all(writer, sources, 4, batch_size=0)
    with pytest.raises(ShapeError, match="source must have shape"):
        decode_all(writer, sources[0], 4)


@pytest.mark.parametrize("vocab_size", [3, 127, 128, 129, 1000])
def test_the_most_probable_token_is_the_first_of_equals(vocab_size):
    generator = torch.Generator().manual_seed(vocab_size)
    logits = torch.randint(-9, 9, (50, vocab_size), generator=generator).float()
    allowed = logits.clone()
    allowed[:, [SPECIAL.pad, SPECIAL.start]] = float("-inf")
    assert torch.equal(next_action(logits), allowed.argmax(-1))
    assert torch.equal(next_action(logits.bfloat16()), allowed.argmax(-1))


SPOILED = {
    "nan": lambda logits: logits.index_fill(1, torch.tensor([5]), math.nan),
    "inf": lambda logits: logits.index_fill(1, torch.tensor([5]), math.inf),
    "none is possible": lambda logits: torch.full_like(logits, -math.inf),
    "all nan": lambda logits: torch.full_like(logits, math.nan),
}


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
@pytest.mark.parametrize(
    "sampling", [None, Sampling(), Sampling(top_k=3), Sampling(top_p=0.5)], ids=str
)
@pytest.mark.parametrize("vocab_size", [7, 128, 300])
def test_logits_that_are_not_finite_are_an_error_and_never_a_token(spoil, sampling, vocab_size):
    logits = torch.randn(4, vocab_size, generator=seeded())
    logits[2] = spoil(logits)[2]
    with pytest.raises(LogitsError, match=r"logits of the model must be finite numbers, got "):
        next_action(logits, sampling, seeded())
    mask = torch.tensor([True, True, False, True])
    action = next_action(logits, sampling, seeded(), mask=mask)
    assert ((action >= 0) & (action < vocab_size)).all()


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
@pytest.mark.parametrize(
    "sampling", [None, Sampling(), Sampling(top_k=3), Sampling(top_p=0.5)], ids=str
)
def test_where_looking_is_not_free_every_token_exists(spoil, sampling, monkeypatch):
    monkeypatch.setattr(decoding, "host_sync_is_free", lambda device: False)
    logits = spoil(torch.randn(4, 300, generator=seeded()))
    unchecked = torch.zeros(4, dtype=torch.bool)  # the device is a CPU, where argmax would look
    action = next_action(logits, sampling, seeded(), mask=unchecked)
    assert ((action >= 0) & (action < 300)).all()


@pytest.mark.parametrize("decoder", [greedy, BeamSearch(3)])
def test_decoding_with_a_spoiled_model_is_an_error_on_every_device(decoder, monkeypatch):
    model = TabularModel()
    model.table[:] = math.nan
    source = torch.tensor([[3], [4]])
    with pytest.raises(LogitsError):
        decode_all(model, source, 5, decoder=decoder)
    for module in (decoding, beam_search):
        monkeypatch.setattr(module, "host_sync_is_free", lambda device: False)
    monkeypatch.setattr(decoding, "_argmax", lambda logits, mask: logits.argmax(-1))
    with pytest.raises(LogitsError):
        decode_all(model, source, 5, decoder=decoder)


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(0.5, top_k=4), Sampling(1.5, top_k=5, top_p=0.7)], ids=str
)
def test_a_draw_comes_with_its_log_probability(sampling):
    logits = 1.5 * torch.randn(200, 12, generator=seeded(2))
    chosen, log_probs = choose_action(logits, sampling, seeded(3))
    assert torch.equal(chosen, next_action(logits, sampling, seeded(3)))
    expected = allowed_probs(logits, sampling).gather(1, chosen[:, None]).squeeze(1).log()
    torch.testing.assert_close(log_probs.double(), expected.double(), rtol=1e-5, atol=1e-6)
    best, none = choose_action(logits)
    assert torch.equal(best, next_action(logits))
    assert none is None
