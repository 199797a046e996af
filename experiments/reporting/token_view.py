"""What students wrote, token by token, and how probable the teacher finds each token.

One parallel pass of the teacher over a student's own texts: at every token the teacher has read
what the student had written so far.
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
from textgen_env.tasks.task import Pair, Task, encode, text_hash
from textgen_env.tokenizers.subword import TextTokenizer, same_pieces
from textgen_env.types import Writer
from textgen_experiments.evaluation.results import Sample
from textgen_experiments.reporting.load_runs import ReportedRun
from textgen_experiments.runs.factories import build_task
from textgen_experiments.runs.folder import RunError
from textgen_experiments.runs.run_log import progress

NUM_ALTERNATIVES = 5
BATCH_SIZE = 64  # texts looked at together
MOSTLY = 0.9  # of a student's texts must be as when it was evaluated; rounding may change a few
END = "⟨end⟩"


@dataclass(frozen=True)
class Token:
    """A token that a student wrote, as the teacher sees it.

    Attributes:
        text: what it adds to the text, with the space before it; empty for the first bytes of a
            character, which is that of its last.
        probability: the teacher's, in [0, 1].
        rank: 1 for the teacher's first choice, 2 for its second.
        best: the teacher's most probable tokens, in falling order, and their probabilities.
    """

    text: str
    probability: float
    rank: int
    best: list[tuple[str, float]]


@dataclass(frozen=True)
class Sentence:
    """A test pair, and what was made of it.

    Attributes:
        number: its place in the test split, from 1.
        source: what all models read.
        reference: the data set's text.
        teacher: the teacher's; None without one.
        texts: the runs' by name.
        tokens: the same texts token by token; of no run without a teacher that reads its tokens.
    """

    number: int
    source: str
    reference: str
    teacher: str | None
    texts: dict[str, str]
    tokens: dict[str, list[Token]]


def read_sentences(runs: Sequence[ReportedRun], count: int) -> list[Sentence]:
    """So many sentences of the test split, or all, with what the evaluated runs' models write.

    Raises:
        RunError: the task or a model is no longer what was evaluated.
    """
    evaluated = [run for run in runs if run.evaluation]
    if not evaluated:
        return []
    samples = evaluated[0].samples
    places = choose(samples, count)
    sentences = [
        Sentence(
            number=place + 1,
            source=samples[place].source,
            reference=samples[place].reference,
            teacher=samples[place].teacher,
            texts={run.name: run.samples[place].hypothesis for run in evaluated},
            tokens={},
        )
        for place in places
    ]
    with progress("reading tokens", total=len(evaluated)) as advance:
        for run in evaluated:
            teacher = run.run.experiment.teacher
            if teacher and same_pieces(*map(load_tokenizer, (teacher, run.folder / "model"))):
                texts = _read_run(run, places)
                for sentence, tokens in zip(sentences, texts, strict=True):
                    sentence.tokens[run.name] = tokens
            advance()
    return sentences


def choose(samples: Sequence[Sample], count: int) -> list[int]:
    """Places of `count` of the pairs, or of all: those whose text hashes lowest, in their order."""
    hashes = [text_hash(f"{sample.source}\t{sample.reference}") for sample in samples]
    return sorted(sorted(range(len(samples)), key=hashes.__getitem__)[:count])


def _read_run(run: ReportedRun, places: Sequence[int]) -> list[list[Token]]:
    """`read_tokens` at these places of the test split."""
    folder, experiment = run.folder / "model", run.run.experiment
    assert experiment.teacher, "without a teacher there is nothing to read"
    task = build_task(experiment.task, load_tokenizer(folder))
    if [(pair.source, pair.reference) for pair in task.test] != [
        (sample.source, sample.reference) for sample in run.samples
    ]:
        raise RunError(
            f"test pairs of {run.folder} must be those that it was evaluated on, got others: "
            f"run `textgen evaluate {run.folder}` again"
        )
    student, teacher = (
        with_prepacked_weights(load_model(path, run.run.dtype))
        for path in (folder, experiment.teacher)
    )
    texts = read_tokens(student, NeuralExpert(teacher), task, [task.test[i] for i in places])
    same = sum(
        text_of(tokens) == _ended(run.samples[place].hypothesis)
        for place, tokens in zip(places, texts, strict=True)
    )
    if same < MOSTLY * len(places):
        raise RunError(
            f"model of {run.folder} must be the one that was evaluated, got one that writes "
            f"{len(places) - same} of {len(places)} texts otherwise: "
            f"run `textgen evaluate {run.folder}` again"
        )
    return texts


@torch.no_grad()
def read_tokens(
    student: SequenceModel, expert: Expert, task: Task, pairs: Sequence[Pair]
) -> list[list[Token]]:
    """What the student writes greedily for each source, with the teacher's view of each token.

    Args:
        student: in evaluation mode.
        expert: the teacher.
        task: of the pairs.
        pairs: at least one.
    """
    own = written_by(student, encode(pairs, task), task.max_target_length, writer=Writer.STUDENT)
    texts = []
    for rows in torch.arange(len(own)).split(BATCH_SIZE):
        batch = own.select(rows).trimmed(expert.special)
        log_probs = expert.logits(batch).float().log_softmax(-1)
        for actions, length, view in zip(batch.actions, batch.mask.sum(1), log_probs, strict=True):
            texts.append(_tokens(actions[:length], view[:length], task.tokenizer))
    return texts


def _tokens(actions: Tensor, log_probs: Tensor, tokenizer: TextTokenizer) -> list[Token]:
    """The tokens of one text, (T,), beside the teacher's log-probabilities of all, (T, V)."""
    chosen = log_probs.gather(1, actions[:, None])
    ranks = (log_probs > chosen).sum(1) + 1
    best = log_probs.topk(min(NUM_ALTERNATIVES, log_probs.shape[1]))
    written, ids = actions.tolist(), torch.cat([actions[:, None], best.indices], 1).tolist()
    probabilities = torch.cat([chosen, best.values], 1).exp().tolist()
    tokens = []
    for place, rank in enumerate(ranks.tolist()):
        texts = _continuations(written[:place], ids[place], tokenizer)
        own, *others = zip(texts, map(_rounded, probabilities[place]), strict=True)
        tokens.append(Token(*own, rank, others))
    return tokens


def _continuations(prefix: list[int], tokens: Sequence[int], tokenizer: TextTokenizer) -> list[str]:
    """What each of `tokens` adds to the text of `prefix`."""
    before, *after = (
        _ended(text) for text in tokenizer.decode([prefix, *([*prefix, token] for token in tokens)])
    )
    special = {token: f"⟨{name}⟩" for name, token in tokenizer.special._asdict().items()}
    return [
        special.get(token, text[len(before) :]) for token, text in zip(tokens, after, strict=True)
    ]


def _ended(text: str) -> str:
    """The text without a last character whose bytes are not all there."""
    return text.rstrip("\N{REPLACEMENT CHARACTER}").strip()


def _rounded(probability: float) -> float:
    return float(f"{probability:.4g}")


def text_of(tokens: Sequence[Token]) -> str:
    """The text that the tokens make, without a last character that is not whole."""
    return "".join(token.text for token in tokens if token.text != END).strip()
