import os

import pytest
import torch

from textgen_experiments.cli import apply_common
from textgen_experiments.command_line.commands import find_command
from textgen_experiments.command_line.common import CommonOptions, UsageError, split_common
from textgen_experiments.runs import progress


def test_they_may_stand_anywhere_and_leave_the_other_words():
    words = ["--quiet", "train", "--threads=3", "--output", "x", "--device", "cpu", "--plugin", "a"]
    common, others = split_common([*words, "--plugin=b.py", "--quiet-not"])
    assert common == CommonOptions(("a", "b.py"), 3, "cpu", is_quiet=True)
    assert others == ["train", "--output", "x", "--quiet-not"]


def test_a_command_keeps_an_option_of_its_own():
    words = ["benchmark-peers", "--device", "cuda", "--threads", "1"]
    common, others = split_common(words, own=("--device",))
    assert common == CommonOptions(threads=1)
    assert others == ["benchmark-peers", "--device", "cuda"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--threads"], "--threads must be followed by a number of threads, got nothing"),
        (["--device="], "--device must be followed by one of cpu, cuda, got nothing"),
        (["--plugin"], "--plugin must be followed by a module or file, got nothing"),
        (["--threads", "0"], "--threads must be at least 1, got 0"),
        (["--threads", "-1"], "--threads must be a whole number, got '-1'"),
        (["--threads", "two"], "--threads must be a whole number, got 'two'"),
        (
            ["--device", "tpu"],
            "--device must be one of cpu, cuda, got 'tpu': perhaps you meant cpu",
        ),
    ],
)
def test_a_wrong_value_is_named(words, message):
    with pytest.raises(UsageError) as refused:
        split_common(words)
    assert str(refused.value) == message


def test_the_environment_is_set_for_pytorch_and_for_processes_that_are_begun(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    CommonOptions(device="cuda").set_environment()
    assert (os.environ["OMP_NUM_THREADS"], os.environ["CUDA_VISIBLE_DEVICES"]) == ("7", "1")
    CommonOptions(threads=2, device="cpu").set_environment()
    assert (os.environ["OMP_NUM_THREADS"], os.environ["CUDA_VISIBLE_DEVICES"]) == ("2", "")


def test_threads_and_silence_are_applied(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    quiet = []
    monkeypatch.setattr("textgen_experiments.cli.be_quiet", lambda: quiet.append(True))
    before = torch.get_num_threads()
    try:
        apply_common(find_command("generate"), CommonOptions(threads=2, is_quiet=True))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert quiet == [True]
    assert not progress.console.quiet


@pytest.mark.parametrize(
    ("command", "message"),
    [("generate", "cpu for textgen generate, got"), ("train", "cpu where PyTorch finds no CUDA")],
)
def test_a_device_that_is_not_there_is_refused(command, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=message):
        apply_common(find_command(command), CommonOptions(device="cuda"))
