"""Tokenizers of pretrained models: special ids, encoding, decoding, saving and loading."""

import copy

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.support.pretrained import FAMILIES, TEXTS
from textgen_env.envs.rendering import _piece
from textgen_env.tokenizers.pretrained import PretrainedTokenizer
from textgen_env.tokenizers.subword import Tokenizer, same_pieces

FRAMES = {
    "marian": ((), (0,)),
    "t5": ((), (1,)),
    "bart": ((0,), (2,)),
    "llama": ((1,), ()),
    "gpt2": ((), ()),
    "qwen2": ((), ()),
}


@pytest.fixture(params=FAMILIES)
def named(request):
    return request.param, PretrainedTokenizer(FAMILIES[request.param].tokenizer())


def test_special_ids_are_distinct(named):
    name, tokenizer = named
    pad, start, end = tokenizer.special
    assert pad == start != end
    assert tokenizer.backend.convert_ids_to_tokens(end) == tokenizer.backend.eos_token
    added = name in ("llama", "gpt2")  # their padding is the unknown token, or missing
    assert (pad == len(tokenizer.backend)) == added
    assert tokenizer.vocab_size == len(tokenizer.backend) + added
    assert tokenizer.conventions.has_padding is not added


def test_conventions_hold_the_frame_of_a_source(named):
    name, tokenizer = named
    conventions = tokenizer.conventions
    assert (conventions.prefix, conventions.suffix) == FRAMES[name]
    assert (conventions.special, conventions.vocab_size) == (
        tokenizer.special,
        tokenizer.vocab_size,
    )


def test_decoding_inverts_encoding(named):
    _, tokenizer = named
    pad, _, end = tokenizer.special
    rows = tokenizer.encode(TEXTS)
    assert rows == tokenizer.encode_targets(TEXTS)
    assert not any({pad, end} & set(row) for row in rows)
    assert tokenizer.decode(rows) == TEXTS
    assert tokenizer.decode([[*row, end, 5, pad] for row in rows]) == TEXTS
    assert tokenizer.decode([[*row, pad, pad] for row in rows]) == TEXTS
    assert tokenizer.encode([]) == []


def test_special_tokens_spelled_in_a_text_are_plain_text():
    vocabulary = {piece: index for index, piece in enumerate(["<pad>", "</s>", *"</>pads ab"])}
    backend = Backend(models.BPE(vocabulary, []))
    special = {"pad_token": "<pad>", "eos_token": "</s>"}
    tokenizer = PretrainedTokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, **special))
    text = "a</s>b<pad>"
    (row,) = tokenizer.encode([text])
    assert len(row) == len(text)
    assert tokenizer.encode_targets([text]) == [row]
    assert tokenizer.decode([row])[0].replace(" ", "") == text


def test_saved_and_copied_tokenizers_are_the_same(named, tmp_path):
    _, tokenizer = named
    tokenizer.save(tmp_path / "tokenizer.json")
    for again in (PretrainedTokenizer.load(tmp_path), copy.deepcopy(tokenizer)):
        assert same_pieces(again, tokenizer)
        assert again.conventions == tokenizer.conventions
        assert again.encode(TEXTS) == tokenizer.encode(TEXTS)


def test_tokenizers_with_other_pieces_or_special_ids_differ():
    bart, marian, llama, gpt2 = (
        PretrainedTokenizer(FAMILIES[name].tokenizer())
        for name in ("bart", "marian", "llama", "gpt2")
    )
    assert not same_pieces(bart, marian)
    assert not same_pieces(llama, gpt2)
    padded = FAMILIES["llama"].tokenizer()
    padded.pad_token = padded.bos_token
    assert not same_pieces(llama, PretrainedTokenizer(padded))
    ours = Tokenizer.from_words(["one"])
    assert same_pieces(ours, Tokenizer.from_words(["one"]))
    assert not same_pieces(ours, Tokenizer.from_words(["two"]))


def test_an_id_of_padding_and_start_is_shown_as_padding(named):
    _, tokenizer = named
    assert _piece(tokenizer.special.pad, tokenizer) == "<pad>"
    assert _piece(tokenizer.special.end, tokenizer) == "</s>"


def test_long_texts_are_not_truncated():
    backend = FAMILIES["t5"].tokenizer()
    backend.model_max_length = 4
    backend._tokenizer.enable_truncation(4)  # some tokenizer files do this
    assert len(PretrainedTokenizer(backend).encode(["w1 " * 20])[0]) == 20


def test_a_tokenizer_without_end_is_refused():
    backend = Backend(models.WordLevel({"a": 0}, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    with pytest.raises(ValueError, match="must have an end token"):
        PretrainedTokenizer(PreTrainedTokenizerFast(tokenizer_object=backend))


@pytest.mark.filterwarnings("ignore:Recommended. pip install sacremoses")
def test_sentencepiece_models_encode_sources_and_targets_differently(tmp_path):
    """Encode with a Marian tokenizer: a model for each side and one vocabulary."""
    sentencepiece = pytest.importorskip("sentencepiece", reason="comes with the extra hf")
    import json

    from transformers import MarianTokenizer

    texts = {"source": "der Hund und die Katze", "target": "the dog and the cat"}
    vocabulary = {"</s>": 0, "<unk>": 1}
    for side, text in texts.items():
        (tmp_path / f"{side}.txt").write_text(f"{text}\n" * 30)
        sentencepiece.SentencePieceTrainer.train(
            input=str(tmp_path / f"{side}.txt"),
            model_prefix=str(tmp_path / side),
            vocab_size=24,
            hard_vocab_limit=False,
            minloglevel=2,
        )
        trained = sentencepiece.SentencePieceProcessor(str(tmp_path / f"{side}.model"))
        for index in range(len(trained)):
            vocabulary.setdefault(trained.IdToPiece(index), len(vocabulary))
        (tmp_path / f"{side}.model").rename(tmp_path / f"{side}.spm")
    vocabulary["<pad>"] = len(vocabulary)
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    files = (str(tmp_path / name) for name in ("source.spm", "target.spm", "vocab.json"))
    tokenizer = PretrainedTokenizer(MarianTokenizer(*files))
    tokenizer.save(tmp_path / "saved" / "tokenizer.json")
    for loaded in (tokenizer, PretrainedTokenizer.load(tmp_path / "saved")):
        assert loaded.conventions.suffix == (0,)
        assert loaded.special == (vocabulary["<pad>"], vocabulary["<pad>"], 0)
        (row,) = loaded.encode_targets([texts["target"]])
        assert 1 not in row  # the source's model would encode "w" as unknown
        assert loaded.decode([row]) == [texts["target"]]
        assert loaded.encode([texts["source"]]) != loaded.encode_targets([texts["source"]])
