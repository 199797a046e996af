"""Students' texts token by token, with the teacher's probability of each token.

One parallel pass of the teacher over a student's own texts gives the teacher's distribution at
every state on the student's prefixes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from textgen_agents.evaluation.exposure_bias import written_by
from textgen_env.experts.expert import Expert, NeuralExpert
from textgen_env.models.acceleration.prepacked import with_prepacked_weights
from textgen_env.models.sequence_model import SequenceModel
from textgen_env.models.storage import load_model, load_tokenizer
from textgen_env.tasks.task import Pair, Task, TaskConfig, TextTask, encode, text_hash
from textgen_env.tokenizers.subword import TextTokenizer, same_pieces
from textgen_env.types import Writer
from textgen_experiments.evaluation.results import Sample
from textgen_experiments.reporting.load_runs import ReportedRun
from textgen_experiments.runs.factories import build_task
from textgen_experiments.runs.folder import RunError
from textgen_experiments.runs.progress import progress

NUM_ALTERNATIVES = 5
TEXTS_PER_BATCH = 64  # in one pass of the teacher
MIN_SAME_TEXTS = 0.9  # share of texts equal to the evaluated ones; rounding may change a few
END_TEXT = "⟨end⟩"


@dataclass(frozen=True)
class Token:
    """A token that a student wrote, with the teacher's view of it.

    Attributes:
        text: the characters that it adds to the text, with the space before them. A character of
            several tokens belongs to the last of them; the others add nothing.
        probability: the teacher's, in [0, 1].
        rank: 1 for the teacher's most probable token, 2 for the next one.
        best: the teacher's most probable tokens, in falling order, and their probabilities.
    """

    text: str
    probability: float
    rank: int
    best: list[tuple[str, float]]


@dataclass(frozen=True)
class Sentence:
    """A test pair with the texts that the models wrote for it.

    Attributes:
        number: its position in the test split, from 1.
        source: the source text.
        reference: the data set's text.
        teacher: the teacher's text; None without a teacher.
        texts: the text of each run, by the run's name.
        tokens: the same texts as tokens, for the runs whose teacher has the student's tokenizer.
    """

    number: int
    source: str
    reference: str
    teacher: str | None
    texts: dict[str, str]
    tokens: dict[str, list[Token]]


def read_sentences(
    runs: Sequence[ReportedRun], tasks: Sequence[TextTask], count: int
) -> list[Sentence]:
    """Return `count` sentences of the test split, or all, with the evaluated runs' texts.

    Args:
        runs: evaluated ones, at least one.
        tasks: the task of each run, as `tasks_of` returns it.
        count: number of sentences, at least 1.

    Raises:
        RunError: the task or a model is no longer what was evaluated.
    """
    samples = runs[0].samples
    indices = choose_samples(samples, count)
    sentences = [
        Sentence(
            number=index + 1,
            source=samples[index].source,
            reference=samples[index].reference,
            teacher=samples[index].teacher,
            texts={run.name: run.samples[index].hypothesis for run in runs},
            tokens={},
        )
        for index in indices
    ]
    with progress("reading tokens", total=len(runs)) as advance:
        for run, task in zip(runs, tasks, strict=True):
            teacher = run.run.experiment.teacher
            if teacher and same_pieces(load_tokenizer(teacher), task.tokenizer):
                texts = _read_run_tokens(run, task, indices)
                for sentence, tokens in zip(sentences, texts, strict=True):
                    sentence.tokens[run.name] = tokens
            advance()
    return sentences


def choose_samples(samples: Sequence[Sample], count: int) -> list[int]:
    """Return the indices of `count` pairs, or of all: those with the lowest hashes, in order."""
    hashes = [text_hash(f"{sample.source}\t{sample.reference}") for sample in samples]
    return sorted(sorted(range(len(samples)), key=hashes.__getitem__)[:count])


def tasks_of(runs: Sequence[ReportedRun]) -> list[TextTask]:
    """Return the task of each run in its own tokens; those of runs alike are one, built once."""
    known: list[tuple[TaskConfig, TextTask]] = []
    tasks = []
    for run in runs:
        config, tokenizer = run.run.experiment.task, load_tokenizer(run.folder / "model")
        alike = (
            task
            for other, task in known
            if other == config and same_pieces(task.tokenizer, tokenizer)
        )
        task = next(alike, None)
        if task is None:
            task = build_task(config, tokenizer)
            known.append((config, task))
        tasks.append(task)
    return tasks


def _read_run_tokens(run: ReportedRun, task: TextTask, indices: Sequence[int]) -> list[list[Token]]:
    """Return the run's texts as tokens, at these indices of the test split of its task.

    Raises:
        RunError: the test pairs or the model are not those that were evaluated.
    """
    folder, experiment = run.folder / "model", run.run.experiment
    assert experiment.teacher, "only a teacher gives probabilities"
    if [(pair.source, pair.reference) for pair in task.test] != [
        (sample.source, sample.reference) for sample in run.samples
    ]:
        raise RunError(
            f"test pairs of {run.folder} must be those that it was evaluated on, but they are "
            f"others: run `textgen evaluate {run.folder}` again"
        )
    student, teacher = (
        with_prepacked_weights(load_model(path, run.run.dtype))
        for path in (folder, experiment.teacher)
    )
    texts = read_tokens(student, NeuralExpert(teacher), task, [task.test[i] for i in indices])
    same = sum(
        text_of(tokens) == _without_partial_character(run.samples[index].hypothesis)
        for index, tokens in zip(indices, texts, strict=True)
    )
    if same < MIN_SAME_TEXTS * len(indices):
        raise RunError(
            f"model of {run.folder} must be the one that was evaluated, but it writes "
            f"{len(indices) - same} of {len(indices)} texts differently: "
            f"run `textgen evaluate {run.folder}` again"
        )
    return texts


@torch.no_grad()
def read_tokens(
    student: SequenceModel, expert: Expert, task: Task, pairs: Sequence[Pair]
) -> list[list[Token]]:
    """Return the student's greedy text for each source, with the teacher's view of each token.

    Args:
        student: in evaluation mode.
        expert: the teacher.
        task: the task of the pairs.
        pairs: at least one.
    """
    own = written_by(student, encode(pairs, task), task.max_target_length, writer=Writer.STUDENT)
    texts = []
    for rows in torch.arange(len(own)).split(TEXTS_PER_BATCH):
        batch = own.select(rows).trimmed(expert.special)
        log_probs = expert.logits(batch).float().log_softmax(-1)
        for actions, length, row in zip(batch.actions, batch.mask.sum(1), log_probs, strict=True):
            texts.append(_tokens(actions[:length], row[:length], task.tokenizer))
    return texts


def _tokens(actions: Tensor, log_probs: Tensor, tokenizer: TextTokenizer) -> list[Token]:
    """Return the tokens of one text, (T,), given the teacher's log-probabilities, (T, V)."""
    chosen = log_probs.gather(1, actions[:, None])
    ranks = (log_probs > chosen).sum(1) + 1
    best = log_probs.topk(min(NUM_ALTERNATIVES, log_probs.shape[1]))
    written, ids = actions.tolist(), torch.cat([actions[:, None], best.indices], 1).tolist()
    probabilities = torch.cat([chosen, best.values], 1).exp().tolist()
    tokens = []
    for step, rank in enumerate(ranks.tolist()):
        texts = _added_texts(written[:step], ids[step], tokenizer)
        own, *others = zip(texts, map(_rounded, probabilities[step]), strict=True)
        tokens.append(Token(*own, rank, others))
    return tokens


def _added_texts(prefix: list[int], tokens: Sequence[int], tokenizer: TextTokenizer) -> list[str]:
    """Return the text that each of `tokens` adds to the text of `prefix`."""
    before, *after = (
        _without_partial_character(text)
        for text in tokenizer.decode([prefix, *([*prefix, token] for token in tokens)])
    )
    special = {token: f"⟨{name}⟩" for name, token in tokenizer.special._asdict().items()}
    return [
        special.get(token, text[len(before) :]) for token, text in zip(tokens, after, strict=True)
    ]


def _without_partial_character(text: str) -> str:
    """Return the text without a last character of which bytes are missing."""
    return text.rstrip("\N{REPLACEMENT CHARACTER}").strip()


def _rounded(probability: float) -> float:
    return float(f"{probability:.4g}")


def text_of(tokens: Sequence[Token]) -> str:
    """Return the text of the tokens, without a last character of which bytes are missing."""
    return "".join(token.text for token in tokens if token.text != END_TEXT).strip()
