"""The precision that a model acts in fastest: the choice, and what the command line tells."""

import io
import sys

import pytest
import torch

from tests.support.pretrained import FAMILIES, save_family
from textgen_env.models.storage import save_model
from textgen_env.models.transformer import TransformerConfig
from textgen_env.tokenizers.subword import Tokenizer
from textgen_experiments.cli import main
from textgen_experiments.evaluation import fastest_precision
from textgen_experiments.evaluation.fastest_precision import (
    ActingSpeeds,
    measure_speeds,
    resolve_precision,
)
from textgen_experiments.runs.precisions import load_to_act

BYTES = Tokenizer.train([], vocab_size=259)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TEXTGEN_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    config = TransformerConfig(259, 32, 2, 64)
    save_model(config.build(BYTES.special).eval(), tmp_path / "model", BYTES)
    return tmp_path / "model"


@pytest.mark.parametrize(
    ("bfloat16", "int8", "chosen"),
    [
        (0.9, 1.05, "float32"),
        (1.05, 0.9, "float32"),
        (1.5, 1.6, "bfloat16"),
        (1.5, 1.7, "int8"),
        (0.8, 1.2, "int8"),
    ],
)
def test_a_less_exact_precision_must_be_clearly_faster(bfloat16, int8, chosen):
    assert ActingSpeeds(bfloat16, int8).fastest == chosen


def test_a_model_of_this_project_is_measured_in_all_precisions(folder):
    speeds = measure_speeds(load_to_act(folder, "float32"), folder, 2)
    assert speeds.bfloat16 > 0
    assert speeds.int8 > 0


def test_a_pretrained_model_is_measured_in_all_precisions(tmp_path):
    save_family(FAMILIES["marian"], tmp_path)
    speeds = measure_speeds(load_to_act(tmp_path, "float32"), tmp_path, 2)
    assert min(speeds.bfloat16, speeds.int8) > 0


def test_int8_is_not_taken_where_it_must_not_be(folder, monkeypatch):
    answers = iter([ActingSpeeds(1.5, 2.0), ActingSpeeds(1.0, 2.0)])
    monkeypatch.setattr(fastest_precision, "measure_speeds", lambda *_: next(answers))
    found = [resolve_precision("fastest", folder, rows, lambda: False) for rows in (4, 1)]
    assert found == ["bfloat16", "float32"]


def test_what_is_chosen_is_told_and_the_same_the_next_time(folder, monkeypatch, capsys):
    answers = iter([ActingSpeeds(1.5, 2.0), ActingSpeeds(1.5, 0.1)])
    monkeypatch.setattr(fastest_precision, "measure_speeds", lambda *_: next(answers))
    found = [resolve_precision("fastest", folder, rows) for rows in (4, 4, 1, 4)]
    assert found == ["int8", "int8", "bfloat16", "int8"]
    first, *_ = capsys.readouterr().err.splitlines()
    assert first == (
        "precision: int8 (at 4 rows and 1 threads bfloat16 has 1.50 and int8 2.00 of float32's "
        "speed)"
    )


def test_what_the_user_chooses_is_not_measured(folder, monkeypatch):
    monkeypatch.delattr(fastest_precision, "measure_speeds")
    assert resolve_precision("bfloat16", folder, 4) == "bfloat16"


def test_generate_takes_the_fastest(folder, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\nb c\n")))
    output = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    monkeypatch.setattr(sys, "stdout", output)
    command = ["generate", str(folder), "--precision", "fastest", "--max-tokens", "3"]
    main([*command, "--batch-size", "2"])
    assert len(output.buffer.getvalue().splitlines()) == 2
    assert capsys.readouterr().err.startswith("precision: ")
