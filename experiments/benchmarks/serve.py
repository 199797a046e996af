"""Load test of the server: many clients at once beside one request after the other.

The server is a process of its own, as `textgen serve` begins it. The same texts are also written
without a server, in batches as `textgen generate` writes them, and compared.
"""

import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import tyro

from textgen_env.bounds import check_at_least
from textgen_env.models.storage import load_tokenizer
from textgen_env.tasks.lines import in_one_line
from textgen_env.tasks.task import encode_sources
from textgen_experiments.evaluation.fastest_precision import ActingPrecision
from textgen_experiments.evaluation.tables import print_table
from textgen_experiments.evaluation.timing import interleaved_rates, ratio
from textgen_experiments.models.formats import load_generator
from textgen_experiments.models.generate import model_folder, task_of
from textgen_experiments.runs.experiment import VERSES_STUDENT
from textgen_experiments.runs.folder import RunError
from textgen_experiments.runs.progress import tell

IN_TURN, AT_ONCE, IN_BATCHES = "one request after the other", "at once", "generate, without HTTP"
LOOPBACK = "127.0.0.1"
ANSWER_SECONDS = 600


@dataclass(frozen=True)
class BenchmarkServeOptions:
    """Time a server whose clients ask at once beside one request after the other.

    Attributes:
        model: folder of a finished run or of a model, with its task's test sentences.
        clients: clients that ask at once, each one text after the other; slots of the server.
        sentences: number of test sentences, from the first.
        max_tokens: longest output, in tokens.
        precision: precision of the model.
        rounds: measured rounds, in which all ways take turns.
    """

    model: Annotated[Path, tyro.conf.Positional] = VERSES_STUDENT
    clients: int = 64
    sentences: int = 256
    max_tokens: int = 128
    precision: ActingPrecision = "float32"
    rounds: int = 3

    def __post_init__(self) -> None:
        check_at_least(self, clients=1, sentences=2, max_tokens=1, rounds=1)


class TimedText(NamedTuple):
    """Answer of the server.

    Attributes:
        text: the text that it wrote.
        seconds: from the request to the answer.
    """

    text: str
    seconds: float


def benchmark_serve(options: BenchmarkServeOptions) -> None:
    """Print a table of throughput, latency and equal texts.

    Raises:
        RunError: the server does not begin, or refuses a request.
    """
    folder = model_folder(options.model)
    task = task_of(folder, load_tokenizer(folder))
    sources = [pair.source.strip() for pair in task.test[: options.sentences]]
    answers: dict[str, list[TimedText]] = {name: [] for name in (IN_TURN, AT_ONCE)}
    written: list[str] = []

    def ask(name: str, port: int, clients: int) -> int:
        answers[name] = ask_texts(port, sources, clients)
        return len(sources)

    write = batch_writer(folder, options)

    def write_in_batches() -> int:
        written[:] = write(sources)
        return len(sources)

    with server_process(options) as port:
        rates = interleaved_rates(
            {
                IN_TURN: partial(ask, IN_TURN, port, 1),
                AT_ONCE: partial(ask, AT_ONCE, port, options.clients),
                IN_BATCHES: write_in_batches,
            },
            options.rounds,
        )
    print_table(
        f"{len(sources)} texts of {options.model.name}, {options.clients} clients at once, "
        f"{options.precision}, {torch.get_num_threads()} threads",
        ("texts", "texts/s", "ratio", "p50, ms", "p95, ms", "as by generate"),
        [
            (
                name,
                f"{statistics.median(rates[name]):.1f}",
                f"{ratio(rates[name], rates[IN_TURN]):.2f}",
                *latencies(answers.get(name, ())),
                equal_share([each.text for each in answers[name]], written)
                if name in answers
                else "",
            )
            for name in rates
        ],
    )


def batch_writer(
    folder: Path, options: BenchmarkServeOptions
) -> Callable[[Sequence[str]], list[str]]:
    """Return a function from sources to their texts, in batches as `textgen generate` decodes."""
    generator = load_generator(folder, precision=options.precision)
    tokenizer = load_tokenizer(folder)

    def write(sources: Sequence[str]) -> list[str]:
        texts = []
        for start in range(0, len(sources), options.clients):
            rows = encode_sources(sources[start : start + options.clients], tokenizer)
            texts += tokenizer.decode(generator(rows, options.max_tokens).tolist())
        return list(map(in_one_line, texts))

    return write


@contextmanager
def server_process(options: BenchmarkServeOptions) -> Iterator[int]:
    """Yield the port of a server in a process of its own, which ends with the block.

    Raises:
        RunError: the server does not begin.
    """
    settings = {
        "--port": 0,
        "--slots": options.clients,
        "--max-tokens": options.max_tokens,
        "--precision": options.precision,
        "--threads": torch.get_num_threads(),
        "--timeout": ANSWER_SECONDS,
    }
    words = [str(word) for setting in settings.items() for word in setting]
    command = [sys.executable, "-m", "textgen_env", "serve", str(options.model), *words]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None, "it is a pipe"
        try:
            said = ""
            for said in process.stderr:
                if found := re.search(rf"http://{re.escape(LOOPBACK)}:(\d+)", said):
                    yield int(found[1])
                    return
            raise RunError(f"the server must begin, got: {said.strip() or 'no line'}")
        finally:
            process.terminate()
            tell(process.communicate()[1].strip())


def ask_texts(port: int, sources: Sequence[str], clients: int) -> list[TimedText]:
    """Return the texts of the server for `sources`, in their order.

    Args:
        port: of the server on this machine.
        sources: texts to translate.
        clients: connections that ask at once, each for one text after the other.

    Raises:
        RunError: the server refuses a request.
    """
    found: list[TimedText | None] = [None] * len(sources)

    def ask_every(first: int) -> None:
        with closing(HTTPConnection(LOOPBACK, port, timeout=ANSWER_SECONDS)) as connection:
            for number in range(first, len(sources), clients):
                found[number] = _ask(connection, sources[number])

    with ThreadPoolExecutor(clients) as executor:
        for _ in executor.map(ask_every, range(clients)):
            pass  # errors are raised here
    return [each for each in found if each is not None]


def _ask(connection: HTTPConnection, source: str) -> TimedText:
    """Send a request and wait for its text."""
    begun = time.perf_counter()
    content = json.dumps({"text": source})
    connection.request("POST", "/translate", content, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    body = json.loads(answer.read())
    if answer.status != 200:
        raise RunError(f"the server must answer, got status {answer.status}: {body}")
    return TimedText(body["texts"][0], time.perf_counter() - begun)


def latencies(answers: Sequence[TimedText]) -> tuple[str, str]:
    """Return the median and the 95th percentile of the seconds, in milliseconds."""
    if not answers:
        return "", ""
    percentiles = statistics.quantiles([each.seconds for each in answers], n=20, method="inclusive")
    return f"{1000 * percentiles[9]:.0f}", f"{1000 * percentiles[18]:.0f}"


def equal_share(texts: Sequence[str], others: Sequence[str]) -> str:
    """Return how many texts are equal to others, as "255 of 256"."""
    equal = sum(one == other for one, other in zip(texts, others, strict=True))
    return f"{equal} of {len(texts)}"
