"""Tests of the parts shared by all export formats."""

import pytest

from textgen_env.models.export.common import ExportError, exportable, served_tokenizer
from textgen_env.models.hybrid import HybridConfig
from textgen_env.models.recurrent import RecurrentConfig
from textgen_env.models.storage import load_tokenizer
from textgen_env.models.transformer import Transformer, TransformerConfig
from textgen_env.tokenizers.subword import Tokenizer
from textgen_env.types import SpecialTokens

TEXTS = ["Und Gott sprach: Es werde Licht!", "Größe", "a </s> b <pad>", ""]


def pairs():
    return Tokenizer.train(TEXTS, 280)


def words():
    return Tokenizer.from_words([*"abc", "Licht"])


@pytest.mark.parametrize("tokenizer", [pairs(), words()])
def test_the_served_tokenizer_ends_texts(tokenizer):
    texts = TEXTS if tokenizer.vocab_size > 10 else ["a Licht", "b"]
    served = served_tokenizer(tokenizer)
    served.encode_special_tokens = True
    expected = [[*row, tokenizer.special.end] for row in tokenizer.encode(texts)]
    assert [served.encode(text).ids for text in texts] == expected


@pytest.mark.parametrize("tokenizer", [pairs(), words()])
def test_the_served_tokenizer_decodes_the_same(tokenizer):
    texts = TEXTS if tokenizer.vocab_size > 10 else ["a Licht", "b"]
    rows = [[*row, 2, 0, 0] for row in tokenizer.encode(texts)]
    assert served_tokenizer(tokenizer).decode_batch(rows) == tokenizer.decode(rows) == texts


def test_serving_a_tokenizer_does_not_change_it():
    tokenizer = pairs()
    before = tokenizer.encode(TEXTS)
    served_tokenizer(tokenizer)
    assert tokenizer.encode(TEXTS) == before


@pytest.mark.parametrize(
    "config",
    [RecurrentConfig(280, width=8), HybridConfig(280, width=8)],
    ids=["recurrent", "hybrid"],
)
def test_a_recurrent_student_is_refused_with_a_remedy(config):
    kind = type(model := config.build()).__name__
    message = rf"got a {kind}: export to onnx, .* --student transformer"
    with pytest.raises(ExportError, match=message):
        exportable(model, pairs())


@pytest.mark.parametrize(
    ("vocab_size", "special"), [(270, SpecialTokens()), (280, SpecialTokens(pad=3))]
)
def test_a_model_of_another_tokenizer_is_refused(vocab_size, special):
    config = TransformerConfig(vocab_size, 8, num_heads=2, feed_forward=8)
    with pytest.raises(ExportError, match="must have its tokenizer's special tokens"):
        exportable(Transformer(config, special), pairs())


def test_a_tokenizer_that_puts_more_around_a_text_is_refused(tmp_path):
    pretrained = pytest.importorskip("tests.support.pretrained")
    pretrained.FAMILIES["bart"].tokenizer().save_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    config = TransformerConfig(tokenizer.vocab_size, 8, num_heads=2, feed_forward=8)
    with pytest.raises(ExportError, match=r"nothing but the end token \(2\) .* got \(0,\) before"):
        exportable(Transformer(config, tokenizer.special), tokenizer)
