"""Sweeps: which runs a command line makes, and which words it refuses."""

from pathlib import Path

import pytest

from textgen_experiments.cli import main
from textgen_experiments.command_line.sweep import (
    folder_name,
    points_of,
    read_axes,
    split_sweeps,
    swept_cells,
    words_of_point,
)

COPY = ["--task", "copy", "--agent", "mle", "--student.width", "16"]
BATCHES = ["--agent.batches-per-rollout", "3"]


def cells(*words, seeds=1):
    others, sweeps = split_sweeps(["--output", "out", *words])
    return swept_cells(Path("out"), others, sweeps, seeds=seeds)


def refusal(capsys, *words):
    """Return the one line that a command prints before anything is trained."""
    with pytest.raises(SystemExit) as stop:
        main(["train", *words])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("textgen: ")


def test_sweeps_give_their_product_and_seeds_go_fastest():
    found = cells(*COPY, "--sweep", "learner.clip=1,2", "--sweep=metric=bleu,chrf", seeds=2)
    assert [folder.name for folder in found] == [
        f"clip={clip},metric={metric},seed={seed}"
        for clip in "12"
        for metric in ("bleu", "chrf")
        for seed in range(2)
    ]
    values = [(run.learner.clip, run.metric, run.learner.seed) for run in found.values()]
    assert values[:3] == [(1.0, "bleu", 0), (1.0, "bleu", 1), (1.0, "chrf", 0)]
    assert {folder.parent for folder in found} == {Path("out")}
    assert {run.student.width for run in found.values()} == {16}


def test_seeds_begin_with_the_one_that_is_given():
    found = cells(*COPY, "--learner.seed", "5", seeds=3)
    assert [run.learner.seed for run in found.values()] == [5, 6, 7]
    assert [folder.name for folder in found] == ["seed=5", "seed=6", "seed=7"]


def test_agents_can_be_swept_over_and_bring_options_of_their_own():
    one, other = cells(*COPY[:2], "--sweep", "agent=imitkd,imitkd_full", *BATCHES).values()
    assert (type(one.agent).__name__, type(other.agent).__name__) == ("ImitKD", "ImitKDFull")
    assert one.agent.batches_per_rollout == other.agent.batches_per_rollout == 3


def test_true_and_false_set_options_that_stand_without_a_value():
    yes, no = cells(*COPY, "--sweep", "diagnostics=True,False").values()
    assert (yes.diagnostics, no.diagnostics) == (True, False)
    assert words_of_point({"agent.mix_x": "False"}) == ["--agent.no-mix_x"]


def test_words_are_divided_into_sweeps_and_others():
    words = ["--a", "1", "--sweep", "x=1", "--b", "--sweep=y=2"]
    assert split_sweeps(words) == (["--a", "1", "--b"], ["x=1", "y=2"])
    axes = read_axes(["--x_y=1,2", "z=3"], [])
    assert points_of(axes) == [{"x-y": "1", "z": "3"}, {"x-y": "2", "z": "3"}]
    assert points_of({}) == [{}]


def test_a_folder_goes_by_the_last_parts_unless_they_are_alike():
    assert folder_name({"learner.clip": "1", "teacher": "a/b c"}) == "clip=1,teacher=a-b-c"
    assert folder_name({"a.x": "1", "b.x": "2"}) == "a.x=1,b.x=2"


REFUSED = {
    "learner.learnin-rate=1": "--learner.learnin-rate is no option of textgen train: perhaps you "
    "meant --learner.learning-rate",
    "learner.clip=1,x": "--learner.clip must be a number, got 'x'",
    "learner.clip=1,-1": "clip must be above 0",
    "agent=mle,mel": "--agent must be one of",
    "agent.k=3": "--agent.k is an option of textgen train --agent",
    "learner.clip": "--sweep must be OPTION=VALUE,VALUE, got 'learner.clip'",
    "learner.clip=1,,2": "--sweep must be OPTION=VALUE,VALUE, got",
    "": "--sweep must be followed by OPTION=VALUE,VALUE, got nothing",
    "student.width=8": "--sweep must name options that stand once, got student.width again",
    "output=a,b": "--sweep must name an option of a single run, got output",
    "slurm.cpus=1,2": "--sweep must name an option of a single run, got slurm.cpus",
    "learner.clip=1,1.0": "runs must have different settings, got clip=1 and clip=1.0",
    "teacher=nowhere,None": "teacher=nowhere: ",
    "agent=mle,word_kd": "agent=word_kd: teacher must be given for the agent word_kd",
}


@pytest.mark.parametrize("sweep", REFUSED)
def test_a_mistake_is_one_line_before_anything_is_trained(sweep, tmp_path, capsys):
    words = ["--task", "copy", "--student.width", "16", "--output", str(tmp_path / "out")]
    if not sweep.startswith("agent="):
        words += ["--agent", "mle"]
    assert REFUSED[sweep] in refusal(capsys, *words, "--sweep", sweep)
    assert not (tmp_path / "out").exists()


def test_options_of_a_plan_are_refused_for_a_single_run(tmp_path, capsys):
    words = [*COPY, "--output", str(tmp_path / "out")]
    assert "must be left out for a single run" in refusal(capsys, *words, "--shard", "1/2")
    assert "--seeds must be at least 1, got 0" in refusal(capsys, *words, "--seeds", "0")
    line = refusal(capsys, *words, "--seeds", "2", "--shard", "3/2")
    assert line.startswith("--shard must be I/N with I from 1 to N, as 2/3, got '3/2'")
