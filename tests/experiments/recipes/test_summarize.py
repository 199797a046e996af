"""Test of the whole comparison in small, on a package of a hundred articles."""

import json
from dataclasses import replace

import pytest

from tests.support.data_packages import install
from textgen_agents.training.learner import LearnerConfig
from textgen_env.models.recurrent import RecurrentConfig
from textgen_env.models.transformer import TransformerConfig
from textgen_env.tasks.descriptions import ARTICLES
from textgen_experiments.recipes import configs, demo
from textgen_experiments.recipes.summarize import SummarizeOptions, summarize
from textgen_experiments.runs.train import train

SMALL = LearnerConfig(updates=2, batch_size=4, evaluate_every=2)


def one_after_the_other(runs):
    for folder, experiment in runs.items():
        train(experiment, folder, lambda update, record: None)


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Return options for runs of two updates, with articles in all three splits."""
    path = install(ARTICLES, tmp_path, monkeypatch)
    texts = {"extract": "An article is a text.", "description": "Text"}
    path.write_text(json.dumps({f"article {number}": texts for number in range(100)}))
    monkeypatch.setattr(demo, "train_in_parallel", one_after_the_other)
    for name, size in (
        ("descriptions_teacher", TransformerConfig(width=16, num_heads=2, feed_forward=16)),
        ("descriptions_student", RecurrentConfig(width=16)),
    ):
        make = getattr(configs, name)

        def smaller(*args, make=make, size=size, **settings):
            made = make(*args, **settings)
            pairs = made.train_pairs and 20
            return replace(
                made, student=size, learner=SMALL, train_pairs=pairs, precision="float32"
            )

        monkeypatch.setattr(configs, name, smaller)
    return SummarizeOptions(tmp_path / "runs")


def test_teacher_and_students_stand_in_one_table(small, capsys):
    summarize(small)
    shown, messages = capsys.readouterr()
    for file in ("results.json", "report.html"):
        assert (small.output / file).is_file()
        assert f"written to {small.output / file}\n" in messages, "one line, however long"
    assert "ROUGE-1 / 2 / L" in shown
    assert "of the descriptions 100% stand in their sources, of their words 100%" in " ".join(
        shown.split()
    )
    results = json.loads((small.output / "results.json").read_text())
    rows = {row["model"]: row for row in results["rows"]}
    assert list(rows) == ["teacher", "mle", "seqkd", "imitkd_full", "mle_all_pairs"]
    assert [row["train_pairs"] for row in rows.values()] == [None, 20, 20, 20, 90]
    assert all(0 <= row["rougeL"] <= 100 for row in rows.values())
    before = (small.output / "mle" / "metrics.jsonl").stat().st_mtime_ns
    summarize(small)
    assert (small.output / "mle" / "metrics.jsonl").stat().st_mtime_ns == before
