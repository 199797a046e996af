"""Runs whose student begins with layers of its teacher, through the real entry point."""

import pytest
import torch

from tests.support.updates import assert_runs_end_alike, stop_at_second_checkpoint
from textgen_env.generation.decoding import greedy
from textgen_env.models.recurrent import RecurrentConfig
from textgen_env.models.storage import load_model, save_model
from textgen_env.models.transformer import TransformerConfig
from textgen_env.tasks.copy import CopyConfig, copy_task
from textgen_env.tasks.task import encode
from textgen_experiments.cli import main
from textgen_experiments.runs.folder import read_config

TASK = [
    *("--task", "copy", "--task.num-words", "8", "--task.max-length", "5"),
    *("--task.num-train", "24", "--task.num-validation", "6", "--task.num-test", "6"),
]
SHORT = ["--learner.batch-size", "4", "--learner.updates", "2", "--learner.evaluate-every", "1"]
TWO_OF_THREE = ["--student-from-teacher.encoder-indices", "0", "2"]
TWO_OF_THREE += ["--student-from-teacher.decoder", "1"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of teachers with tokenizer: a Transformer, a recurrent one, one of other words."""
    root = tmp_path_factory.mktemp("models")
    layers = {"num_encoder_layers": 3, "num_decoder_layers": 2}
    transformer = TransformerConfig(width=16, num_heads=2, feed_forward=16, dropout=0.2, **layers)
    for name, num_words, config in (
        ("teacher", 8, transformer),
        ("recurrent", 8, RecurrentConfig(width=16)),
        ("others", 9, transformer),
    ):
        torch.manual_seed(0)
        tokenizer = copy_task(CopyConfig(num_words=num_words)).tokenizer
        config = type(config)(**{**vars(config), "vocab_size": tokenizer.vocab_size})
        save_model(config.build(tokenizer.special), root / name, tokenizer)
    return root


def train(folder, *options):
    main(["train", *TASK, *SHORT, *options, "--output", str(folder)])


def complaint(capsys, folder, *options):
    """Return the one line that ends the command before anything is written."""
    with pytest.raises(SystemExit) as stop:
        train(folder, *options)
    line = capsys.readouterr().err
    assert stop.value.code == 2
    assert line.startswith("textgen: ")
    assert line.count("\n") == 1
    assert not folder.exists()
    return line


def test_a_student_of_all_layers_writes_the_teachers_texts(models, tmp_path):
    options = ["--agent", "imitkd_full", "--teacher", str(models / "teacher")]
    still = ["--learner.learning-rate", "0", "--student-from-teacher.encoder", "3"]
    train(tmp_path / "run", *options, *still)
    student, teacher = load_model(tmp_path / "run" / "model"), load_model(models / "teacher")
    task = copy_task(CopyConfig(num_words=8, max_length=5, num_train=24))
    sources = encode(task.train, task).source
    texts = greedy(teacher, sources, 12)
    assert len({tuple(text) for text in texts.tolist()}) > 1
    assert torch.equal(greedy(student, sources, 12), texts)


def test_a_run_keeps_the_layers_and_goes_on_as_if_never_stopped(models, tmp_path, monkeypatch):
    options = ["--agent", "mle", "--teacher", str(models / "teacher"), *TWO_OF_THREE]
    options += ["--student-from-teacher.dropout", "0.1", "--precision", "float32"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train(whole, *options)

    stop_at_second_checkpoint(monkeypatch, lambda: train(stopped, *options))
    train(stopped, *options)
    assert_runs_end_alike(whole, stopped)
    experiment = read_config(whole).experiment
    assert experiment.student_from_teacher.encoder_indices == (0, 2)
    sizes = (experiment.student.num_encoder_layers, experiment.student.num_decoder_layers)
    assert (sizes, experiment.student.dropout) == ((2, 1), 0.1)


def test_a_run_with_other_layers_is_no_run_to_resume(models, tmp_path, capsys):
    options = ["--agent", "mle", "--teacher", str(models / "teacher")]
    train(tmp_path, *options, *TWO_OF_THREE)
    with pytest.raises(SystemExit):
        train(tmp_path, *options, "--student-from-teacher.decoder", "1")
    assert "got --student-from-teacher.encoder-indices" in capsys.readouterr().err


@pytest.mark.parametrize("unit", ["ssru", "sru_pp", "gru"])
def test_a_recurrent_decoder_learns_under_the_teachers_encoder(models, tmp_path, unit):
    options = ["--agent", "imitkd_full", "--teacher", str(models / "teacher"), *TWO_OF_THREE]
    options += ["--student", "hybrid", "--student.unit", unit, "--learner.learning-rate", "0"]
    train(tmp_path, *options)
    student, teacher = load_model(tmp_path / "model"), load_model(models / "teacher")
    assert (student.config.unit, student.config.width) == (unit, teacher.config.width)
    own, theirs = student.state_dict(), teacher.state_dict()
    assert torch.equal(own["embedding.weight"], theirs["embedding.weight"])
    for name, source in (("encoder.1.", "encoder.2."), ("decoder.0.source_", "decoder.1.source_")):
        copied = [each for each in own if each.startswith(name)]
        assert copied
        for each in copied:
            assert torch.equal(own[each], theirs[each.replace(name, source)])


def test_a_student_is_held_to_the_layers_that_it_started_from(models, tmp_path):
    options = ["--agent", "mle", "--teacher", str(models / "teacher"), *TWO_OF_THREE]
    train(tmp_path, *options, "--learner.ewc-weight", "2")
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert any('"ewc_term"' in line for line in lines)


@pytest.mark.parametrize(
    ("teacher", "options", "message"),
    [
        ("teacher", ["--student-from-teacher.encoder", "4"], "encoder must be at most 3"),
        ("teacher", ["--student-from-teacher.decoder-indices", "2"], "must be below 2"),
        ("recurrent", ["--student-from-teacher.decoder", "1"], "got a teacher of kind Recurrent"),
        ("teacher", [*TWO_OF_THREE, "--student-init", "other"], "must not both be given"),
        ("teacher", [*TWO_OF_THREE, "--lora-rank", "2"], "--student-init must be given"),
        ("http://localhost:1/v1", TWO_OF_THREE, "teacher must be a model on this disk"),
        (None, TWO_OF_THREE, "teacher must be a model on this disk"),
        ("teacher", ["--student-from-teacher", "3"], "--student-from-teacher"),
        ("teacher", [*TWO_OF_THREE, "--student", "recurrent"], "student must be hybrid"),
        ("teacher", [*TWO_OF_THREE, "--student.width", "8"], "student must be of the teacher's"),
    ],
)
def test_what_cannot_be_begun_with_is_one_line(models, tmp_path, capsys, teacher, options, message):
    if teacher is None:
        given = ["--teacher", "None"]
    elif teacher.startswith("http"):
        given = ["--teacher", teacher, "--server.model", "m", "--server.tokenizer", "t"]
    else:
        given = ["--teacher", str(models / teacher)]
    assert message in complaint(capsys, tmp_path / "run", "--agent", "mle", *given, *options)


def test_a_student_of_the_teachers_layers_has_its_tokenizer(models, tmp_path, capsys):
    options = ["--agent", "seqkd", "--teacher", str(models / "teacher"), *TWO_OF_THREE]
    options += ["--student-tokenizer", str(models / "others")]
    line = complaint(capsys, tmp_path / "run", *options)
    assert "--student-tokenizer must be the teacher's for --student-from-teacher" in line
