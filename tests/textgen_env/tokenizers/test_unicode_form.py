import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from textgen_env.tokenizers.pretrained import PretrainedTokenizer
from textgen_env.tokenizers.subword import Tokenizer
from textgen_env.tokenizers.unicode_form import unicode_form


def pretrained(normalizer, pieces):
    """Return a tokenizer of one-character pieces behind a normalizer."""
    special = ["<unk>", "</s>", "<pad>"]
    vocabulary = {piece: index for index, piece in enumerate([*special, *pieces])}
    backend = Backend(models.BPE(vocabulary, [], unk_token="<unk>"))
    backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    backend.decoder = decoders.Fuse()
    named = {"unk_token": "<unk>", "eos_token": "</s>", "pad_token": "<pad>"}
    return PretrainedTokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, **named))


ALL = "aefi\u00e9\u0301\u0438\u0306\u0439\ufb01"
CASES = [
    (normalizers.NFC(), ALL, "NFC"),
    (normalizers.NFD(), ALL, "NFD"),
    (normalizers.NFKC(), ALL, "NFKC"),
    (normalizers.NFKD(), ALL, "NFKD"),
    (None, ALL, None),
    (None, "ae\u00e9", "NFC"),  # cannot write the accent alone
    (normalizers.NFKC(), "fi\u0438\u0439", "NFKC"),  # of another script
    (normalizers.NFC(), "fi", None),
]


@pytest.mark.parametrize(("normalizer", "pieces", "form"), CASES)
def test_the_form_is_that_of_the_normalizer(normalizer, pieces, form):
    assert unicode_form(pretrained(normalizer, pieces)) == form


def test_our_tokenizers_compose():
    assert unicode_form(Tokenizer.train([], vocab_size=259)) == "NFC"
    assert unicode_form(Tokenizer.from_words(["a"])) is None
