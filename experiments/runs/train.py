"""Training run from its configuration to a folder with a model, resumable at any moment."""

import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch

from textgen_agents.evaluation.exposure_bias import written_by
from textgen_agents.evaluation.exposure_report import TeacherTexts, measure_exposure_bias
from textgen_agents.training.checkpoint import (
    Counters,
    discard_checkpoints,
    load_tensors,
    save_atomically,
)
from textgen_agents.training.distributed import num_slots, this_device, this_process
from textgen_agents.training.frozen import with_frozen_parts
from textgen_agents.training.learner import Learner, Record
from textgen_agents.training.regularizers import References
from textgen_env.envs.validation import match_vocabulary
from textgen_env.experts.cross_tokenizer import CrossTokenizerExpert
from textgen_env.experts.expert import Expert, NeuralExpert
from textgen_env.experts.queries import Queries
from textgen_env.generation.decoded_rows import decoded_rows_told_to
from textgen_env.generation.decoding import logits_from
from textgen_env.models.acceleration.precision import onednn_float32
from textgen_env.models.storage import Model, save_model
from textgen_env.tasks.prompts import BARE, with_expert_prompts
from textgen_env.tasks.task import TextTask, encode
from textgen_env.tasks.train_subset import by_kind, train_subset
from textgen_env.tokenizers.chat import ChatTokenizer
from textgen_env.types import Examples, Writer, tensors
from textgen_experiments.runs.experiment import Experiment
from textgen_experiments.runs.factories import (
    build_task,
    learning_env,
    report_dropped,
    report_examples,
)
from textgen_experiments.runs.folder import (
    CHECKPOINTS,
    OUTCOME,
    Run,
    RunError,
    flat,
    write_text,
)
from textgen_experiments.runs.interrupts import INTERRUPTS
from textgen_experiments.runs.kept_labels import discard_kept_labels, with_kept_labels
from textgen_experiments.runs.lock import locked
from textgen_experiments.runs.malloc import return_unused_memory
from textgen_experiments.runs.memory import peak_of_process
from textgen_experiments.runs.outcome import Outcome, read_outcome
from textgen_experiments.runs.outside import check_models
from textgen_experiments.runs.progress import progress, runs_display, tell
from textgen_experiments.runs.records import to_json
from textgen_experiments.runs.resume import check_is_run, start_or_resume, undone_if_refused
from textgen_experiments.runs.run_log import RunLog
from textgen_experiments.runs.setup import (
    Tokenizers,
    build_expert,
    check_keys,
    check_parts,
    check_references,
    choose_tokenizers,
    fresh_student,
    initial_student,
)
from textgen_experiments.runs.validation import Validation

PREPARED = "prepared.safetensors"  # the agent's training data, and the queries for it
NUM_SAMPLES = 3  # translations logged as text at each evaluation
DIAGNOSTIC_PAIRS = 16  # validation pairs for the diagnostics at each evaluation: few, to be fast
DIAGNOSTIC_SHARES = (0.5,)  # of a text by the student before the teacher completes it


Show = Callable[[int, Record], None]
"""Called with the number of each update and its figures, while the run is in progress."""


