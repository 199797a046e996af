"""An expert with other tokens than the student's gives texts, and only texts."""

from dataclasses import replace

import pytest
import torch

from agents.seqinter import SeqInter
from agents.seqkd import SeqKD
from textgen_env.decoding import Sampling
from textgen_env.expert import ExpertError, NeuralExpert
from textgen_env.models.transformer import Transformer, TransformerConfig
from textgen_env.retokenizing_expert import RetokenizingExpert
from textgen_env.tasks.task import encode, encode_sources
from textgen_env.tokenizer import Tokenizer
from textgen_env.types import Examples, Trajectories

STEPS, LONG = 6, 40  # of the expert's words, and of the student's pieces for the same


@pytest.fixture(scope="module")
def words(tiny_task):
    """The expert's tokenizer: a piece a word, in another order than the task's."""
    pieces = [piece for piece in tiny_task.tokenizer.pieces if not piece.startswith("<")]
    return Tokenizer.from_words(sorted(pieces, reverse=True))


@pytest.fixture(scope="module")
def task(tiny_task):
    """The task in the student's tokens, which are bytes and pairs of them."""
    texts = [pair.source for pair in tiny_task.train]
    return replace(
        tiny_task,
        tokenizer=Tokenizer.train(texts, 262),
        max_source_length=LONG,
        max_target_length=LONG,
    )


@pytest.fixture
def inner(words):
    """A random model over the expert's words."""
    torch.manual_seed(0)
    size = TransformerConfig(words.vocab_size, width=16, num_heads=2, feed_forward=32)
    return NeuralExpert(Transformer(size).eval())


@pytest.fixture
def expert(inner, words, task):
    return RetokenizingExpert(inner, words, task.tokenizer, STEPS)


@pytest.fixture
def examples(task, words):
    """Sources in the student's tokens, and for the expert in its own."""
    pairs = task.train[:6]
    own = encode(pairs, task)
    return Examples(
        own.source, own.reference, encode_sources([pair.source for pair in pairs], words)
    )


def test_what_it_writes_is_the_same_text_in_the_students_tokens(
    expert, inner, examples, task, words
):
    written = inner.write(examples, max_steps=STEPS, beam_size=2).reference
    asked = inner.queries.tokens
    answer = expert.write(examples, max_steps=LONG, beam_size=2)
    texts = words.decode(written.tolist())
    assert all(texts)
    assert task.tokenizer.decode(answer.reference.tolist()) == texts
    assert answer.reference.shape[1] > written.shape[1]
    assert torch.equal(answer.source, examples.source)
    assert expert.queries.tokens == 2 * asked  # the expert's own count


def test_its_texts_are_cut_at_the_students_limit(expert, examples):
    whole = expert.write(examples, max_steps=LONG, beam_size=1).reference
    short = expert.write(examples, max_steps=4, beam_size=1).reference
    assert torch.equal(short, whole[:, :4])


def test_all_hypotheses_come_and_no_text_stays_none(expert, inner, examples, task, words):
    written = inner.write_n_best(examples, max_steps=STEPS, beam_size=3)
    written[1, 2] = words.special.pad  # as where fewer were found
    inner.write_n_best = lambda *_, **__: written
    answer = expert.write_n_best(examples, max_steps=LONG, beam_size=3)
    assert answer.shape[:2] == written.shape[:2]
    assert (answer[1, 2] == task.tokenizer.special.pad).all()
    for ours, theirs in zip(answer.unbind(1), written.unbind(1), strict=True):
        assert task.tokenizer.decode(ours.tolist()) == words.decode(theirs.tolist())


def test_what_it_draws_is_text_too(expert, inner, examples, task, words):
    options = {"sampling": Sampling()}
    drawn = inner.sample(
        examples, max_steps=STEPS, generator=torch.Generator().manual_seed(0), **options
    )
    answer = expert.sample(
        examples, max_steps=LONG, generator=torch.Generator().manual_seed(0), **options
    )
    expected = words.decode(drawn.reference.tolist())
    assert task.tokenizer.decode(answer.reference.tolist()) == expected


@pytest.mark.parametrize("agent", [SeqKD(beam_size=2), SeqInter(beam_size=2)])
def test_agents_that_learn_from_texts_prepare_their_data(agent, expert, examples, task):
    prepared = agent.prepare(examples, expert, LONG)
    texts = task.tokenizer.decode(prepared.reference.tolist())
    assert all(text.startswith("w") for text in texts)
    assert prepared.reference.shape[1] <= LONG


def test_it_is_not_asked_at_the_students_states(expert, examples):
    states = Trajectories.from_examples(examples, expert.special)
    refusals = (
        lambda: expert.logits(states),
        lambda: expert.best_actions(states),
        lambda: expert.start(examples.source, STEPS),
        lambda: expert.complete(examples.source, states.actions, states.mask.sum(1)),
    )
    for ask in refusals:
        with pytest.raises(ExpertError, match="must have the student's tokenizer"):
            ask()
