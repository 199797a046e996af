"""The shipped teacher: how it was made, and its model card."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from agents.evaluation import score, translate
from experiments import configs
from experiments.build import build_task, num_parameters
from experiments.logging import console, progress
from experiments.run import write_text
from experiments.train import Outcome, train
from textgen_env.models.storage import load_model, load_tokenizer, save_model
from textgen_env.tasks.task import TextTask
from textgen_env.tasks.verses import VersesConfig

SAMPLE = 100  # test pairs, the first ones, that a test of the shipped file scores again


@dataclass(frozen=True)
class TeacherOptions:
    """Train the German-English teacher that comes with the project; takes hours, resumable.

    Attributes:
        output: the run's folder; the teacher is in its subfolder "shipped" at the end.
    """

    output: Path = Path("runs/teacher")


def teacher(options: TeacherOptions) -> None:
    """Train, score on the held-out verses, and write the files to be shipped."""
    experiment = configs.verses_teacher()
    outcome = train(experiment, options.output, "teacher")
    shipped = options.output / "shipped"
    tokenizer = load_tokenizer(options.output / "model")
    save_model(load_model(options.output / "model", torch.bfloat16), shipped, tokenizer)
    task = build_task(VersesConfig(), tokenizer)
    card = _scores(shipped, task) | {"hours": outcome.train_seconds / 3600}
    write_text(shipped / "scores.json", json.dumps(card, indent=2) + "\n")
