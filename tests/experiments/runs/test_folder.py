import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from textgen_agents import AGENTS
from textgen_agents.dagger import DAgger
from textgen_agents.imitkd import ImitKD
from textgen_agents.losses.labels import Dense, TopKWithTail
from textgen_agents.mle import MLE
from textgen_agents.rollouts.schedules import Constant, Indicator, Linear, ReverseSigmoid
from textgen_agents.training.config import LearnerConfig
from textgen_env.experts.remote_config import RemoteTeacher
from textgen_env.generation.sampling import Sampling
from textgen_env.models import STUDENTS
from textgen_env.registry import RegistryError
from textgen_env.tasks import TASKS
from textgen_env.tasks.copy import CopyConfig, copy_task
from textgen_env.tasks.task import Limits
from textgen_env.tasks.text_files import TextFilesConfig
from textgen_env.tasks.verses import VersesConfig
from textgen_experiments.recipes import configs
from textgen_experiments.runs.experiment import Experiment
from textgen_experiments.runs.folder import (
    Run,
    RunError,
    read_config,
    read_runs,
    write_config,
)
from textgen_experiments.runs.records import from_json, records, to_json
from textgen_experiments.runs.train import train

WRITTEN_BEFORE = """{
  "experiment": {
    "type": "Experiment",
    "task": {"type": "VersesConfig", "source_versions": ["e"], "max_tokens": 128},
    "teacher": {"type": "Path", "path": "teacher"},
    "server": null,
    "student": {"type": "RecurrentConfig", "vocab_size": 4000, "width": 192},
    "agent": {"type": "DAgger", "beta": {"type": "Indicator", "until": 0.05}, "pool": 2},
    "learner": {"type": "LearnerConfig", "updates": 1000, "gold_weight": 0.5}
  },
  "precision": "bfloat16",
  "onednn": false
}"""
"""A run of before some names were changed."""

SCHEDULES = (Constant(0.0), ReverseSigmoid(9.0), Indicator(0.1))


@pytest.mark.parametrize(
    "experiment",
    [
        *(Experiment(agent=agent()) for agent in AGENTS.values()),
        *(Experiment(task=task) for task in TASKS.values()),
        *(Experiment(student=student) for student in STUDENTS.values()),
        Experiment(agent=ImitKD(beta=Linear(0.5), sampling=Sampling(top_k=5)), teacher=None),
        *(Experiment(agent=ImitKD(beta=beta)) for beta in SCHEDULES),
        Experiment(agent=DAgger(capacity=3, label=TopKWithTail(k=2))),
        Experiment(agent=DAgger(label=Dense())),
        Experiment(task=TextFilesConfig(train=(Path("a.de"), Path("a.en")))),
        configs.verses_teacher(),
        configs.verses_student(AGENTS["mle"]()),
        configs.descriptions_teacher(),
        configs.descriptions_student(AGENTS["seqkd"](), Path("teacher")),
    ],
    ids=lambda experiment: type(experiment.agent).__name__,
)
def test_an_experiment_survives_json(experiment):
    assert from_json(json.loads(json.dumps(to_json(experiment)))) == experiment


def test_a_configuration_is_read_back(tmp_path):
    run = Run(Experiment(), "bfloat16", False)
    write_config(tmp_path, run, {"note": "for the reader"})
    assert read_config(tmp_path) == run
    assert "torch" in json.loads((tmp_path / "config.json").read_text())["versions"]


def test_a_run_written_under_earlier_names_is_read(tmp_path):
    (tmp_path / "config.json").write_text(WRITTEN_BEFORE)
    experiment = Experiment(
        task=VersesConfig(max_tokens=128),
        teacher=Path("teacher"),
        agent=DAgger(batches_per_rollout=2),
        learner=LearnerConfig(updates=1000, reference_weight=0.5),
    )
    assert read_config(tmp_path) == Run(experiment, "bfloat16", onednn=False)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("pool", "pond", "DAgger must have fields among .*, got 'pond'"),
        ("DAgger", "Dagger", "type must be that of a registered part, got 'Dagger'"),
    ],
)
def test_a_name_that_never_was_is_one_error(tmp_path, before, after, message):
    (tmp_path / "config.json").write_text(WRITTEN_BEFORE.replace(before, after))
    with pytest.raises(RunError, match=rf"config\.json must be a run's configuration.*{message}"):
        read_config(tmp_path)


def test_records_are_found_from_the_fields_of_registered_parts():
    found = records()
    for kind in (*AGENTS.values(), Linear, Dense, Limits, Sampling, RemoteTeacher, LearnerConfig):
        assert found[kind.__name__] is kind


@dataclass(frozen=True)
class Unregistered(CopyConfig):
    pass


@dataclass(frozen=True)
class UnregisteredAgent(DAgger):
    pass


@pytest.mark.parametrize(
    ("experiment", "message"),
    [
        (Experiment(task=Unregistered(), agent=MLE()), r"call TASKS.register\("),
        (Experiment(task=copy_task(), agent=MLE()), "task must be registered, got a TextTask"),
        (Experiment(agent=UnregisteredAgent()), r"call AGENTS.register\("),
    ],
)
def test_a_part_that_is_not_registered_is_told_how(experiment, message, tmp_path):
    with pytest.raises(RegistryError, match=message):
        train(experiment, tmp_path / "run", lambda update, record: None)
    assert not (tmp_path / "run").exists()


def test_a_setting_that_json_does_not_keep_is_named():
    with pytest.raises(ValueError, match=r"settings must be numbers, strings, .* got <built-in"):
        to_json((max,))


@pytest.mark.parametrize(
    "text", ["", "{}", "[1]", '{"experiment": {"type": "Nothing"}}', "\xff"], ids=repr
)
def test_a_broken_configuration_is_one_error(text, tmp_path):
    (tmp_path / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(RunError, match=r"config\.json must be a run's configuration"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"precision": "float16"}, "float16"),
        ({"precision": ["float32"]}, "precision must be of the kind str"),
        ({"experiment": "abc"}, "abc"),
        ({"experiment": None}, "None"),
        ({"experiment": {"type": "Experiment", "agent": "mle"}}, "agent must be"),
        ({"experiment": {"type": "Experiment", "task": 3}}, "task must be"),
        ({"experiment": {"type": "Experiment", "teacher": "here"}}, "teacher must be"),
        ({"experiment": {"type": "Experiment", "learner": None}}, "learner must be"),
    ],
    ids=str,
)
def test_a_configuration_of_wrong_parts_is_one_error(change, wrong, tmp_path):
    write_config(tmp_path, Run(Experiment(), "float32", False), change)
    with pytest.raises(RunError, match=rf"config\.json must be a run's configuration.*{wrong}"):
        read_config(tmp_path)


def test_runs_in_one_table_have_one_teacher_wherever_it_is_asked(tmp_path):
    servers = {
        "a": RemoteTeacher("http://one/v1", "big", Path("tokenizer")),
        "moved": RemoteTeacher("http://two/v1", "big", Path("tokenizer"), timeout=7.0),
        "other": RemoteTeacher("http://one/v1", "small", Path("tokenizer")),
        "none": None,
    }
    for name, server in servers.items():
        experiment = Experiment(teacher=None, server=server)
        write_config(tmp_path / name, Run(experiment, "float32", onednn=False), {})
    a, moved, other, none = (tmp_path / name for name in servers)
    assert len(read_runs([a, moved])) == 2
    for different in (other, none):
        with pytest.raises(RunError, match="must have the same server"):
            read_runs([a, different])
