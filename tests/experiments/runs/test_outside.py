"""Files from outside a run, which are known by their content."""

import json
from dataclasses import replace

import pytest

from textgen_agents.mle import MLE
from textgen_env.experts.remote_config import RemoteTeacher
from textgen_env.models.recurrent import RecurrentConfig
from textgen_env.models.storage import save_model
from textgen_env.tasks.copy import CopyConfig, copy_task
from textgen_env.tasks.hub import HubConfig
from textgen_env.tasks.text_files import TextFilesConfig
from textgen_experiments.cli import main
from textgen_experiments.runs.experiment import Experiment
from textgen_experiments.runs.outside import ChangedFileError, outside_digests
from textgen_experiments.runs.train import start_or_resume

TEACHER = RecurrentConfig(vocab_size=12, width=8)


@pytest.fixture
def experiment(tmp_path):
    """Names a file of pairs, two aligned files, a teacher and a tokenizer."""
    for name in ("pairs.tsv", "a.de", "a.en", "b.de", "b.en", "more.txt", "mono.de"):
        (tmp_path / name).write_text(f"{name}\t{name}\n")
    task = copy_task(CopyConfig(8, num_train=4, num_validation=4, num_test=4))
    for name in ("teacher", "init", "words"):
        save_model(TEACHER.build(None), tmp_path / name, task.tokenizer)
    return Experiment(
        task=TextFilesConfig(
            tmp_path / "pairs.tsv",
            (tmp_path / "a.de", tmp_path / "a.en"),
            (tmp_path / "b.de", tmp_path / "b.en"),
            sources=(tmp_path / "more.txt", tmp_path / "mono.de"),
        ),
        teacher=tmp_path / "teacher",
        student_init=tmp_path / "init",
        student_tokenizer=tmp_path / "words",
        agent=MLE(),
        precision="float32",
    )


FILES = (
    *(
        "pairs.tsv",
        "a.en",
        "b.de",
        "mono.de",
        "teacher/model.safetensors",
        "teacher/tokenizer.json",
    ),
    *("init/config.json", "words/tokenizer.json"),
)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_changed_is_refused_by_name(experiment, tmp_path, name):
    begun = start_or_resume(experiment, tmp_path / "run")
    assert start_or_resume(experiment, tmp_path / "run") == begun
    before = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(before + b"\n")
    with pytest.raises(ChangedFileError, match=f"{name} must be as it was .* got other content"):
        start_or_resume(experiment, tmp_path / "run")
    (tmp_path / name).write_bytes(before)
    assert start_or_resume(experiment, tmp_path / "run") == begun


def test_a_file_that_is_new_in_a_models_folder_or_gone_from_it_is_refused(experiment, tmp_path):
    start_or_resume(experiment, tmp_path / "run")
    added = tmp_path / "teacher" / "tokenizer_config.json"
    added.write_text("{}")
    with pytest.raises(ChangedFileError, match=r"tokenizer_config\.json .* got a new file"):
        start_or_resume(experiment, tmp_path / "run")
    added.unlink()
    (tmp_path / "words" / "tokenizer.json").unlink()
    with pytest.raises(ChangedFileError, match=r"words/tokenizer\.json .* got none"):
        start_or_resume(experiment, tmp_path / "run")


def test_what_is_not_read_may_change(experiment, tmp_path):
    begun = start_or_resume(experiment, tmp_path / "run")
    (tmp_path / "teacher" / "README.md").write_text("a card")
    (tmp_path / "teacher" / "export").mkdir()
    (tmp_path / "teacher" / "export" / "config.json").write_text("{}")
    assert start_or_resume(experiment, tmp_path / "run") == begun


def test_a_file_that_is_gone_is_left_to_its_reader(experiment, tmp_path):
    begun = start_or_resume(experiment, tmp_path / "run")
    (tmp_path / "pairs.tsv").unlink()
    assert start_or_resume(experiment, tmp_path / "run") == begun


def test_a_run_of_before_digests_were_kept_is_accepted(experiment, tmp_path):
    start_or_resume(experiment, tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    content = json.loads(path.read_text())
    del content["digests"]
    path.write_text(json.dumps(content))
    (tmp_path / "pairs.tsv").write_text("other\tpairs\n")
    assert start_or_resume(experiment, tmp_path / "run").experiment == experiment


def test_the_folder_of_a_data_set_and_the_tokenizer_of_a_server_count(tmp_path):
    (tmp_path / "set" / "data").mkdir(parents=True)
    (tmp_path / "set" / "data" / "train.parquet").write_bytes(b"rows")
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "tokenizer.json").write_text("{}")
    server = RemoteTeacher("http://localhost:1/v1", "m", tmp_path / "words")
    experiment = Experiment(task=HubConfig(str(tmp_path / "set")), teacher=None, server=server)
    assert set(outside_digests(experiment)) == {
        str(tmp_path / "set" / "data" / "train.parquet"),
        str(tmp_path / "words" / "tokenizer.json"),
    }


@pytest.mark.parametrize(
    "command", [["evaluate"], ["report"], ["export", "--format", "safetensors"]], ids=lambda c: c[0]
)
def test_commands_on_a_run_refuse_what_changed(experiment, tmp_path, capsys, command):
    run = tmp_path / "run"
    start_or_resume(replace(experiment, student_init=None), run)
    task = copy_task(CopyConfig(8, num_train=4, num_validation=4, num_test=4))
    save_model(TEACHER.build(None), run / "model", task.tokenizer)
    with (tmp_path / "pairs.tsv").open("a") as file:
        file.write("one more\tpair\n")
    with pytest.raises(SystemExit):
        main([*command[:1], str(run), *command[1:]])
    assert "pairs.tsv must be as it was when the run" in capsys.readouterr().err
