"""Tests of pretrained models on disk: loading, saving, adapters, errors in one line."""

import json
import sys
import time
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from tests.support.pretrained import FAMILIES, TEXTS, save_family
from textgen_env.generation.decoding import greedy
from textgen_env.models.huggingface.load import PretrainedError, local_folder
from textgen_env.models.model_files import ModelFileError
from textgen_env.models.recurrent import Recurrent, RecurrentConfig
from textgen_env.models.storage import load_model, load_tokenizer, save_model
from textgen_env.tasks.task import encode_sources


@pytest.fixture
def llama(tmp_path):
    """Return the folder of a random Llama without a padding token."""
    return save_family(FAMILIES["llama"], tmp_path / "llama")


def logits_of(model, tokenizer):
    source = encode_sources(TEXTS, tokenizer)
    with torch.no_grad():
        return model.sequence_logits(source, source)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_saved_model_comes_back_and_is_one_of_transformers(name, tmp_path):
    folder = save_family(FAMILIES[name], tmp_path / "first")
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    save_model(model, tmp_path / "again", tokenizer)
    again, read = load_model(tmp_path / "again"), load_tokenizer(tmp_path / "again")
    assert again.conventions == model.conventions == read.conventions
    assert torch.equal(logits_of(again, read), logits_of(model, tokenizer))
    auto = AutoModelForSeq2SeqLM if name in ("marian", "t5", "bart") else AutoModelForCausalLM
    _, found = auto.from_pretrained(tmp_path / "again", output_loading_info=True)
    assert not any(found.values())


@pytest.mark.parametrize("name", FAMILIES)
def test_its_state_holds_every_weight_once(name, tmp_path):
    """Save and load a state, in which safetensors refuse a weight with two names."""
    folder = save_family(FAMILIES[name], tmp_path / "model")
    model, other = load_model(folder), load_model(folder)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5)
    save_file(other.state_dict(), tmp_path / "state.safetensors")
    model.load_state_dict(load_file(tmp_path / "state.safetensors"))
    tokenizer = load_tokenizer(folder)
    assert torch.equal(logits_of(model, tokenizer), logits_of(other, tokenizer))
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict(dict(list(other.state_dict().items())[1:]))


def test_adapters_begin_as_nothing_and_alone_are_trained_and_kept(llama, tmp_path):
    torch.manual_seed(0)
    model, tokenizer = load_model(llama, lora_rank=2), load_tokenizer(llama)
    plain = load_model(llama)
    torch.testing.assert_close(logits_of(model, tokenizer), logits_of(plain, tokenizer))
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained == set(model.state_dict())
    assert sum(weight.numel() for weight in model.state_dict().values()) < sum(
        weight.numel() for weight in plain.parameters()
    )
    with torch.no_grad():
        for weight in model.state_dict().values():
            weight.normal_(std=0.1)
    changed = logits_of(model, tokenizer)
    assert not torch.allclose(changed, logits_of(plain, tokenizer), atol=1e-2)
    torch.manual_seed(1)
    other = load_model(llama, lora_rank=2)
    other.load_state_dict(model.state_dict())
    assert torch.equal(logits_of(other, tokenizer), changed)
    save_model(model, tmp_path / "merged", tokenizer)
    merged = load_model(tmp_path / "merged")
    torch.testing.assert_close(logits_of(merged, tokenizer), changed, rtol=1e-4, atol=1e-4)
    assert torch.equal(logits_of(model, tokenizer), changed)  # saving changes nothing


@pytest.mark.parametrize("name", ["marian", "t5", "bart"])
def test_adapters_fit_encoder_decoders(name, tmp_path):
    folder = save_family(FAMILIES[name], tmp_path / name)
    model, tokenizer = load_model(folder, lora_rank=2), load_tokenizer(folder)
    source = encode_sources(TEXTS, tokenizer)
    assert torch.equal(greedy(model, source, 5), greedy(load_model(folder), source, 5))
    model.train().sequence_logits(source, source).sum().backward()
    graded = {name for name, weight in model.named_parameters() if weight.grad is not None}
    assert graded == set(model.state_dict())


