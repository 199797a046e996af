import math
from itertools import product

import pytest
import torch

from tests.support.toy import SPECIAL, TabularModel
from textgen_env.generation import beam_search as module
from textgen_env.generation import decoding
from textgen_env.generation.beam_search import BeamSearch, beam_search, decoder_of, n_best
from textgen_env.generation.decoding import decode_all, greedy

PAD, START, END = SPECIAL
STEPS, SOURCES = 5, 6
PENALTIES = [0.0, 0.6, 1.0, 2.0]


@pytest.fixture(scope="module", params=[0, 1, 2])
def model(request):
    """Return a model of two words and an end token with random logits in every state."""
    return TabularModel(
        vocab_size=5, sources=SOURCES, max_steps=STEPS, scale=1.5, seed=request.param
    )


def log_prob(model, source, text):
    """Return the model's log-probability of `text`, computed in float64."""
    state, total = source, 0.0
    for previous, token in zip((START, *text), text, strict=False):
        state = state * model.vocab_size + previous
        total += float(model.table[state].double().log_softmax(-1)[token])
    return total


def every_text(model, max_steps):
    """Yield all texts that end by `max_steps` or are truncated there."""
    words = [token for token in range(model.vocab_size) if token not in SPECIAL]
    for length in range(max_steps + 1):
        for text in product(words, repeat=length):
            yield text if length == max_steps else (*text, END)


def plain_beam(model, source, max_steps, beam_size, length_penalty):
    """Return (text, score) pairs of a beam search on Python lists without early stop, sorted."""
    live, done = [(0.0, ())], []
    for _ in range(max_steps):
        continuations = []
        for total, text in live:
            state = source
            for previous in (START, *text):
                state = state * model.vocab_size + previous
            step = model.table[state].double().log_softmax(-1).tolist()
            choices = [token for token in range(model.vocab_size) if token not in (PAD, START)]
            continuations += [(total + step[token], (*text, token)) for token in choices]
        continuations.sort(reverse=True)
        kept = continuations[: beam_size - len(done)]
        done += [hypothesis for hypothesis in kept if hypothesis[1][-1] == END]
        live = [hypothesis for hypothesis in kept if hypothesis[1][-1] != END]
    scored = ((text, total / len(text) ** length_penalty) for total, text in done + live)
    return sorted(scored, key=lambda hypothesis: -hypothesis[1])


def assert_found(found, expected):
    tokens, scores = found
    for row, score, (text, expected_score) in zip(tokens, scores.tolist(), expected, strict=True):
        assert tuple(row[row != PAD].tolist()) == text
        assert score == pytest.approx(expected_score, abs=1e-5)


def assert_all_found(found, expected):
    for tokens, scores, texts in zip(*found, expected, strict=True):
        assert_found((tokens, scores), texts[: len(scores)])


@pytest.mark.parametrize("length_penalty", PENALTIES)
def test_a_wide_beam_finds_the_best_of_all_texts(model, length_penalty):
    texts = list(every_text(model, STEPS))
    expected = []
    for source in range(SOURCES):
        scores = [log_prob(model, source, text) / len(text) ** length_penalty for text in texts]
        best = max(range(len(texts)), key=scores.__getitem__)
        expected.append((texts[best], scores[best]))
    found = beam_search(
        model, model.sources(SOURCES), STEPS, beam_size=len(texts), length_penalty=length_penalty
    )
    assert_found(found, expected)


@pytest.mark.parametrize("length_penalty", PENALTIES)
@pytest.mark.parametrize("beam_size", [1, 2, 3, 5, 9])
def test_narrow_beams_equal_a_plain_implementation(model, beam_size, length_penalty):
    expected = [
        plain_beam(model, source, STEPS, beam_size, length_penalty)[0] for source in range(SOURCES)
    ]
    found = beam_search(
        model,
        model.sources(SOURCES),
        STEPS,
        beam_size=beam_size,
        length_penalty=length_penalty,
    )
    assert_found(found, expected)


@pytest.mark.parametrize("length_penalty", PENALTIES)
@pytest.mark.parametrize(("beam_size", "count"), [(2, 2), (5, 3), (9, 9)])
def test_n_best_equal_a_plain_implementation(model, beam_size, count, length_penalty):
    expected = [
        plain_beam(model, source, STEPS, beam_size, length_penalty) for source in range(SOURCES)
    ]
    found = n_best(
        model,
        model.sources(SOURCES),
        STEPS,
        count=count,
        beam_size=beam_size,
        length_penalty=length_penalty,
    )
    assert_all_found(found, expected)


def test_fewer_hypotheses_than_count_leave_padding(model):
    tokens, scores = n_best(model, model.sources(2), 1, count=5, beam_size=6)
    assert sorted(tokens[0, :3, 0].tolist()) == [2, 3, 4]
    assert scores[:, :3].isfinite().all()
    assert (scores[:, 3:] == float("-inf")).all()
    assert (tokens[:, 3:] == PAD).all()


