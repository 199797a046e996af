import pytest
import sacrebleu
import torch

from agents.evaluation import score, translate, translate_texts

HYPOTHESES = ["the cat sat on the mat .", "a dog barks loudly at night", "nothing here"]
REFERENCES = ["the cat sat on a mat .", "the dog barks loudly at night", "nothing is here"]


def test_scores_are_sacrebleus():
    quality = score(HYPOTHESES, REFERENCES)
    assert quality.bleu == sacrebleu.corpus_bleu(HYPOTHESES, [REFERENCES]).score
    assert quality.chrf == sacrebleu.corpus_chrf(HYPOTHESES, [REFERENCES]).score
    assert 0 < quality.bleu < 100


def test_the_signature_says_how_bleu_was_computed():
    signature = score(HYPOTHESES, REFERENCES).signature
    for part in ("nrefs:1", "case:mixed", "tok:13a", f"version:{sacrebleu.__version__}"):
        assert part in signature


def test_what_equals_its_reference_scores_100():
    quality = score(REFERENCES, REFERENCES)
    assert quality.bleu == pytest.approx(100)
    assert quality.chrf == pytest.approx(100)


def test_another_number_of_hypotheses_is_refused():
    with pytest.raises(ValueError, match=r"hypotheses must be as many as references \(3\), got 2"):
        score(HYPOTHESES[:2], REFERENCES)


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_translations_are_in_the_order_of_their_sources(tiny_task, make_table_model, batch_size):
    student = make_table_model(tiny_task, 3)
    sources = [pair.source for pair in tiny_task.validation]
    expected = [translate(student, tiny_task, [source])[0] for source in sources]
    assert len(set(expected)) > 3, "the test wants different translations"
    assert translate(student, tiny_task, sources, batch_size=batch_size) == expected


def test_translations_keep_to_the_limit_of_tokens(tiny_task, make_table_model):
    student = make_table_model(tiny_task, 0)
    with torch.no_grad():
        student.tables[..., student.special.end] = -100.0  # never ends
    sources = [pair.source for pair in tiny_task.validation]
    written = translate_texts(student, tiny_task.tokenizer, sources, max_steps=3)
    assert max(len(text.split()) for text in written) <= 3
