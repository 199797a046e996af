"""A run that is killed and started again by the same command, through the real entry point."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from textgen_env.models.storage import save_model
from textgen_env.models.transformer import Transformer, TransformerConfig
from textgen_env.tasks.copy import CopyConfig, copy_task

UPDATES, EVERY = 200, 10
SECONDS = 180  # until a process that makes no progress counts as stuck
PROGRAM = "from textgen_experiments.cli import main; main()"
COMMAND = [
    *("train", "--task", "copy", "--agent", "mle"),
    *("--task.num-words", "8", "--task.max-length", "5"),
    *("--task.num-train", "100", "--task.num-validation", "8", "--task.num-test", "8"),
    *("--student.width", "16", "--student.dropout", "0.2", "--learner.batch-size", "4"),
    *("--learner.updates", str(UPDATES), "--learner.evaluate-every", str(EVERY)),
    *("--learner.ema", "0.9"),
]


class Process(subprocess.Popen):
    """`textgen` with `COMMAND` in a folder; gone when the block is left."""

    def __init__(self, folder):
        super().__init__(
            [sys.executable, "-c", PROGRAM, *COMMAND, "--output", str(folder)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def __exit__(self, *error):
        self.kill()
        super().__exit__(*error)

    def finish(self):
        output, _ = self.communicate(timeout=SECONDS)
        assert self.returncode == 0, output

    def wait_for_checkpoints(self, path, count):
        """Return once `path` has been written `count` times more, or at most a few times later."""
        seen, last = set(), time.monotonic() + SECONDS
        while len(seen) <= count:
            assert self.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < last, f"no {count} checkpoints in {SECONDS} seconds"
            if path.exists():
                seen.add(path.stat().st_mtime_ns)
            time.sleep(0.0005)


@pytest.fixture
def unbroken_and_resumed(tmp_path):
    """Folders of a run that was never stopped and of one that was killed."""
    unbroken, resumed = tmp_path / "unbroken", tmp_path / "resumed"
    checkpoint = resumed / "checkpoints" / "last.safetensors"
    with Process(resumed) as killed:
        killed.wait_for_checkpoints(checkpoint, random.randint(1, 9))
        time.sleep(random.uniform(0, 0.05))
        killed.send_signal(signal.SIGKILL)
        assert killed.wait(SECONDS) == -signal.SIGKILL, "the test wants to kill it before its end"
    assert not (resumed / "model").exists()
    unbroken.mkdir()  # both in the precision that was measured once
    (unbroken / "config.json").write_bytes((resumed / "config.json").read_bytes())
    with Process(unbroken) as whole, Process(resumed) as again:
        whole.finish()
        again.finish()
    return unbroken, resumed


def records(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def without_times(record):
    return {
        name: value
        for name, value in record.items()
        if "second" not in name and name != "peak_memory_mib"
    }


def test_a_killed_run_ends_as_the_run_that_was_never_stopped(unbroken_and_resumed):
    unbroken, resumed = unbroken_and_resumed
    for file in ("model/model.safetensors", "prepared.safetensors"):
        assert (resumed / file).read_bytes() == (unbroken / file).read_bytes(), file
    last = [load_file(run / "checkpoints" / "last.safetensors") for run in unbroken_and_resumed]
    assert last[0].keys() == last[1].keys()
    assert all(torch.equal(value, last[1][name]) for name, value in last[0].items())
    updates = [record["update"] for record in records(resumed) if "loss" in record]
    assert updates == list(range(1, UPDATES + 1))
    evaluations = [record["update"] for record in records(resumed) if "bleu" in record]
    assert evaluations == list(range(EVERY, UPDATES + 1, EVERY))
    expected = [without_times(record) for record in records(unbroken)]
    assert [without_times(record) for record in records(resumed)] == expected
    outcomes = [json.loads((run / "outcome.json").read_text()) for run in unbroken_and_resumed]
    assert without_times(outcomes[0]) == without_times(outcomes[1])
    assert not list(resumed.rglob("*.partial"))


KILLED_AT_EVERY_RENAME = """
import itertools, os, signal, sys
from pathlib import Path
from textgen_experiments import cli

def kill_before_rename(number):
    countdown = iter(range(number - 1, -1, -1))
    def dangerous(rename):
        def call(*args):
            if next(countdown) == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return rename(*args)
        return call
    Path.replace, Path.rename = dangerous(Path.replace), dangerous(Path.rename)

kills = 0
for number in itertools.cycle((1, 2, 3, 4, 4, 3, 2, 4, 4, 6)):
    child = os.fork()
    if not child:
        kill_before_rename(number)
        cli.main(sys.argv[1:])
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code != -signal.SIGKILL:
        print(f"kills: {kills}", flush=True)
        sys.exit(code)
    kills += 1
"""


KEEPING = ("--agent.capacity", "16", "--agent.batches_per_rollout", "2")


@pytest.mark.parametrize(
    ("agent", "options"),
    [("seqkd", ()), pytest.param("dagger", KEEPING, marks=pytest.mark.slow)],
)
def test_a_run_killed_at_every_file_it_puts_in_place_ends_the_same(tmp_path, agent, options):
    """While the teacher's texts, checkpoints, among them a buffer, and the model are written."""
    task = copy_task(CopyConfig(num_words=8, max_length=5, num_train=20))
    size = TransformerConfig(task.tokenizer.vocab_size, width=16, num_heads=2, feed_forward=16)
    torch.manual_seed(0)
    save_model(Transformer(size), tmp_path / "teacher", task.tokenizer)
    command = [
        *("train", "--task", "copy", "--agent", agent, "--teacher", str(tmp_path / "teacher")),
        *options,
        *("--task.num-words", "8", "--task.max-length", "5", "--task.num-train", "20"),
        *("--task.num-validation", "8", "--task.num-test", "8", "--student.width", "16"),
        *("--learner.batch-size", "4", "--learner.updates", "6", "--learner.evaluate-every", "2"),
        *("--precision", "float32"),
    ]
    outputs = []
    for name, program in (("unbroken", PROGRAM), ("killed", KILLED_AT_EVERY_RENAME)):
        folder = tmp_path / name
        done = subprocess.run(
            [sys.executable, "-c", program, *command, "--output", str(folder)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout)
    assert int(outputs[1].split()[-1]) >= 8
    killed, unbroken = (
        [without_times(record) for record in records(tmp_path / run)]
        for run in ("killed", "unbroken")
    )
    assert killed == unbroken
    evaluations = [record for record in killed if "bleu" in record]
    assert all(0 <= record["student_prefix_agreement"] <= 1 for record in evaluations)
    for drawn in ("coverage_risk", "excess_accumulated_error", "teacher_finishes_0.5"):
        assert all(drawn in record for record in evaluations)
    for file in ("model/model.safetensors", "checkpoints/last.safetensors", "prepared.safetensors"):
        killed, unbroken = (load_file(tmp_path / run / file) for run in ("killed", "unbroken"))
        assert killed.keys() == unbroken.keys()
        assert all(torch.equal(killed[name], unbroken[name]) for name in unbroken), file
    assert not list((tmp_path / "killed").rglob("*.partial"))
