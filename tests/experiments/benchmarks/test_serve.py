"""The load test asks each text once, and compares what comes back."""

import asyncio
import socket
import threading

import pytest

from tests.support.serving import Served, texts_of
from tests.support.toy import lively_transformer
from textgen_experiments.benchmarks.serve import (
    BenchmarkServeOptions,
    TimedText,
    ask_texts,
    equal_share,
    latencies,
)
from textgen_experiments.runs.folder import RunError
from textgen_experiments.serving.uvicorn_server import QuietServer

SOURCES = [f"{first} {second}" for first in "abcdef" for second in "uvwxyz"]


@pytest.fixture
def served_model():
    """Yield a model, and the port at which a thread of this process serves it."""
    model = lively_transformer()
    with Served(model) as served, socket.create_server(("127.0.0.1", 0)) as listener:
        server = QuietServer.of(served.client.app, grace=5.0)
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])))
        thread.start()
        yield model, listener.getsockname()[1]
        server.should_exit = True
        thread.join()


@pytest.mark.parametrize("clients", [1, 5])
def test_all_texts_come_back_in_their_order(served_model, clients):
    model, port = served_model
    answers = ask_texts(port, SOURCES, clients)
    assert [answer.text for answer in answers] == texts_of(model, SOURCES)
    assert all(answer.seconds > 0 for answer in answers)


def test_a_refused_request_ends_the_test(served_model):
    _, port = served_model
    with pytest.raises(
        RunError, match=r"the server must answer, got status 400: .*more than spaces"
    ):
        ask_texts(port, ["a", " "], 2)


def test_figures_of_the_table():
    assert latencies([TimedText("a", number / 1000) for number in range(1, 22)]) == ("11", "20")
    assert latencies([]) == ("", "")
    assert equal_share(["a", "b", "c"], ["a", "x", "c"]) == "2 of 3"


def test_settings_are_checked():
    with pytest.raises(ValueError, match="clients must be at least 1, got 0"):
        BenchmarkServeOptions(clients=0)
