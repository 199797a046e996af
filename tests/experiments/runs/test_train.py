"""Data that a run prepares once and reads back, and figures that it measures on the way."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from textgen_agents.evaluation.exposure_report import TeacherTexts
from textgen_agents.mle import MLE
from textgen_agents.seqkd import SeqKD
from textgen_agents.training.distributed import this_device
from textgen_agents.training.learner import LearnerConfig
from textgen_agents.word_kd import WordKD
from textgen_env.experts.expert import NeuralExpert, NoExpert
from textgen_env.models.recurrent import RecurrentConfig
from textgen_env.models.storage import save_model
from textgen_env.tasks.copy import CopyConfig
from textgen_env.tasks.task import DataError, Pair
from textgen_env.tasks.text_files import TextFilesConfig
from textgen_env.types import tensors
from textgen_experiments.runs.experiment import Experiment
from textgen_experiments.runs.folder import RunError
from textgen_experiments.runs.outcome import read_outcome
from textgen_experiments.runs.resume import start_or_resume
from textgen_experiments.runs.train import _prepare, train


@pytest.mark.parametrize("two_views", [False, True])
def test_what_was_prepared_is_read_back(tiny_task, tiny_teacher, tmp_path, two_views):
    path, experiment = tmp_path / "prepared.safetensors", Experiment(agent=SeqKD(beam_size=2))
    pairs = [
        Pair(pair.source, pair.reference, f"{pair.source} {pair.source}" if two_views else None)
        for pair in tiny_task.train
    ]
    task, expert = replace(tiny_task, train=pairs), NeuralExpert(tiny_teacher.to(this_device()))
    made, asked = _prepare(experiment, task, expert, path)
    read, asked_then = _prepare(experiment, task, NoExpert(), path)
    assert asked == asked_then
    for name, tensor in tensors(made).items():
        assert torch.equal(getattr(read, name), tensor), name
    views = {"source", "expert_source"} if two_views else {"source"}
    assert set(load_file(path)) == set(tensors(read)) == {"reference"} | views


DIAGNOSTICS = {
    *("length_ratio", "repetition_rate", "likelihood_risk", "coverage_risk"),
    *(
        f"{who}_prefix_{what}"
        for who in ("reference", "student", "teacher")
        for what in ("agreement", "divergence", "top_k_overlap", "shared_mass", "entropy_gap")
    ),
    *("teacher_finishes_0", "teacher_finishes_0.5", "teacher_finishes_1"),
    "excess_accumulated_error",
}


@pytest.fixture
def run(tiny_task, tiny_teacher, tmp_path):
    """Trains in the folder of the given name, with four evaluations: all runs have one teacher."""
    save_model(tiny_teacher, tmp_path / "teacher", tiny_task.tokenizer)
    experiment = Experiment(
        task=CopyConfig(8, max_length=5, num_train=40, num_validation=40, num_test=8),
        teacher=tmp_path / "teacher",
        student=RecurrentConfig(width=16),
        agent=WordKD(),
        learner=LearnerConfig(updates=8, batch_size=8, evaluate_every=2),
        precision="float32",
    )

    def make(name, *, diagnostics=True, **settings):
        learner = replace(experiment.learner, **settings)
        made = replace(experiment, learner=learner, diagnostics=diagnostics)
        train(made, tmp_path / name, lambda update, record: None)
        return tmp_path / name

    return make


def test_the_model_of_a_run_is_the_average_of_its_weights(run):
    folder = run("averaged", ema=0.5)
    kept = load_file(folder / "checkpoints" / "last.safetensors")
    saved = load_file(folder / "model" / "model.safetensors")
    assert read_outcome(folder).best_update == 8
    for name, weight in saved.items():
        assert torch.equal(weight, kept[f"average.{name}"]), name
    assert any(not torch.equal(weight, kept[f"student.{name}"]) for name, weight in saved.items())


def records_of(folder):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if "second" not in name} for line in lines]


def test_diagnostics_at_each_evaluation_change_nothing(run):
    """Neither weights nor what the teacher is counted to have been asked."""
    watched, plain = run("watched"), run("plain", diagnostics=False)
    evaluations = [record for record in records_of(watched) if "bleu" in record]
    assert len(evaluations) == 4
    assert all(
        record.keys() == {"update", "bleu", "reference_loss"} | DIAGNOSTICS
        for record in evaluations
    )
    beside_teacher = DIAGNOSTICS - {"length_ratio", "repetition_rate"}
    without = [
        {name: value for name, value in record.items() if name not in beside_teacher}
        for record in records_of(watched)
    ]
    assert without == records_of(plain)
    for file in ("model/model.safetensors", "checkpoints/last.safetensors"):
        weights, others = (load_file(folder / file) for folder in (watched, plain))
        assert all(torch.equal(weights[name], others[name]) for name in others)


def test_the_teachers_texts_for_the_diagnostics_are_made_once_a_run(run, monkeypatch):
    made, of = [], TeacherTexts.of
    monkeypatch.setattr(TeacherTexts, "of", lambda *given: made.append(of(*given)) or made[-1])
    run("run")
    (teacher,) = made
    assert len(teacher.written) == 16
    assert len(teacher.drawn) == 3 * 16


@pytest.mark.parametrize("name", ["checkpoints/last.safetensors", "notes.txt", "model/config.json"])
def test_a_folder_that_holds_anything_but_a_run_is_refused(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("something")
    with pytest.raises(RunError, match=f"with {name.split('/')[0]} and without config.json"):
        start_or_resume(Experiment(), tmp_path)
    assert [each for each in tmp_path.rglob("*") if each.is_file()] == [path]


def test_nothing_is_left_of_a_run_that_was_refused_before_it_began(tmp_path):
    task = TextFilesConfig(train=tmp_path / "nothere.tsv")
    experiment, folder = Experiment(task, None, agent=MLE()), tmp_path / "run"
    with pytest.raises(DataError, match=r"nothere\.tsv"):
        train(experiment, folder, lambda update, record: None)
    assert not folder.exists()
    folder.mkdir()
    with pytest.raises(DataError):
        train(experiment, folder, lambda update, record: None)
    assert not list(folder.iterdir())
    start_or_resume(experiment, folder)
    with pytest.raises(DataError):
        train(experiment, folder, lambda update, record: None)
    assert [path.name for path in folder.iterdir()] == ["config.json"], "it was there before"


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "run").write_text("something")
    with pytest.raises(RunError, match="run must be a folder, got a file"):
        start_or_resume(Experiment(), tmp_path / "run")


def test_a_folder_whose_configuration_was_half_written_is_free(tmp_path):
    (tmp_path / "config.json.partial").mkdir()
    (tmp_path / "config.json.partial" / "config.json").write_text("{")
    start_or_resume(Experiment(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_a_run_that_goes_on_removes_what_kills_left(tmp_path):
    folder, experiment = tmp_path / "run", Experiment()
    begun = start_or_resume(experiment, folder)
    left = folder / "config.json.partial", folder / "checkpoints" / "last.safetensors.partial"
    for path in left:
        path.mkdir(parents=True)
        path.with_suffix("").touch()
    kept = folder / "checkpoints" / "notes.partial"
    kept.touch()
    assert start_or_resume(experiment, folder) == begun
    assert not any(path.exists() for path in left)
    assert kept.exists()
