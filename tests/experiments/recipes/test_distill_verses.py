"""The shipped student in small: two runs, the better of which is written with its card."""

import json
from dataclasses import replace

import pytest

from tests.experiments.recipes.conftest import COPY
from textgen_env.models.storage import load_model, load_tokenizer
from textgen_env.models.teacher_layers import TeacherLayers
from textgen_experiments.recipes import configs, distill_verses
from textgen_experiments.recipes.distill_verses import DistillVersesOptions
from textgen_experiments.runs.folder import read_config
from textgen_experiments.runs.outcome import read_outcome
from textgen_experiments.runs.train import PREPARED, read_prepared


@pytest.fixture
def small(tmp_path, monkeypatch, copying, copy_teacher):
    """Return options for runs of four updates, of a student that copies texts."""
    make = configs.distilled_student

    def smaller(*args, **settings):
        return replace(copying(make(*args, **settings)), validation_pairs=4)

    monkeypatch.setattr(configs, "distilled_student", smaller)
    monkeypatch.setattr(configs, "SHIPPED_LAYERS", TeacherLayers(encoder=2, decoder=1))
    monkeypatch.setattr(distill_verses, "VERSES_TEACHER", copy_teacher)
    return DistillVersesOptions(tmp_path / "runs", updates=4, own_updates=2)


def test_the_better_student_is_written_with_scores_and_card(small, capsys):
    distill_verses.distill_verses(small)
    folder = small.output / "model"
    runs = [small.output / name for name in ("seqkd", "imitkd_star")]
    scores = json.loads((folder / "scores.json").read_text())
    assert scores["outcome"]["validation_bleu"] == max(
        read_outcome(run).validation_bleu for run in runs
    )
    _, texts = read_prepared(runs[0] / PREPARED)
    for name, once in (("train_seconds", texts.seconds), ("teacher_tokens_queried", texts.tokens)):
        both = sum(vars(read_outcome(run))[name] for run in runs)
        assert scores["outcome"][name] == pytest.approx(both - once)
    assert set(scores["speed"]) == {"float32", "bfloat16", "int8"}
    assert scores["outcome"]["test_pairs"] == COPY.num_test
    card = (folder / "README.md").read_text()
    assert "encoder 0 2, decoder 2 of 3 and 3" in card
    assert f"| this student | {scores['greedy']['bleu']:.1f} |" in card
    assert f"textgen generate {folder}" in capsys.readouterr().err
    assert load_model(folder).config == load_model(runs[0] / "model").config
    assert load_tokenizer(folder).vocab_size == load_tokenizer(runs[0] / "model").vocab_size


def test_the_second_run_goes_on_from_the_first(small):
    distill_verses.distill_verses(small)
    second = read_config(small.output / "imitkd_star").experiment
    assert second.student_init == small.output / "seqkd" / "model"
    texts = [small.output / name / PREPARED for name in ("seqkd", "imitkd_star")]
    assert texts[0].read_bytes() == texts[1].read_bytes()
    assert second.learner.learning_rate == pytest.approx(2e-4)
