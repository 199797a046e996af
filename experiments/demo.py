"""The main job: the same small student, trained four ways, beside its teacher."""

from dataclasses import dataclass
from pathlib import Path

from agents import AGENTS
from experiments import configs
from experiments.build import build_task
from experiments.evaluate import judge, run_entry, show, teacher_entry, write_results
from experiments.logging import console
from experiments.run import read_config
from experiments.train import train
from textgen_env.models.storage import load_tokenizer

SETTING = "the teacher has seen everything, the students 4,000 pairs"
DEMO_AGENTS = ("mle", "seqkd", "imitkd", "imitkd_full")


@dataclass(frozen=True)
class DemoOptions:
    """Train one small student four ways and compare it with its teacher: quality beside speed.

    Attributes:
        output: folder of the runs; a demo that was stopped goes on where it was.
        seed: of every random choice.
    """

    output: Path = Path("runs/demo")
    seed: int = 0


def demo(options: DemoOptions) -> None:
    """Train, evaluate, print the table and write `results.json`."""
    experiments = {name: configs.demo(AGENTS[name](), options.seed) for name in DEMO_AGENTS}
    for name, experiment in experiments.items():
        train(experiment, options.output / name, name)
    folders = [options.output / name for name in DEMO_AGENTS]
    runs = [read_config(folder) for folder in folders]
    first = runs[0].experiment
    task = build_task(first.task, load_tokenizer(configs.VERSES_TEACHER))
    entries = [
        teacher_entry(configs.VERSES_TEACHER, runs[0].dtype),
        *(run_entry(folder, run) for folder, run in zip(folders, runs, strict=True)),
    ]
    rows = judge(entries, task)
    show(rows, f"{SETTING}; {len(task.test)} test verses")
    write_results(options.output / "results.json", task, rows)
    console.print(f"written to {options.output / 'results.json'}")
