"""Rounded models, judged by their texts of validation sources."""

import pytest
import torch

from textgen_env.models.recurrent import RecurrentConfig
from textgen_env.models.storage import save_model
from textgen_experiments.evaluation import int8_quality
from textgen_experiments.evaluation.int8_quality import (
    Int8Quality,
    int8_keeps_quality,
    measure_int8_quality,
)


@pytest.fixture
def folder(tmp_path, tiny_task, monkeypatch):
    monkeypatch.setenv("TEXTGEN_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    model = RecurrentConfig(tiny_task.tokenizer.vocab_size, 16).build().eval()
    save_model(model, tmp_path / "model", tiny_task.tokenizer)
    return tmp_path / "model"


@pytest.mark.parametrize(
    ("quality", "is_worse"),
    [
        (Int8Quality(30.0, 28.0, 0.01), True),
        (Int8Quality(30.0, 29.9, 0.4), False),
        (Int8Quality(28.0, 30.0, 0.01), False),
    ],
)
def test_worse_is_a_lower_score_that_chance_does_not_explain(quality, is_worse):
    assert quality.is_worse == is_worse


def test_both_precisions_are_scored_on_the_same_texts(folder, tiny_task):
    found = measure_int8_quality(folder, tiny_task)
    assert 0 <= found.int8 <= 100
    assert 0 < found.p_value <= 1


def test_it_is_measured_once_for_the_weights_and_told(folder, tiny_task, monkeypatch, capsys):
    answers = iter([Int8Quality(30.0, 28.0, 0.01), Int8Quality(30.0, 30.0, 1.0)])
    monkeypatch.setattr(int8_quality, "measure_int8_quality", lambda *_: next(answers))
    assert not int8_keeps_quality(folder, tiny_task)
    assert not int8_keeps_quality(folder, tiny_task)
    line = capsys.readouterr().err.splitlines()[0]
    assert line == (
        f"int8: {folder} has BLEU 28.0, and 30.0 in float32, on 12 validation pairs (p 0.010): "
        "which is worse"
    )
    torch.manual_seed(1)
    model = RecurrentConfig(tiny_task.tokenizer.vocab_size, 16).build().eval()
    save_model(model, folder, tiny_task.tokenizer)
    assert int8_keeps_quality(folder, tiny_task)
