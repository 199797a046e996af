"""Precisions that models act in: their products, the command line, and refusals."""

import io
import sys

import pytest
import torch

from tests.support.pretrained import FAMILIES, save_family
from textgen_env.generation.decoding import greedy
from textgen_env.models.acceleration.int8 import Int8Linear, with_int8_weights
from textgen_env.models.acceleration.prepacked import PrepackedLinear
from textgen_env.models.storage import load_model, save_model
from textgen_env.models.transformer import TransformerConfig
from textgen_env.tasks.task import encode_sources
from textgen_env.tokenizers.subword import Tokenizer
from textgen_experiments.cli import main
from textgen_experiments.runs.precisions import PRECISIONS, load_to_act

BYTES = Tokenizer.train([], vocab_size=259)
KINDS = {
    "float32": (torch.float32, PrepackedLinear),
    "bfloat16": (torch.bfloat16, PrepackedLinear),
    "int8": (torch.float32, Int8Linear),
}


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    save_model(TransformerConfig(259, 32, 2, 64).build(BYTES.special).eval(), tmp_path, BYTES)
    return tmp_path


@pytest.mark.parametrize("precision", PRECISIONS)
def test_each_precision_has_its_products(folder, precision):
    dtype, kind = KINDS[precision]
    model = load_to_act(folder, precision)
    assert any(type(module) is kind for module in model.modules())
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}


def generate(monkeypatch, folder, *options):
    output = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\nb c\n")))
    monkeypatch.setattr(sys, "stdout", output)
    main(["generate", str(folder), "--max-tokens", "9", *options])
    return output.buffer.getvalue().decode().splitlines()


@pytest.mark.parametrize("beam_size", ["1", "2"])
def test_a_command_writes_in_int8(folder, monkeypatch, beam_size):
    written = generate(monkeypatch, folder, "--precision", "int8", "--beam-size", beam_size)
    assert len(written) == 2
    if beam_size == "1":
        tokens = greedy(
            with_int8_weights(load_model(folder)), encode_sources(["a", "b c"], BYTES), 9
        )
        assert written == [" ".join(text.split()) for text in BYTES.decode(tokens.tolist())]


def test_a_pretrained_model_writes_in_int8(tmp_path, monkeypatch):
    save_family(FAMILIES["marian"], tmp_path)
    assert len(generate(monkeypatch, tmp_path, "--precision", "int8")) == 2
