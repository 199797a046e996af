"""Texts and labels of an expert with another tokenizer than the student's."""

import copy
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from textgen_agents.imitkd import ImitKD, ImitKDFull
from textgen_agents.losses.objectives import labels_by_writer
from textgen_agents.seqkd import SeqInter, SeqKD
from textgen_env.experts.cross_tokenizer import CrossTokenizerExpert
from textgen_env.experts.expert import ExpertError, NeuralExpert, NoExpert
from textgen_env.experts.token_text import INCOMPLETE, TokenText, is_visible
from textgen_env.generation.sampling import Sampling
from textgen_env.models.transformer import Transformer, TransformerConfig
from textgen_env.tasks.task import encode, encode_sources
from textgen_env.tokenizers.subword import Tokenizer
from textgen_env.types import Examples, SpecialTokens, Trajectories, Writer

EXPERT_STEPS, STUDENT_STEPS = 6, 40  # length limits in the expert's and the student's tokens


@pytest.fixture(scope="module")
def words(tiny_task):
    """Return the expert's tokenizer: a token a word, in another order than the task's."""
    pieces = [piece for piece in tiny_task.tokenizer.pieces if not piece.startswith("<")]
    return Tokenizer.from_words(sorted(pieces, reverse=True))


@pytest.fixture(scope="module")
def task(tiny_task):
    """Return the task in the student's tokens, which are bytes and pairs of them."""
    texts = [pair.source for pair in tiny_task.train]
    return replace(
        tiny_task,
        tokenizer=Tokenizer.train(texts, 262),
        max_source_length=STUDENT_STEPS,
        max_target_length=STUDENT_STEPS,
    )


@pytest.fixture
def inner(words):
    """Return an untrained teacher over the expert's words."""
    torch.manual_seed(0)
    size = TransformerConfig(words.vocab_size, width=16, num_heads=2, feed_forward=32)
    return NeuralExpert(Transformer(size).eval())


@pytest.fixture
def expert(inner, words, task):
    return CrossTokenizerExpert(inner, words, task.tokenizer, EXPERT_STEPS)


@pytest.fixture
def expert_examples(task, words):
    """Return the examples in the expert's own tokens."""
    source = encode_sources([pair.source for pair in task.train[:6]], words)
    return Examples(source, source)


@pytest.fixture
def examples(task, expert):
    """Return examples in the student's tokens with the expert's view in its own."""
    pairs = task.train[:6]
    own = encode(pairs, task)
    return Examples(own.source, own.reference, expert.view([pair.source for pair in pairs]))


def test_the_experts_texts_are_retokenized_for_the_student(
    expert, inner, examples, expert_examples, task, words
):
    written = inner.write(expert_examples, max_steps=EXPERT_STEPS, beam_size=2).reference
    asked = inner.queries.tokens
    answer = expert.write(examples, max_steps=STUDENT_STEPS, beam_size=2)
    texts = words.decode(written.tolist())
    assert all(texts)
    assert task.tokenizer.decode(answer.reference.tolist()) == texts
    assert answer.reference.shape[1] > written.shape[1]
    assert torch.equal(answer.source, examples.source)
    assert expert.queries.tokens == 2 * asked  # the expert's own count


def test_texts_are_written_for_sources_without_references(expert, examples):
    bare = replace(examples, reference=torch.zeros_like(examples.reference[:, :1]))
    texts, same = (
        expert.write(each, max_steps=STUDENT_STEPS, beam_size=2) for each in (bare, examples)
    )
    assert texts.has_reference(expert.special).all()
    assert torch.equal(texts.reference, same.reference)


def test_texts_are_truncated_at_the_students_limit(expert, examples):
    whole = expert.write(examples, max_steps=STUDENT_STEPS, beam_size=1).reference
    short = expert.write(examples, max_steps=4, beam_size=1).reference
    assert torch.equal(short, whole[:, :4])


