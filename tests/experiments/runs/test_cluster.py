"""Cells as jobs of submitit, with its executor for one machine in place of Slurm."""

import json
import os
import signal
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from tests.experiments.runs.test_parallel import with_learner
from tests.experiments.runs.test_plan import cells_in
from textgen_experiments.runs import cluster, plan
from textgen_experiments.runs.cluster import SlurmOptions
from textgen_experiments.runs.folder import CONFIG
from textgen_experiments.runs.many_runs import PlanOptions, train_cells
from textgen_experiments.runs.metrics import read_metrics
from textgen_experiments.runs.plan import PlanError, begin_plan
from textgen_experiments.runs.train import train

LOCAL = PlanOptions(cluster="local", at_once=2)


class FakeExecutor:
    """Executor that keeps the jobs that it is given."""

    def __init__(self, folder, cluster, **limits):
        self.made, self.jobs = (folder, cluster, limits), []

    def update_parameters(self, **parameters):
        self.parameters = parameters

    def batch(self):
        return self

    def __enter__(self):
        pass

    def __exit__(self, *error):
        pass

    def submit(self, job):
        self.jobs.append(job)
        return FakeJob()


class FakeJob:
    def wait(self):
        """Return at once, as if it had ended."""


@pytest.fixture
def executors(monkeypatch):
    """Return the executors that are made, which train nothing but note what they are given."""
    made = []

    class Submitit:
        @staticmethod
        def AutoExecutor(*args, **options):
            made.append(FakeExecutor(*args, **options))
            return made[-1]

    monkeypatch.setattr(cluster, "_submitit", lambda: Submitit)
    monkeypatch.setattr(cluster.shutil, "which", lambda program: program)
    return made


def names_of(executor):
    return [[folder.name for folder in job.cells] for job in executor.jobs]


def test_cells_are_shared_out_among_the_jobs_of_an_array(tmp_path, executors):
    options = PlanOptions(cluster="slurm", at_once=2, slurm=SlurmOptions("gpu", gpus=1))
    assert not train_cells(tmp_path, cells_in(tmp_path), train, options)
    (executor,) = executors
    assert names_of(executor) == [["cell-0", "cell-2"], ["cell-1"]]
    assert executor.made == (tmp_path / "cluster", "slurm", {"slurm_max_num_timeout": 20})
    assert executor.parameters["slurm_partition"] == "gpu"
    assert executor.parameters["gpus_per_node"] == 1


def test_each_cell_has_a_job_of_slurm_unless_their_number_is_given(tmp_path, executors):
    train_cells(tmp_path, cells_in(tmp_path, 5), train, PlanOptions(cluster="slurm"))
    assert names_of(executors[0]) == [[f"cell-{seed}"] for seed in range(5)]


def test_cells_that_local_jobs_have_not_done_are_an_error(tmp_path, executors):
    with pytest.raises(PlanError, match="3 of 3 runs failed, first cell-0: see the logs in"):
        train_cells(tmp_path, cells_in(tmp_path), train, LOCAL)


def test_slurm_is_refused_where_there_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster.shutil, "which", lambda program: None)
    with pytest.raises(PlanError, match="cluster must be local where there is no Slurm"):
        train_cells(tmp_path, cells_in(tmp_path), train, PlanOptions(cluster="slurm"))


def test_resources_without_a_cluster_are_refused():
    message = "slurm must be left out without a cluster, got minutes=5, cpus=2: give --cluster"
    with pytest.raises(ValueError, match=message):
        PlanOptions(slurm=SlurmOptions(minutes=5, cpus=2))


def test_without_submitit_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(PlanError, match=r"pip install 'textgen-env\[cluster\]'"):
        train_cells(tmp_path, cells_in(tmp_path), train, LOCAL)


def test_a_job_does_what_is_left_with_the_threads_of_its_cores(tmp_path, executors, monkeypatch):
    cells = cells_in(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(sys, "argv", ["textgen", "train"])
    resources = SlurmOptions(cpus=3)
    train_cells(tmp_path, cells, train, PlanOptions(1, cluster="slurm", slurm=resources))
    (job,) = executors[0].jobs
    monkeypatch.setattr(sys, "argv", ["submitit"])
    left = []

    def fail(cells, work, at_most, on_failure):
        left.append((list(cells), at_most, os.environ["OMP_NUM_THREADS"], sys.argv))
        on_failure(tmp_path / "cell-1", ValueError("wrong"))

    monkeypatch.setattr(plan, "train_in_parallel", fail)
    done = tmp_path / "cell-0"
    monkeypatch.setattr(
        cluster, "not_done", lambda cells: {f: cells[f] for f in cells if f != done}
    )
    with pytest.raises(PlanError, match="1 of 2 runs failed, first cell-1: wrong"):
        job()
    assert left == [([tmp_path / "cell-1", tmp_path / "cell-2"], 1, "3", ["textgen", "train"])]


@pytest.mark.parametrize("options", [{"minutes": 0}, {"cpus": 0}, {"gpus": -1}, {"memory_gb": 0}])
def test_resources_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be"):
        SlurmOptions(**options)


@pytest.mark.slow
def test_local_jobs_end_as_runs_of_this_process(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    cells = cells_in(tmp_path)
    begin_plan(tmp_path, cells)
    monkeypatch.setattr(sys, "argv", ["textgen", "train", "--seeds", "3"])
    assert train_cells(tmp_path, cells, train, LOCAL)
    for folder, experiment in cells.items():
        train(experiment, tmp_path / "alone" / folder.name, lambda update, record: None)
        once, again = (
            load_file(run / "model" / "model.safetensors")
            for run in (folder, tmp_path / "alone" / folder.name)
        )
        assert all(torch.equal(again[name], once[name]) for name in once)
        config = json.loads((folder / CONFIG).read_text())
        assert config["command"] == "textgen train --seeds 3"


def preempted_once(experiment, folder, show):
    """Train, and preempt the job once, in the middle of the run."""
    mark = folder.parent / "preempted"

    def showing(update, record):
        show(update, record)
        if update == 7 and not mark.exists():
            mark.touch()
            os.kill(os.getppid(), signal.SIGUSR2)  # as Slurm does before a job's time is over

    return train(experiment, folder, showing)


@pytest.mark.slow
def test_a_preempted_job_is_queued_again_and_goes_on_from_its_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    experiment = with_learner(updates=400, evaluate_every=400)
    cells = {tmp_path / "cell": experiment}
    assert train_cells(tmp_path, cells, preempted_once, replace(LOCAL, at_once=1))
    assert (tmp_path / "preempted").exists()
    updates = [record["update"] for record in read_metrics(tmp_path / "cell") if "loss" in record]
    assert updates == [*range(1, 401)], "an update is missing or stands twice"
    logs = "".join(path.read_text() for path in (tmp_path / "cluster").glob("*_log.err"))
    logs += "".join(path.read_text() for path in (tmp_path / "cluster").glob("*_log.out"))
    assert "Requeued job" in logs
    train(experiment, tmp_path / "alone", lambda update, record: None)
    once, again = (
        load_file(tmp_path / name / "model" / "model.safetensors") for name in ("alone", "cell")
    )
    assert all(torch.equal(again[name], once[name]) for name in once)
