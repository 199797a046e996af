"""An update is the same however its batch is cut into parts and shared by processes.

So nothing that a loss computes may be a statistic of the rows that it is given.
"""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support.updates import CONFIG, gradients_of_an_update, make
from textgen_agents import AGENTS

ROOT = Path(__file__).parents[3]
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


@pytest.mark.parametrize("name", AGENTS)
def test_every_agent_has_the_same_gradient_in_any_number_of_parts(make_learner, name):
    config = replace(CONFIG, batch_size=8, clip=1e9)
    expected, _ = gradients_of_an_update(make_learner(make(name), config, "1"))
    assert any(gradient.any() for gradient in expected)
    for parts in (2, 4, 8):
        learner = make_learner(make(name), replace(config, accumulate=parts), str(parts))
        gradients, _ = gradients_of_an_update(learner)
        torch.testing.assert_close(gradients, expected, **CLOSE)


@pytest.fixture(scope="module")
def by_processes(tmp_path_factory):
    """Return the folders of the gradients of one process and of two."""
    folders = {count: tmp_path_factory.mktemp(f"processes{count}") for count in (1, 2)}
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    for count, folder in folders.items():
        program = ["-m", "tests.support.shared_updates", str(folder)]
        command = [sys.executable, *(launch if count > 1 else []), *program]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=180
        )
        assert done.returncode == 0, done.stdout + done.stderr
    return folders


@pytest.mark.parametrize("name", [*AGENTS, "atkd, own rows"])
def test_every_agent_has_the_same_gradient_in_two_processes(by_processes, name):
    one, two = (load_file(by_processes[count] / f"{name}.safetensors") for count in (1, 2))
    assert any(gradient.any() for gradient in one.values())
    torch.testing.assert_close(two, one, **CLOSE)
