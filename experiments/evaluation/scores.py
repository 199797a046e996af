"""Texts that models write for the test split, and their scores."""

import json
import statistics
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from textgen_agents.agent import Agent
from textgen_agents.evaluation.exposure_bias import (
    compare_with_teacher,
    length_ratio,
    repetition_rate,
    written_by,
)
from textgen_agents.evaluation.quality import Quality, bleu_by_length, score
from textgen_env.experts.expert import NeuralExpert
from textgen_env.generation.beam_search import decoder_of
from textgen_env.generation.decoding import Decoder, greedy, logits_from
from textgen_env.models.storage import Model, load_tokenizer
from textgen_env.tasks.task import TextTask, encode, in_tokens_of, references_of
from textgen_env.types import Trajectories, Writer
from textgen_experiments.evaluation.results import TEACHER
from textgen_experiments.runs.experiment import Experiment, agent_name
from textgen_experiments.runs.factories import build_task
from textgen_experiments.runs.folder import Run, RunError, read_config, read_record, write_text
from textgen_experiments.runs.metrics import read_metrics
from textgen_experiments.runs.outcome import Outcome, read_outcome
from textgen_experiments.runs.precisions import load_to_act
from textgen_experiments.runs.train import Show, train

SCORES = "scores.json"


@dataclass(frozen=True)
class EvaluatedModel:
    """A model to evaluate, and its task.

    Attributes:
        name: its name in the table.
        agent: the algorithm that trained it.
        precision: name of the precision that it runs in.
        seed: of its training; None for the teacher.
        model: in that precision.
        task: in the model's own tokens.
        outcome: result of its training; None for the teacher.
    """

    name: str
    agent: str
    precision: str
    seed: int | None
    model: Model
    task: TextTask
    outcome: Outcome | None

    @property
    def writer(self) -> Writer:
        """Writer of its texts: the student, or the expert for a teacher."""
        return Writer.STUDENT if self.outcome else Writer.EXPERT


@dataclass(frozen=True)
class ScoredTexts:
    """Texts of a model for the test split, and their quality.

    Attributes:
        entry: the model.
        written: its greedy texts as tokens.
        hypotheses: the same texts as strings.
        quality: of the greedy texts.
        beam: quality of the texts by beam search; None without beam search.
    """

    entry: EvaluatedModel
    written: Trajectories
    hypotheses: list[str]
    quality: Quality
    beam: Quality | None


@dataclass(frozen=True)
class ModelScores:
    """Scores of one run on the test split, as `scores.json` holds them.

    Attributes:
        bleu: sacreBLEU.
        chrf: chrF2.
        bleu_by_length: sacreBLEU of the pairs with references up to 10, 15, 20, 25 words, and more;
            None where there is no such pair.
        student_prefix_agreement: share of the states on its own prefixes at which the student's
            most probable token is the teacher's.
        reference_prefix_agreement: the same on the references' prefixes.
        hypotheses: the student's text for each test pair.
        signature: sacreBLEU's signature of `bleu`; None in files of earlier versions.
        length_ratio: tokens written over those of the references; None in files of earlier
            versions.
        repetition: share of 4-grams that occur earlier in their text, mean over the texts; None in
            files of earlier versions.
        expert_share: share of the tokens learned from that the teacher wrote during training, in
            [0, 1]; None for agents whose teacher writes nothing then, and in files of earlier
            versions.
    """

    bleu: float
    chrf: float
    bleu_by_length: list[float | None]
    student_prefix_agreement: float
    reference_prefix_agreement: float
    hypotheses: list[str]
    signature: str | None = None
    length_ratio: float | None = None
    repetition: float | None = None
    expert_share: float | None = None


def run_entry(
    name: str, folder: Path, run: Run, outcome: Outcome, *, precision: str, task: TextTask
) -> EvaluatedModel:
    """Return the best model of a finished run, in any of `PRECISIONS`."""
    return EvaluatedModel(
        name=name,
        agent=agent_name(run.experiment.agent),
        precision=precision,
        seed=run.experiment.learner.seed,
        model=load_to_act(folder / "model", precision),
        task=task,
        outcome=outcome,
    )


def teacher_entry(folder: Path, precision: str, task: TextTask) -> EvaluatedModel:
    """Return a teacher in a precision with `task`, given in any tokens, in the teacher's tokens."""
    task = in_tokens_of(load_tokenizer(folder), task)
    model = load_to_act(folder, precision)
    return EvaluatedModel(TEACHER, TEACHER, precision, None, model, task, None)


