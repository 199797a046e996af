"""What is measured of a finished run on the test split, once, and kept in its folder."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from textgen_agents.evaluation.exposure_bias import compare, written_by
from textgen_agents.evaluation.quality import bleu_by_length, score
from textgen_env.experts.expert import NeuralExpert
from textgen_env.models.acceleration.prepacked import with_prepacked_weights
from textgen_env.models.storage import load_model, load_tokenizer
from textgen_env.tasks.task import encode
from textgen_env.types import Trajectories, Writer
from textgen_experiments.runs.experiment import Experiment
from textgen_experiments.runs.factories import build_task
from textgen_experiments.runs.folder import RunError, read_config, write_text
from textgen_experiments.runs.train import Outcome, Show, train

JUDGED = "judged.json"


@dataclass(frozen=True)
class ModelScores:
    """What is measured of one run on the test split.

    Attributes:
        bleu: sacreBLEU.
        chrf: chrF2.
        bleu_by_length: sacreBLEU of the pairs with references up to 10, 15, 20, 25 words, and more;
            None where there is no such pair.
        student_prefix_agreement: share of the states on its own prefixes at which the student's
            most probable token is the teacher's.
        reference_prefix_agreement: the same on the references' prefixes.
        hypotheses: what it writes, by test pair.
    """

    bleu: float
    chrf: float
    bleu_by_length: list[float | None]
    student_prefix_agreement: float
    reference_prefix_agreement: float
    hypotheses: list[str]


def train_and_judge(experiment: Experiment, folder: Path, show: Show) -> Outcome:
    """Train, and measure on the test split what has not been measured yet."""
    outcome = train(experiment, folder, show)
    path = folder / JUDGED
    if not path.exists():
        write_text(path, json.dumps(asdict(judge(folder)), ensure_ascii=False) + "\n")
    return outcome


def judge(folder: Path) -> ModelScores:
    """What the finished run in `folder` does on the test split of its task."""
    run = read_config(folder)
    teacher = run.experiment.teacher
    assert teacher is not None, "configs.verses_student names the shipped one"
    student, expert = (
        with_prepacked_weights(load_model(path, run.dtype)) for path in (folder / "model", teacher)
    )
    task = build_task(run.experiment.task, load_tokenizer(folder / "model"))
    test, expert = encode(task.test, task), NeuralExpert(expert)
    own = written_by(student, test, task.max_target_length, writer=Writer.STUDENT)
    hypotheses = task.tokenizer.decode(own.actions.tolist())
    gold = Trajectories.from_examples(test, task.tokenizer.special)
    references = [pair.reference for pair in task.test]
    quality = score(hypotheses, references)
    return ModelScores(
        bleu=quality.bleu,
        chrf=quality.chrf,
        bleu_by_length=[group.bleu for group in bleu_by_length(hypotheses, references, references)],
        student_prefix_agreement=compare(own, student, expert).mean_agreement,
        reference_prefix_agreement=compare(gold, student, expert).mean_agreement,
        hypotheses=hypotheses,
    )


def read_scores(folder: Path) -> ModelScores:
    """What was measured of the run in `folder`.

    Raises:
        RunError: nothing was.
    """
    path = folder / JUDGED
    if not path.is_file():
        raise RunError(f"run must have been judged, got {folder} without {JUDGED}")
    return ModelScores(**json.loads(path.read_text(encoding="utf-8")))