@pytest.mark.parametrize("count", [0, 4])
def test_a_count_out_of_range_is_refused(model, count):
    with pytest.raises(ValueError, match=rf"count must be from 1 to beam_size \(3\), got {count}"):
        n_best(model, model.sources(2), 3, count=count, beam_size=3)


@pytest.mark.parametrize("fraction", [0.0, 1.0])
@pytest.mark.parametrize("interval", [1, 2])
def test_stopping_and_dropping_change_nothing(model, monkeypatch, fraction, interval):
    monkeypatch.setattr(module, "sync_interval", lambda device: interval)
    monkeypatch.setattr(decoding, "DROP_ROWS_BELOW", fraction)
    expected = [plain_beam(model, source, STEPS, 3, 1.0) for source in range(SOURCES)]
    sources = model.sources(SOURCES)
    best = [texts[0] for texts in expected]
    assert_found(beam_search(model, sources, STEPS, beam_size=3), best)
    assert_all_found(n_best(model, sources, STEPS, count=3, beam_size=3), expected)


def test_a_search_stops_when_no_live_hypothesis_can_win():
    model = TabularModel(vocab_size=5, sources=SOURCES, max_steps=6, scale=0.1)
    model.table[:, END] = -1.0
    for source in range(SOURCES):
        model.table[source * 5 + START, END] = 12.0  # almost surely the text ends at once
    beam_search(model, model.sources(SOURCES), 6, beam_size=2, length_penalty=0.0)
    assert len(model.calls) == 1
    model.calls.clear()
    beam_search(model, model.sources(SOURCES), 6, beam_size=2, length_penalty=1.0)
    assert len(model.calls) <= 2  # a longer text would need the same log-probability


def test_a_beam_of_one_equals_greedy(writer, sources):
    written = decode_all(writer, sources, 20, decoder=BeamSearch(1))
    assert torch.equal(written, greedy(writer, sources, 20))
    assert decoder_of(1) is greedy
    assert decoder_of(4) == BeamSearch(4)


def test_scores_are_the_models_own(writer, sources):
    tokens, score = beam_search(writer, sources, 20, beam_size=4, length_penalty=0.7)
    log_probs = writer.sequence_logits(sources, tokens).log_softmax(-1)
    mask = tokens != PAD
    total = (log_probs.gather(2, tokens[:, :, None]).squeeze(2) * mask).sum(1)
    torch.testing.assert_close(score, total / mask.sum(1) ** 0.7, rtol=1e-4, atol=1e-4)


def test_a_search_does_not_depend_on_the_other_sources(writer, sources):
    together = beam_search(writer, sources, 20, beam_size=4)[0]
    alone = torch.cat(
        [beam_search(writer, row[row != PAD][None], 20, beam_size=4)[0] for row in sources]
    )
    assert torch.equal(together, alone)
    assert torch.equal(decode_all(writer, sources, 20, decoder=BeamSearch(4), batch_size=5), alone)


def test_a_wider_beam_finds_better_texts_on_average(writer, sources):
    narrow, wide = (beam_search(writer, sources, 20, beam_size=size)[1].mean() for size in (1, 8))
    assert wide > narrow


def test_a_beam_may_be_wider_than_the_vocabulary(model):
    texts = beam_search(model, model.sources(2), 1, beam_size=50)[0]
    best = model.table[torch.tensor([START, 5 + START])][:, 2:].argmax(-1) + 2
    assert torch.equal(texts[:, 0], best)


def test_padding_and_start_are_never_written_and_their_probability_counts():
    model = TabularModel(vocab_size=5, sources=1, max_steps=3)
    model.table[:, [PAD, START]] = 20.0
    tokens, score = beam_search(model, model.sources(1), 3, beam_size=4)
    written = tokens[0][: int((tokens[0] != PAD).sum())]
    assert not (written == START).any()
    assert score.item() < -10


def test_hypotheses_can_be_used_in_training(model):
    tokens, score = beam_search(model, model.sources(2), 3)
    assert not tokens.is_inference()
    assert not score.is_inference()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"beam_size": 0}, "beam_size must be at least 1, got 0"),
        ({"length_penalty": -0.1}, "length_penalty must be at least 0 and finite, got -0.1"),
        ({"length_penalty": math.nan}, "length_penalty must be at least 0 and finite, got nan"),
    ],
)
def test_wrong_arguments_are_refused(model, change, message):
    with pytest.raises(ValueError, match=message):
        beam_search(model, model.sources(2), 3, **change)
    with pytest.raises(ValueError, match="max_steps must be at least 1, got 0"):
        beam_search(model, model.sources(2), 0)
