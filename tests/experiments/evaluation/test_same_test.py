"""Runs of one table are judged by the same test pairs, whatever they learned from."""

from pathlib import Path

import pytest

from textgen_env.tasks.text_files import TextFilesConfig
from textgen_experiments.evaluation.same_test import check_same_test
from textgen_experiments.runs.experiment import Experiment
from textgen_experiments.runs.folder import Run, RunError


@pytest.fixture
def run_of(tmp_path):
    """Return a function from further settings of the task to a run that has them."""
    pairs = [f"{a} {b}\t{b} {a}\n" for a in "abcdefgh" for b in "abcdefgh"]
    for name, part in {"train": pairs[:40], "held_out": pairs[40:52], "other": pairs[52:]}.items():
        (tmp_path / f"{name}.tsv").write_text("".join(part))
    (tmp_path / "more.txt").write_text("c c c\nd d d\n")

    def run_of(held_out="held_out", **settings):
        files = (tmp_path / f"{name}.tsv" for name in ("train", held_out, held_out))
        return Run(Experiment(task=TextFilesConfig(*files, **settings)), "float32", False)

    return run_of


def test_more_sources_to_learn_from_are_no_other_test(run_of, tmp_path):
    first, more = run_of(), run_of(sources=(tmp_path / "more.txt",))
    task = first.experiment.task.build()
    check_same_test(task, [Path("a"), Path("b")], [first, more])


def test_other_pairs_to_be_judged_by_are_named_with_the_setting(run_of):
    first, other = run_of(), run_of("other")
    task = first.experiment.task.build()
    with pytest.raises(RunError, match=r"test pairs of a, got others in b: it has --task\.valida"):
        check_same_test(task, [Path("a"), Path("b")], [first, other])
