"""A served model of words whose texts vary, and one that a test lets go on step by step."""

from threading import Event, Semaphore

from fastapi.testclient import TestClient

from tests.support.toy import SPECIAL, lively_transformer
from textgen_env.generation.decoding import greedy
from textgen_env.generation.open_batch import OpenBatch
from textgen_env.tasks.task import encode_sources
from textgen_env.tokenizers.subword import Tokenizer
from textgen_experiments.serving.app import create_app
from textgen_experiments.serving.metrics import ServingMetrics
from textgen_experiments.serving.service import ServedModel, TextService
from textgen_experiments.serving.worker import DecodingWorker

WORDS = Tokenizer.from_words([*"abcdefghijklmnopqrstuvwxyz", "zz"])  # 30 pieces with the special
STEPS = 20


class HeldModel:
    """`lively_transformer` whose steps wait until a test lets them go."""

    special = SPECIAL

    def __init__(self):
        self.inner = lively_transformer()
        self.vocab_size = self.inner.vocab_size
        self.steps, self.has_begun = Semaphore(0), Event()

    def start(self, source, max_steps):
        return self.inner.start(source, max_steps)

    def step(self, previous, cache):
        self.has_begun.set()
        assert self.steps.acquire(timeout=30), "the test lets no more steps go"
        return self.inner.step(previous, cache)

    def let_go(self, steps=10_000):
        self.steps.release(steps)


class Served:
    """A server in this process, with a client.

    Args:
        model: writes the texts.
        slots, max_waiting, timeout: as the options of `serve`.
        key, most_bytes: of the application.
        tokenizer, max_source_tokens: of the model.
    """

    def __init__(  # noqa: PLR0913 - settings of a server
        self,
        model,
        slots=4,
        max_waiting=8,
        timeout=30.0,
        key=None,
        most_bytes=10_000,
        tokenizer=WORDS,
        max_source_tokens=12,
    ):
        self.worker = DecodingWorker(OpenBatch(model, slots, STEPS), max_waiting)
        self.metrics = ServingMetrics(self.worker)
        known = ServedModel("small", tokenizer, max_source_tokens, STEPS)
        self.service = TextService(known, self.worker, timeout)
        app = create_app(self.service, self.metrics, key=key, most_bytes=most_bytes)
        self.client = TestClient(app, raise_server_exceptions=False)

    def __enter__(self):
        self.worker.start()
        return self

    def __exit__(self, *error):
        self.worker.stop()
        self.service.reader.shutdown()
        self.client.close()

    def translate(self, text, **body):
        return self.client.post("/translate", json={"text": text, **body})

    def complete(self, prompt, **body):
        return self.client.post("/v1/completions", json={"prompt": prompt, **body})


def texts_of(model, sources, limit=STEPS):
    """Return what the model writes greedily for each source alone."""
    rows = [greedy(model, encode_sources([text], WORDS), limit)[0].tolist() for text in sources]
    return WORDS.decode(rows)