def test_a_model_of_ones_own_keeps_a_pretrained_tokenizer(llama, tmp_path):
    tokenizer = load_tokenizer(llama)
    model = Recurrent(RecurrentConfig(tokenizer.vocab_size, width=16), tokenizer.special).eval()
    for _ in range(2):  # the second time over the first
        save_model(model, tmp_path / "own", tokenizer)
    read, loaded = load_tokenizer(tmp_path / "own"), load_model(tmp_path / "own")
    assert (read.special, read.pieces) == (tokenizer.special, tokenizer.pieces)
    assert loaded.special == tokenizer.special
    assert torch.equal(logits_of(loaded, read), logits_of(model, tokenizer))


def test_adapters_of_other_models_are_refused(llama, tmp_path):
    save_model(Recurrent(RecurrentConfig(30, width=16)), tmp_path / "own")
    with pytest.raises(ValueError, match="lora_rank must be None for a model that is no pre"):
        load_model(tmp_path / "own", lora_rank=2)
    with pytest.raises(ValueError, match="lora_rank must be at least 1 or None, got 0"):
        load_model(llama, lora_rank=0)


def test_the_weights_are_in_the_dtype_asked_for(llama):
    model = load_model(llama, torch.bfloat16)
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    assert not model.training


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_folder_without_tokenizer_or_weights_is_named(llama):
    (llama / "model.safetensors").unlink()
    with pytest.raises(PretrainedError, match="llama must hold a model that transf") as error:
        load_model(llama)
    assert "model.safetensors" in one_line(error)
    for path in llama.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(PretrainedError, match="llama must hold a tokenizer that tra") as error:
        load_model(llama)
    one_line(error)


def test_missing_weights_are_named(llama):
    weights = load_file(llama / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, llama / "model.safetensors", {"format": "pt"})
    with pytest.raises(PretrainedError, match=r"no weights for model.norm.weight"):
        load_model(llama)


@pytest.mark.parametrize("size", [0, 4, -1])
def test_truncated_weights_are_named(llama, size):
    path = llama / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ModelFileError, match=r"model\.safetensors must be a whole") as error:
        load_model(llama)
    one_line(error)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "unheard-of"}, "unheard-of"),
        ({"model_type": "mamba", "architectures": ["MambaForCausalLM"]}, "llama must hold"),
        ({"layer_types": ["linear_attention", "full_attention"]}, "all layers must be of atte"),
    ],
)
def test_models_of_other_kinds_are_refused(llama, change, message):
    path = llama / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(PretrainedError, match=message) as error:
        load_model(llama)
    one_line(error)


def test_a_tokenizer_larger_than_the_model_is_refused(llama):
    tokenizer = load_tokenizer(llama)
    tokenizer.backend.add_tokens(["new", "newer"])
    tokenizer.save(llama / "tokenizer.json")
    with pytest.raises(PretrainedError, match="must have at most the model's 28 pieces: 30"):
        load_model(llama)


@pytest.mark.parametrize("load", [load_model, load_tokenizer])
def test_a_name_that_cannot_be_reached_says_so_quickly(load, monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # a port without a server
    monkeypatch.chdir(tmp_path)
    start = time.monotonic()
    with pytest.raises(PretrainedError, match="got nobody/nothing: there is no such") as error:
        load(Path("nobody/nothing"))
    assert time.monotonic() - start < 5
    assert "hf download nobody/nothing --local-dir FOLDER" in one_line(error)


@pytest.mark.parametrize("name", ["/nowhere", "a/b/c", "../model"])
def test_what_can_be_no_name_is_not_looked_up(name):
    assert local_folder(Path(name)) == Path(name)


@pytest.mark.parametrize("missing", ["transformers", "peft", "huggingface_hub"])
def test_a_missing_extra_is_named(llama, missing, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    name = Path("nobody/nothing") if missing == "huggingface_hub" else llama
    with pytest.raises(PretrainedError, match=r"pip install textgen-env\[hf\]") as error:
        load_model(name, lora_rank=2)
    one_line(error)
