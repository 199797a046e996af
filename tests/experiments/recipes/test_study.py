"""A small study end to end: one start for all, the same updates and evaluations."""

import json
from dataclasses import replace

import pytest

from tests.experiments.recipes.conftest import one_after_the_other
from textgen_agents import AGENTS
from textgen_agents.seqkd import SeqKD
from textgen_experiments.evaluation import scores
from textgen_experiments.evaluation.scores import read_scores
from textgen_experiments.recipes import configs, study
from textgen_experiments.recipes.study import StudyOptions, starting_runs, study_runs
from textgen_experiments.runs import plan
from textgen_experiments.runs.many_runs import PlanOptions
from textgen_experiments.runs.plan import PLAN, PlanError
from textgen_experiments.runs.train import PREPARED


@pytest.fixture
def small(tmp_path, monkeypatch, copying):
    """Return options for which students copy texts."""
    make = configs.paper_student
    monkeypatch.setattr(
        configs, "paper_student", lambda *args, **settings: copying(make(*args, **settings))
    )
    monkeypatch.setattr(plan, "train_in_parallel", one_after_the_other)
    return StudyOptions(
        output=tmp_path / "study",
        agents=("mle", "seqkd", "minillm"),
        seeds=2,
        start_updates=4,
        updates=2,
        pairs=20,
    )


def test_all_agents_go_on_from_the_start_of_their_seed(small):
    starts, runs = starting_runs(small), study_runs(small)
    assert [folder.name for folder in starts] == ["start-0", "start-1"]
    assert {run.agent for run in starts.values()} == {SeqKD()}
    assert all(run.student_from_teacher == configs.VERSES_LAYERS for run in starts.values())
    assert len(runs) == 6
    for folder, run in runs.items():
        seed = int(folder.name[-1])
        assert run.student_init == small.output / f"start-{seed}" / "model"
        assert (run.train_draw, run.learner.seed) == (seed, seed), "each seed draws other pairs"


def test_updates_and_evaluations_are_the_same_for_all(monkeypatch):
    learners = [run.learner for run in study_runs(StudyOptions(seeds=1)).values()]
    assert {(each.updates, each.evaluate_every) for each in learners} == {(300, 30)}


def test_agents_that_need_a_prompt_or_a_mixture_have_no_place_in_it():
    others = {"genpi", "every_expert_ka", "every_expert_sar"}
    assert set(AGENTS) - set(StudyOptions().agents) == others


def test_an_agent_has_the_learning_rate_of_its_paper(small):
    rates = {f.name: run.learner.learning_rate for f, run in study_runs(small).items()}
    assert rates["minillm-0"] == pytest.approx(0.1 * rates["mle-0"])
    lowest = study_runs(replace(small, agents=("aggrevate",), seeds=1))
    assert [run.learner.learning_rate for run in lowest.values()] == [pytest.approx(1e-5)]


def test_every_agent_and_the_start_have_a_row(small, capsys):
    study.study(small)
    rows = json.loads((small.output / "results.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["start", "mle", "seqkd", "minillm"]
    for row in rows:
        scored = [read_scores(small.output / f"{row['name']}-{seed}") for seed in range(2)]
        assert row["bleu"] == pytest.approx(sum(each.bleu for each in scored) / 2)
        assert row["length_ratio"] is not None
    assert "20 pairs, 2 seeds" in capsys.readouterr().out
    assert "tok:13a" in (small.output / "tables.md").read_text()


def test_seqkd_goes_on_with_the_texts_of_its_start(small, monkeypatch):
    small = replace(small, seeds=1, agents=("seqkd",))
    study.study(small)
    start, own = (small.output / name / PREPARED for name in ("start-0", "seqkd-0"))
    assert start.read_bytes() == own.read_bytes()


def test_a_scored_run_is_not_scored_again(small, monkeypatch):
    study.study(replace(small, seeds=1, agents=("mle",)))
    monkeypatch.delattr(scores, "score_run")
    study.study(replace(small, seeds=1, agents=("mle",)))


@pytest.mark.slow
def test_two_shards_make_the_same_table_as_one_command(small, tmp_path, capsys):
    small = replace(small, agents=("mle",))
    study.study(small)
    halves = replace(small, output=tmp_path / "halves")
    for shard in ("1/2", "2/2"):  # the first one has to wait for the start of the second
        study.study(replace(halves, plan=PlanOptions(shard=shard)))
        assert not (halves.output / "results.json").exists()
    study.study(replace(halves, plan=PlanOptions(shard="1/2")))
    whole, shared = (
        [
            {name: value for name, value in row.items() if name != "train_seconds"}
            for row in json.loads((each.output / "results.json").read_text())["rows"]
        ]
        for each in (small, halves)
    )
    assert whole == shared
    assert "1 of 2 runs are left to other shards" in " ".join(capsys.readouterr().err.split())
    assert len((halves.output / PLAN).read_text().splitlines()) == 4


def test_a_run_with_other_settings_than_in_the_plan_is_named(small):
    small = replace(small, seeds=1, agents=("mle",))
    study.study(small)
    table = (small.output / "tables.md").read_text()
    assert "better / worse than start" in table, "seqkd takes no part"
    with pytest.raises(PlanError, match=r"start-0 must have .* got .*--learner.updates 3 where it"):
        study.study(replace(small, start_updates=3))


def test_no_seed_is_refused():
    with pytest.raises(ValueError, match="seeds must be at least 1, got 0"):
        StudyOptions(seeds=0)
