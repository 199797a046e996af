"""Tests that the shipped teacher is as its model card says."""

import json
import os

import pytest

from textgen_agents.evaluation.quality import score, translate
from textgen_env.models.storage import load_model, load_tokenizer
from textgen_env.tasks import TASKS
from textgen_env.tasks.verses import verses
from textgen_experiments.recipes.teacher import NUM_SAMPLE_PAIRS
from textgen_experiments.runs.experiment import VERSES_TEACHER

MEGABYTE = 10**6


@pytest.fixture(scope="module")
def task():
    return verses(TASKS["verses"], load_tokenizer(VERSES_TEACHER))


def test_it_scores_what_its_card_says_on_a_fixed_sample(task):
    sample = task.test[:NUM_SAMPLE_PAIRS]
    hypotheses = translate(load_model(VERSES_TEACHER), task, [pair.source for pair in sample])
    quality = score(hypotheses, [pair.reference for pair in sample])
    expected = json.loads((VERSES_TEACHER / "scores.json").read_text())["sample"]
    assert quality.bleu == pytest.approx(expected["bleu"], abs=0.3)
    assert quality.chrf == pytest.approx(expected["chrf"], abs=0.3)
    assert quality.signature == expected["signature"]


def test_it_is_small_enough_to_ship():
    assert os.path.getsize(VERSES_TEACHER / "model.safetensors") <= 20 * MEGABYTE


def test_its_card_names_what_a_reader_must_know():
    card = (VERSES_TEACHER / "README.md").read_text()
    scores = json.loads((VERSES_TEACHER / "scores.json").read_text())
    assert f"{scores['greedy']['bleu']:.1f}" in card
    assert f"{scores['beam_5']['bleu']:.1f}" in card
    assert scores["greedy"]["signature"] in card
    assert "License" in card
    assert "textgen teacher" in card
