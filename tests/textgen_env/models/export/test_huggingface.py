"""Tests of exports to `transformers`: same logits, same greedy tokens, same text."""

import json

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("transformers")
from tests.support.export_models import (
    constant_transformer,
    sources,
    student_for,
    varied_transformer,
)
from tests.support.pretrained import FAMILIES
from textgen_agents.evaluation.quality import translate_texts
from textgen_env.generation.decoding import decode_all
from textgen_env.models.storage import load_model, load_tokenizer
from textgen_env.models.transformer import Transformer, TransformerConfig
from textgen_env.tokenizers.subword import Tokenizer

transformers = pytest.importorskip("transformers")
from textgen_env.models.export.huggingface import load_hf, save_hf  # noqa: E402 - it imports transformers

TEXTS = ["Und Gott sprach: Es werde Licht!", "Größe", "a </s> b <pad>"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Return a model, its tokenizer, and the folder of its export."""
    folder = tmp_path_factory.mktemp("hf")
    model, tokenizer = varied_transformer()
    save_hf(model, tokenizer, folder, max_steps=25)
    return model, tokenizer, folder


def test_logits_are_the_same(exported):
    model, _, folder = exported
    source, actions = sources(9), sources(9, 30)
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder)
    assert type(theirs) is transformers.BlenderbotForConditionalGeneration
    assert not theirs.training
    with torch.no_grad():
        logits = theirs(
            input_ids=source,
            attention_mask=(source != 0).long(),
            decoder_input_ids=F.pad(actions[:, :-1], (1, 0), value=1),
        ).logits
        difference = (logits - model.sequence_logits(source, actions)).abs()
    assert difference[actions != 0][:, 2:].max() < 1e-4
    assert logits[:, :, :2].max() < -9000  # padding and start


def test_greedy_tokens_are_the_same(exported):
    model, _, folder = exported
    source = sources(40)
    ours = decode_all(model, source, 20)
    assert len(ours.unique(dim=0)) > 20
    assert 0.1 < (ours == 2).any(1).float().mean() < 0.9
    assert torch.equal(load_hf(folder)(source, 20), ours)


@pytest.mark.parametrize("name", ["marian", "t5"])
def test_a_student_with_a_pretrained_tokenizer_writes_the_same(name, tmp_path):
    FAMILIES[name].tokenizer().save_pretrained(tmp_path / "teacher")
    tokenizer = load_tokenizer(tmp_path / "teacher")
    model, source = student_for(tokenizer)
    save_hf(model, tokenizer, tmp_path, max_steps=25)
    ours = decode_all(model, source, 20)
    assert len(ours.unique(dim=0)) > 5
    assert torch.equal(load_hf(tmp_path)(source, 20), ours)
    assert torch.equal(decode_all(load_model(tmp_path), source, 20), ours)
    assert load_tokenizer(tmp_path).encode(["a w2"]) == tokenizer.encode(["a w2"])


def test_padding_and_start_are_never_written(tmp_path):
    model, tokenizer = constant_transformer([0, 1, 7])
    save_hf(model, tokenizer, tmp_path, max_steps=5)
    source = sources(2, 4)
    expected = torch.full((2, 5), 7)
    assert torch.equal(decode_all(model, source, 5), expected)
    assert torch.equal(load_hf(tmp_path)(source, 5), expected)


def test_text_goes_in_and_comes_out_as_here(tmp_path):
    tokenizer = Tokenizer.train(TEXTS, 280)
    torch.manual_seed(0)
    config = TransformerConfig(280, 16, num_heads=2, feed_forward=16, num_decoder_layers=1)
    model = Transformer(config).eval()
    save_hf(model, tokenizer, tmp_path, max_steps=6)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    inputs = theirs(TEXTS, padding=True, return_tensors="pt")
    read = [[token for token in row if token] for row in inputs["input_ids"].tolist()]
    assert read == [[*row, 2] for row in tokenizer.encode(TEXTS)]
    exported = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    written = theirs.batch_decode(exported.generate(**inputs), skip_special_tokens=True)
    assert written == translate_texts(model, tokenizer, TEXTS, max_steps=6)


def test_the_generation_config_is_that_of_greedy_decoding(exported):
    generation = json.loads((exported[2] / "generation_config.json").read_text())
    expected = {"decoder_start_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "num_beams": 1}
    assert generation.items() >= {**expected, "max_new_tokens": 25}.items()
    assert "forced_bos_token_id" not in generation


def test_the_tokenizer_is_read_here_too(exported):
    _, tokenizer, folder = exported
    assert load_tokenizer(folder).encode(["w3 w5"]) == tokenizer.encode(["w3 w5"])
