"""A `config.json` changed at any place is read as a record of the right kinds, or one error."""

import json
import math
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from tests.support.mutations import mutations
from textgen_agents import AGENTS
from textgen_agents.imitkd import ImitKD
from textgen_agents.rollouts.schedules import Linear
from textgen_env.envs.recovery import RecoveryConfig
from textgen_env.experts.remote_config import RemoteTeacher
from textgen_env.generation.sampling import Sampling
from textgen_env.models import TransformerConfig
from textgen_env.models.huggingface.load import PretrainedError
from textgen_env.models.model_files import ModelFileError
from textgen_env.models.recurrent import Recurrent, RecurrentConfig
from textgen_env.models.storage import load_model, load_tokenizer, save_model
from textgen_env.registry import MissingPluginError
from textgen_env.tasks.hub import HubConfig
from textgen_env.tasks.text_files import TextFilesConfig
from textgen_env.tokenizers.subword import Tokenizer
from textgen_experiments.runs.experiment import Experiment
from textgen_experiments.runs.folder import Run, RunError, read_config, write_config
from textgen_experiments.runs.kinds import is_of_kind
from textgen_experiments.runs.records import to_json

SERVER = RemoteTeacher("http://localhost:1/v1", "m", Path("t"))
EXPERIMENTS = [
    *(Experiment(agent=agent()) for agent in AGENTS.values()),
    Experiment(task=RecoveryConfig(), agent=ImitKD(beta=Linear(0.5), sampling=Sampling(top_k=5))),
    Experiment(task=HubConfig("p"), teacher=None, server=SERVER, student=TransformerConfig()),
    Experiment(task=TextFilesConfig(train=(Path("a.de"), Path("a.en"))), precision="bfloat16"),
]
CONTENTS = [
    {
        "experiment": to_json(experiment),
        "precision": "float32",
        "onednn": True,
        "digests": {"a": "b"},
        "plugins": [],
    }
    for experiment in EXPERIMENTS
]


def read_or_refusal(read, folder):
    """Return what is read and no refusal, or nothing and the line that refuses it."""
    try:
        return read(folder), None
    except (RunError, ModelFileError, PretrainedError, MissingPluginError) as error:
        assert "\n" not in str(error).strip()  # noqa: PT017
        return (None, None), str(error)


@seed(0)
@settings(
    max_examples=250,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.sampled_from(CONTENTS).flatmap(mutations))
def test_a_runs_configuration_is_read_or_refused_in_one_line(tmp_path, content):
    (tmp_path / "config.json").write_text(json.dumps(content))
    run, refusal = read_or_refusal(read_config, tmp_path)
    if refusal:
        assert "config.json" in refusal
        return
    assert all(is_of_kind(getattr(run, each.name), each.type) for each in fields(Run))
    (tmp_path / "again").mkdir(exist_ok=True)
    write_config(tmp_path / "again", run, {})
    assert read_config(tmp_path / "again") == run or "nan" in repr(run)


def load_both(folder):
    return load_tokenizer(folder), load_model(folder)


def save_small(folder):
    tokenizer = Tokenizer.from_words(("one", "two"))
    save_model(Recurrent(RecurrentConfig(tokenizer.vocab_size, width=8)), folder, tokenizer)
    return json.loads((folder / "config.json").read_text())


@seed(0)
@settings(
    max_examples=100,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_a_models_configuration_is_read_or_refused_in_one_line(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "fuzzed_model"
    content = json.loads((folder / "kept.json").read_text()) if folder.exists() else None
    if content is None:
        content = save_small(folder)
        (folder / "kept.json").write_text(json.dumps(content))
    mutated = data.draw(mutations(content))
    (folder / "config.json").write_text(json.dumps(mutated))
    (tokenizer, model), refusal = read_or_refusal(load_both, folder)
    if refusal:
        assert str(folder) in refusal
        return
    assert model.special == tokenizer.special
    assert model.vocab_size >= tokenizer.vocab_size


@pytest.mark.parametrize(
    "change",
    [
        {"teacher": "folder"},
        {"train_pairs": 1.5},
        {"validation_pairs": True},
        {"task": {"type": "HubConfig", "path": 5}},
        {"task": {"type": "TextFilesConfig", "train": [{"type": "Path", "path": "a"}] * 3}},
        {"task": {"type": "CopyConfig", "max_length": 2**62}},
        {"agent": {"type": "CopyConfig"}},
        {"learner": {"type": "LearnerConfig", "seed": 10**400}},
        {"metric": "blue"},
    ],
    ids=str,
)
def test_a_value_of_another_kind_is_refused_at_once(tmp_path, change):
    content = CONTENTS[0] | {"experiment": CONTENTS[0]["experiment"] | change}
    (tmp_path / "config.json").write_text(json.dumps(content))
    if change == {"task": {"type": "CopyConfig", "max_length": 2**62}}:
        assert read_config(tmp_path).experiment.task.max_length == 2**62
        return
    with pytest.raises(RunError, match="must be a run's configuration, got"):
        read_config(tmp_path)


def test_a_deep_configuration_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("[" * 100_000 + "]" * 100_000)
    with pytest.raises(RunError, match="RecursionError"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("value", "hint", "is_one"),
    [
        (1, float, True),
        (True, float, False),
        (True, int, False),
        (1.0, int, False),
        (None, int | None, True),
        (Path("x"), Path | tuple[Path, Path], True),
        ((Path("x"), Path("y")), Path | tuple[Path, Path], True),
        ((Path("x"),), Path | tuple[Path, Path], False),
        (("a", "b", "c"), tuple[str, ...], True),
        (("a", 1), tuple[str, ...], False),
        ((), tuple[str, ...], True),
        ({"a": 1}, dict[str, int], True),
        ([], dict[str, int], False),
        (math.inf, float, True),
    ],
)
def test_kinds(value, hint, is_one):
    assert is_of_kind(value, hint) is is_one
