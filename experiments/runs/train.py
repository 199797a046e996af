"""Training run from its configuration to a folder with a model, resumable at any moment."""

import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path

import torch

from textgen_agents.evaluation.exposure_bias import written_by
from textgen_agents.evaluation.exposure_report import TeacherTexts, measure_exposure_bias
from textgen_agents.training.checkpoint import Counters, load_tensors, save_atomically
from textgen_agents.training.distributed import num_slots, this_device, this_process
from textgen_agents.training.learner import Learner, Record
from textgen_agents.training.regularizers import References
from textgen_env.envs.validation import match_vocabulary
from textgen_env.experts.cross_tokenizer import CrossTokenizerExpert
from textgen_env.experts.expert import Expert, NeuralExpert, Queries
from textgen_env.files import remove_leftovers
from textgen_env.models.acceleration.precision import measure_precision, onednn_float32
from textgen_env.models.storage import Model, save_model
from textgen_env.tasks.prompts import with_expert_prompts
from textgen_env.tasks.task import TextTask, encode, take_train_pairs
from textgen_env.types import Examples, Writer, tensors
from textgen_experiments.runs.experiment import Experiment
from textgen_experiments.runs.factories import build_task, learning_env, report_dropped
from textgen_experiments.runs.folder import (
    CONFIG,
    Run,
    RunError,
    contents,
    flat,
    read_config,
    write_config,
    write_text,
)
from textgen_experiments.runs.interrupts import INTERRUPTS
from textgen_experiments.runs.outside import check_unchanged, outside_digests
from textgen_experiments.runs.records import to_json
from textgen_experiments.runs.run_log import Bars, RunLog, console
from textgen_experiments.runs.setup import (
    Tokenizers,
    build_expert,
    check_parts,
    choose_tokenizers,
    fresh_student,
    initial_student,
)
from textgen_experiments.runs.validation import Validation

CHECKPOINTS = "checkpoints"
OUTCOME = "outcome.json"
PREPARED = "prepared.safetensors"  # the agent's training data, and the queries for it
NUM_SAMPLES = 3  # translations logged as text at each evaluation
DIAGNOSTIC_PAIRS = 16  # validation pairs for the diagnostics at each evaluation: few, to be fast
DIAGNOSTIC_SHARES = (0.5,)  # of a text by the student before the teacher completes it


@dataclass(frozen=True)
class Outcome:
    """Results that a finished run reports.

    Attributes:
        validation_bleu: sacreBLEU of the weights kept.
        best_update: the update they are from.
        train_seconds: rollouts, labels, updates, and the expert's texts of before training;
            evaluation left out.
        teacher_tokens_queried: states at which the expert was asked, in preparation and training.
        train_pairs: pairs of the training split.
        test_pairs: pairs of the test split.
    """

    validation_bleu: float
    best_update: int
    train_seconds: float
    teacher_tokens_queried: int
    train_pairs: int
    test_pairs: int


Show = Callable[[int, Record], None]
"""Called with the number of each update and its figures, while the run is in progress."""


def train_with_bar(experiment: Experiment, folder: Path) -> Outcome:
    """Train as `train` does, with a progress bar."""
    with Bars() as bars:
        bars.add(folder.name, experiment.learner.updates)
        return train(experiment, folder, partial(bars.show, folder.name))


