"""The paper's order in small: rates are chosen on validation, and each setting has its table."""

import json
from dataclasses import replace

import pytest

from tests.experiments.recipes.conftest import one_after_the_other
from textgen_env.models.teacher_layers import TeacherLayers
from textgen_experiments.recipes import configs, paper_order
from textgen_experiments.recipes.paper_order import PaperOrderOptions, order_runs
from textgen_experiments.runs.folder import read_config
from textgen_experiments.runs.outcome import read_outcome


@pytest.fixture
def small(tmp_path, monkeypatch, copying, copy_teacher):
    """Return options for which students copy texts, from scratch and from layers."""
    make = configs.paper_student
    monkeypatch.setattr(
        configs, "paper_student", lambda *args, **settings: copying(make(*args, **settings))
    )
    monkeypatch.setattr(configs, "VERSES_LAYERS", TeacherLayers(encoder=2, decoder=1))
    monkeypatch.setattr(paper_order, "VERSES_TEACHER", copy_teacher)
    monkeypatch.setattr(paper_order, "train_in_parallel", one_after_the_other)
    return PaperOrderOptions(
        output=tmp_path / "order", settings=("scratch", "copied"), seeds=2, pairs=20
    )


def test_each_agent_takes_the_rate_that_was_best_on_validation(small):
    paper_order.paper_order(replace(small, seeds=1, settings=("scratch",)))
    folder = small.output / "scratch"
    for name in ("mle", "seqkd", "imitkd", "imitkd_full"):
        tried = {rate: read_outcome(folder / f"{name}-rate-{rate:g}") for rate in small.rates}
        chosen = read_config(folder / f"{name}-0").experiment.learner.learning_rate
        assert tried[chosen].validation_bleu == max(each.validation_bleu for each in tried.values())


def test_settings_have_their_starts_and_teachers(small, copy_teacher):
    rates = dict.fromkeys(("mle", "seqkd", "imitkd", "imitkd_full"), 1e-3)
    scratch, copied, unsmoothed = (
        order_runs(small, setting, 1, rates) for setting in ("scratch", "copied", "unsmoothed")
    )
    assert {run.student_from_teacher for run in scratch.values()} == {None}
    assert {run.student_from_teacher for run in copied.values()} == {configs.VERSES_LAYERS}
    assert {run.teacher for run in scratch.values()} == {copy_teacher}
    assert {run.teacher for run in unsmoothed.values()} == {small.output / "teacher" / "model"}
    assert [folder.name for folder in copied] == [f"{name}-1" for name in rates][::-1]
    assert {run.train_draw for run in scratch.values()} == {1}


@pytest.mark.slow
def test_every_setting_has_a_table(small, capsys):
    paper_order.paper_order(small)
    content = json.loads((small.output / "results.json").read_text())
    assert list(content) == ["scratch", "copied"]
    for rows in content.values():
        assert [row["name"] for row in rows] == ["mle", "seqkd", "imitkd", "imitkd_full"]
        assert {row["seeds"] for row in rows} == {2}
    table = (small.output / "tables.md").read_text()
    assert "## from random weights" in table
    assert "## from the teacher's layers" in table
    assert "better / worse than seqkd" in capsys.readouterr().out


def test_a_setting_without_rates_is_refused():
    with pytest.raises(ValueError, match="must hold a learning rate each, got none"):
        PaperOrderOptions(rates=())
