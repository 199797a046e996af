"""Settings in words, and those in which runs differ."""

from pathlib import Path

from textgen_agents import AGENTS
from textgen_env.tasks.text_files import TextFilesConfig
from textgen_experiments.runs.experiment import Experiment
from textgen_experiments.runs.plain_settings import differing, differing_alike, plain_settings
from textgen_experiments.runs.records import to_json


def test_settings_have_the_names_of_options():
    settings = plain_settings(to_json(Experiment(agent=AGENTS["mle"]())))
    assert settings["learner.batch-size"] == "64"
    assert settings["task.source-versions"] == "e"
    assert settings["task.extra-versions"] == "none"
    assert settings["student-init"] == "none"
    assert settings["keep-checkpoint"] == "yes"
    assert settings["student"] == "RecurrentConfig"
    assert not [name for name in settings if "_" in name or name.endswith("type")]


def test_a_path_is_one_setting():
    task = TextFilesConfig((Path("a.de"), Path("a.en")))
    experiment = Experiment(agent=AGENTS["mle"](), task=task, teacher=Path("runs/big/model"))
    settings = plain_settings(to_json(experiment))
    assert settings["teacher"] == "runs/big/model"
    assert settings["task.train"] == "a.de, a.en"
    assert "teacher.path" not in settings


def test_every_agent_has_settings_in_words():
    for name, agent in AGENTS.items():
        settings = plain_settings(to_json(Experiment(agent=agent())))
        assert all(isinstance(value, str) and "{" not in value for value in settings.values()), name


def test_a_setting_differs_where_its_value_does_or_where_it_is_missing():
    values = {"a": {"x": "1", "y": "2"}, "b": {"x": "1", "y": "3", "z": "4"}}
    assert differing(values) == ["y", "z"]
    assert differing({"a": values["a"]}) == []


def test_an_option_of_a_part_differs_between_runs_that_have_the_same_part():
    values = {
        "a": {"agent": "seqkd", "agent.beam": "5", "agent.label": "Top1", "updates": "9"},
        "b": {"agent": "gkd", "agent.share": "1", "agent.label": "Dense", "updates": "9"},
        "c": {"agent": "gkd", "agent.share": "0", "agent.label": "Dense", "updates": "8"},
    }
    assert differing_alike(values) == ["agent", "updates", "agent.share"]
    assert differing_alike({name: values[name] for name in "ab"}) == ["agent"]


def test_a_part_within_a_part_is_told_apart_alike():
    schedule = {"agent": "imitkd", "agent.beta": "Exponential", "agent.beta.base": "200"}
    other = {"agent": "imitkd", "agent.beta": "Constant", "agent.beta.value": "1"}
    assert differing_alike({"a": schedule, "b": other}) == ["agent.beta"]
    slower = {**schedule, "agent.beta.base": "20"}
    assert differing_alike({"a": schedule, "b": slower}) == ["agent.beta.base"]
