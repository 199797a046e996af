"""A text that joins a running batch is the one that a batch of its own writes."""

import random

import pytest
import torch

from tests.support.toy import SPECIAL, LivelyModel, attending
from tests.textgen_env.envs.test_vector_env import set_sync_is_free
from textgen_env.generation.decoding import LogitsError, greedy, next_action
from textgen_env.generation.open_batch import OpenBatch, OpenText
from textgen_env.generation.sampling import Sampling
from textgen_env.models.hybrid import Hybrid, HybridConfig
from textgen_env.models.recurrent import Recurrent, RecurrentConfig
from textgen_env.models.transformer import Transformer, TransformerConfig

STEPS = 20
SIZE = {"width": 32, "num_heads": 2, "feed_forward": 64}
MODELS = {
    "transformer": lambda: Transformer(TransformerConfig(30, **SIZE)),
    "recurrent": lambda: Recurrent(RecurrentConfig(30, 32, 1, 1)),
    "ssru": lambda: Hybrid(HybridConfig(30, **SIZE, unit="ssru")),
    "sru_pp": lambda: attending(Hybrid(HybridConfig(30, **SIZE, unit="sru_pp"))),
}


@pytest.fixture(params=MODELS)
def lively(request):
    """Return a model of each kind whose texts vary and end after 3 to 20 tokens."""
    torch.manual_seed(0)
    return LivelyModel(MODELS[request.param]().eval().requires_grad_(False))


def open_texts(sources, limits, **settings):
    rows = [source[source != SPECIAL.pad] for source in sources]
    return [OpenText(row, limit, **settings) for row, limit in zip(rows, limits, strict=True)]


def written_at_random(batch, texts, seed):
    """Write all texts, which arrive a few at a time at random moments; return who ran beside whom.

    Every fifth one leaves again before it is done.
    """
    waiting, draws, most = list(texts), random.Random(seed), 0
    while waiting or batch.texts:
        count = min(len(waiting), batch.room, draws.choice([0, 0, 0, 1, 2, 5]))
        if count:
            batch.join([waiting.pop(0) for _ in range(count)])
        most = max(most, len(batch.texts))
        if batch.texts:
            batch.step()
        batch.leave([text for text in texts[4::5] if len(text.tokens) == 3])
    return most


def expected_tokens(model, text):
    (row,) = greedy(model, text.source[None], text.max_tokens).tolist()
    return [token for token in row if token != SPECIAL.pad]


@pytest.mark.parametrize("slots", [1, 4, 64])
def test_texts_that_come_and_go_are_those_of_greedy_decoding(lively, sources, slots):
    limits = [1 + number % STEPS for number in range(10, 10 + len(sources))]
    texts = open_texts(sources, limits)
    most = written_at_random(OpenBatch(lively, slots, STEPS), texts, seed=slots)
    assert (1 < most <= slots) or slots == 1
    for number, text in enumerate(texts):
        expected = expected_tokens(lively, text)
        assert text.tokens == (expected[:3] if number % 5 == 4 else expected)


def test_a_batch_is_right_where_the_host_would_wait(lively, sources, monkeypatch):
    texts = open_texts(sources, [STEPS] * len(sources))
    expected = [expected_tokens(lively, text) for text in texts]
    set_sync_is_free(monkeypatch, False)
    written_at_random(OpenBatch(lively, 4, STEPS), texts, seed=7)
    for number, text in enumerate(texts):
        assert text.tokens == (expected[number][:3] if number % 5 == 4 else expected[number])


def test_a_wider_source_joins_narrow_ones_and_short_ones_stay_right(lively):
    sources = [torch.tensor([5, 2]), torch.tensor([*[7] * 60, 2]), torch.tensor([6, 2])]
    texts = [OpenText(source, STEPS) for source in sources]
    batch = OpenBatch(lively, 3, STEPS)
    for text in texts:
        batch.join([text])
        batch.step()
    while batch.texts:
        batch.step()
    assert [text.tokens for text in texts] == [expected_tokens(lively, text) for text in texts]


def test_a_sampled_text_depends_on_its_own_generator_alone(writer, sources):
    def sampled(rows, seeds):
        texts = [
            OpenText(source, STEPS, Sampling(0.9, top_p=0.9), torch.Generator().manual_seed(seed))
            for source, seed in zip(rows, seeds, strict=True)
        ]
        written_at_random(OpenBatch(writer, 3, STEPS), texts[:4], seed=0)
        return [text.tokens for text in texts[:4]]

    rows = [source[source != SPECIAL.pad] for source in sources[:4]]
    one, other = sampled(rows, [1, 2, 3, 4]), sampled(rows[::-1], [4, 3, 2, 1])
    assert one == other[::-1]
    assert one != sampled(rows, [5, 6, 7, 8])
    logits, _ = writer.step(torch.tensor([SPECIAL.start]), writer.start(rows[0][None], STEPS))
    first = next_action(logits, Sampling(0.9, top_p=0.9), torch.Generator().manual_seed(1))
    assert one[0][0] == int(first)


def test_a_batch_that_is_not_refilled_takes_texts_when_it_is_empty(writer, sources):
    texts = open_texts(sources[:3], [4, 2, 4])
    batch = OpenBatch(writer, 2, STEPS, is_refilled=False)
    batch.join(texts[:2])
    while batch.texts:
        assert batch.room == 0
        batch.step()
    assert batch.room == 2
    batch.join(texts[2:])
    while batch.texts:
        batch.step()
    assert [text.tokens for text in texts] == [expected_tokens(writer, text) for text in texts]


def test_rows_that_have_ended_are_dropped(writer):
    batch, source = OpenBatch(writer, 8, STEPS), torch.tensor([5, 2])
    rows = []
    step = writer.step
    writer.step = lambda previous, cache: rows.append(len(previous)) or step(previous, cache)
    batch.join([OpenText(source, limit) for limit in (1, 1, 1, 3)])
    while batch.texts:
        batch.step()
    assert rows[:2] == [4, 1]


def test_spoiled_logits_are_an_error_after_which_the_batch_can_be_cleared(writer, monkeypatch):
    batch = OpenBatch(writer, 2, STEPS)
    batch.join([OpenText(torch.tensor([5, 2]), 4)])
    monkeypatch.setattr(writer, "noise", writer.noise * float("nan"))
    with pytest.raises(LogitsError, match="must be finite numbers"):
        batch.step()
    monkeypatch.undo()
    batch.clear()
    text = OpenText(torch.tensor([5, 2]), 4)
    batch.join([text])
    while batch.texts:
        batch.step()
    assert text.tokens == expected_tokens(writer, text)


@pytest.mark.parametrize(
    ("count", "limit", "message"),
    [
        (3, 2, "texts must be from 1 to 2, got 3"),
        (0, 2, "texts must be from 1 to 2, got 0"),
        (1, STEPS + 1, f"max_tokens must be at most {STEPS}, got {STEPS + 1}"),
    ],
)
def test_texts_that_cannot_join_leave_the_batch_as_it_was(writer, count, limit, message):
    batch = OpenBatch(writer, 2, STEPS)
    with pytest.raises(ValueError, match=message):
        batch.join([OpenText(torch.tensor([5, 2]), limit) for _ in range(count)])
    assert batch.room == 2
    with pytest.raises(RuntimeError, match="call join first"):
        batch.step()


def test_settings_of_a_text_are_checked():
    source = torch.tensor([5, 2])
    with pytest.raises(ValueError, match="max_tokens must be at least 1, got 0"):
        OpenText(source, 0)
    with pytest.raises(ValueError, match="generator must be a"):
        OpenText(source, 1, Sampling())