def train(
    experiment: Experiment, folder: Path, show: Show, prepared: Path | None = None
) -> Outcome:
    """Run `experiment` in `folder`, or resume it where it was stopped.

    Of several processes (`torchrun`) each does its share of every batch, and the main one writes.

    Args:
        experiment: settings of the run.
        folder: made if need be; `folder/model` holds the best student at the end.
        show: is called with every update and its figures, in the main process.
        prepared: training data that another run with the same teacher and pairs has prepared; used
            if the file exists and this run has none of its own.

    Raises:
        RegistryError: the agent, the task or the student is not registered.
        RunError: the folder holds a run with other settings, the agent's teacher or the model that
            adapters or EWC need is missing, or the agent cannot learn from a teacher with another
            tokenizer.
        ExpertError: the teacher gives less than the agent needs.
        ValueError: the batch cannot be shared out evenly among the processes.
        TrainingError: the loss is not finite.
        TrainingStopped: a signal came; a checkpoint has been written.
    """
    check_parts(experiment)
    tokenizers = choose_tokenizers(experiment)
    start = initial_student(experiment) if experiment.student_init else None
    if start is not None:
        experiment = replace(experiment, student=start.config)
    num_slots(experiment.agent, experiment.learner.batch_size)  # raises before anything is written
    with this_process().main_process_first():
        run = start_or_resume(experiment, folder)
        own = folder / PREPARED
        if prepared is not None and prepared.exists() and not own.exists():
            save_atomically(own, *load_tensors(prepared))
    if not (folder / OUTCOME).exists():
        with onednn_float32(run.onednn):
            _train(run, start, tokenizers, folder, show)
    return read_outcome(folder)


def _train(run: Run, start: Model | None, tokenizers: Tokenizers, folder: Path, show: Show) -> None:
    """Train to the end, from `start` if it is given, and leave model and outcome in `folder`."""
    experiment, process = run.experiment, this_process()
    task = build_task(experiment.task, tokenizers.student)
    if process.is_main_process:
        report_dropped(task)
    if experiment.train_pairs is not None:
        task = take_train_pairs(task, experiment.train_pairs)
    if experiment.server:
        task = with_expert_prompts(task, experiment.server.prompt)
    expert = match_vocabulary(build_expert(run, task, tokenizers), task.tokenizer)
    experiment.agent.check_expert(expert)
    with process.main_process_first():
        examples, asked = _prepare(experiment, task, expert, folder / PREPARED)
    slots = num_slots(experiment.agent, experiment.learner.batch_size)
    noise = experiment.task.env_settings.get("noise")
    env = learning_env(task, slots, expert, examples=examples, noise=noise, device=this_device())
    student = fresh_student(experiment, task) if start is None else start
    pairs = task.validation[: experiment.validation_pairs]
    validation = encode(pairs, task).to(this_device())
    learner = Learner(
        experiment.agent,
        student,
        env=env,
        folder=folder / CHECKPOINTS,
        config=experiment.learner,
        precision=run.dtype,
        references=_references(experiment, task, validation),
    )
    judge = Validation.of(experiment, pairs, task.target_language, validation)
    teacher = None
    if process.is_main_process:
        judge.describe()
        teacher = _uncounted(expert, validation, task.max_target_length)
    log = RunLog(folder, learner.counters.update, show)

    def evaluate(model: Model) -> float:
        own = written_by(model, validation, task.max_target_length, writer=Writer.STUDENT)
        hypotheses = task.tokenizer.decode(own.actions.tolist())
        log.samples(learner.counters.update, pairs[:NUM_SAMPLES], hypotheses[:NUM_SAMPLES])
        some = pairs[:DIAGNOSTIC_PAIRS]
        few = own.select(torch.arange(len(some)))
        options = DIAGNOSTIC_SHARES, task.target_language
        found = measure_exposure_bias(model, few, some, task.tokenizer, teacher, *options)
        scores = judge.scores(hypotheses)
        log.diagnostics({**found.figures(), **scores})
        return judge.score(model, scores, learner.counters)

    with INTERRUPTS.awaited(), log if process.is_main_process else nullcontext():
        counters = learner.train(evaluate, log, judge.figure, INTERRUPTS.is_stopping)
        outcome = asdict(_outcome(counters, asked, task))
        if process.is_main_process:
            outcome["validation_bleu"] = judge.bleu_of(learner.counters, log)
            log.finish(flat(to_json(experiment)), outcome)
    if process.is_main_process:
        student.load_state_dict(load_tensors(learner.best)[0])
        save_model(student, folder / "model", task.tokenizer)
        write_text(folder / OUTCOME, json.dumps(outcome, indent=2) + "\n")
    process.wait_for_everyone()


def _references(experiment: Experiment, task: TextTask, validation: Examples) -> References:
    """Return the task's own pairs that the learner needs beside those of its environment."""
    added = experiment.learner.reference_weight or experiment.learner.ewc_weight
    return References(encode(task.train, task) if added else None, validation)


