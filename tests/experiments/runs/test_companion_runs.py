"""Runs that train modules beside the student, through the real entry point."""

import signal
import sys

import pytest
import torch
from safetensors.torch import load_file

from tests.support.stopped_runs import StoppedRuns
from tests.support.updates import assert_runs_end_alike, stop_at_second_checkpoint
from tests.support.variants import mostly_slow
from textgen_env.models.storage import load_model, save_model
from textgen_env.models.transformer import TransformerConfig
from textgen_env.tasks.copy import CopyConfig, copy_task
from textgen_experiments.cli import main

TASK = [
    *("--task", "copy", "--task.num-words", "8", "--task.max-length", "5"),
    *("--task.num-train", "24", "--task.num-validation", "6", "--task.num-test", "6"),
    *("--student.width", "16", "--precision", "float32"),
]
SHORT = ["--learner.batch-size", "4", "--learner.updates", "4", "--learner.evaluate-every", "1"]
AGENTS_BESIDE = ["okd", "dskd", "dskd_cma", "every_expert_sar"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of teachers with tokenizer: two alike, and one of the same words in another order."""
    root = tmp_path_factory.mktemp("models")
    words = [f"w{index}" for index in range(8)]
    plain = copy_task(CopyConfig(num_words=8)).tokenizer
    turned = type(plain).from_words(words[::-1])
    for seed, (name, tokenizer) in enumerate(
        {"teacher": plain, "further": plain, "turned": turned}.items()
    ):
        torch.manual_seed(seed)
        size = TransformerConfig(tokenizer.vocab_size, width=16, num_heads=2, feed_forward=16)
        save_model(size.build(tokenizer.special), root / name, tokenizer)
    return root


def train(folder, *options):
    main(["train", *TASK, *SHORT, *options, "--output", str(folder)])


def teachers_of(agent, models):
    further = ["--further-teachers", str(models / "further")] if "every" in agent else []
    return ["--teacher", str(models / "teacher"), *further]


@pytest.mark.parametrize("agent", mostly_slow(AGENTS_BESIDE, "dskd"))
def test_a_stopped_run_ends_with_the_same_modules_and_leaves_the_student_alone(
    models, tmp_path, monkeypatch, agent
):
    options = ["--agent", agent, *teachers_of(agent, models)]
    train(tmp_path / "whole", *options)
    stop_at_second_checkpoint(monkeypatch, lambda: train(tmp_path / "stopped", *options))
    train(tmp_path / "stopped", *options)
    last = assert_runs_end_alike(tmp_path / "whole", tmp_path / "stopped")
    assert any(name.startswith("companions.") for name in last)
    names = load_model(tmp_path / "whole" / "model").state_dict().keys()
    assert load_file(tmp_path / "whole" / "model" / "model.safetensors").keys() == names
    assert names == {n.removeprefix("student.") for n in last if n.startswith("student.")}


def test_cross_model_attention_learns_from_a_teacher_with_another_tokenizer(models, tmp_path):
    student = ["--student-tokenizer", str(models / "teacher")]
    train(tmp_path, "--agent", "dskd_cma", "--teacher", str(models / "turned"), *student)
    assert (tmp_path / "model" / "model.safetensors").exists()


def complaint(capsys, folder, *options):
    """Return the one line that ends the command before any update."""
    with pytest.raises(SystemExit) as stop:
        train(folder, *options)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("textgen: ")]
    assert stop.value.code == 2
    (line,) = lines
    assert not (folder / "metrics.jsonl").exists()
    return line


@pytest.mark.parametrize("agent", ["every_expert_ka", "every_expert_sar"])
def test_a_mixture_without_experts_is_one_line(models, tmp_path, capsys, agent):
    options = ["--agent", agent, "--teacher", str(models / "teacher")]
    line = complaint(capsys, tmp_path / "run", *options)
    assert "mixture of at least 2 models, got 1: give more teachers" in line


@pytest.mark.parametrize(
    ("agent", "message"),
    [
        ("okd", "the expert must answer with gradient, got Ensemble"),
        ("dskd", "the expert must have hidden states"),
        ("dskd_cma", "the expert must have hidden states"),
    ],
)
def test_a_mixture_is_no_teacher_to_look_into(models, tmp_path, capsys, agent, message):
    options = ["--agent", agent, *teachers_of("every", models)]
    assert message in complaint(capsys, tmp_path / "run", *options)


def test_further_teachers_with_another_tokenizer_or_without_a_first_are_one_line(
    models, tmp_path, capsys
):
    further = ["--further-teachers", str(models / "turned")]
    first = ["--teacher", str(models / "teacher")]
    line = complaint(capsys, tmp_path / "run", "--agent", "imitkd", *first, *further)
    assert "--further-teachers must have the tokenizer of" in line
    line = complaint(capsys, tmp_path / "run", "--agent", "mle", "--teacher", "None", *further)
    assert "--further-teachers must be none where there is no teacher on this disk" in line


def test_every_agent_may_learn_from_a_mixture(models, tmp_path):
    train(tmp_path, "--agent", "imitkd_full", *teachers_of("every", models))
    assert (tmp_path / "model" / "model.safetensors").exists()


@pytest.mark.slow
def test_a_run_that_is_killed_at_any_moments_ends_with_the_same_modules(models, tmp_path):
    """Dropout acts, and low-rank terms and a temperature are trained beside the teacher."""
    teacher = ("--teacher", str(models / "teacher"), "--agent.learns-temperature")
    runs = StoppedRuns(tmp_path, ("--agent", "okd", *teacher))
    stops = runs.stop(3, (signal.SIGKILL,), seed=0)
    for each in stops:
        each.check()
    sys.stdout.write(f"killed {len(stops)} times\n")
