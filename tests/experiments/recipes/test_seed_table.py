"""Rows of a study, from figures computed by hand."""

import json
from dataclasses import asdict, replace

import pytest

from textgen_env.tasks.task import Pair
from textgen_experiments.evaluation.scores import SCORES, ModelScores
from textgen_experiments.recipes.seed_table import markdown_tables, seed_cells, seed_row
from textgen_experiments.runs.folder import OUTCOME, RunError
from textgen_experiments.runs.outcome import Outcome

SENTENCE = "one two three four five six"
SCORED = ModelScores(
    bleu=10.0,
    chrf=30.0,
    bleu_by_length=[1.0, 2.0, None, 4.0, 5.0],
    student_prefix_agreement=0.4,
    reference_prefix_agreement=0.5,
    hypotheses=["six five four three two one"] * 20,
    signature="nrefs:1",
    length_ratio=0.9,
    repetition=0.1,
)
OUTCOME_OF_A_RUN = Outcome(9.0, 3, 60.0, 2_000_000, 20, 20)


@pytest.fixture
def task(tiny_task):
    return replace(tiny_task, test=[Pair(SENTENCE, SENTENCE)] * 20)


def write(folder, **figures):
    folder.mkdir()
    (folder / SCORES).write_text(json.dumps(asdict(replace(SCORED, **figures))))
    (folder / OUTCOME).write_text(json.dumps(asdict(OUTCOME_OF_A_RUN)))
    return folder


def test_figures_are_means_and_the_error_is_that_of_the_mean(tmp_path, task):
    runs = [write(tmp_path / "0", bleu=10.0), write(tmp_path / "1", bleu=14.0, length_ratio=1.1)]
    row = seed_row("mle", runs, runs, task)
    assert (row.bleu, row.bleu_error) == (12.0, 2.0)  # deviation 2.83 over the root of 2
    assert row.length_ratio == pytest.approx(1.0)
    assert row.bleu_by_length == [1.0, 2.0, None, 4.0, 5.0]
    assert (row.better, row.worse) == (None, None), "it is the baseline itself"
    assert row.teacher_tokens == 2_000_000


def test_a_figure_that_one_run_lacks_is_left_out(tmp_path, task):
    runs = [write(tmp_path / "0"), write(tmp_path / "1", repetition=None)]
    row = seed_row("mle", runs, runs, task)
    assert row.repetition is None
    assert row.expert_share is None
    assert seed_cells(row, "seqkd")["repeated 4-grams"] == ""


def test_each_seed_is_compared_with_the_baselines_of_its_seed(tmp_path, task):
    right = {"hypotheses": [SENTENCE] * 20, "bleu": 100.0}
    own = [write(tmp_path / "a0", **right), write(tmp_path / "a1")]
    base = [write(tmp_path / "b0"), write(tmp_path / "b1", **right)]
    row = seed_row("imitkd", own, base, task)
    assert (row.better, row.worse) == (1, 1)
    assert seed_cells(row, "seqkd")["better / worse than seqkd"] == "1 / 1 of 2"


def test_equal_texts_are_neither_better_nor_worse(tmp_path, task):
    row = seed_row("a", [write(tmp_path / "a")], [write(tmp_path / "b")], task)
    assert (row.better, row.worse) == (0, 0)


def test_markdown_has_a_table_for_each_title_and_the_signature_once(tmp_path, task):
    runs = [write(tmp_path / "0")]
    row = seed_row("mle", runs, runs, task)
    text = markdown_tables({"first": [row], "second": [row]}, "mle")
    assert text.count("| mle | 10.0 | 30.0 |") == 2, "one seed has no error"
    assert "## first" in text
    assert text.endswith("BLEU: `nrefs:1`\n")


def test_a_run_that_was_not_scored_is_named(tmp_path, task):
    with pytest.raises(RunError, match="run must have been scored"):
        seed_row("mle", [tmp_path], [tmp_path], task)
