import json
from pathlib import Path

import pytest

from textgen_agents import AGENTS
from textgen_agents.dagger import DAgger
from textgen_agents.imitkd import ImitKD
from textgen_agents.losses.labels import Dense, TopKWithTail
from textgen_agents.rollouts.schedules import Constant, Indicator, Linear, ReverseSigmoid
from textgen_env.experts.remote_config import RemoteTeacher
from textgen_env.generation.decoding import Sampling
from textgen_env.tasks.text_files import TextFilesConfig
from textgen_experiments.recipes import configs
from textgen_experiments.runs.experiment import STUDENTS, TASKS, Experiment
from textgen_experiments.runs.folder import (
    Run,
    RunError,
    from_json,
    read_config,
    read_runs,
    to_json,
    write_config,
)

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
        ({"precision": ["float32"]}, "list"),
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
        with pytest.raises(RunError, match="must have the same task and teacher as"):
            read_runs([a, different])
