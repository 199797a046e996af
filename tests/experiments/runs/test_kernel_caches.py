"""Limits of what is kept of compiled products."""

import os
import subprocess
import sys

import pytest

from textgen_experiments.runs.kernel_caches import KEPT_PRODUCTS, limit_kept_products

GROWTH = """
import sys
from textgen_experiments.runs.memory import process_memory
from textgen_experiments.runs.kernel_caches import limit_kept_products
if sys.argv[1] == "limited":
    limit_kept_products()
import torch
torch.set_num_threads(1)
weight = torch.randn(256, 256, dtype=torch.bfloat16)
for rows in range(1, 401):
    if rows == 101:
        before = process_memory("VmRSS")
    torch.randn(rows, 256, dtype=torch.bfloat16) @ weight
print(process_memory("VmRSS") - before)
"""


def test_what_the_environment_says_already_holds(monkeypatch):
    for name in KEPT_PRODUCTS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LRU_CACHE_CAPACITY", "7")
    limit_kept_products()
    found = {name: os.environ.pop(name) for name in KEPT_PRODUCTS}
    assert found == {**KEPT_PRODUCTS, "LRU_CACHE_CAPACITY": "7"}


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")
def test_products_of_ever_new_shapes_take_no_more_memory():
    variables = {name: value for name, value in os.environ.items() if name not in KEPT_PRODUCTS}

    def growth(kind):
        command = [sys.executable, "-c", GROWTH, kind]
        done = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
        return float(done.stdout)

    assert growth("limited") < 40 < growth("free")
