"""An expert with other tokens than the student's gives texts, and labels that go through text."""

import copy
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from textgen_agents.imitkd import ImitKD, ImitKDFull
from textgen_agents.seqkd import SeqInter, SeqKD
from textgen_env.experts.cross_tokenizer import CrossTokenizerExpert
from textgen_env.experts.expert import ExpertError, NeuralExpert, NoExpert
from textgen_env.experts.token_text import TokenText, is_text
from textgen_env.generation.decoding import Sampling
from textgen_env.models.transformer import Transformer, TransformerConfig
from textgen_env.tasks.task import encode, encode_sources
from textgen_env.tokenizers.subword import Tokenizer
from textgen_env.types import Examples, SpecialTokens, Trajectories, Writer

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
    return CrossTokenizerExpert(inner, words, task.tokenizer, STEPS)


@pytest.fixture
def theirs(task, words):
    """The same as the expert itself reads them."""
    source = encode_sources([pair.source for pair in task.train[:6]], words)
    return Examples(source, source)


@pytest.fixture
def examples(task, expert):
    """Sources in the student's tokens, and for the expert in its own."""
    pairs = task.train[:6]
    own = encode(pairs, task)
    return Examples(own.source, own.reference, expert.view([pair.source for pair in pairs]))


def test_what_it_writes_is_the_same_text_in_the_students_tokens(
    expert, inner, examples, theirs, task, words
):
    written = inner.write(theirs, max_steps=STEPS, beam_size=2).reference
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


def test_all_hypotheses_come_and_no_text_stays_none(expert, inner, examples, theirs, task, words):
    written = inner.write_n_best(theirs, max_steps=STEPS, beam_size=3)
    written[1, 2] = words.special.pad  # as where fewer were found
    inner.write_n_best = lambda *_, **__: written
    answer = expert.write_n_best(examples, max_steps=LONG, beam_size=3)
    assert answer.shape[:2] == written.shape[:2]
    assert (answer[1, 2] == task.tokenizer.special.pad).all()
    for ours, theirs in zip(answer.unbind(1), written.unbind(1), strict=True):
        assert task.tokenizer.decode(ours.tolist()) == words.decode(theirs.tolist())