def train_with_bar(experiment: Experiment, folder: Path, prepared: Path | None = None) -> Outcome:
    """Train as `train` does, and show the progress."""
    with runs_display() as bars:
        bars.add(folder.name, experiment.learner.updates)
        return train(experiment, folder, partial(bars.show, folder.name), prepared)


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
            tokenizer, or from sources without references.
        ExpertError: the teacher gives less than the agent needs.
        ValueError: the batch cannot be shared out evenly among the processes.
        TrainingError: the loss is not finite.
        TrainingStopped: a signal came; a checkpoint has been written.
    """
    tokenizers = check_start(experiment)
    start = initial_student(experiment)
    if start is not None:
        experiment = replace(experiment, student=start.config)
    check_is_run(folder)
    lock = locked(folder) if this_process().is_main_process else nullcontext()
    with lock, undone_if_refused(folder):
        return _train_in(folder, experiment, start, tokenizers, show, prepared)


def check_start(experiment: Experiment) -> Tokenizers:
    """Return the tokenizers of a run whose settings name all that it begins with.

    Raises:
        RegistryError, RunError, ValueError: as `train`, before anything is built or written.
        PretrainedError: a model is not on this disk and cannot be fetched.
    """
    check_parts(experiment)
    check_models(experiment)
    tokenizers = choose_tokenizers(experiment)
    num_slots(experiment.agent, experiment.learner.batch_size)
    return tokenizers


def _train_in(
    folder: Path,
    experiment: Experiment,
    start: Model | None,
    tokenizers: Tokenizers,
    show: Show,
    prepared: Path | None,
) -> Outcome:
    """Begin, resume or extend the run in `folder`, which no other command writes to."""
    with this_process().main_process_first():
        run = start_or_resume(experiment, folder)
        own = folder / PREPARED
        if prepared is not None and prepared.exists() and not own.exists():
            save_atomically(own, *load_tensors(prepared))
    if not (folder / OUTCOME).exists():
        with onednn_float32(run.onednn):
            _train(run, start, tokenizers, folder, show)
    elif this_process().is_main_process:
        tell(f"nothing is left to do in {folder}")
    if this_process().is_main_process:
        discard_kept_labels(folder)
        discard_checkpoints(folder / CHECKPOINTS, keep_last=run.experiment.keep_checkpoint)
    return read_outcome(folder)


def _train(run: Run, start: Model | None, tokenizers: Tokenizers, folder: Path, show: Show) -> None:
    """Train to the end, from `start` if it is given, and leave model and outcome in `folder`."""
    experiment, process = run.experiment, this_process()
    task = _build_task(experiment, tokenizers)
    expert = match_vocabulary(build_expert(run, task, tokenizers), task.tokenizer)
    experiment.agent.check_expert(expert)
    experiment.learner.check_expert(expert)
    student = _student_of(experiment, task, start)
    with process.main_process_first():
        examples, prepared = _prepare(experiment, task, expert, folder / PREPARED)
        check_keys(expert, examples)
        keeping, kept = with_kept_labels(experiment, expert, examples, folder)
    slots = num_slots(experiment.agent, experiment.learner.batch_size)
    noise = experiment.task.env_settings.get("noise")
    env = learning_env(task, slots, keeping, examples=examples, noise=noise, device=this_device())
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
        judge.describe(learner.counters.update)
        teacher = _uncounted(experiment, expert, validation, task.max_target_length)
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
        score = judge.score(model, scores, learner.counters)
        return_unused_memory()
        return score

    return_unused_memory()
    with INTERRUPTS.awaited(), log if process.is_main_process else nullcontext():
        counters = learner.train(evaluate, log, judge.figure, INTERRUPTS.is_stopping)
        outcome = _outcome(counters, prepared + kept, task)
        if process.is_main_process:
            outcome = judge.with_scores(outcome, learner.counters, log)
            log.finish(flat(to_json(experiment)), outcome.figures())
    if process.is_main_process:
        if learner.best.exists():  # else no update of an extended run was better
            student.load_state_dict(load_tensors(learner.best)[0])
            save_model(student, folder / "model", task.tokenizer)
        write_text(folder / OUTCOME, json.dumps(asdict(outcome), indent=2) + "\n")
    process.wait_for_everyone()


def _student_of(experiment: Experiment, task: TextTask, start: Model | None) -> Model:
    """Return the model to be trained, `start` or one with random weights.

    Raises:
        ValueError: it lacks a part that is to be frozen.
    """
    student = fresh_student(experiment, task) if start is None else start
    return with_frozen_parts(student, experiment.learner.frozen)


def _build_task(experiment: Experiment, tokenizers: Tokenizers) -> TextTask:
    """Build the task with the part of its training split that is learned from, and report both.

    Raises:
        RunError: the agent or the learner lacks references, or a prompt is put around messages.
        ValueError: the part is larger than the split.
    """
    task, is_main = build_task(experiment.task, tokenizers.student), this_process().is_main_process
    if is_main:
        report_dropped(task)
    task = train_subset(
        task, experiment.train_pairs, experiment.train_sources, experiment.train_draw
    )
    check_references(experiment, task)
    if is_main:
        report_examples(task)
    server = experiment.server
    if server and server.prompt != BARE and isinstance(task.tokenizer, ChatTokenizer):
        raise RunError(
            f"server.prompt must be left out beside messages, got {server.prompt!r}: the model's "
            "chat template is around them"
        )
    return with_expert_prompts(task, server.prompt) if server else task


def _references(experiment: Experiment, task: TextTask, validation: Examples) -> References:
    """Return the task's own pairs that the learner needs beside those of its environment."""
    added = experiment.learner.reference_weight or experiment.learner.ewc_weight
    return References(encode(by_kind(task.train)[0], task) if added else None, validation)


def _uncounted(
    experiment: Experiment, expert: Expert, examples: Examples, max_steps: int
) -> TeacherTexts | None:
    """Return the teacher with its texts for the first examples, without counting its queries.

    The texts are the same when a run is resumed. None without diagnostics, or unless the teacher is
    a model.
    """
    if not experiment.diagnostics or not isinstance(expert, NeuralExpert):
        return None
    some = examples.select(torch.arange(min(DIAGNOSTIC_PAIRS, len(examples))))
    with logits_from("teacher"):
        written = written_by(expert.model, some, max_steps, writer=Writer.EXPERT)
    return TeacherTexts.of(NeuralExpert(expert.model), written)


def _outcome(counters: Counters, asked: Queries, task: TextTask) -> Outcome:
    pairs, sources = by_kind(task.train)
    return Outcome(
        validation_bleu=counters.best,
        best_update=counters.best_update,
        train_seconds=counters.seconds + asked.seconds,
        teacher_tokens_queried=counters.teacher_tokens + asked.tokens,
        train_pairs=len(pairs),
        test_pairs=len(task.test),
        train_sources=len(sources),
        peak_memory_mib=peak_of_process(),
    )


def read_prepared(path: Path) -> tuple[Examples, Queries]:
    """Return the training data that a run was prepared with, and the queries for it."""
    prepared, metadata = load_tensors(path)
    return Examples(**prepared), Queries(**json.loads(metadata["queries"]))


def _prepare(
    experiment: Experiment, task: TextTask, expert: Expert, path: Path
) -> tuple[Examples, Queries]:
    """Prepare the agent's training data and count the queries for it, once; then read them back."""
    if path.exists():
        return read_prepared(path)
    pairs = encode(task.train, task)
    if isinstance(expert, CrossTokenizerExpert):
        views = expert.view([pair.expert_view for pair in task.train])
        pairs = replace(pairs, expert_source=views)
    prepares = progress("the expert writes the training data", len(task.train))
    with prepares as advance, decoded_rows_told_to(advance):
        examples = experiment.agent.prepare(pairs.to(this_device()), expert, task.max_target_length)
    asked = expert.queries
    save_atomically(path, tensors(examples), {"queries": json.dumps(asdict(asked))})
    return examples, asked