def test_n_best_texts_are_retokenized_and_empty_rows_stay_padding(
    expert, inner, examples, expert_examples, task, words
):
    written = inner.write_n_best(expert_examples, max_steps=EXPERT_STEPS, beam_size=3)
    written[1, 2] = words.special.pad  # as where fewer were found
    inner.write_n_best = lambda *_, **__: written
    answer = expert.write_n_best(examples, max_steps=STUDENT_STEPS, beam_size=3)
    assert answer.shape[:2] == written.shape[:2]
    assert (answer[1, 2] == task.tokenizer.special.pad).all()
    for student_row, expert_row in zip(answer.unbind(1), written.unbind(1), strict=True):
        texts = words.decode(expert_row.tolist())
        assert task.tokenizer.decode(student_row.tolist()) == texts


def test_samples_are_retokenized(expert, inner, examples, expert_examples, task, words):
    options = {"sampling": Sampling()}
    drawn = inner.sample(
        expert_examples,
        max_steps=EXPERT_STEPS,
        generator=torch.Generator().manual_seed(0),
        **options,
    )
    answer = expert.sample(
        examples, max_steps=STUDENT_STEPS, generator=torch.Generator().manual_seed(0), **options
    )
    expected = words.decode(drawn.reference.tolist())
    assert task.tokenizer.decode(answer.reference.tolist()) == expected


@pytest.mark.parametrize("agent", [SeqKD(beam_size=2), SeqInter(beam_size=2)])
def test_agents_prepare_their_data_from_retokenized_texts(agent, expert, examples, task):
    prepared = agent.prepare(examples, expert, STUDENT_STEPS)
    texts = task.tokenizer.decode(prepared.reference.tolist())
    assert all(text.startswith("w") for text in texts)
    assert prepared.reference.shape[1] <= STUDENT_STEPS


def test_no_token_of_the_expert_is_mistaken_for_padding(inner, words, task):
    others = copy.copy(task.tokenizer)
    others.special = SpecialTokens(pad=5, start=1, end=2)
    expert = CrossTokenizerExpert(inner, words, others, EXPERT_STEPS)
    texts = [pair.source for pair in task.train]
    view, own = expert.view(texts), encode_sources(texts, words)
    assert (own == 5).any()
    assert torch.equal(view == 5, own == words.special.pad)
    asked = []
    inner.write = lambda examples, **_: asked.append(examples) or examples
    expert.write(Examples(view, view), max_steps=STUDENT_STEPS, beam_size=1)
    assert torch.equal(asked[0].source, own)


