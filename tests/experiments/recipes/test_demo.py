"""The demo in small: one table, a page, and what to do next."""

import json
from dataclasses import replace

import pytest

from tests.experiments.recipes.conftest import one_after_the_other
from textgen_env.models.storage import load_model, load_tokenizer, save_model
from textgen_env.models.teacher_layers import TeacherLayers
from textgen_experiments.recipes import configs, demo
from textgen_experiments.recipes.demo import DemoOptions, demo_experiments


@pytest.fixture
def small(tmp_path, monkeypatch, copying, copy_teacher):
    """Return options for which students copy texts; the shipped one is the teacher itself."""
    make, shipped = configs.verses_student, tmp_path / "shipped"
    save_model(load_model(copy_teacher), shipped, load_tokenizer(copy_teacher))
    known = {
        "validation_bleu": 1.0,
        "best_update": 2,
        "train_seconds": 3600.0,
        "teacher_tokens_queried": 5,
        "train_pairs": 6,
        "test_pairs": 7,
    }
    (shipped / "scores.json").write_text(
        json.dumps({"agent": "seqkd", "seed": 0, "outcome": known})
    )

    def smaller(*args, **settings):
        made = copying(make(*args, **settings))
        pairs = made.train_pairs and 20
        layers = TeacherLayers(encoder=1, decoder=1)
        return replace(made, train_pairs=pairs, student_from_teacher=layers)

    monkeypatch.setattr(configs, "verses_student", smaller)
    monkeypatch.setattr(configs, "shipped_students", lambda: {"shipped student": shipped})
    monkeypatch.setattr(demo, "train_in_parallel", one_after_the_other)
    return DemoOptions(tmp_path / "runs")


def test_students_stand_beside_the_teacher_and_the_shipped_student(small, capsys):
    demo.demo(small)
    shown, messages = capsys.readouterr()
    rows = json.loads((small.output / "results.json").read_text())["rows"]
    names = ["mle", "seqkd", "imitkd", "imitkd_full", "mle_all_pairs"]
    assert [row["model"] for row in rows] == ["teacher", *names, "shipped student"]
    assert rows[-1]["train_seconds"] == 3600.0
    assert rows[-1]["bleu"] == rows[0]["bleu"], "it is the same model"
    assert [row["train_pairs"] for row in rows[1:-1]] == [20, 20, 20, 20, 40]
    assert "shipped student" in shown
    assert (small.output / "report.html").is_file()
    best = max(rows[1:-1], key=lambda row: row["bleu"])["model"]
    assert f"best student: {small.output / best}\n" in messages
    assert f"| textgen generate {small.output / best}\n" in messages
    assert not (small.output / "mle" / "exposure.json").exists()


def test_students_begin_alike_and_only_some_read_sources():
    made = demo_experiments(3)
    assert {run.student_from_teacher for run in made.values()} == {configs.DEMO_LAYERS}
    assert {run.learner.frozen for run in made.values()} == {configs.DEMO_FROZEN}
    assert {run.learner.updates for run in made.values()} == {configs.DEMO_UPDATES}
    assert {run.learner.seed for run in made.values()} == {3}
    reading = [name for name, run in made.items() if run.train_sources is None]
    assert reading == ["imitkd", "imitkd_full"]
    assert made["mle_all_pairs"].train_pairs is None


def test_the_shipped_students_names_are_their_folders():
    for folder in configs.shipped_students().values():
        assert (folder / "model.safetensors").is_file()
