"""Tokenizers, teacher and student that a run starts with."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from textgen_agents import AGENTS
from textgen_agents.agent import LearnsFrom
from textgen_agents.training.distributed import this_device
from textgen_env.envs.validation import match_vocabulary
from textgen_env.experts.cross_tokenizer import CrossTokenizerExpert
from textgen_env.experts.expert import Expert, NeuralExpert, NoExpert
from textgen_env.experts.keyed import KeyedExpert
from textgen_env.models import STUDENTS
from textgen_env.models.acceleration.cuda_graph import with_cuda_graphs
from textgen_env.models.acceleration.prepacked import with_prepacked_weights
from textgen_env.models.ensemble import Ensemble
from textgen_env.models.layer_copy import student_from_layers
from textgen_env.models.recurrent import RecurrentConfig
from textgen_env.models.sequence_model import SequenceModel
from textgen_env.models.storage import Model, load_model, load_tokenizer
from textgen_env.tasks import TASKS
from textgen_env.tasks.task import TextTask, encode_references
from textgen_env.tasks.train_subset import by_kind
from textgen_env.tokenizers.chat import in_kind_of
from textgen_env.tokenizers.subword import TextTokenizer, same_pieces
from textgen_env.types import Examples
from textgen_experiments.runs.black_box import with_black_box
from textgen_experiments.runs.experiment import Experiment, agent_name
from textgen_experiments.runs.factories import build_model
from textgen_experiments.runs.folder import Run, RunError

ACROSS_TOKENIZERS = (LearnsFrom.REFERENCES, LearnsFrom.TEXTS, LearnsFrom.TOKENS)


@dataclass(frozen=True)
class Tokenizers:
    """The tokenizers of a run.

    Attributes:
        student: the task's and the student's; None if the task is to train one.
        teacher: the teacher's where that is another; None where it is the same.
    """

    student: TextTokenizer | None
    teacher: TextTokenizer | None = None


def check_parts(experiment: Experiment) -> None:
    """Raise unless all parts that the settings ask for are given.

    Raises:
        RegistryError: the agent or the task is not registered.
        ValueError: a setting of the learner is none that the agent takes.
        RunError: the agent's teacher, or the model that adapters or EWC need, is missing.
    """
    AGENTS.name_of(experiment.agent)
    experiment.learner.check_agent(experiment.agent)
    TASKS.name_of(experiment.task)
    _check_teacher(experiment)
    if experiment.student_from_teacher is not None and experiment.teacher is None:
        found = "none" if experiment.server is None else experiment.server.url
        raise RunError(
            "teacher must be a model on this disk for student_from_teacher, which copies its "
            f"layers, got {found}: give --teacher FOLDER"
        )
    if experiment.student_init is not None:
        return
    if experiment.lora_rank is not None:
        raise RunError(
            "student_init must be given for adapters to be added to, got None with lora_rank "
            f"{experiment.lora_rank}"
        )
    if experiment.learner.ewc_weight and experiment.student_from_teacher is None:
        raise RunError(
            "student_init must be given where ewc_weight is not 0, for what a fresh student starts "
            "with is worth nothing, got None: give --student-init FOLDER or layers of the teacher "
            "(--student-from-teacher.decoder)"
        )


def _check_teacher(experiment: Experiment) -> None:
    """Raise `RunError` unless there is one teacher: models, a server or the student's average."""
    teacher = experiment.teacher or experiment.server or experiment.keyed_teachers
    decay = experiment.learner.self_teacher
    if teacher and decay is not None:
        raise RunError(
            f"teacher must be left out beside self_teacher, got {teacher} and {decay}: leave one "
            "of them out (--teacher None)"
        )
    if experiment.agent.needs_expert and not teacher and decay is None:
        raise RunError(
            f"teacher must be given for the agent {agent_name(experiment.agent)}, got None: give "
            "--teacher FOLDER or URL, or choose an agent that learns from data alone (mle)"
        )


