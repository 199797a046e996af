"""The student that comes with the project is what its card says."""

import json
import os

import pytest

from textgen_agents.evaluation.quality import quality_on
from textgen_env.models.storage import load_model, load_tokenizer
from textgen_env.tasks import TASKS
from textgen_env.tasks.verses import verses
from textgen_env.tokenizers.subword import same_pieces
from textgen_experiments.runs.experiment import VERSES_STUDENT, VERSES_TEACHER

SAMPLE_PAIRS = 100  # the first test pairs


@pytest.fixture(scope="module")
def known():
    return json.loads((VERSES_STUDENT / "scores.json").read_text())


def test_it_is_nearly_as_good_as_its_teacher_on_a_sample():
    tokenizer = load_tokenizer(VERSES_STUDENT)
    assert same_pieces(tokenizer, load_tokenizer(VERSES_TEACHER))
    task = verses(TASKS["verses"], tokenizer)
    teacher, student = (
        quality_on(load_model(folder), task, task.test[:SAMPLE_PAIRS]).bleu
        for folder in (VERSES_TEACHER, VERSES_STUDENT)
    )
    assert student > teacher - 3  # the interval of a hundred pairs is wider


def test_it_is_within_one_point_of_its_teacher_and_faster(known):
    assert known["teacher"]["bleu"] - known["greedy"]["bleu"] <= 1.0
    assert all(speed["speedup"] > 1 for speed in known["speed"].values())


def test_its_folder_has_at_most_12_megabytes():
    assert sum(os.path.getsize(path) for path in VERSES_STUDENT.iterdir()) <= 12e6


def test_its_card_says_what_it_scores_and_how_it_was_made(known):
    card = (VERSES_STUDENT / "README.md").read_text()
    assert f"| this student | {known['greedy']['bleu']:.1f} |" in card
    assert known["greedy"]["signature"] in card
    for part in ("textgen distill-verses", "License", "layers of the teacher"):
        assert part in card