def shipped_entry(name: str, folder: Path, other: EvaluatedModel) -> EvaluatedModel:
    """Return a model that comes with the project, beside a student of the same task.

    Args:
        name: its name in the table.
        folder: of the model, with the figures of its training in `scores.json`.
        other: the student whose task and precision it is evaluated with.
    """
    known = json.loads((folder / SCORES).read_text(encoding="utf-8"))
    return replace(
        other,
        name=name,
        agent=known["agent"],
        seed=known["seed"],
        model=load_to_act(folder, other.precision),
        outcome=Outcome(**known["outcome"]),
    )


def score_texts(entry: EvaluatedModel, *, beam_size: int = 1, batch_size: int = 64) -> ScoredTexts:
    """Write and score the test split, greedily and, with a beam above 1, by beam search.

    Args:
        entry: the model; a teacher reads its own view of the sources.
        beam_size: 1 for greedy alone.
        batch_size: sentences decoded together.
    """
    task, test = entry.task, encode(entry.task.test, entry.task)
    references = references_of(task.test)

    def texts(decoder: Decoder) -> tuple[Trajectories, list[str], Quality]:
        with logits_from(f"model {entry.name}"):
            written = written_by(
                entry.model,
                test,
                task.max_target_length,
                writer=entry.writer,
                decoder=decoder,
                batch_size=batch_size,
            )
        hypotheses = task.tokenizer.decode(written.actions.tolist())
        return written, hypotheses, score(hypotheses, references, task.target_language)

    *_, beam = texts(decoder_of(beam_size)) if beam_size > 1 else (None,)
    return ScoredTexts(entry, *texts(greedy), beam)


def train_and_score(
    experiment: Experiment, folder: Path, show: Show, prepared: Path | None = None
) -> Outcome:
    """Train a run as `train` does, and write its scores on the test split unless they exist."""
    outcome = train(experiment, folder, show, prepared)
    path = folder / SCORES
    if not path.exists():
        write_text(path, json.dumps(asdict(score_run(folder)), ensure_ascii=False) + "\n")
    return outcome


def score_run(folder: Path) -> ModelScores:
    """Return the scores of the finished run in `folder` on the test split of its task."""
    run = read_config(folder)
    assert run.experiment.teacher is not None, "configs.verses_student names the shipped one"
    expert = NeuralExpert(load_to_act(run.experiment.teacher, run.precision))
    task = build_task(run.experiment.task, load_tokenizer(folder / "model"))
    entry = run_entry(
        folder.name, folder, run, read_outcome(folder), precision=run.precision, task=task
    )
    texts = score_texts(entry)
    on_references = Trajectories.from_examples(texts.written.examples, task.tokenizer.special)
    student, references = texts.entry.model, references_of(task.test)
    by_length = bleu_by_length(texts.hypotheses, references, references, task.target_language)
    return ModelScores(
        bleu=texts.quality.bleu,
        chrf=texts.quality.chrf,
        bleu_by_length=[group.bleu for group in by_length],
        student_prefix_agreement=compare_with_teacher(
            texts.written, student, expert
        ).mean_agreement,
        reference_prefix_agreement=compare_with_teacher(
            on_references, student, expert
        ).mean_agreement,
        hypotheses=texts.hypotheses,
        signature=texts.quality.signature,
        length_ratio=length_ratio(texts.written, task.tokenizer.special),
        repetition=repetition_rate(texts.written),
        expert_share=mean_expert_share(folder, run.experiment.agent),
    )


def mean_expert_share(folder: Path, agent: Agent) -> float | None:
    """Return the share of a batch's tokens that the teacher wrote, as a mean over a run's updates.

    Args:
        folder: of a run that has its log.
        agent: that trained it.

    Returns:
        A share in [0, 1]; None if the agent's teacher writes nothing, or the log does not say.
    """
    if not agent.queries_while_writing:
        return None
    figures = [record.get("expert_share") for record in read_metrics(folder)]
    shares = [share for share in figures if share is not None]  # not at evaluations
    return statistics.mean(shares) if shares else None


def read_scores(folder: Path) -> ModelScores:
    """Return the scores of the run in `folder`.

    Raises:
        RunError: the run has not been scored, or the file cannot be understood.
    """
    path = folder / SCORES
    if not path.is_file():
        raise RunError(f"run must have been scored, got {folder} without {SCORES}")
    return read_record(path, ModelScores)
