"""A run in two processes, started as users start it, is the run in one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from agents import processes
from agents.imitkd_full import ImitKDFull
from experiments.build import build_model, build_task
from textgen_env.models.storage import save_model
from textgen_env.models.transformer import TransformerConfig
from textgen_env.tasks.copy import CopyConfig

TASK = CopyConfig(num_words=8, max_length=5, num_train=64, num_validation=8, num_test=8)
PROGRAM = """
import sys
from pathlib import Path
from agents.imitkd_full import ImitKDFull
from agents.learner import LearnerConfig
from agents.schedules import Constant
from experiments.configs import Experiment
from experiments.train import train
from textgen_env.models.recurrent import RecurrentConfig
from textgen_env.tasks.copy import CopyConfig

teacher, folder = map(Path, sys.argv[1:])
experiment = Experiment(
    task=CopyConfig(num_words=8, max_length=5, num_train=64, num_validation=8, num_test=8),
    teacher=teacher,
    student=RecurrentConfig(width=16, dropout=0.0),
    agent=ImitKDFull(beta=Constant(0.0), pool=1),
    learner=LearnerConfig(updates=8, batch_size=6, warmup=1, evaluate_every=8),
    precision="float32",
)
train(experiment, folder, lambda update, record: None)
"""


def start(tmp_path, name, num_processes):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_processes}"]
    folders = [str(tmp_path / "teacher"), str(tmp_path / name)]
    return subprocess.Popen(
        [sys.executable, *(launch if num_processes > 1 else []), str(program), *folders],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_two_processes_learn_what_one_learns(tmp_path):
    tokenizer = build_task(TASK, None).tokenizer
    size = TransformerConfig(tokenizer.vocab_size, width=16, num_heads=2, feed_forward=16)
    save_model(build_model(size, 0), tmp_path / "teacher", tokenizer)
    for run in (start(tmp_path, "one", 1), start(tmp_path, "two", 2)):
        with run:
            output, _ = run.communicate(timeout=180)
            assert run.returncode == 0, output
    one, two = (load_file(tmp_path / name / "model/model.safetensors") for name in ("one", "two"))
    for name, weights in one.items():
        torch.testing.assert_close(two[name], weights, rtol=0, atol=1e-4)


class OneOfFour:
    num_processes = 4


def test_a_batch_is_shared_out_evenly(monkeypatch):
    monkeypatch.setattr(processes, "this_process", OneOfFour)
    assert processes.num_slots(ImitKDFull(pool=3), 64) == 3 * 16
    with pytest.raises(ValueError, match=r"number of processes \(4\), got 6"):
        processes.num_slots(ImitKDFull(), 6)
