"""Models with a weight that is no number, through every command that reads one."""

import io
import json
import math
import sys

import pytest
from safetensors.torch import load_file, save_file

from textgen_agents.mle import MLE
from textgen_env.models.model_files import DIGESTS
from textgen_env.models.recurrent import Recurrent, RecurrentConfig
from textgen_env.models.storage import load_model, save_model
from textgen_env.tasks.copy import CopyConfig, copy_task
from textgen_experiments.cli import main
from textgen_experiments.runs.experiment import Experiment
from textgen_experiments.runs.folder import Run, write_config

TASK = CopyConfig(8, max_length=4, num_train=40, num_validation=8, num_test=8)
COPY = ["--task", "copy", "--task.num-words", "8", "--task.max-length", "4"]
SIZES = ["--task.num-train", "40", "--task.num-validation", "8", "--task.num-test", "8"]
SMALL = ["--student.width", "8", "--learner.batch-size", "4", "--learner.updates", "2"]
TRAIN = ["train", *COPY, *SIZES, *SMALL, "--precision", "float32"]
OUTCOME = {
    "validation_bleu": 1.0,
    "best_update": 1,
    "train_seconds": 1.0,
    "teacher_tokens_queried": 0,
    "train_pairs": 40,
    "test_pairs": 8,
}


@pytest.fixture
def run(tmp_path):
    """Return the folder of a finished run with an untrained model."""
    folder, tokenizer = tmp_path / "run", copy_task(TASK).tokenizer
    model = Recurrent(RecurrentConfig(tokenizer.vocab_size, width=8)).eval()
    save_model(model, folder / "model", tokenizer)
    experiment = Experiment(task=TASK, teacher=None, student=model.config, agent=MLE())
    write_config(folder, Run(experiment, "float32", onednn=False), {})
    (folder / "outcome.json").write_text(json.dumps(OUTCOME))
    return folder


def spoil(model, value, *, everywhere):
    """Write `value` into one weight of a model's folder, or into all of them."""
    weights = load_file(model / "model.safetensors")
    largest = max(weights.values(), key=lambda weight: weight.numel())
    for weight in weights.values() if everywhere else [largest]:
        weight.view(-1)[slice(None) if everywhere else slice(1)] = value
    save_file(weights, model / "model.safetensors")
    (model / DIGESTS).unlink()


def command(name, run, output):
    model = str(run / "model")
    return {
        "generate": ["generate", model],
        "evaluate": ["evaluate", str(run)],
        "teacher": [*TRAIN, "--agent", "word_kd", "--teacher", model, "--output", output],
        "student-init": [*TRAIN, "--agent", "mle", "--student-init", model, "--output", output],
        "benchmark": ["benchmark", model],
        "export": ["export", str(run), "--format", "safetensors", "--output", output],
    }[name]


def complaint(arguments, monkeypatch, capsys):
    """Return the last line of the errors of a command that fails and writes no text."""
    stdin = io.TextIOWrapper(io.BytesIO(b"w1 w2\n"))
    monkeypatch.setattr(sys, "stdin", stdin)
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    written = capsys.readouterr()
    *_, line = written.err.splitlines()
    assert (stop.value.code, written.out) == (2, "")
    assert "Traceback" not in written.err
    assert line.startswith("textgen: ")
    return line


READ_BY = ("generate", "evaluate", "teacher", "student-init", "benchmark", "export")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", READ_BY)
def test_a_weight_that_is_no_number_is_named(name, value, run, tmp_path, monkeypatch, capsys):
    spoil(run / "model", value, everywhere=False)
    line = complaint(command(name, run, str(tmp_path / "out")), monkeypatch, capsys)
    assert f"{run / 'model'} must have finite weights, got NaN or infinity in " in line
    assert not (tmp_path / "out" / "model").exists()


OWNERS = {
    "generate": "model",
    "evaluate": "model run",
    "teacher": "teacher",
    "student-init": "student",
    "export": "model",
}


@pytest.mark.parametrize(("name", "owner"), OWNERS.items())
def test_weights_whose_logits_overflow_are_named(name, owner, run, tmp_path, monkeypatch, capsys):
    spoil(run / "model", 3e38, everywhere=True)
    load_model(run / "model")
    line = complaint(command(name, run, str(tmp_path / "out")), monkeypatch, capsys)
    assert f"logits of the {owner} must be finite numbers" in line
    assert not (tmp_path / "out" / "model").exists()


@pytest.mark.parametrize("content", ["[]", "{}", '{"best_update": "x"}', "[" * 100_000, "\0"])
def test_an_outcome_that_is_none_is_one_line(content, run, monkeypatch, capsys):
    (run / "outcome.json").write_text(content)
    line = complaint(["evaluate", str(run)], monkeypatch, capsys)
    assert "outcome.json must hold a run's Outcome, got" in line
