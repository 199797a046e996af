"""Runs in processes of their own end as they would have ended one after the other."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from textgen_agents.mle import MLE
from textgen_agents.training.learner import LearnerConfig, TrainingError
from textgen_env.models.recurrent import RecurrentConfig
from textgen_env.tasks.copy import CopyConfig
from textgen_experiments.runs.experiment import Experiment
from textgen_experiments.runs.interrupts import GOES_ON
from textgen_experiments.runs.outcome import read_outcome
from textgen_experiments.runs.parallel import train_in_parallel
from textgen_experiments.runs.train import train

EXPERIMENT = Experiment(
    task=CopyConfig(num_words=8, max_length=4, num_train=32, num_validation=4, num_test=4),
    teacher=None,
    student=RecurrentConfig(width=16),
    agent=MLE(),
    learner=LearnerConfig(updates=6, batch_size=4, evaluate_every=3),
    precision="float32",
)


def with_learner(**settings):
    return replace(EXPERIMENT, learner=replace(EXPERIMENT.learner, **settings))


def test_they_end_as_they_would_have_alone(tmp_path):
    torch.set_num_threads(1)
    runs = {tmp_path / str(seed): with_learner(seed=seed) for seed in range(3)}
    train_in_parallel(runs)
    for folder, experiment in runs.items():
        train(experiment, tmp_path / "alone" / folder.name, lambda update, record: None)
        once, again = (
            load_file(run / "model" / "model.safetensors")
            for run in (folder, tmp_path / "alone" / folder.name)
        )
        assert all(torch.equal(again[name], once[name]) for name in once)
    train_in_parallel(runs)  # finished runs have nothing left to do
    assert [read_outcome(folder).best_update for folder in runs]


def test_a_run_that_fails_stops_the_others_and_is_named(tmp_path):
    runs = {
        tmp_path / "long": with_learner(updates=100_000),
        tmp_path / "bad": with_learner(learning_rate=1e30),
    }
    with pytest.raises(TrainingError, match="loss and gradient must be finite"):
        train_in_parallel(runs)
    assert not (tmp_path / "long" / "outcome.json").exists()


def die_or_train(experiment, folder, show):
    """Train but in the folder "dies", whose process is killed after the first checkpoint."""

    def killing(update, record):
        if folder.name == "dies" and update == 4:
            os.kill(os.getpid(), signal.SIGKILL)

    return train(experiment, folder, killing)


def test_a_process_that_is_killed_takes_its_own_run_alone_with_it(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # of every process, whatever runs beside it
    names = "dies", "bad", "first", "second"
    runs = {tmp_path / name: with_learner(seed=seed) for seed, name in enumerate(names)}
    runs[tmp_path / "bad"] = with_learner(learning_rate=1e30)
    failed = {}
    train_in_parallel(runs, die_or_train, 2, failed.__setitem__)
    assert {folder.name for folder in failed} == {"dies", "bad"}
    assert "dies must have a process of its own, got one that was killed" in str(
        failed[tmp_path / "dies"]
    )
    assert isinstance(failed[tmp_path / "bad"], TrainingError)
    for name in ("first", "second"):
        assert read_outcome(tmp_path / name).best_update
    train_in_parallel({tmp_path / "dies": runs[tmp_path / "dies"]})
    train_in_parallel({tmp_path / "alone": runs[tmp_path / "dies"]})
    once, again = (
        load_file(tmp_path / name / "model" / "model.safetensors") for name in ("dies", "alone")
    )
    assert all(torch.equal(again[name], once[name]) for name in once)


ENDLESS = """
import sys, time
from pathlib import Path
from tests.experiments.runs.test_parallel import with_learner
from textgen_experiments.runs.interrupts import INTERRUPTS, answer_signals
from textgen_experiments.runs.parallel import train_in_parallel

def never_look(experiment, folder, show):
    with INTERRUPTS.awaited():
        folder.mkdir()
        time.sleep(600)

if __name__ == "__main__":
    folder, every, work = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    runs = {
        folder / str(seed): with_learner(updates=10**7, evaluate_every=every, seed=seed)
        for seed in (0, 1)
    }
    answer_signals()
    with INTERRUPTS.finishing(), INTERRUPTS.unwinding(is_resumable=True):
        train_in_parallel(runs, *([never_look] if work else []))
"""


@pytest.fixture
def begin(tmp_path):
    """Return a function that begins two runs without an end, in a process group of their own."""
    program, begun = tmp_path / "program.py", []
    program.write_text(ENDLESS)

    def popen(*arguments):
        process = subprocess.Popen(
            [sys.executable, str(program), str(tmp_path), *arguments],
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": str(Path(__file__).parents[3]),
            },
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        begun.append(process)
        return process

    yield popen
    for process in begun:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def is_alone(group):
    """Return True once no process of a group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.slow
@pytest.mark.parametrize(
    ("send", "number", "code"),
    [
        (os.killpg, signal.SIGINT, 130),
        (os.killpg, signal.SIGTERM, 143),
        (os.kill, signal.SIGTERM, 143),
    ],
)
def test_each_run_stops_with_a_checkpoint_and_the_parent_says_so(
    begin, tmp_path, send, number, code
):
    process = begin(str(10**6))
    for seed in "01":
        wait_for((tmp_path / seed / "metrics.jsonl").exists)
    send(process.pid, number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert errors.splitlines()[-1] == f"textgen: stopped{GOES_ON}"
    assert "Traceback" not in errors
    wait_for(lambda: is_alone(process.pid))
    for seed in "01":
        assert (tmp_path / seed / "checkpoints" / "last.safetensors").is_file()


@pytest.mark.slow
def test_a_second_interrupt_ends_runs_that_do_not_stop(begin, tmp_path):
    process = begin("1", "never look")
    for seed in "01":
        wait_for((tmp_path / seed).exists)
    os.killpg(process.pid, signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1.0)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == f"textgen: stopped{GOES_ON}"
    wait_for(lambda: is_alone(process.pid))


def test_runs_end_when_the_process_that_began_them_is_killed(begin, tmp_path):
    process = begin("3")
    wait_for((tmp_path / "1" / "checkpoints" / "last.safetensors").exists)
    process.kill()
    process.wait()
    wait_for(lambda: is_alone(process.pid))


def wait_for(condition, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
