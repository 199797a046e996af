"""Teacher's probabilities of single tokens against those computed step by step in float64."""

from collections import Counter

import pytest
import torch

from textgen_agents.evaluation.quality import translate
from textgen_env.experts.expert import NeuralExpert
from textgen_env.tasks.splits import make_task
from textgen_env.tasks.task import Pair, encode
from textgen_env.tokenizers.subword import Tokenizer
from textgen_experiments.reporting.token_view import END_TEXT, read_tokens, text_of


@pytest.fixture
def models(tiny_task, make_table_model):
    """Return student and teacher: tables of the source's first token, the last one and the step."""
    return make_table_model(tiny_task, 0), make_table_model(tiny_task, 1)


def test_probabilities_are_the_teachers_on_the_students_own_prefix(tiny_task, models):
    student, teacher = models
    texts = read_tokens(student, NeuralExpert(teacher), tiny_task, tiny_task.test)
    written = translate(student, tiny_task, [pair.source for pair in tiny_task.test])
    source = encode(tiny_task.test, tiny_task).source
    for row, tokens in enumerate(texts):
        assert text_of(tokens) == written[row]
        ids = [*tiny_task.tokenizer.encode([written[row]])[0], teacher.special.end][: len(tokens)]
        previous = teacher.special.start
        for place, (token, action) in enumerate(zip(tokens, ids, strict=True)):
            tables = teacher.tables.detach().double()
            logits = tables[0, source[row, 0]] + tables[1, previous] + tables[2, place]
            probs = logits.softmax(0)
            assert token.probability == pytest.approx(float(probs[action]), rel=1e-3)
            assert token.rank == 1 + int((probs > probs[action]).sum())
            best = [likely for _, likely in token.best]
            assert best == pytest.approx(probs.sort(descending=True).values[:5].tolist(), rel=1e-3)
            if token.rank <= 5:
                assert token.best[token.rank - 1] == (token.text, token.probability)
            previous = action


def dictated(tokenizer, text, make_table_model, task):
    """Return a model that writes `text` for every source."""
    model = make_table_model(task, 0)
    with torch.no_grad():
        model.tables.zero_()
        for place, token in enumerate([*tokenizer.encode([text])[0], model.special.end]):
            model.tables[2, place, token] = 10.0
    return model


@pytest.mark.parametrize("text", ["Grüße, 漢字!", "a", "\N{GRINNING FACE}", "</s> and ⟨end⟩"])
def test_pieces_of_characters_come_together(text, make_table_model):
    tokenizer = Tokenizer.train(["a plain text"] * 3, vocab_size=270)
    pairs = [Pair("a", text)]
    task = make_task(
        "texts",
        dict.fromkeys(("train", "validation", "test"), pairs),
        tokenizer,
        vocab_size=270,
        max_tokens=40,
        dropped=Counter(),
    )
    student = dictated(tokenizer, text, make_table_model, task)
    (tokens,) = read_tokens(student, NeuralExpert(student), task, pairs)
    assert "".join(token.text for token in tokens).strip() == text + END_TEXT
    assert text_of(tokens) == text
    assert all(token.rank == 1 and token.best[0][0] == token.text for token in tokens)
