"""Tests of a small study end to end, with figures computed by hand."""

import json
import statistics
from dataclasses import replace

import pytest

from textgen_agents.mle import MLE
from textgen_agents.training.learner import LearnerConfig
from textgen_env.experts.expert import NeuralExpert
from textgen_env.models.recurrent import RecurrentConfig
from textgen_env.models.storage import save_model
from textgen_env.tasks.copy import CopyConfig
from textgen_experiments.evaluation import scores
from textgen_experiments.evaluation.scores import read_scores
from textgen_experiments.recipes import configs, study
from textgen_experiments.recipes.study import StudyOptions, study_runs
from textgen_experiments.runs.experiment import Experiment
from textgen_experiments.runs.factories import build_model, build_task
from textgen_experiments.runs.folder import RunError
from textgen_experiments.runs.train import PREPARED, read_outcome

TASK = CopyConfig(num_words=8, max_length=8, num_train=40, num_validation=4, num_test=30)


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Return options for which `verses_student` copies texts, with an untrained teacher."""
    tokenizer = build_task(TASK, None).tokenizer
    teacher = build_model(RecurrentConfig(tokenizer.vocab_size, width=16), 0)
    save_model(teacher, tmp_path / "teacher", tokenizer)

    def demo(agent, seed=0, train_pairs=None):
        return Experiment(
            task=TASK,
            teacher=tmp_path / "teacher",
            student=RecurrentConfig(width=16),
            agent=agent,
            learner=LearnerConfig(updates=4, batch_size=4, evaluate_every=4, seed=seed),
            train_pairs=train_pairs,
            precision="float32",
        )

    monkeypatch.setattr(configs, "verses_student", demo)
    return StudyOptions(
        output=tmp_path / "study",
        agents=("mle", "seqkd"),
        seeds=2,
        updates=4,
        pairs=20,
        more_pairs=(10, 0),
    )


def test_every_agent_has_a_row_for_each_amount_of_data(small, capsys):
    study.study(small)
    rows = json.loads((small.output / "results.json").read_text())["rows"]
    assert {(row["agent"], row["pairs"]) for row in rows} == {
        (agent, pairs) for agent in ("mle", "seqkd") for pairs in (10, 20, 40)
    }
    for row in rows:
        pairs = 0 if row["pairs"] == 40 else row["pairs"]
        scored = [
            read_scores(study.folder_of(small, row["agent"], pairs, seed)) for seed in range(2)
        ]
        bleu = [each.bleu for each in scored]
        assert row["bleu"] == pytest.approx(statistics.mean(bleu))
        assert row["bleu_error"] == pytest.approx(abs(bleu[0] - bleu[1]) / 2)
        assert 0 <= row["student_prefix_agreement"] <= 1
    assert "20 pairs, 2 seeds" in (small.output / "tables.md").read_text()
    assert (small.output / "pairs.png").stat().st_size > 1000
    assert "tok:13a" in (small.output / "tables.md").read_text()
    printed = capsys.readouterr().out
    assert "20 pairs, 2 seeds" in printed
    assert "BLEU: nrefs:1" in printed


def test_a_scored_run_is_not_scored_again(small, monkeypatch):
    small = replace(small, agents=("mle",), more_pairs=())
    (folder, experiment), *_ = study_runs(small).items()
    scores.train_and_score(experiment, folder, lambda update, record: None)
    monkeypatch.delattr(scores, "score_run")
    scores.train_and_score(experiment, folder, lambda update, record: None)
    assert len(read_scores(folder).hypotheses) == TASK.num_test


def test_a_run_that_was_not_scored_is_named(tmp_path):
    with pytest.raises(RunError, match="run must have been scored"):
        read_scores(tmp_path)


def test_one_seed_has_no_error(small):
    small = replace(small, seeds=1, agents=("mle",), more_pairs=())
    study.study(small)
    (row,) = json.loads((small.output / "results.json").read_text())["rows"]
    assert row["bleu_error"] is None
    table = (small.output / "tables.md").read_text()
    assert "20 pairs, 1 seed\n" in table
    assert f"| mle | {row['bleu']:.1f} |" in table


def test_no_seed_is_refused():
    with pytest.raises(ValueError, match="seeds must be at least 1, got 0"):
        StudyOptions(seeds=0)


def test_runs_are_named_after_agent_pairs_and_seed(small):
    names = [folder.name for folder in study_runs(small)]
    assert len(names) == len(set(names)) == 12
    assert {"mle-20-0", "seqkd-all-1"} <= set(names)


def test_an_agent_may_start_from_a_student_trained_by_mle(small):
    """Check that both halves count as updates and as training time."""
    small = replace(small, seeds=1, agents=("mle", "gkd", "minillm"), more_pairs=())
    (start,) = study.starting_runs(small).items()
    assert start[0].name == "start-20-0"
    assert (start[1].agent, start[1].learner.updates) == (MLE(), 2)
    runs = {folder.name: experiment for folder, experiment in study_runs(small).items()}
    assert runs["mle-20-0"].student_init is None
    assert runs["mle-20-0"].learner.updates == 4
    for name, share in (("gkd-20-0", 1), ("minillm-20-0", 0.1)):
        assert runs[name].student_init == start[0] / "model"
        assert runs[name].learner.updates == 2
        assert runs[name].learner.learning_rate == pytest.approx(
            share * runs["mle-20-0"].learner.learning_rate
        )
    study.study(small)
    rows = json.loads((small.output / "results.json").read_text())["rows"]
    assert [row["agent"] for row in rows] == ["mle", "gkd", "minillm"]
    alone = read_outcome(small.output / "gkd-20-0").train_seconds
    assert rows[1]["train_seconds"] == pytest.approx(alone + read_outcome(start[0]).train_seconds)
    assert "| gkd after mle |" in (small.output / "tables.md").read_text()


def test_what_starts_from_a_trained_student_is_evaluated_as_often(small):
    small = replace(small, seeds=1, agents=("mle", "gkd"), updates=400, more_pairs=())
    learners = [experiment.learner for experiment in study_runs(small).values()]
    learners += [experiment.learner for experiment in study.starting_runs(small).values()]
    assert len(learners) == 3
    assert {each.updates // each.evaluate_every for each in learners} == {4}


@pytest.mark.parametrize("updates", [40, 47, 500, 510])
def test_distillm_looks_at_validation_ten_times_at_least(small, updates):
    small = replace(small, seeds=1, agents=("distillm",), updates=updates, more_pairs=())
    (experiment,) = study_runs(small).values()
    learner = experiment.learner
    assert learner.updates // learner.evaluate_every >= 10


def test_dagger_learns_from_the_teachers_texts_first(small):
    """Check that no token is the student's in the first half of the updates, and all are after."""
    small = replace(small, seeds=1, agents=("dagger",), updates=400, more_pairs=())
    (experiment,) = study_runs(small).values()
    beta = experiment.agent.beta
    assert experiment.student_init is None
    assert [beta(progress) for progress in (0.0, 0.25, 0.499, 0.5, 1.0)] == [1, 1, 1, 0, 0]


def test_no_student_is_trained_for_agents_that_need_none(small):
    assert study.starting_runs(small) == {}


def test_the_teacher_writes_for_the_first_seed_alone(small, monkeypatch):
    """Check that the other run has the same texts and counts their cost."""
    small = replace(small, agents=("seqkd",), more_pairs=())
    (first, experiment), (second, other) = study_runs(small).items()
    study.train_and_score_one(experiment, first, lambda update, record: None)
    monkeypatch.delattr(NeuralExpert, "write")
    study.train_and_score_one(other, second, lambda update, record: None)
    assert (second / PREPARED).read_bytes() == (first / PREPARED).read_bytes()
    asked = [read_outcome(folder).teacher_tokens_queried for folder in (first, second)]
    assert asked[0] == asked[1] > 0