def test_distributions_and_steps_raise(expert, examples):
    states = Trajectories.from_examples(examples, expert.special)
    refusals = (
        lambda: expert.logits(states),
        lambda: expert.top_k(states, 2),
        lambda: expert.start(examples.source, EXPERT_STEPS),
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
    """Return the expert's tokenizer with longer tokens and the student's.

    An ö is two tokens in both.
    """
    return Tokenizer.train(LINES * 9, 290), Tokenizer.train(LINES * 9, 265)


class Speller(NoExpert):
    """Expert that continues prefixes of TEXT with TEXT and ends all others."""

    def __init__(self, tokenizer):
        super().__init__(tokenizer.special)
        self.tokens = [*tokenizer.encode([TEXT])[0], self.special.end]

    def best_actions(self, trajectories):
        labels = torch.full_like(trajectories.actions, self.special.end)
        for row, step in trajectories.mask.nonzero().tolist():
            if trajectories.actions[row, :step].tolist() == self.tokens[:step]:
                labels[row, step] = self.tokens[step]
        return labels


def trajectories_of(rows, expert):
    """Return trajectories of rows of student tokens, each with a source of the expert's."""
    width = max(map(len, rows)) + 1
    actions = torch.tensor([[*row, 2, *[0] * (width - len(row) - 1)] for row in rows])
    source = expert.view([f"red {line}" for line in LINES[: len(rows)]])
    return Trajectories.from_examples(Examples(actions, actions, source), expert.special)


def test_labels_spell_the_experts_text(tokenizers):
    expert_tokenizer, student_tokenizer = tokenizers
    expert = CrossTokenizerExpert(
        Speller(expert_tokenizer), expert_tokenizer, student_tokenizer, STUDENT_STEPS
    )
    (row,) = student_tokenizer.encode([TEXT])
    assert len(row) > len(expert_tokenizer.encode([TEXT])[0])
    (labels,) = expert.best_actions(trajectories_of([row], expert)).tolist()
    expert_tokens = expert_tokenizer.encode([TEXT])[0]
    for step, label in enumerate(labels[:-1]):
        text = TokenText(student_tokenizer).decode([[*row[:step], label]])[0].rstrip(INCOMPLETE)
        assert TEXT.startswith(text) or label == student_tokenizer.special.end, (step, text)
    assert labels[-1] == student_tokenizer.special.end
    known = TokenText(expert_tokenizer).decode(
        expert_tokens[:stop] for stop in range(len(expert_tokens))
    )
    for step, text in enumerate(
        TokenText(student_tokenizer).decode(row[:step] for step in range(len(row)))
    ):
        if text in known:
            assert labels[step] != student_tokenizer.special.end, "the expert continues this prefix"
    assert labels[-3:-1] == row[-2:], "the ö is spelled byte by byte"


def test_a_label_is_the_experts_continuation_of_the_prefix(tokenizers):
    expert_tokenizer, student_tokenizer = tokenizers
    torch.manual_seed(1)
    model = Transformer(
        TransformerConfig(expert_tokenizer.vocab_size, width=16, num_heads=2, feed_forward=32)
    ).eval()
    inner = NeuralExpert(model)
    expert = CrossTokenizerExpert(inner, expert_tokenizer, student_tokenizer, STUDENT_STEPS)
    rows = student_tokenizer.encode(LINES)
    rows = [one[:5] + other[3:] for one, other in pairwise([*rows, rows[0]])]
    states = trajectories_of(rows, expert)
    labels = expert.best_actions(states)
    source = encode_sources([f"red {line}" for line in LINES[: len(rows)]], expert_tokenizer)
    distinct, expert_text, student_text = (
        set(),
        TokenText(expert_tokenizer),
        TokenText(student_tokenizer),
    )
    for row, step in states.mask.nonzero().tolist():
        text = student_text.decode([rows[row][:step]])[0]
        tokens = expert_tokenizer.encode([text])[0]
        continuation = ""
        for _ in range(4):
            actions = torch.tensor([[*tokens, 0]])
            distinct.add((row, *tokens))
            token = int(model.sequence_logits(source[row, None], actions)[0, -1, 3:].argmax()) + 3
            tokens = [*tokens, token]
            continuation = expert_text.decode([tokens])[0][len(text) :]
            if is_visible(continuation):
                break
        expected = (
            student_text.next_token(text, [], continuation)
            if is_visible(continuation)
            else student_tokenizer.special.end
        )
        assert labels[row, step] == expected, (text, continuation)
    assert inner.queries.tokens == len(distinct)


def test_labels_beyond_the_experts_length_limit_are_end_tokens(tokenizers):
    expert_tokenizer, student_tokenizer = tokenizers
    expert = CrossTokenizerExpert(Speller(expert_tokenizer), expert_tokenizer, student_tokenizer, 2)
    (row,) = student_tokenizer.encode([TEXT])
    labels = expert.best_actions(trajectories_of([row], expert))
    assert labels[0, 0] != student_tokenizer.special.end
    assert (labels[0, len(row) // 2 :] == student_tokenizer.special.end).all()


def test_imitkd_learns_from_labels_in_the_students_tokens(tokenizers):
    expert_tokenizer, student_tokenizer = tokenizers
    expert = CrossTokenizerExpert(
        Speller(expert_tokenizer), expert_tokenizer, student_tokenizer, STUDENT_STEPS
    )
    states = trajectories_of([student_tokenizer.encode([TEXT])[0]], expert)
    own = replace(states, writer=torch.full_like(states.writer, Writer.STUDENT))
    ImitKD().check_expert(expert)
    assert torch.equal(labels_by_writer(own, expert), expert.best_actions(own))
    with pytest.raises(ExpertError, match="got one that gives one token"):
        ImitKDFull().check_expert(expert)