def _uncounted(expert: Expert, examples: Examples, max_steps: int) -> TeacherTexts | None:
    """Return the teacher with its texts for the first examples, without counting its queries.

    The texts are the same when a run is resumed. None unless the teacher is a model.
    """
    if not isinstance(expert, NeuralExpert):
        return None
    some = examples.select(torch.arange(min(DIAGNOSTIC_PAIRS, len(examples))))
    written = written_by(expert.model, some, max_steps, writer=Writer.EXPERT)
    return TeacherTexts.of(NeuralExpert(expert.model), written)


def _outcome(counters: Counters, asked: Queries, task: TextTask) -> Outcome:
    return Outcome(
        validation_bleu=counters.best,
        best_update=counters.best_update,
        train_seconds=counters.seconds + asked.seconds,
        teacher_tokens_queried=counters.teacher_tokens + asked.tokens,
        train_pairs=len(task.train),
        test_pairs=len(task.test),
    )


def read_outcome(folder: Path) -> Outcome:
    """Return the results that the finished run in `folder` reported.

    Raises:
        RunError: it is not finished, or the file cannot be understood.
    """
    path = folder / OUTCOME
    if not path.is_file():
        raise RunError(f"run must be finished, got {folder} without {OUTCOME}: train it to the end")
    try:
        return Outcome(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise RunError(f"{path} must be a run's outcome, got: {error!r}") from error


def start_or_resume(experiment: Experiment, folder: Path) -> Run:
    """Return the run's configuration: read from its folder, or decided now and written there.

    A run that holds nothing but its configuration, because its settings were refused, is replaced.

    Raises:
        RunError: the folder holds a run with other settings, or anything that is not a run's.
        ChangedFileError: a file that the run began with has other content now.
    """
    content = contents(folder)
    if (folder / CONFIG).exists():
        run = read_config(folder)
        if run.experiment == experiment:
            check_unchanged(folder, experiment, run.digests)
            if this_process().is_main_process:
                for written in (folder, folder / CHECKPOINTS):
                    remove_leftovers(written)
            return replace(run, experiment=experiment)  # a server may have moved
        if content != {CONFIG}:
            raise RunError(
                f"{folder} must hold a run with these settings to be resumed, got a run with "
                f"others ({_difference(run.experiment, experiment)}): choose another folder"
            )
    elif content:
        raise RunError(
            f"{folder} must be missing, empty or the folder of a run, got one with {min(content)} "
            f"and without {CONFIG}: choose another folder"
        )
    precision = measure_precision(experiment.student.width, device=this_device())
    dtype, digests = experiment.precision or precision.name, outside_digests(experiment)
    run = Run(experiment, dtype, precision.onednn, digests)
    write_config(folder, run, {"precision_measurement": asdict(precision)})
    console.print(
        f"precision: {run.precision} (measured: float32 {precision.float32:.0f}, bfloat16 "
        f"{precision.bfloat16:.0f} GFLOP/s)"
    )
    return run


def _difference(old: Experiment, new: Experiment) -> str:
    """Return the first field in which two experiments differ, with both values."""
    for field in fields(Experiment):
        before, after = getattr(old, field.name), getattr(new, field.name)
        if before != after:
            return f"{field.name}: {before} there, {after} here"
    return "none"


def _prepare(
    experiment: Experiment, task: TextTask, expert: Expert, path: Path
) -> tuple[Examples, Queries]:
    """Prepare the agent's training data and count the queries for it, once; then read them back."""
    if path.exists():
        prepared, metadata = load_tensors(path)
        return Examples(**prepared), Queries(**json.loads(metadata["queries"]))
    pairs = encode(task.train, task)
    if isinstance(expert, CrossTokenizerExpert):
        views = expert.view([pair.expert_view for pair in task.train])
        pairs = replace(pairs, expert_source=views)
    with console.status("the expert writes the training data"):
        examples = experiment.agent.prepare(pairs.to(this_device()), expert, task.max_target_length)
    asked = expert.queries
    save_atomically(path, tensors(examples), {"queries": json.dumps(asdict(asked))})
    return examples, asked
