"""Runs that are given other settings: refused with both values, or trained longer."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from textgen_agents.mle import MLE
from textgen_agents.seqkd import SeqKD
from textgen_agents.training.checkpoint import load_tensors, read_counters, save_atomically
from textgen_agents.training.learner import LearnerConfig
from textgen_env.experts.remote_config import RemoteTeacher
from textgen_env.models.recurrent import RecurrentConfig
from textgen_env.models.transformer import TransformerConfig
from textgen_env.tasks.copy import CopyConfig
from textgen_experiments.runs.experiment import Experiment
from textgen_experiments.runs.folder import RunError, read_config
from textgen_experiments.runs.lock import locked
from textgen_experiments.runs.metrics import read_metrics
from textgen_experiments.runs.outcome import read_outcome, summary_of
from textgen_experiments.runs.resume import start_or_resume
from textgen_experiments.runs.train import train

EXPERIMENT = Experiment(
    task=CopyConfig(num_words=8, max_length=4, num_train=32, num_validation=4, num_test=4),
    teacher=None,
    student=RecurrentConfig(width=16),
    agent=MLE(),
    learner=LearnerConfig(updates=4, batch_size=4, evaluate_every=2),
    precision="float32",
)


def with_learner(**settings):
    return replace(EXPERIMENT, learner=replace(EXPERIMENT.learner, **settings))


def trained(folder, experiment=EXPERIMENT):
    return train(experiment, folder, lambda update, record: None)


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """Return the folder of a run that was stopped before its last update."""
    folder = tmp_path_factory.mktemp("runs") / "begun"
    start_or_resume(EXPERIMENT, folder)
    (folder / "checkpoints").mkdir()
    return folder


@pytest.mark.parametrize(
    ("experiment", "said"),
    [
        (with_learner(seed=3), "--learner.seed 3 where it has 0: give the settings"),
        (with_learner(updates=9), "--learner.updates 9 where it has 4: end it with"),
        (with_learner(updates=3), "--learner.updates 3 where it has 4: give the settings"),
        (
            with_learner(updates=9, seed=3),
            "got --learner.seed 3 where it has 0, --learner.updates 9 where it has 4: give",
        ),
        (
            with_learner(updates=9, seed=3, clip=2.0, warmup=1),
            "--learner.seed 3 where it has 0 (and 1 more): give",
        ),
        (replace(EXPERIMENT, train_pairs=5), "--train-pairs 5 where it has none"),
        (replace(EXPERIMENT, agent=SeqKD()), "--agent seqkd where it has mle: give"),
        (
            replace(EXPERIMENT, student=TransformerConfig(width=16)),
            "--student transformer where it has recurrent: give",
        ),
        (
            replace(EXPERIMENT, task=CopyConfig(num_words=9)),
            "--task.num-words 9 where it has 8, --task.",
        ),
    ],
)
def test_the_setting_that_differs_is_named_with_both_values(begun, experiment, said):
    with pytest.raises(RunError) as refused:
        start_or_resume(experiment, begun)
    assert said in str(refused.value)
    assert "choose another folder" in str(refused.value)
    assert "CopyConfig" not in str(refused.value)


@pytest.mark.parametrize(
    "experiment", [with_learner(checkpoint_every=0.5), replace(EXPERIMENT, keep_checkpoint=False)]
)
def test_settings_that_decide_on_files_alone_may_differ(begun, experiment):
    assert start_or_resume(experiment, begun).experiment == experiment


def test_a_server_may_have_moved_but_not_become_another(tmp_path):
    server = RemoteTeacher("http://one/v1", "model", tmp_path)
    moved = RemoteTeacher("http://two/v1", "model", tmp_path, retries=1)
    folder, experiment = tmp_path / "run", replace(EXPERIMENT, server=server)
    start_or_resume(experiment, folder)
    (folder / "checkpoints").mkdir()
    assert start_or_resume(replace(experiment, server=moved), folder).experiment.server is moved
    other = replace(moved, model="other")
    with pytest.raises(RunError, match=r"--server\.model other where it has model"):
        start_or_resume(replace(experiment, server=other), folder)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return the folder of a run of 4 updates, then the same with 6."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    torch.set_num_threads(1)
    trained(folder)
    names = {path.name for path in folder.rglob("*.safetensors")}
    return folder, names, trained(folder, with_learner(updates=6))


def test_a_finished_run_keeps_its_model_and_one_checkpoint(finished):
    _, names, _ = finished
    assert names == {"last.safetensors", "model.safetensors", "prepared.safetensors"}


def test_a_finished_run_goes_on_when_its_updates_are_raised(finished):
    folder, _, outcome = finished
    updates = [record["update"] for record in read_metrics(folder) if "loss" in record]
    assert updates == [1, 2, 3, 4, 5, 6]
    assert read_config(folder).experiment == with_learner(updates=6)
    assert json.loads((folder / "config.json").read_text())["extended_after"] == [4]
    assert outcome == read_outcome(folder)
    assert read_counters(folder / "checkpoints" / "last.safetensors").update == 6
    rates = [record["learning_rate"] for record in read_metrics(folder) if "loss" in record]
    expected = [with_learner(updates=6).learner.learning_rate_at(update) for update in (4, 5)]
    assert rates[4:] == expected


def test_a_finished_run_with_other_settings_says_how_to_train_it_longer(finished):
    folder, *_ = finished
    with pytest.raises(RunError) as refused:
        trained(folder, with_learner(updates=9, seed=3))
    assert str(refused.value).endswith("folder; to train longer raise --learner.updates alone")


def test_a_run_whose_further_updates_were_no_better_keeps_its_model(tmp_path):
    folder = tmp_path / "run"
    before = trained(folder, replace(with_learner(updates=2), metric="reference-loss"))
    kept = load_file(folder / "model" / "model.safetensors")
    worse = with_learner(updates=4, learning_rate=LearnerConfig.learning_rate)
    checkpoint = folder / "checkpoints" / "last.safetensors"
    pretend_that_nothing_is_better(checkpoint)
    after = trained(folder, replace(worse, metric="reference-loss"))
    assert after.best_update == before.best_update == 2
    for name, weight in load_file(folder / "model" / "model.safetensors").items():
        assert torch.equal(weight, kept[name]), name


def pretend_that_nothing_is_better(path):
    """Give a checkpoint an evaluation with a score that no other reaches."""
    tensors, metadata = load_tensors(path)
    counters = json.loads(metadata["counters"])
    counters["validation"][-1] = counters["best"] = 1e9
    save_atomically(path, tensors, {"counters": json.dumps(counters)})


def test_a_run_without_its_checkpoint_does_not_go_on(tmp_path):
    trained(tmp_path / "run", replace(EXPERIMENT, keep_checkpoint=False))
    assert not (tmp_path / "run" / "checkpoints").exists()
    outcome = trained(tmp_path / "run")
    assert outcome == read_outcome(tmp_path / "run")
    assert "longer" not in summary_of(tmp_path / "run", outcome, 4)
    with pytest.raises(RunError, match="no checkpoint to go on from"):
        trained(tmp_path / "run", with_learner(updates=6))


def test_a_run_that_is_stopped_while_it_is_extended_can_still_be(finished, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    trained(folder, with_learner(updates=2))
    (folder / "outcome.json").unlink()  # which is done first
    assert trained(folder, with_learner(updates=3)).best_update <= 3
    assert len(read_metrics(folder)) == 3 + 2


def test_the_summary_names_score_model_and_the_next_commands(finished):
    folder, _, outcome = finished
    first, *others = summary_of(folder, outcome, 6).splitlines()
    score = f"validation BLEU {outcome.validation_bleu:.1f} at update {outcome.best_update} of 6"
    assert first == f"{folder} is finished: {score}, whose weights are in {folder / 'model'}"
    assert others[0] == f"peak memory: {outcome.peak_memory_mib:,.0f} MiB"
    assert f"textgen evaluate {folder}" in others[1]
    assert f"textgen generate {folder}" in others[2]
    assert "--learner.updates" in others[3]


def test_a_run_that_another_command_writes_is_left_alone(begun):
    before = sorted(begun.iterdir())
    with locked(begun), pytest.raises(RunError, match="by one command at a time"):
        trained(begun)
    assert sorted(begun.iterdir()) == before


def test_the_same_command_on_a_finished_run_says_so(tmp_path, capsys):
    for _ in range(2):
        trained(tmp_path / "run", with_learner(updates=1))
        said = capsys.readouterr().err
    assert said == f"nothing is left to do in {tmp_path / 'run'}\n"