def check_references(experiment: Experiment, task: TextTask) -> None:
    """Raise unless the agent and the learner have the references that they learn from.

    Args:
        experiment: settings of the run.
        task: with the pairs and sources that the student is trained on.

    Raises:
        RunError: there are sources without references and the agent learns from no such, or no
            pairs with references and the learner adds a term about those.
    """
    (pairs, sources), learner = by_kind(task.train), experiment.learner
    if sources and not experiment.agent.learns_without_references:
        able = [name for name, kind in AGENTS.items() if kind.learns_without_references]
        raise RunError(
            f"agent must learn without references where there are sources without, got "
            f"{agent_name(experiment.agent)} and {len(sources):,} of {task.name}: leave those "
            f"sources out, or choose one of {', '.join(able)}"
        )
    if not pairs and (learner.reference_weight or learner.ewc_weight):
        raise RunError(
            f"reference_weight and ewc_weight must be 0 where {task.name} has no training pairs "
            f"with references, got {learner.reference_weight} and {learner.ewc_weight}: give pairs"
        )


def choose_tokenizers(experiment: Experiment) -> Tokenizers:
    """Return the tokenizers of the models that a run starts with.

    Raises:
        RunError: the student is given two, or its agent cannot learn from a teacher with another.
    """
    option, folder = "student_init", experiment.student_init
    if experiment.student_tokenizer:
        option, folder = "student_tokenizer", experiment.student_tokenizer
    student = load_tokenizer(folder) if folder else None
    if experiment.student_init and student and option == "student_tokenizer":
        _check_same(student, folder, experiment.student_init)
    if experiment.keyed_teachers:
        return Tokenizers(_tokenizer_of_all(experiment, student))
    server = experiment.server
    teacher_folder = server.tokenizer if server else experiment.teacher
    if teacher_folder is None:
        return Tokenizers(student)
    teacher = load_tokenizer(teacher_folder)
    _check_further_teachers(experiment, teacher)
    if student is None or same_pieces(student, teacher):
        return Tokenizers(teacher)
    _check_same_end(option, folder, student, teacher)
    if experiment.student_from_teacher is not None:
        raise RunError(
            "student_tokenizer must be the teacher's for student_from_teacher, got "
            f"{folder}, which has another than {teacher_folder}: leave it out"
        )
    agent = experiment.agent
    converts = agent.learns_from in ACROSS_TOKENIZERS and not agent.queries_while_writing
    if not (converts or agent.bridges_tokenizers):
        raise RunError(
            f"{option} must have the teacher's tokenizer, got {folder}, which has another than "
            f"{teacher_folder}: {agent_name(agent)} asks for distributions over the student's "
            "tokens; with other ones imitkd, seqkd and seqinter learn from what it writes, and "
            "dskd_cma from its hidden states"
        )
    return Tokenizers(student, teacher)


def build_expert(run: Run, task: TextTask, tokenizers: Tokenizers) -> Expert:
    """Build the run's teacher as an expert, `NoExpert` if there is none."""
    experiment, tokenizer = run.experiment, tokenizers.teacher or task.tokenizer
    if experiment.server:
        expert = experiment.server.build(tokenizer)
    elif experiment.teacher:
        expert = _local_expert(run, task, tokenizers)
    elif experiment.keyed_teachers:
        named = {
            key: NeuralExpert(_load_to_answer(path, run.dtype))
            for key, path in experiment.keyed_teachers
        }
        expert = KeyedExpert(named, tokenizer)
    else:
        return NoExpert(tokenizer.special)
    if tokenizers.teacher is None:
        return expert
    teacher = in_kind_of(task.tokenizer, tokenizers.teacher)
    references = encode_references(task.train, teacher)
    longest = max(len(row or ()) for row in references) + 1
    return CrossTokenizerExpert(
        expert, teacher, task.tokenizer, max(longest, task.max_target_length)
    )


def _local_expert(run: Run, task: TextTask, tokenizers: Tokenizers) -> Expert:
    """Return the expert of the teachers on this disk, as a proxy if there is a black box.

    Raises:
        RunError: there is a black box, and the student's tokens are not the teacher's.
    """
    experiment = run.experiment
    expert, texts = NeuralExpert(_teacher_model(run, experiment)), experiment.black_box_texts
    if texts is None:
        return expert
    if tokenizers.teacher is not None:
        raise RunError(
            "student must have the tokenizer of its teacher beside black_box_texts, got "
            f"{experiment.student_tokenizer or experiment.student_init}: leave it out"
        )
    proxy = match_vocabulary(expert, task.tokenizer)
    return with_black_box(proxy, texts, experiment.proxy_weight, task)


