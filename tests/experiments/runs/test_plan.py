"""Plans: cells that are done, cells that changed, and a plan that was killed and resumed."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.experiments.runs.test_parallel import EXPERIMENT, with_learner
from textgen_agents.word_kd import WordKD
from textgen_experiments.runs.differences import differences, settings_digest
from textgen_experiments.runs.folder import CELL, CONFIG, OUTCOME, RunError
from textgen_experiments.runs.lock import locked
from textgen_experiments.runs.many_runs import PlanOptions, shard_of, train_cells
from textgen_experiments.runs.metrics import read_metrics
from textgen_experiments.runs.plan import (
    PLAN,
    PlanError,
    begin_plan,
    do_cell,
    is_done,
    not_done,
    read_plan,
)
from textgen_experiments.runs.train import train

train_silently = partial(train, show=lambda update, record: None)


def cells_in(output, number=3, **settings):
    return {output / f"cell-{seed}": with_learner(seed=seed, **settings) for seed in range(number)}


def touch(folder, name=OUTCOME, text="{}"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)


def test_the_file_has_a_line_for_each_cell_and_gives_the_settings_back(tmp_path):
    cells = cells_in(tmp_path)
    begin_plan(tmp_path, cells)
    lines = [json.loads(line) for line in (tmp_path / PLAN).read_text().splitlines()]
    assert [line["folder"] for line in lines] == ["cell-0", "cell-1", "cell-2"]
    assert [line["digest"] for line in lines] == [*map(settings_digest, cells.values())]
    assert read_plan(tmp_path / PLAN) == cells


def test_a_digest_is_that_of_what_decides_what_is_learned():
    digest = settings_digest(EXPERIMENT)
    assert settings_digest(with_learner(seed=1)) != digest
    assert settings_digest(with_learner(checkpoint_every=1.0)) == digest
    assert settings_digest(replace(EXPERIMENT, keep_checkpoint=False)) == digest
    assert not list(differences(EXPERIMENT, replace(EXPERIMENT, keep_checkpoint=False)))


def test_a_cell_is_done_by_its_outcome_and_the_digest_of_its_settings(tmp_path):
    cells = cells_in(tmp_path, 1)
    ((folder, experiment),) = cells.items()
    assert not is_done(folder, experiment)
    do_cell(train, experiment, folder, lambda update, record: None)
    assert is_done(folder, experiment)
    assert not is_done(folder, with_learner(seed=5)), "it is that of other settings"
    assert not_done(cells) == {}
    train_silently(with_learner(updates=9), folder)  # trained longer, by itself
    assert not is_done(folder, experiment)
    assert (folder / OUTCOME).exists()


def test_a_cell_that_changed_is_refused_with_the_setting_and_both_values(tmp_path):
    begin_plan(tmp_path, cells_in(tmp_path))
    touch(tmp_path / "cell-0")
    with pytest.raises(PlanError, match=r"cell-0 must .* got --learner.clip 3.0 where it has 1.0:"):
        begin_plan(tmp_path, cells_in(tmp_path, clip=3.0))
    with pytest.raises(PlanError, match=r"clip 3.0 .* 1.0, --learner.updates 8 where it has 6:"):
        begin_plan(tmp_path, cells_in(tmp_path, clip=3.0, updates=8))
    assert read_plan(tmp_path / PLAN) == cells_in(tmp_path)


def test_a_plan_of_which_nothing_has_begun_is_replaced(tmp_path):
    begin_plan(tmp_path, cells_in(tmp_path))
    touch(tmp_path / "cell-0", CONFIG)
    begin_plan(tmp_path, cells_in(tmp_path, 2, clip=3.0))
    assert read_plan(tmp_path / PLAN) == cells_in(tmp_path, 2, clip=3.0)


def test_new_cells_are_added_and_others_stay(tmp_path):
    begin_plan(tmp_path, cells_in(tmp_path, 2))
    touch(tmp_path / "cell-0")
    begin_plan(tmp_path, {tmp_path / "other": EXPERIMENT})
    assert [folder.name for folder in read_plan(tmp_path / PLAN)] == ["cell-0", "cell-1", "other"]


def test_shards_that_begin_together_write_the_plan_one_after_the_other(tmp_path):
    with ThreadPoolExecutor() as pool:
        with locked(tmp_path):
            begun = [pool.submit(begin_plan, tmp_path, cells_in(tmp_path)) for _ in range(2)]
            time.sleep(0.2)
            assert not any(each.done() for each in begun)
        assert [each.result() for each in begun] == [None, None]
    assert read_plan(tmp_path / PLAN) == cells_in(tmp_path)


def test_the_folder_of_a_run_is_none_of_a_plan(tmp_path):
    touch(tmp_path, CONFIG)
    with pytest.raises(PlanError, match="must not be the folder of a run"):
        begin_plan(tmp_path, cells_in(tmp_path))


def test_a_cell_without_a_part_that_it_needs_is_named_before_anything_is_written(tmp_path):
    cells = cells_in(tmp_path, 1) | {tmp_path / "kd": replace(EXPERIMENT, agent=WordKD())}
    with pytest.raises(PlanError, match="kd: teacher must be given for the agent word_kd"):
        begin_plan(tmp_path, cells)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("text", ["[]\n", "{\n", '{"folder": "a", "settings": {"type": "No"}}\n'])
def test_a_file_that_is_no_plan_is_refused(tmp_path, text):
    (tmp_path / PLAN).write_text(text)
    with pytest.raises(RunError, match="must hold a cell in each line"):
        begin_plan(tmp_path, cells_in(tmp_path))


def test_a_damaged_digest_is_refused(tmp_path):
    touch(tmp_path / "cell-0")
    touch(tmp_path / "cell-0", CELL, "[]")
    with pytest.raises(RunError, match="must hold the digest of a cell"):
        not_done(cells_in(tmp_path))


def test_shards_share_out_all_cells():
    shares = [[*range(7)][shard_of(f"{index}/3")] for index in (1, 2, 3)]
    assert shares == [[0, 3, 6], [1, 4], [2, 5]]
    assert [*range(7)][shard_of(None)] == [*range(7)]


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "1/0", "a/b", "-1/3", "1/3/5", ""])
def test_a_shard_out_of_range_is_refused(text):
    with pytest.raises(ValueError, match=f"shard must be I/N with I from 1 to N, .* got '{text}'"):
        PlanOptions(shard=text)


def fail_in_one(experiment, folder, show):
    """Train but in the folder "cell-1", where an error is raised that nothing foresees."""
    if folder.name == "cell-1" and not (folder.parent / "mended").exists():
        raise ZeroDivisionError("a defect")
    return train(experiment, folder, show)


@pytest.mark.slow
def test_a_cell_that_fails_is_named_and_the_others_are_done(tmp_path):
    cells = cells_in(tmp_path)
    begin_plan(tmp_path, cells)
    with pytest.raises(PlanError, match="1 of 3 runs failed, first cell-1: ZeroDivisionError: a d"):
        train_cells(tmp_path, cells, fail_in_one, PlanOptions(at_once=1))
    assert [folder.name for folder in not_done(cells)] == ["cell-1"]
    (tmp_path / "mended").touch()
    assert not train_cells(tmp_path, cells, fail_in_one, PlanOptions(shard="1/2"))
    assert train_cells(tmp_path, cells, fail_in_one, PlanOptions(shard="2/2"))


TWELVE = [
    *("--task", "copy", "--task.num-words", "8", "--task.max-length", "4", "--agent", "mle"),
    *("--task.num-train", "32", "--task.num-validation", "4", "--task.num-test", "4"),
    *("--student.width", "16", "--learner.batch-size", "4", "--precision", "float32"),
    *("--learner.updates", "30", "--learner.evaluate-every", "15", "--seeds", "3"),
    *("--sweep", "learner.clip=1,2", "--sweep", "learner.learning-rate=1e-3,2e-3"),
    *("--at-once", "2"),
]


def begin_twelve(folder):
    """Begin a plan of twelve cells by the real command."""
    command = [sys.executable, "-m", "textgen_env", "train", *TWELVE, "--output", str(folder)]
    root = str(Path(__file__).parents[3])
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    return subprocess.Popen(command, env=settings)


@pytest.mark.slow
def test_a_plan_of_twelve_that_is_killed_ends_as_one_that_is_not(tmp_path):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = begin_twelve(killed)
    end = time.monotonic() + 300
    while len([*killed.glob(f"*/{CELL}")]) < 4:  # others are in progress
        assert process.poll() is None, "it ended too soon"
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = {path: path.stat().st_mtime_ns for path in killed.glob(f"*/{OUTCOME}")}
    begun = {path.parent for path in killed.glob(f"*/{CONFIG}")}
    assert 4 <= len(done) < 12
    assert len(begun) > len(done), "none was in progress"
    for folder in (killed, whole):
        assert begin_twelve(folder).wait() == 0
    for path, moment in done.items():
        assert path.stat().st_mtime_ns == moment, "it was trained twice"
    cells = read_plan(whole / PLAN)
    assert len(cells) == 12
    for cell in cells:
        once, again = (
            load_file(folder / cell.name / "model" / "model.safetensors")
            for folder in (whole, killed)
        )
        assert once.keys() == again.keys()
        assert all(torch.equal(again[name], once[name]) for name in once)
        lines = [len(read_metrics(folder / cell.name)) for folder in (whole, killed)]
        assert lines[0] == lines[1], "an update was logged twice"