def test_what_it_draws_is_text_too(expert, inner, examples, theirs, task, words):
    options = {"sampling": Sampling()}
    drawn = inner.sample(
        theirs, max_steps=STEPS, generator=torch.Generator().manual_seed(0), **options
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


def test_no_token_of_the_experts_is_taken_for_padding(inner, words, task):
    others = copy.copy(task.tokenizer)
    others.special = SpecialTokens(pad=5, start=1, end=2)
    expert = CrossTokenizerExpert(inner, words, others, STEPS)
    texts = [pair.source for pair in task.train]
    view, own = expert.view(texts), encode_sources(texts, words)
    assert (own == 5).any()
    assert torch.equal(view == 5, own == words.special.pad)
    asked = []
    inner.write = lambda examples, **_: asked.append(examples) or examples
    expert.write(Examples(view, view), max_steps=LONG, beam_size=1)
    assert torch.equal(asked[0].source, own)


def test_distributions_and_steps_are_refused(expert, examples):
    states = Trajectories.from_examples(examples, expert.special)
    refusals = (
        lambda: expert.logits(states),
        lambda: expert.top_k(states, 2),
        lambda: expert.start(examples.source, STEPS),
        lambda: expert.complete(examples.source, states.actions, states.mask.sum(1)),
    )
    for ask in refusals:
        with pytest.raises(ExpertError, match="must have the student's tokenizer"):
            ask()
    assert expert.largest_k == 0


TEXT = "the house is schön"
LINES = ["the house was red", "there is a house", "red is the horse", "a road"]


@pytest.fixture(scope="module")
def tokenizers():
    """The expert's, of longer pieces, and the student's; in both an ö is two pieces."""
    return Tokenizer.train(LINES * 9, 290), Tokenizer.train(LINES * 9, 265)


class Speller(NoExpert):
    """Writes TEXT as long as its beginning is what stands there, and ends everything else."""

    def __init__(self, tokenizer):
        super().__init__(tokenizer.special)
        self.pieces = [*tokenizer.encode([TEXT])[0], self.special.end]

    def best_actions(self, trajectories):
        answers = torch.full_like(trajectories.actions, self.special.end)
        for row, place in trajectories.mask.nonzero().tolist():
            if trajectories.actions[row, :place].tolist() == self.pieces[:place]:
                answers[row, place] = self.pieces[place]
        return answers


def states_along(rows, expert):
    """The states of rows of the student's tokens, each for a source of the expert's."""
    width = max(map(len, rows)) + 1
    actions = torch.tensor([[*row, 2, *[0] * (width - len(row) - 1)] for row in rows])
    source = expert.view([f"red {line}" for line in LINES[: len(rows)]])
    return Trajectories.from_examples(Examples(actions, actions, source), expert.special)


def test_labels_spell_what_the_expert_would_write(tokenizers):
    theirs, ours = tokenizers
    expert = CrossTokenizerExpert(Speller(theirs), theirs, ours, LONG)
    (row,) = ours.encode([TEXT])
    assert len(row) > len(theirs.encode([TEXT])[0])
    (labels,) = expert.best_actions(states_along([row], expert)).tolist()
    boundaries = theirs.encode([TEXT])[0]
    for step, label in enumerate(labels[:-1]):
        text = TokenText(ours).texts([[*row[:step], label]])[0].rstrip("\N{REPLACEMENT CHARACTER}")
        assert TEXT.startswith(text) or label == ours.special.end, (step, text)
    assert labels[-1] == ours.special.end
    read = TokenText(theirs).texts(boundaries[:stop] for stop in range(len(boundaries)))
    for step, text in enumerate(TokenText(ours).texts(row[:step] for step in range(len(row)))):
        if text in read:
            assert labels[step] != ours.special.end, "a state that the expert knows"
    assert labels[-3:-1] == row[-2:], "the ö, byte by byte"


def test_a_label_is_what_the_expert_says_of_the_text_so_far(tokenizers):
    theirs, ours = tokenizers
    torch.manual_seed(1)
    model = Transformer(
        TransformerConfig(theirs.vocab_size, width=16, num_heads=2, feed_forward=32)
    ).eval()
    inner = NeuralExpert(model)
    expert = CrossTokenizerExpert(inner, theirs, ours, LONG)
    rows = ours.encode(LINES)
    rows = [one[:5] + other[3:] for one, other in pairwise([*rows, rows[0]])]
    states = states_along(rows, expert)
    labels = expert.best_actions(states)
    source = encode_sources([f"red {line}" for line in LINES[: len(rows)]], theirs)
    distinct, looks, known = set(), TokenText(theirs), TokenText(ours)
    for row, step in states.mask.nonzero().tolist():
        text = known.texts([rows[row][:step]])[0]
        tokens = theirs.encode([text])[0]
        more = ""
        for _ in range(4):
            asked = torch.tensor([[*tokens, 0]])
            distinct.add((row, *tokens))
            token = int(model.sequence_logits(source[row, None], asked)[0, -1, 3:].argmax()) + 3
            tokens = [*tokens, token]
            more = looks.texts([tokens])[0][len(text) :]
            if is_text(more):
                break
        expected = known.next(text, [], more) if is_text(more) else ours.special.end
        assert labels[row, step] == expected, (text, more)
    assert inner.queries.tokens == len(distinct)


def test_a_text_longer_than_the_expert_writes_is_over(tokenizers):
    theirs, ours = tokenizers
    expert = CrossTokenizerExpert(Speller(theirs), theirs, ours, 2)
    (row,) = ours.encode([TEXT])
    labels = expert.best_actions(states_along([row], expert))
    assert labels[0, 0] != ours.special.end
    assert (labels[0, len(row) // 2 :] == ours.special.end).all()


def test_imitkd_learns_from_labels_in_the_students_tokens(tokenizers):
    theirs, ours = tokenizers
    expert = CrossTokenizerExpert(Speller(theirs), theirs, ours, LONG)
    states = states_along([ours.encode([TEXT])[0]], expert)
    own = replace(states, writer=torch.full_like(states.writer, Writer.STUDENT))
    agent = ImitKD()
    agent.check_expert(expert)
    assert torch.equal(agent.labels(own, expert), expert.best_actions(own))
    with pytest.raises(ExpertError, match="got one that gives one token"):
        ImitKDFull().check_expert(expert)
