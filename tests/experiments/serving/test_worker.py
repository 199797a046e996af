"""Texts of a queue are written in their order; whoever gives up frees a place."""

import threading

import pytest
import torch

from tests.support.serving import STEPS, HeldModel
from tests.support.toy import lively_transformer
from textgen_env.generation.decoding import LogitsError
from textgen_env.generation.open_batch import OpenBatch, OpenText
from textgen_experiments.serving.worker import (
    DecodingWorker,
    QueueFullError,
    WorkerStoppedError,
    joining_count,
)

SECONDS = 30


def texts(count, limit=STEPS):
    return [OpenText(torch.tensor([3 + number % 20, 2]), limit) for number in range(count)]


@pytest.fixture
def held():
    """Return a model that is held, and a worker of two slots and two places to wait with it."""
    model = HeldModel()
    worker = DecodingWorker(OpenBatch(model, 2, STEPS), 2)
    worker.start()
    yield model, worker
    model.let_go()
    worker.stop()


def test_texts_from_many_threads_are_those_of_one(request):
    model = lively_transformer()
    worker = DecodingWorker(OpenBatch(model, 4, STEPS), 100)
    worker.start()
    request.addfinalizer(worker.stop)
    alone = [
        future.result(SECONDS).tokens for text in texts(20) for future in worker.submit([text])
    ]
    found = [None] * 20

    def ask(number, text):
        (future,) = worker.submit([text])
        found[number] = future.result(SECONDS).tokens

    threads = [threading.Thread(target=ask, args=each) for each in enumerate(texts(20))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert found == alone
    assert len({len(tokens) for tokens in alone}) > 2, "the test needs texts of several lengths"


def test_a_full_queue_takes_all_texts_of_a_request_or_none(held):
    model, worker = held
    futures = worker.submit(texts(3))
    with pytest.raises(QueueFullError, match="at most 4, got 2 beside 3"):
        worker.submit(texts(2))
    futures += worker.submit(texts(1))
    model.let_go()
    assert all(future.result(SECONDS).tokens for future in futures)


def test_texts_that_are_given_up_make_room_at_once(held):
    model, worker = held
    futures = worker.submit(texts(4))
    assert model.has_begun.wait(SECONDS)
    for future in futures:
        assert future.cancel()
    others = worker.submit(texts(4))
    model.let_go()
    assert all(future.result(SECONDS).tokens for future in others)
    assert worker.num_waiting == worker.num_running == 0


def test_a_model_that_fails_fails_the_texts_of_its_batch_alone(monkeypatch):
    model = lively_transformer()
    worker = DecodingWorker(OpenBatch(model, 2, STEPS), 2)
    with monkeypatch.context() as patch:
        patch.setattr(model, "noise", model.noise * float("nan"))
        (failed,) = worker.submit(texts(1))
        worker.start()
        assert isinstance(failed.exception(SECONDS), LogitsError)
    (unread,) = worker.submit([OpenText(torch.tensor([[1], [2]]), STEPS)])
    assert unread.exception(SECONDS) is not None
    (fine,) = worker.submit(texts(1))
    assert fine.result(SECONDS).tokens
    worker.stop()


def test_a_closed_worker_finishes_and_a_stopped_one_says_so(held):
    model, worker = held
    (running,) = worker.submit(texts(1, limit=1))
    worker.close()
    with pytest.raises(WorkerStoppedError, match="the server stops"):
        worker.submit(texts(1))
    model.let_go(1)
    assert running.result(SECONDS).tokens
    worker.stop()


def test_a_stopped_worker_leaves_no_text_without_an_answer(held):
    model, worker = held
    futures = worker.submit(texts(4))
    assert model.has_begun.wait(SECONDS)
    stopping = threading.Thread(target=worker.stop)
    stopping.start()
    model.let_go(1)
    stopping.join(SECONDS)
    assert all(isinstance(future.exception(SECONDS), WorkerStoppedError) for future in futures)


@pytest.mark.parametrize(
    ("room", "waiting", "count"),
    [(64, 1, 1), (1, 1, 1), (1, 9, 0), (7, 9, 0), (8, 9, 8), (8, 8, 8), (0, 5, 0), (64, 0, 0)],
)
def test_few_texts_join_at_once_and_a_crowd_in_groups(room, waiting, count):
    assert joining_count(room, waiting, slots=64) == count
