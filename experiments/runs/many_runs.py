"""Training of a plan's cells: all of them or a shard's, on this machine or as jobs of a cluster."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from textgen_env.bounds import check_at_least
from textgen_experiments.runs.cluster import ClusterKind, SlurmOptions, submit_jobs
from textgen_experiments.runs.parallel import Work
from textgen_experiments.runs.plan import Cells, do_cells, not_done
from textgen_experiments.runs.progress import tell

SHARD = re.compile(r"(\d+)/(\d+)")


@dataclass(frozen=True)
class PlanOptions:
    """Choice of the runs of a plan that a command does, and of their place.

    Attributes:
        at_once: runs at the same time, or jobs of the cluster; one a core of this machine, or one
            for each run on Slurm, if not given.
        shard: 2/3 for the second of three parts of the runs, so that three machines with a common
            disk share them; None for all of them.
        cluster: submit the runs with submitit: to Slurm as an array that is queued again when its
            time is over, or to processes of this machine; None to train them in this command.
        slurm: what a job asks for.
    """

    at_once: int | None = None
    shard: str | None = None
    cluster: ClusterKind | None = None
    slurm: SlurmOptions = field(default_factory=SlurmOptions)

    def __post_init__(self) -> None:
        check_at_least(self, at_once=1)
        shard_of(self.shard)
        if self.cluster is None and self.slurm != SlurmOptions():
            default = vars(SlurmOptions())
            given = [f"{k}={v}" for k, v in vars(self.slurm).items() if v != default[k]]
            raise ValueError(
                f"slurm must be left out without a cluster, got {', '.join(given)}: give --cluster "
                "slurm or local"
            )


def shard_of(text: str | None) -> slice:
    """Return the places of a shard's cells in a plan, those of all cells without a shard.

    Raises:
        ValueError: the text is not I/N with I from 1 to N.
    """
    if text is None:
        return slice(None)
    found = SHARD.fullmatch(text)
    index, count = map(int, found.groups()) if found else (0, 0)
    if not 1 <= index <= count:
        raise ValueError(f"shard must be I/N with I from 1 to N, as 2/3, got {text!r}")
    return slice(index - 1, None, count)


def train_cells(output: Path, cells: Cells, work: Work, options: PlanOptions) -> bool:
    """Train the cells that are not done, each once, and go on where one fails.

    Args:
        output: folder of the plan.
        cells: its runs, or those of them that need no other.
        work: function called for each, `train` or one that calls it; importable by its name.
        options: which runs are done, and where.

    Returns:
        True if all cells are done now; False if some are left to other shards or jobs.

    Raises:
        PlanError: cells have failed; the first is named with its error.
        TrainingStopped: as `train_in_parallel`.
    """
    own = dict([*cells.items()][shard_of(options.shard)])
    left = not_done(own)
    if len(left) < len(own):
        tell(f"{len(own) - len(left)} of {len(own)} runs are done")
    if left and options.cluster is not None:
        submit_jobs(
            output,
            left,
            work,
            kind=options.cluster,
            jobs=options.at_once,
            resources=options.slurm,
        )
    elif left:
        do_cells(left, work, options.at_once)
    waiting = not_done(cells)
    if waiting:
        tell(
            f"{len(waiting)} of {len(cells)} runs are left to other shards or jobs: give the same "
            "command again when they are done"
        )
    return not waiting