def check_keys(expert: Expert, examples: Examples) -> None:
    """Raise `ExpertError` if an example names none of several teachers, before any is asked."""
    if isinstance(expert, KeyedExpert):
        expert.chosen(examples.expert_view)


def _teacher_model(run: Run, experiment: Experiment) -> SequenceModel:
    """Return the teacher, or the mixture of all teachers if there are further ones."""
    assert experiment.teacher is not None, "the caller has looked"
    folders = (experiment.teacher, *experiment.further_teachers)
    teachers = [_load_to_answer(folder, run.dtype) for folder in folders]
    return teachers[0] if len(teachers) == 1 else Ensemble(teachers)


def _tokenizer_of_all(experiment: Experiment, student: TextTokenizer | None) -> TextTokenizer:
    """Return the tokenizer of all keyed teachers, which must be the student's if it has one.

    Raises:
        RunError: one of them has another, or two have the same key.
    """
    keys, folders = zip(*experiment.keyed_teachers, strict=True)
    if len(set(keys)) < len(keys):
        raise RunError(f"keyed_teachers must have different keys, got {', '.join(keys)}")
    first, *others = map(load_tokenizer, folders)
    for other in (*others, student):
        if other is not None and not same_pieces(first, other):
            raise RunError(
                "keyed_teachers must all have the student's tokenizer, got another than that of "
                f"{folders[0]}: leave that one out"
            )
    return first


def _load_to_answer(folder: Path, dtype: torch.dtype) -> SequenceModel:
    """Load a teacher as it answers fastest on this process's device."""
    return with_prepacked_weights(with_cuda_graphs(load_model(folder, dtype).to(this_device())))


def initial_student(experiment: Experiment) -> Model | None:
    """Return the model that the student starts from; None for random weights.

    It is loaded, with adapters if they are to be trained, or made of layers of the teacher.
    """
    init, layers = experiment.student_init, experiment.student_from_teacher
    if init is not None:
        torch.manual_seed(experiment.learner.seed)  # of the adapters
        return load_model(init, lora_rank=experiment.lora_rank)
    if layers is None:
        return None
    assert experiment.teacher is not None, "checked with the parts"
    kind = None if experiment.student == RecurrentConfig() else experiment.student  # the default
    teacher = load_model(experiment.teacher)
    torch.manual_seed(experiment.learner.seed)  # of a hybrid's recurrent units
    return student_from_layers(teacher, layers, kind)


def fresh_student(experiment: Experiment, task: TextTask) -> Model:
    """Build a student with random weights, the same for the same seed."""
    config = replace(experiment.student, vocab_size=task.tokenizer.vocab_size)
    model = build_model(config, experiment.learner.seed, task.tokenizer.special)
    STUDENTS.name_of(model.config)  # raises before a model is trained that cannot be saved
    return model


def _check_same(student: TextTokenizer, folder: Path | None, init: Path) -> None:
    """Raise unless the model in `init` reads the student's tokens."""
    if not same_pieces(student, load_tokenizer(init)):
        raise RunError(
            f"student_tokenizer must be that of student_init, got {folder}, which has another than "
            f"{init}: leave it out"
        )


def _check_same_end(
    option: str, folder: Path | None, student: TextTokenizer, teacher: TextTokenizer
) -> None:
    """Raise `RunError` if both have the same pieces, and end texts with different ones."""
    own, wanted = student.special.end, teacher.special.end
    if student.pieces == teacher.pieces and own != wanted:
        raise RunError(
            f"{option} must end texts with the token that its teacher ends them with, number "
            f"{wanted}, got {folder}, which ends them with number {own}: set eos_token in its "
            "tokenizer_config.json"
        )


def _check_further_teachers(experiment: Experiment, tokenizer: TextTokenizer) -> None:
    """Raise unless all teachers of a mixture have the same tokenizer."""
    for folder in experiment.further_teachers:
        if not same_pieces(tokenizer, load_tokenizer(folder)):
            raise RunError(
                f"further_teachers must have the tokenizer of {experiment.teacher}, got {folder}, "
                "which has another: leave it out"
            )
