"""Runs in two processes, started by torchrun as users do, equal the run in one process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from textgen_agents.imitkd import ImitKDFull
from textgen_agents.training import distributed
from textgen_env.models.recurrent import RecurrentConfig
from textgen_env.models.storage import save_model
from textgen_env.models.transformer import TransformerConfig
from textgen_env.tasks.copy import CopyConfig
from textgen_experiments.runs.factories import build_model, build_task

TASK = CopyConfig(num_words=8, max_length=5, num_train=64, num_validation=8, num_test=8)
PROGRAM = """
import sys
from pathlib import Path
from textgen_agents.dagger import DAgger
from textgen_agents.distillm import DistiLLM
from textgen_agents.imitkd import ImitKDFull
from textgen_agents.okd import OKD
from textgen_agents.training.learner import Learner, LearnerConfig
from textgen_agents.training.distributed import this_process
from textgen_agents.rollouts.schedules import Constant
from textgen_experiments.runs.experiment import Experiment
from textgen_experiments.runs.train import train
from textgen_env.tasks.copy import CopyConfig

class Stopped(Exception):
    pass

def run(name, agent, **settings):
    experiment = Experiment(
        task=CopyConfig(num_words=8, max_length=5, num_train=64, num_validation=8, num_test=8),
        teacher=root / "teacher",
        student_init=root / "student",
        agent=agent,
        learner=LearnerConfig(updates=8, batch_size=6, warmup=1, evaluate_every=4, **settings),
        precision="float32",
    )
    train(experiment, folder / name, lambda update, record: None)

def stop(learner, batch):
    if learner.counters.update == 6:
        raise Stopped
    return update(learner, batch)

root, folder = map(Path, sys.argv[1:])
student = Constant(0.0)
full = ImitKDFull(beta=student, batches_per_rollout=1)
settings = {"reference_weight": 0.5, "ewc_weight": 1.0, "ema": 0.7}
settings |= {"roll_in_share": 0.7, "prefix_weight": 0.5}
run("imitkd_full", full, **settings)
run("dagger", DAgger(beta=student, batches_per_rollout=1, capacity=6))
run("okd", OKD(rank=2, learns_temperature=True))
if this_process().num_processes > 1:
    update = Learner._update
    for name, agent in {
        "mixed": DAgger(beta=Constant(0.5), batches_per_rollout=1, capacity=12),
        "adaptive": DistiLLM(student_fraction=0.6, rise=0.2, tolerance=0.0, capacity=6),
    }.items():
        run(name, agent)
        Learner._update = stop
        try:
            run(name + "_resumed", agent)
        except Stopped:
            Learner._update = update
        run(name + "_resumed", agent)
"""


def start(tmp_path, name, num_processes):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_processes}"]
    folders = [str(tmp_path), str(tmp_path / name)]
    return subprocess.Popen(
        [sys.executable, *(launch if num_processes > 1 else []), str(program), *folders],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Return the folders of a run in one process and of the same run in two."""
    root = tmp_path_factory.mktemp("processes")
    tokenizer = build_task(TASK, None).tokenizer
    size = TransformerConfig(tokenizer.vocab_size, width=16, num_heads=2, feed_forward=16)
    save_model(build_model(size, 0), root / "teacher", tokenizer)
    student = RecurrentConfig(tokenizer.vocab_size, width=16, dropout=0.0)
    save_model(build_model(student, 1), root / "student", tokenizer)
    for run in (start(root, "one", 1), start(root, "two", 2)):
        with run:
            output, _ = run.communicate(timeout=180)
            assert run.returncode == 0, output
    return root / "one", root / "two"


@pytest.mark.parametrize("name", ["imitkd_full", "dagger", "okd"])
def test_two_processes_learn_the_weights_of_one(folders, name):
    """DAgger agrees too, as its buffer holds one rollout and all of it is drawn."""
    one, two = (load_file(folder / name / "model/model.safetensors") for folder in folders)
    for weight, values in one.items():
        torch.testing.assert_close(two[weight], values, rtol=0, atol=1e-4)


def test_two_processes_train_the_same_modules_beside_the_student(folders):
    one, two = (load_file(folder / "okd/checkpoints/last.safetensors") for folder in folders)
    names = [name for name in one if name.startswith("companions.")]
    assert len(names) > 1
    for name in names:
        torch.testing.assert_close(two[name], one[name], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["mixed", "adaptive"])
def test_each_of_two_processes_resumes_with_its_own_buffer(folders, name):
    _, two = folders
    for file in ("model/model.safetensors", "checkpoints/last.safetensors"):
        unbroken, resumed = (load_file(two / run / file) for run in (name, f"{name}_resumed"))
        assert unbroken.keys() == resumed.keys()
        assert all(torch.equal(resumed[key], unbroken[key]) for key in unbroken), file
    kept = [unbroken[f"{buffer}.source"] for buffer in ("buffer", "buffer1")]
    assert not torch.equal(*kept), "each process has its own rows"
    assert len(kept[0]) == len(kept[1]) == {"mixed": 6, "adaptive": 3}[name]


class OneOfFour:
    num_processes = 4


def test_a_batch_is_divided_evenly_among_processes(monkeypatch):
    monkeypatch.setattr(distributed, "this_process", OneOfFour)
    assert distributed.num_slots(ImitKDFull(batches_per_rollout=3), 64) == 3 * 16
    with pytest.raises(ValueError, match=r"number of processes \(4\), got 6"):
        distributed.num_slots(ImitKDFull(), 6)


def test_cudnn_attention_is_disabled_on_cuda_alone(monkeypatch):
    settings = []
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", settings.append)
    distributed.disable_cudnn_attention(torch.device("cpu"))
    assert settings == []
    distributed.disable_cudnn_attention(torch.device("cuda"))
    assert settings == [False]
