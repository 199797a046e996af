"""Tests of the message-level environment by OpenEnv's own client, run by `make integrations`."""

import socket
import threading
import time
from contextlib import suppress

import pytest
import requests
import torch
import uvicorn
from openenv.core import GenericEnvClient
from websockets.exceptions import ConnectionClosed

from textgen_env.envs.rewards import exact_match, expert_log_prob
from textgen_env.envs.text_metrics import TokenTexts, token_bleu
from textgen_env.experts.expert import NeuralExpert
from textgen_env.integrations.openenv import MAX_CHARACTERS, openenv_app
from textgen_env.tasks.task import encode_sources

REFUSED = (RuntimeError, ConnectionClosed)  # the client reads the error, or finds a closed socket
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of websockets in uvicorn
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def serve(tiny_task):
    """Return a function that serves the task on a free port of this machine and gives its URL."""
    servers = []

    def start(**settings):
        listener = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(
            uvicorn.Config(openenv_app(tiny_task, **settings), log_level="critical")
        )
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        servers.append((server, thread))
        while not server.started:
            time.sleep(0.01)
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for server, thread in servers:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def url(serve):
    return serve(reward=exact_match)


def connect(url):
    return GenericEnvClient(base_url=url).sync()


def test_the_reference_earns_the_reward_and_another_text_none(url, tiny_task):
    pair = tiny_task.validation[3]
    with connect(url) as env:
        opened = env.reset(split="validation", index=3)
        assert (opened.observation["source"], opened.done) == (pair.source, False)
        assert opened.reward is None
        ended = env.step({"text": pair.reference})
        assert (ended.reward, ended.done) == (1.0, True)
        expected = [
            *tiny_task.tokenizer.encode([pair.reference])[0],
            tiny_task.tokenizer.special.end,
        ]
        assert ended.observation["tokens"] == expected
        assert ended.observation["expert_log_probs"] is None
        env.reset(split="validation", index=3)
        assert env.step({"text": ""}).reward == 0.0
        assert env.state()["index"] == 3


def test_the_default_reward_is_the_bleu_of_the_tokens(serve, tiny_task):
    pair, other = tiny_task.test[0], tiny_task.test[1]
    special, tokenizer = tiny_task.tokenizer.special, tiny_task.tokenizer
    texts = [
        TokenTexts.of(encode_sources([each], tokenizer), special)
        for each in (other.reference, pair.reference)
    ]
    with connect(serve()) as env:
        env.reset(split="test", index=0)
        reward = env.step({"text": other.reference}).reward
    assert reward == pytest.approx(float(token_bleu(*texts)))


def test_log_probabilities_are_the_experts(serve, tiny_task, make_student):
    model, pair = make_student(), tiny_task.train[5]
    source, actions = (
        encode_sources([text], tiny_task.tokenizer) for text in (pair.source, pair.reference)
    )
    with torch.no_grad():
        log_probs = model.sequence_logits(source, actions).log_softmax(-1)
    expected = log_probs.gather(2, actions[..., None]).flatten().tolist()
    settings = {"expert": NeuralExpert(model), "reward": expert_log_prob, "ask_expert": True}
    with connect(serve(**settings)) as env:
        env.reset(split="train", index=5)
        ended = env.step({"text": pair.reference, "expert_log_probs": True})
    assert ended.observation["expert_log_probs"] == pytest.approx(expected, abs=1e-5)
    assert ended.reward == pytest.approx(sum(expected), abs=1e-4)


def test_a_seed_draws_the_same_example_again(url):
    with connect(url) as env:
        drawn = [env.reset(seed=seed).observation["source"] for seed in (3, 3, 4, 5, 6)]
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) > 1


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"split": "dev"}, "split must be one of train, validation, test, got 'dev'"),
        ({"split": "test", "index": 12}, "index must be a whole number from 0 to 11 in split test"),
        ({"index": -1}, "from 0 to 63 in split train, got -1"),
        ({"index": True}, "got True"),
        ({"index": "2"}, "got '2'"),
        ({"split": ["test"]}, "split must be one of"),
    ],
)
def test_an_unknown_example_is_an_error_and_the_session_goes_on(asked, expected, url):
    with connect(url) as env:
        with pytest.raises(RuntimeError, match=expected):
            env.reset(**asked)
        assert env.reset(index=0).observation["source"]
    answer = requests.post(f"{url}/reset", json=asked, timeout=10)
    assert answer.status_code == 422
    assert expected in answer.json()["detail"]


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        ({"text": "w1 " * 40}, "text must have at most 5 tokens, got 40"),
        ({"text": "w" * (MAX_CHARACTERS + 1)}, "text must have at most 100,000 characters"),
        ({"text": "nothing of this task"}, "text must be one that the tokenizer can split"),
        ({"text": "\ud800"}, "text must be one that the tokenizer can split"),
        ({"text": "w1", "expert_log_probs": True}, "must be false where the server has no expert"),
        ({"text": 5}, "VALIDATION_ERROR"),
        ({"text": None}, "VALIDATION_ERROR"),
        ({"texts": "w1"}, "VALIDATION_ERROR"),
        ({}, "VALIDATION_ERROR"),
    ],
)
def test_what_is_no_text_is_an_error_and_the_episode_goes_on(action, expected, url, tiny_task):
    with connect(url) as env:
        env.reset(split="test", index=1)
        with pytest.raises(RuntimeError, match=expected):
            env.step(action)
        assert env.step({"text": tiny_task.test[1].reference}).reward == 1.0


def test_a_text_needs_an_episode(url):
    with connect(url) as env:
        with pytest.raises(RuntimeError, match="reset must be called before step"):
            env.step({"text": "w1"})
        env.reset(index=0)
        env.step({"text": "w1"})
        with pytest.raises(RuntimeError, match="reset must be called before step"):
            env.step({"text": "w1"})
    answer = requests.post(f"{url}/step", json={"action": {"text": "w1"}}, timeout=10)
    assert answer.status_code == 422
    assert "WebSocket" in answer.json()["detail"]


def test_sessions_do_not_see_each_other_and_one_too_many_is_an_error(serve, tiny_task):
    url = serve(reward=exact_match, max_sessions=2)
    with connect(url) as one, connect(url) as two:
        for index, env in enumerate((one, two)):
            env.reset(split="test", index=index)
        assert [e.step({"text": tiny_task.test[1].reference}).reward for e in (one, two)] == [0, 1]
        with connect(url) as third, pytest.raises(REFUSED):
            third.reset()
    for _ in range(200):  # the server ends a session a moment after its client has gone
        with suppress(*REFUSED), connect(url) as again:
            assert again.reset(index=0).observation["source"]
            return
        time.sleep(0.05)
    pytest.fail("no session was free again")


def test_a_client_that_goes_away_leaves_the_server_to_others(url, tiny_task):
    gone = connect(url)
    gone.connect()
    gone.reset(index=0)
    gone.async_client._ws.transport.abort()  # without the closing handshake
    gone._stop_loop()
    with connect(url) as env:
        env.reset(split="test", index=1)
        assert env.step({"text": tiny_task.test[1].reference}).reward == 1.0
